"""SSIM against SciPy's Gaussian filter and against its definition."""

import numpy as np
import pytest
from scipy import ndimage, signal

from dbpkit.statistics.ssim import ssim
from tests.oracles import uniform


def scipy_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of (C, H, W) images by Wang et al. 2004, with SciPy's Gaussian window of radius 5."""

    def local(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    found = []
    for a, b in zip(x, y, strict=True):
        mu, nu = local(a), local(b)
        s, t, st = local(a * a) - mu**2, local(b * b) - nu**2, local(a * b) - mu * nu
        top = (2 * mu * nu + 1e-4) * (2 * st + 9e-4)
        found.append((top / ((mu**2 + nu**2 + 1e-4) * (s + t + 9e-4))).mean())
    return float(np.mean(found))


def test_ssim_equals_scipy_gaussian_filter() -> None:
    x = uniform(3, 3, 20, 17, seed=1)
    y = (0.7 * x + 0.3 * uniform(3, 3, 20, 17, seed=2)).clamp(0, 1)
    expected = [scipy_ssim(a, b) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(ssim(x, y).numpy(), expected, rtol=1e-10)


def test_ssim_equals_definition_with_explicit_11_by_11_window() -> None:
    x, y = uniform(1, 1, 13, 13, seed=1), uniform(1, 1, 13, 13, seed=2)
    window = np.outer(signal.windows.gaussian(11, 1.5), signal.windows.gaussian(11, 1.5))
    window /= window.sum()
    a, b = x[0, 0].numpy(), y[0, 0].numpy()
    found = []
    for i in range(3):
        for j in range(3):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mu, nu = (window * p).sum(), (window * q).sum()
            s, t = (window * (p - mu) ** 2).sum(), (window * (q - nu) ** 2).sum()
            st = (window * (p - mu) * (q - nu)).sum()
            found.append((2 * mu * nu + 1e-4) * (2 * st + 9e-4) / ((mu**2 + nu**2 + 1e-4) * (s + t + 9e-4)))
    assert float(ssim(x, y)[0]) == pytest.approx(np.mean(found), rel=1e-10)


def test_ssim_is_one_for_equal_images_and_falls_with_noise() -> None:
    x, noise = uniform(2, 3, 16, 16, seed=1), uniform(2, 3, 16, 16, seed=2, low=-1)
    assert ssim(x, x).tolist() == pytest.approx([1, 1], abs=1e-12)
    found = [float(ssim(x, x + size * noise).mean()) for size in (0.01, 0.1, 0.3)]
    assert found == sorted(found, reverse=True)


def test_ssim_image_smaller_than_the_window_narrows_it_to_an_odd_size() -> None:
    x, y = uniform(1, 1, 8, 8, seed=1), uniform(1, 1, 8, 8, seed=2)

    def local(image: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(image, 1.5, radius=3)[3:-3, 3:-3]

    a, b = x[0, 0].numpy(), y[0, 0].numpy()
    mu, nu = local(a), local(b)
    top = (2 * mu * nu + 1e-4) * (2 * (local(a * b) - mu * nu) + 9e-4)
    bottom = (mu**2 + nu**2 + 1e-4) * (local(a * a) - mu**2 + local(b * b) - nu**2 + 9e-4)
    assert float(ssim(x, y)[0]) == pytest.approx((top / bottom).mean(), rel=1e-10)
