"""The U-Net of guided-diffusion (ADM), of improved-diffusion before it and of consistency models after it.

The names of its parameters are those of the published checkpoints. How many heads attention has and how the
rows of its convolutions are read is in no file: these are options.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from dbpkit.foundation.annotations import Share
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.adm_blocks import (
    GROUPS,
    Attention,
    Block,
    Downsample,
    Residual,
    Upsample,
    norm,
)
from dbpkit.models.networks.conventions import QkvOrder, TimeDivisor, TimeOrder, time_embedding
from dbpkit.models.networks.layers import ZeroConv2d, checked_sides, refuse_label
from dbpkit.models.networks.registry import networks


@networks.register("adm")
class ADM(nn.Module):
    """The U-Net of guided-diffusion, improved-diffusion and consistency models.

    The defaults are those of ``256x256_diffusion_uncond.pt``. Improved-diffusion's networks have
    ``resblock_updown=False`` and ``num_heads=4``; consistency models have ``learn_sigma=False``,
    ``qkv_dims=2`` and ``qkv_order="blocks"``.

    Args:
        image_channels: C of the image.
        model_channels: width; a level has this times its multiple channels, a multiple of 32.
        channel_mult: multiples of the levels, the finest first; between two of them the image is halved.
        num_res_blocks: residual blocks of each level on the way down; there is one more on the way up.
        attention_resolutions: by what the image's sides are divided where residual blocks are followed by
            self-attention: powers of 2.
        learn_sigma: whether the network returns 2 C channels, the second half for the variance. The loss of
            denoising trains none, so a network that is to be trained from random weights wants False.
        num_classes: of a class-conditional network, which is called with labels; None for one without.
        num_heads: heads of attention, if ``num_head_channels`` is None.
        num_head_channels: channels of each head; None for ``num_heads`` heads at every width.
        resblock_updown: whether residual blocks change the resolution, else strided convolutions.
        use_scale_shift_norm: whether the time scales and shifts a normalisation, else it is added before it.
        dropout: share that is dropped in each block in training.
        qkv_order: rows of the qkv convolution: ``heads`` as in most files, ``blocks`` where they were trained
            with ``use_new_attention_order`` and in consistency models.
        qkv_dims: 1 where attention's weights are (out, in, 1), 2 where they are (out, in, 1, 1).
        time_order: which half of the embedding of times comes first.
        time_divisor: what the exponents of its frequencies are divided by.

    Raises:
        UserError: if a width is no multiple of 32 or of its heads.

    Source:
        Dhariwal & Nichol 2021 (arXiv:2105.05233), section 3 and appendix I; Nichol & Dhariwal 2021
        (arXiv:2102.09672), appendix A; Song et al. 2023 (arXiv:2303.01469), appendix C.
    """

    def __init__(
        self,
        image_channels: Count = 3,
        model_channels: Count = 256,
        channel_mult: Annotated[tuple[Length, ...], MinLen(1)] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: Count = 2,
        attention_resolutions: tuple[Count, ...] = (8, 16, 32),
        learn_sigma: bool = True,
        num_classes: Count | None = None,
        num_heads: Count = 4,
        num_head_channels: Count | None = 64,
        resblock_updown: bool = True,
        use_scale_shift_norm: bool = True,
        dropout: Share = 0.0,
        qkv_order: QkvOrder = "heads",
        qkv_dims: Literal[1, 2] = 1,
        time_order: TimeOrder = "cos_sin",
        time_divisor: TimeDivisor = "half",
    ) -> None:
        super().__init__()
        self.model_channels, self.num_classes = model_channels, num_classes
        self.needs_label = num_classes is not None
        self.side_multiple = 2 ** (len(channel_mult) - 1)
        self.time_order, self.time_divisor = time_order, time_divisor
        size = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, size), nn.SiLU(), nn.Linear(size, size))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, size)
        widths = [int(multiple * model_channels) for multiple in channel_mult]
        _refuse(widths)
        block = partial(Residual, embedding_size=size, dropout=dropout, scale_shift=use_scale_shift_norm)
        attention = partial(_attention, num_heads, num_head_channels, qkv_order, qkv_dims)
        plan = _Plan(widths, num_res_blocks, attention_resolutions, resblock_updown, block, attention)
        self.input_blocks, skips = _way_down(plan, image_channels)
        width = widths[-1]
        self.middle_block = Block(block(width, width), attention(width), block(width, width))
        self.output_blocks = _way_up(plan, skips)
        outputs = (1 + learn_sigma) * image_channels
        self.out = nn.Sequential(norm(widths[0]), nn.SiLU(), ZeroConv2d(widths[0], outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps scaled images (B, C, H, W) and times (B,) to (B, C, H, W); 2 C channels with ``learn_sigma``.

        Args:
            x: the network's input.
            t: times in the network's own unit: an index of 0 to 999, or a number on that scale.
            label: (B,) class indices; None for a network without classes.

        Raises:
            UserError: if H or W is not a multiple of ``side_multiple``, or a label is missing or not wanted.
        """
        checked_sides("adm", x, self.side_multiple)
        t = t.to(torch.promote_types(x.dtype, torch.float32))
        found = time_embedding(t, self.model_channels, self.time_order, self.time_divisor)
        embedding = self.time_embed(found.to(x.dtype))
        if self.num_classes is None:
            refuse_label("adm", label)
        elif label is None:
            raise UserError(
                f"adm: this network was trained with {self.num_classes} classes. Give it a label."
            )
        else:
            embedding = embedding + self.label_emb(label)
        skips = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)


