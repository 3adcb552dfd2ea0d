"""The chain that generates images: a denoiser's sampler, from noise alone or from noised images."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.fitting import Fit

WHOLE_CHAIN = 1 - 1e-9
"""The t* with which every sampler's grid is its whole chain; the grids themselves exclude 1."""


@dataclass(frozen=True)
class Chain:
    """How images are generated.

    Attributes:
        t_star: diffusion time where the chain starts, in (0, 1]. At 1 it starts from noise alone and runs the
            sampler's whole grid; below, from real images that are noised to t*. A denoiser makes sense of
            noise levels only up to those it was trained on: t* = 0.3 for the embedded ones.
        sampler: registered name or import path.
        steps: S of the sampler's published grid, which counts the whole chain.
        options: keyword arguments of the sampler.
        grid: further keyword arguments of its grid.
        resize: size of the images that the network sees, as of a purifier; what it makes comes back in that
            of the data. None keeps it.
        pad: what their sides are padded to a multiple of, the same.

    Raises:
        UserError: if ``t_star`` is out of range.
    """

    t_star: float
    sampler: str = "ddim"
    steps: int = 50
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    resize: Any = None
    pad: Any = None

    def __post_init__(self) -> None:
        if not 0 < self.t_star <= 1:
            raise UserError(
                f"t_star {self.t_star} is outside (0, 1]. Use 1 to start from noise alone, or at most 0.3"
                " with the embedded denoisers."
            )

    def table(self) -> dict[str, Any]:
        """Returns the settings as keyword arguments of a `Purifier`, without stages that there are not."""
        fit = Fit(self.resize, self.pad).table()
        return {**{k: v for k, v in asdict(self).items() if k not in ("resize", "pad")}, **fit}

    @property
    def start(self) -> str:
        """What the chain starts from, in words."""
        return "noise" if self.t_star == 1 else f"real images noised to t* = {self.t_star:g}"


@torch.no_grad()
def generate(denoiser: Denoiser, x: Tensor, chain: Chain, *, noise: NoisePlan) -> Tensor:
    """Generates one image for every row of the plan.

    Noise alone is sigma z around a zero image, sigma the first level of the sampler's whole grid. With a
    discrete grid of S steps that is time 1000 - 1000 / S, where sigma is above 100.

    Args:
        denoiser: any `Denoiser`; a module is frozen and put in eval mode.
        x: real images (B, C, H, W) in [0, 1] that are noised; with ``chain.t_star`` = 1 only their shape
            and type count.
        chain: how.
        noise: plan of the same B examples.

    Returns:
        Images (B, C, H, W), clipped to [0, 1].

    Raises:
        UserError: if an option is wrong, the sampler adds no noise to its image, or a pixel is not finite.

    Example:
        >>> from dbpkit import NoisePlan, load_embedded
        >>> denoiser, _ = load_embedded()
        >>> generate(denoiser, torch.zeros(1, 3, 32, 32), Chain(t_star=0.1), noise=NoisePlan.of(0, [0])).shape
        torch.Size([1, 3, 32, 32])
    """
    settings = {**chain.table(), "t_star": min(chain.t_star, WHOLE_CHAIN)}
    purifier = Purifier(denoiser, **settings, clamp=True)
    if "forward" not in purifier.sampler.sites:
        raise UserError(
            f"sampler '{chain.sampler}' adds no noise to the image it starts from, so it generates nothing."
            " Use one such as 'ddim' or 'ddpm'."
        )
    if chain.t_star == 1 and not purifier.sampler.generates:
        raise UserError(
            f"sampler '{chain.sampler}' works on an image that is there, so it makes none of noise alone. Use"
            " one such as 'ddim' or 'ddpm', or a smaller t_star."
        )
    grey = torch.full_like(x, 0.5)  # 0 in [-1, 1]
    made = purifier(grey if chain.t_star == 1 else x, noise=noise)
    if not bool(torch.isfinite(made).all()):
        raise UserError(
            f"the denoiser made pixels that are not finite, starting from {chain.start}. Start at a smaller"
            " t_star, within the noise levels it was trained on."
        )
    return made
