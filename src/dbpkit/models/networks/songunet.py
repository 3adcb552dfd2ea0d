"""EDM's ``SongUNet``: the DDPM++ and NCSN++ of its CIFAR-10, FFHQ and AFHQ models, and MeanFlow's network.

The state dict is that of the published files without the preconditioner's ``model.`` (EDM) or ``net.``
(MeanFlow).
"""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, CountOrNone, Counts, NonNegative, Share
from dbpkit.models.networks.conventions import QkvOrder
from dbpkit.models.networks.edm_blocks import (
    EDMBlock,
    FourierFeatures,
    ResampledConv,
    TimeFeatures,
    class_features,
    group_norm,
)
from dbpkit.models.networks.edm_unet import EDMUNet, Plan, plan_from_shapes
from dbpkit.models.networks.registry import networks
from dbpkit.models.networks.shapes import Shapes, reads_shapes, times

TAPS: dict[int, tuple[int, ...]] = {2: (1, 1), 4: (1, 3, 3, 1)}
"""Resampling filters of the published files, by their number of taps."""


@networks.register("songunet")
class SongUNet(EDMUNet):
    """EDM's DDPM++ (the defaults) or NCSN++: a U-Net with one attention head and sums divided by sqrt(2).

    Args:
        image_channels: C of the image.
        img_resolution: side of the images it was made for; it is part of the names in a file.
        model_channels: width after the first convolution, which ``channel_mult`` multiplies.
        channel_mult: factor of each resolution, the finest first.
        channel_mult_emb: width of the noise-level embedding, in ``model_channels``.
        channel_mult_noise: width of its sines and cosines, in ``model_channels``; 2 for NCSN++.
        num_blocks: residual blocks of each resolution; one more on the way up.
        attn_resolutions: sides at which blocks have self-attention.
        label_dim: classes; 0 for an unconditional network.
        augment_dim: augmentation labels; 0 for none.
        dropout: share dropped inside a block.
        embedding_type: ``"positional"``, or ``"fourier"`` for NCSN++.
        encoder_type: ``"residual"`` also adds a shrunken image to each resolution, as NCSN++ does.
        resample_filter: taps; (1, 3, 3, 1) for NCSN++.
        qkv_order: how rows of ``qkv`` are read; ``"blocks"`` for MeanFlow.
        told_span: whether the network is told a second time, as MeanFlow's is.
        out_channels: channels of the answer; None for as many as the image has.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), appendix F.1; Song et al. 2021 (arXiv:2011.13456); for
        ``told_span`` Geng et al. 2025 (arXiv:2505.13447).
    """

    def __init__(
        self,
        image_channels: Count = 3,
        img_resolution: Count = 32,
        model_channels: Count = 128,
        channel_mult: Counts = (2, 2, 2),
        channel_mult_emb: Count = 4,
        channel_mult_noise: Count = 1,
        num_blocks: Count = 4,
        attn_resolutions: tuple[Count, ...] = (16,),
        label_dim: CountOrNone = 0,
        augment_dim: CountOrNone = 0,
        dropout: Share = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        encoder_type: Literal["standard", "residual"] = "standard",
        resample_filter: tuple[NonNegative, ...] = (1, 1),
        qkv_order: QkvOrder = "interleaved",
        told_span: bool = False,
        out_channels: Count | None = None,
    ) -> None:
        noise, embedding = model_channels * channel_mult_noise, model_channels * channel_mult_emb
        block = partial(_block, embedding, taps=resample_filter, dropout=dropout, qkv_order=qkv_order)
        widths, pyramid = [factor * model_channels for factor in channel_mult], encoder_type == "residual"
        plan = Plan(
            "songunet", block, image_channels, model_channels, widths, num_blocks, img_resolution,
            attn_resolutions, attends_last_only=True, pyramid=resample_filter if pyramid else None,
        )  # fmt: skip
        super().__init__(plan)
        self.told_span, self.label_dim = told_span, label_dim
        positional = embedding_type == "positional"
        self.map_noise = TimeFeatures(noise, "sin_cos", "half-1") if positional else FourierFeatures(noise)
        told = 2 * noise if told_span else noise
        self.map_label = nn.Linear(label_dim, told) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, told, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(told, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.add_halves(plan)
        side = f"{img_resolution}x{img_resolution}"
        self.dec[f"{side}_aux_norm"] = group_norm(widths[0], 1e-6)
        self.dec[f"{side}_aux_conv"] = nn.Conv2d(widths[0], out_channels or image_channels, 3, padding=1)
        _first_weights(self)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor | tuple[Tensor, Tensor],
        label: Tensor | None = None,
        *,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Maps scaled images (B, C, H, W) and noise labels (B,) to the raw answer (B, out_channels, H, W).

        Args:
            x: scaled images.
            noise_label: (B,) in the unit of the preconditioner. For ``told_span`` two of them: the time t of
                the flow, and how far back the answer is averaged, t - r; one alone is both, which is r = 0.
            label: (B,) whole class indices, or None for zeros in the place of one class.
            augment: (B, augment_dim) augmentation labels, or None for zeros.

        Raises:
            UserError: if H or W does not fit, or something is given that the network was not made for.
        """
        _check_told(self, noise_label, label, augment)
        told = noise_label if isinstance(noise_label, tuple) else (noise_label,) * (1 + self.told_span)
        single = torch.promote_types(x.dtype, torch.float32)
        features = torch.cat([self.map_noise(t.to(single)) for t in told], dim=1).to(x.dtype)
        if self.map_label is not None:
            features = features + class_features(self.map_label, label, features, math.sqrt(self.label_dim))
        if self.map_augment is not None and augment is not None:
            features = features + self.map_augment(augment.to(x.dtype))
        embedding = functional.silu(self.map_layer0(features))
        x = self.walked(x, functional.silu(self.map_layer1(embedding)))
        norm, conv = list(self.dec.values())[-2:]
        return conv(functional.silu(norm(x)))


def _block(embedding: int, inputs: int, outputs: int, attends: bool = False, **options: Any) -> EDMBlock:
    """A block as ``SongUNet`` has them."""
    return EDMBlock(
        inputs, outputs, embedding, heads=int(attends), skip_scale=math.sqrt(0.5), eps=1e-6,
        always_project=True, **options,
    )  # fmt: skip


def _check_told(network: SongUNet, noise_label: Any, label: Any, augment: Any) -> None:
    """Raises UserError if something is given that the network was not made for."""
    unknown = {
        "two noise labels": isinstance(noise_label, tuple) and not network.told_span,
        "class labels": label is not None and network.map_label is None,
        "augmentation labels": augment is not None and network.map_augment is None,
    }
    for what, given in unknown.items():
        if given:
            raise UserError(f"this songunet was not made for {what}. Leave them out.")


def _first_weights(network: nn.Module) -> None:
    """Glorot-uniform weights, the last layers of residual branches and of the network nearly 0, biases 0."""
    nearly_zero = {
        m for b in network.modules() if isinstance(b, EDMBlock) for m in (b.conv1, *_projection(b))
    }
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d | ResampledConv)]
    for layer in layers:
        if layer.weight is None:
            continue
        nn.init.xavier_uniform_(layer.weight, 1e-5 if layer in nearly_zero or layer is layers[-1] else 1.0)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _projection(block: EDMBlock) -> list[nn.Module]:
    return [block.proj] if block.heads else []


@reads_shapes("songunet")
def options_from_shapes(shapes: Shapes) -> dict[str, Any]:
    """Returns the options of a network from the shapes of its tensors, without ``model.`` or ``net.``.

    Positional features four times as wide as the first convolution are read as MeanFlow's, two embeddings of
    twice the width: no published network of EDM has them. Dropout is in no file.

    Raises:
        UserError: if they are not of this network.
    """
    told = shapes["map_layer0.weight"][1]
    side = max(int(name[4:].partition("x")[0]) for name in shapes if name.endswith("_conv.weight"))
    first, image_channels = shapes[f"enc.{side}x{side}_conv.weight"][:2]
    freqs = shapes.get("map_noise.freqs")
    noise = 2 * freqs[0] if freqs else told // 2 if told == 4 * first else told
    span = told == 2 * noise
    filters = [shape[-1] for name, shape in shapes.items() if name.endswith("_down.conv0.resample_filter")]
    out = shapes[f"dec.{side}x{side}_aux_conv.weight"][0]
    return {
        **plan_from_shapes(shapes, first),
        "channel_mult_noise": times(noise, first),
        "embedding_type": "fourier" if freqs else "positional",
        "encoder_type": "residual" if any("_aux_residual" in name for name in shapes) else "standard",
        "resample_filter": TAPS[filters[0]] if filters else TAPS[2],
        "qkv_order": "blocks" if span else "interleaved",
        "told_span": span,
        "out_channels": None if out == image_channels else out,
    }