class _Plan(NamedTuple):
    """What both ways are built from.

    Attributes:
        widths: channels of the levels, the finest first.
        blocks: residual blocks of a level on the way down.
        attended: divisors of the image's sides at which there is attention.
        updown: whether residual blocks resample.
        residual: makes a residual block.
        attention: makes attention of a width.
    """

    widths: Sequence[int]
    blocks: int
    attended: Sequence[int]
    updown: bool
    residual: Callable[..., Residual]
    attention: Callable[[int], Attention]

    def level(self, level: int, inputs: int) -> list[nn.Module]:
        """A residual block of a level and, where there is any, the attention behind it."""
        width = self.widths[level]
        attention = [self.attention(width)] if 2**level in self.attended else []
        return [self.residual(inputs, width), *attention]


def _way_down(plan: _Plan, image_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """The blocks from the image to the coarsest level, and the channels that each of them returns."""
    width = plan.widths[0]
    found, skips = [Block(nn.Conv2d(image_channels, width, 3, padding=1))], [width]
    for level, outputs in enumerate(plan.widths):
        for _ in range(plan.blocks):
            found.append(Block(*plan.level(level, width)))
            width = outputs
            skips.append(width)
        if level < len(plan.widths) - 1:
            found.append(Block(plan.residual(width, width, "down") if plan.updown else Downsample(width)))
            skips.append(width)
    return nn.ModuleList(found), skips


def _way_up(plan: _Plan, skips: Sequence[int]) -> nn.ModuleList:
    """The blocks from the coarsest level to the image, each on what one block of the way down returned."""
    width, left, found = plan.widths[-1], list(skips), []
    for level in range(len(plan.widths) - 1, -1, -1):
        for last in [False] * plan.blocks + [True]:
            modules = plan.level(level, width + left.pop())
            width = plan.widths[level]
            if level and last:
                modules.append(plan.residual(width, width, "up") if plan.updown else Upsample(width))
            found.append(Block(*modules))
    return nn.ModuleList(found)


def _attention(
    num_heads: int, head_channels: int | None, order: QkvOrder, dims: Literal[1, 2], width: int
) -> Attention:
    """Attention of a width; UserError if heads do not divide it."""
    heads = num_heads if head_channels is None else width // head_channels
    if heads == 0 or width % heads or (head_channels and width % head_channels):
        said = f"{num_heads} heads" if head_channels is None else f"heads of {head_channels} channels"
        raise UserError(f"adm: attention of {width} channels cannot have {said}.")
    return Attention(width, heads, order, dims)


def _refuse(widths: Sequence[int]) -> None:
    """Raises UserError for widths that cannot be normalised in groups."""
    if wrong := [w for w in widths if w % GROUPS or not w]:
        raise UserError(
            f"adm: every level's width must be a multiple of {GROUPS}, not {wrong[0]}. Change model_channels"
            " or channel_mult."
        )
