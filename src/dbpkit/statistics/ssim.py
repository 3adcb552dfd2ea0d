"""Structural similarity of two images."""

import torch
from torch import Tensor


def ssim(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of images: 1 where they are equal, lower where they differ.

    Args:
        x: images (B, C, H, W).
        y: images of the same shape.
        data_range: largest minus smallest possible pixel value.

    Returns:
        (B,) float64: mean over channels and over all windows that lie wholly inside the image. Windows are
        11 x 11 Gaussians of standard deviation 1.5; narrower (odd) where the image is smaller than that.

    Source:
        Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13 with K1 = 0.01 and K2 = 0.03.
    """
    x, y = x.double(), y.double()
    down, across = _windows(x.shape[2]).to(x), _windows(x.shape[3]).to(x)

    def local_mean(image: Tensor) -> Tensor:
        return down @ image @ across.T

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(dim=1)


def _windows(side: int) -> Tensor:
    """Gaussian windows at every place inside ``side`` pixels, (places, side); rows sum to 1."""
    size = min(11, side - 1 + side % 2)
    window = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * 1.5**2))
    places = torch.zeros(side - size + 1, side, dtype=torch.float64)
    for i in range(len(places)):
        places[i, i : i + size] = window / window.sum()
    return places
