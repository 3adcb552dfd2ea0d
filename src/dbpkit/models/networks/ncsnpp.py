"""The U-Nets of Score-SDE: DDPM++ for variance-preserving chains, NCSN++ for exploding ones.

The names of its parameters are those of the published checkpoints, and their order is the one in which these
keep their averaged weights, which have no names there. What no file says (resampling filter, range of the
pixels, division by sigma) are options.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional

from dbpkit.foundation.annotations import Counts, Share
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.models.networks.conventions import TimeDivisor, TimeOrder, time_embedding
from dbpkit.models.networks.layers import ZeroConv2d, checked_sides, refuse_label
from dbpkit.models.networks.ncsnpp_blocks import (
    Attention,
    Conv,
    Dense,
    Fourier,
    Pyramid,
    Residual,
    norm,
)
from dbpkit.models.networks.registry import networks


@networks.register("ncsnpp")
class NCSNpp(nn.Module):
    """The residual U-Net of Score-SDE, with concatenated skips; also FlowPure's, ADBM's and ADDT's.

    The defaults are those of ``vp/cifar10_ddpmpp_continuous``. ``num_res_blocks=8`` is the deep one;
    ``embedding_type="fourier", fir=True, progressive_input="residual", scale_by_sigma=True, centered=False``
    is ``ve/cifar10_ncsnpp_continuous``.

    Args:
        image_channels: C of the image.
        image_size: side of the images it was made for: says at which depth ``attn_resolutions`` lie.
        nf: width, a multiple of 4; a level has ``nf`` times its multiple channels.
        ch_mult: multiples of the levels, the finest first; between two of them the image is halved.
        num_res_blocks: residual blocks of each level on the way down; there is one more on the way up.
        attn_resolutions: sides of the image at which residual blocks are followed by self-attention.
        dropout: share that is dropped in each block in training.
        embedding_type: of the time: ``positional`` for labels as they are (999 t in the published VP
            networks, t in FlowPure), ``fourier`` for the logarithm of sigma.
        fourier_scale: deviation of the random frequencies of ``fourier``.
        fir: whether images are resampled with the filter (1, 3, 3, 1), else by mean and repetition.
        progressive_input: ``residual`` adds the image at each resolution to the way down.
        skip_rescale: whether sums of two are divided by the square root of 2.
        scale_by_sigma: whether the result is divided by the label, which is sigma; with ``fourier`` only.
        centered: whether images come in [-1, 1]; otherwise in [0, 1], and the network scales them itself.
        num_scales: length of the table ``sigmas`` that published files carry and nothing reads; 0 for none.
        sigma_min: its smallest level.
        sigma_max: its largest level.
        time_order: which half of the embedding comes first.
        time_divisor: what the exponents of the frequencies of a ``positional`` one are divided by.

    Raises:
        UserError: if two options exclude each other.

    Source:
        Song et al. 2021 (arXiv:2011.13456), appendix H.
    """

    sigmas: Tensor

    def __init__(
        self,
        image_channels: Count = 3,
        image_size: Count = 32,
        nf: Annotated[int, Ge(4), Le(4096)] = 128,
        ch_mult: Counts = (1, 2, 2, 2),
        num_res_blocks: Count = 4,
        attn_resolutions: tuple[Count, ...] = (16,),
        dropout: Share = 0.1,
        embedding_type: Literal["positional", "fourier"] = "positional",
        fourier_scale: Length = 16.0,
        fir: bool = False,
        progressive_input: Literal["none", "residual"] = "none",
        skip_rescale: bool = True,
        scale_by_sigma: bool = False,
        centered: bool = True,
        num_scales: Annotated[int, Ge(0), Le(100_000)] = 0,
        sigma_min: Length = 0.01,
        sigma_max: Length = 50.0,
        time_order: TimeOrder = "sin_cos",
        time_divisor: TimeDivisor = "half-1",
    ) -> None:
        super().__init__()
        _refuse(nf, embedding_type, scale_by_sigma, progressive_input, fir)
        self.image_channels, self.nf = image_channels, nf
        self.side_multiple = 2 ** (len(ch_mult) - 1)
        self.scale_by_sigma, self.centered = scale_by_sigma, centered
        self.root = math.sqrt(0.5) if skip_rescale else 1.0
        self.fourier = embedding_type == "fourier"
        if not self.fourier:
            self.time_order, self.time_divisor = time_order, time_divisor
        self.all_modules = nn.ModuleList()
        self.plan: list[str] = []
        if num_scales:
            levels = torch.linspace(math.log(sigma_max), math.log(sigma_min), num_scales, dtype=torch.float64)
            self.register_buffer("sigmas", levels.exp().float())
        if self.fourier:
            self._add("time", Fourier(nf, fourier_scale, time_order))
        self._add("time", Dense(2 * nf if self.fourier else nf, 4 * nf))
        self._add("time", Dense(4 * nf, 4 * nf))
        self._add("start", Conv(image_channels, nf, 3, padding=1))
        block = partial(Residual, embedding_size=4 * nf, dropout=dropout, fir=fir, root=self.root)
        widths = [nf * multiple for multiple in ch_mult]
        attends = [image_size // 2**level in attn_resolutions for level in range(len(widths))]
        self._way_down(block, widths, num_res_blocks, attends, progressive_input == "residual")
        self._way_up(block, widths, num_res_blocks, attends)

    def _add(self, role: str, module: nn.Module) -> None:
        self.plan.append(role)
        self.all_modules.append(module)

    def _way_down(
        self,
        block: Callable[..., Residual],
        widths: Sequence[int],
        blocks: int,
        attends: Sequence[bool],
        pyramid: bool,
    ) -> None:
        """Adds the modules between the first convolution and the middle, in the published order."""
        width, above = self.nf, self.image_channels
        self.widths_of_skips = [width]
        for level, outputs in enumerate(widths):
            for _ in range(blocks):
                self._add("down", block(width, outputs))
                width = outputs
                self.widths_of_skips.append(width)
                if attends[level]:
                    self._add("attend", Attention(width, self.root))
            if level == len(widths) - 1:
                return
            self._add("down", block(width, width, "down"))
            self.widths_of_skips.append(width)
            if pyramid:
                self._add("pyramid", Pyramid(above, width))
                above = width

    def _way_up(
        self, block: Callable[..., Residual], widths: Sequence[int], blocks: int, attends: Sequence[bool]
    ) -> None:
        """Adds the modules from the middle to the last convolution, in the published order."""
        width, skips = widths[-1], list(self.widths_of_skips)
        self._add("middle", block(width, width))
        self._add("attend", Attention(width, self.root))
        self._add("middle", block(width, width))
        for level in range(len(widths) - 1, -1, -1):
            for _ in range(blocks + 1):
                self._add("up", block(width + skips.pop(), widths[level]))
                width = widths[level]
            if attends[level]:
                self._add("attend", Attention(width, self.root))
            if level:
                self._add("middle", block(width, width, "up"))
        self._add("end", norm(width))
        self._add("end", ZeroConv2d(width, self.image_channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps scaled images (B, C, H, W) and times (B,) in its own unit to (B, C, H, W).

        Args:
            x: the network's input: in [-1, 1] units if ``centered``, else in those of [0, 1].
            t: times, or sigma in the unit of ``x`` with ``fourier``.
            label: must be None.

        Raises:
            UserError: if H or W is not a multiple of ``side_multiple``, or a label is given.
        """
        refuse_label("ncsnpp", label)
        checked_sides("ncsnpp", x, self.side_multiple)
        steps = list(zip(self.plan, self.all_modules, strict=True))
        times = [module for role, module in steps if role == "time"]
        embedding = self._embedding(t, x.dtype, times)
        pyramid = x = x if self.centered else 2 * x - 1
        skips: list[Tensor] = []
        for place, (role, module) in enumerate(steps):
            if role == "start":
                x = module(x)
                skips.append(x)
            elif role == "down":
                x = module(x, embedding)
                skips.append(x)
            elif role == "attend":
                x = module(x)
                if steps[place - 1][0] == "down":
                    skips[-1] = x
            elif role == "pyramid":
                pyramid = x = skips[-1] = self.root * (module(pyramid) + x)
            elif role == "middle":
                x = module(x, embedding)
            elif role == "up":
                x = module(torch.cat([x, skips.pop()], dim=1), embedding)
        norm, out = self.all_modules[-2], self.all_modules[-1]
        x = out(functional.silu(norm(x)))
        return x / t.to(x.dtype)[:, None, None, None] if self.scale_by_sigma else x

    def _embedding(self, t: Tensor, dtype: torch.dtype, times: list[nn.Module]) -> Tensor:
        """The embedding (B, 4 nf) of times, after the swish that every block applies to it."""
        t = t.to(torch.promote_types(dtype, torch.float32))
        if self.fourier:
            found = times[0](t.log())
        else:
            found = time_embedding(t, self.nf, self.time_order, self.time_divisor)
        first, second = times[-2:]
        return functional.silu(second(functional.silu(first(found.to(dtype)))))


def _refuse(nf: int, embedding_type: str, scale_by_sigma: bool, progressive_input: str, fir: bool) -> None:
    """Raises UserError for options that exclude each other."""
    if nf % 4:
        raise UserError(f"ncsnpp: nf must be a multiple of 4, not {nf}.")
    if scale_by_sigma and embedding_type != "fourier":
        raise UserError("ncsnpp: scale_by_sigma needs embedding_type = 'fourier', whose label is sigma.")
    if progressive_input == "residual" and not fir:
        raise UserError("ncsnpp: progressive_input = 'residual' needs fir = true.")
