"""JPEG compression: the real codec, with the gradient of a differentiable one.

The value is Pillow's. The gradient is that of the same steps in torch, colours, averaged colour differences,
cosine transform and quantisation, where rounding has the derivative 3 (v - round(v))**2. So coefficients that
the codec drops get little gradient. That is not the derivative of the codec, which is 0 almost everywhere.
"""

import math
from functools import lru_cache
from io import BytesIO
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count
from dbpkit.foundation.png import eight_bits
from dbpkit.purification.filters.filter import BPDA_LIKE, Filter, Noising, valued
from dbpkit.purification.purifier import purifiers

Quality = Annotated[int, Ge(1), Le(95)]
"""Quality of libjpeg; above 95 its tables leave nothing to do."""

Subsampling = Literal["4:2:0", "4:4:4"]
"""Whether colour differences have half the resolution."""

TO_YCC = torch.tensor(
    [[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]],
    dtype=torch.float64,
)
"""Red, green and blue to luminance and two colour differences: JFIF 1.02, section 7."""


@purifiers.register("jpeg")
class JPEG(Filter):
    """Compresses images with Pillow and reads them back. Its gradient is a surrogate's, and labelled so.

    Args:
        quality: of libjpeg, 1 to 95.
        subsampling: ``4:2:0``, Pillow's own choice, or ``4:4:4``.
        t_star: diffusion time of noise that is added first; 0 adds none.
        steps: S of the published grid that the time is looked up in.

    Source:
        Dziugaite, Ghahramani & Roy 2016 (arXiv:1608.00853), as a defence; Shin & Song 2017, "JPEG-resistant
        adversarial images", eq. 2, for the derivative of rounding.
    """

    gradient_note = f"{BPDA_LIKE}: that of a JPEG whose rounding is a cubic"

    def __init__(
        self,
        quality: Quality = 75,
        subsampling: Subsampling = "4:2:0",
        t_star: Noising = 0.0,
        steps: Count = 1000,
    ) -> None:
        super().__init__(t_star, steps)
        self.quality, self.subsampling = quality, subsampling

    def filtered(self, x: Tensor) -> Tensor:
        """Returns the pixels that the codec gives back; UserError unless there are 1 or 3 channels."""
        if x.shape[1] not in (1, 3):
            raise UserError(f"jpeg: images must have 1 or 3 channels, not {x.shape[1]}.")
        value = torch.stack([self._coded(image) for image in x.detach().cpu()])
        return valued(value.to(x) / 255, surrogate(x, self.quality, self.subsampling))

    def _coded(self, image: Tensor) -> Tensor:
        """An image (C, H, W) in [0, 1] after the codec, uint8."""
        file = BytesIO(encoded(image, self.quality, self.subsampling))
        pixels = torch.from_numpy(np.array(Image.open(file)))
        return pixels[None] if len(image) == 1 else pixels.permute(2, 0, 1)


def encoded(image: Tensor, quality: int, subsampling: Subsampling) -> bytes:
    """The JPEG file of an image (C, H, W) in [0, 1]."""
    made = Image.fromarray(eight_bits(image))
    made.save(file := BytesIO(), "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def surrogate(
    x: Tensor, quality: int, subsampling: Subsampling, *, rounded: Literal["cubic", "exact"] = "cubic"
) -> Tensor:
    """The codec's steps in torch, on images (B, C, H, W) in [0, 1] with 1 or 3 channels; not clipped.

    ``rounded`` says whether quantisation rounds, or has the cubic that can be differentiated in its place.
    """
    height, width = x.shape[-2:]
    x = pad(x, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = TO_YCC.to(x)
    planes = list((torch.einsum("ij,bjhw->bihw", matrix, x) if x.shape[1] == 3 else x).split(1, dim=1))
    halved = subsampling == "4:2:0"
    for k, table in enumerate(tables(quality)[: len(planes)]):
        small = halved and k > 0
        plane = avg_pool2d(planes[k], 2) if small else planes[k]
        offset = 128 if k == 0 else 0
        plane = (_quantised(255 * plane - offset, table.to(x), rounded) + offset) / 255
        planes[k] = interpolate(plane, scale_factor=2, mode="bilinear") if small else plane
    found = torch.cat(planes, dim=1)
    if len(planes) == 3:
        found = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(TO_YCC).to(x), found)
    return found[..., :height, :width]


@lru_cache(maxsize=128)
def tables(quality: int) -> tuple[Tensor, Tensor, Tensor]:
    """Steps of quantisation of the three planes, (8, 8) each, as the codec itself writes them."""
    blank = encoded(torch.zeros(3, 16, 16), quality, "4:2:0")
    found = Image.open(BytesIO(blank)).quantization  # type: ignore[attr-defined]
    luminance, colour = (torch.tensor(found[k], dtype=torch.float64).view(8, 8) for k in (0, 1))
    return luminance, colour, colour


@lru_cache(maxsize=8)
def cosines(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal cosine transform of 8 values, (8, 8): rows are frequencies."""
    k = torch.arange(8, dtype=torch.float64)
    waves = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    waves[0] /= math.sqrt(2)
    return waves.to(device, dtype)


def _quantised(plane: Tensor, table: Tensor, rounded: str) -> Tensor:
    """A plane (B, 1, H, W) after cosine transform, quantisation and the way back, in blocks of 8 x 8."""
    waves = cosines(plane.dtype, plane.device)
    blocks = plane.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 1, H / 8, W / 8, 8, 8)
    scaled = (waves @ blocks @ waves.T) / table
    whole = scaled.detach().round()
    kept = whole if rounded == "exact" else whole + (scaled - whole) ** 3
    back = waves.T @ (kept * table) @ waves
    return back.transpose(3, 4).reshape(plane.shape)
