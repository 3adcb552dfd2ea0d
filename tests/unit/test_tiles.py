"""Large images in tiles: what a whole image gives, wherever tiles lie and however many go together."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import NoisePlan, Purifier, UserError
from dbpkit.purification.samplers import samplers
from dbpkit.purification.tiles import CELL, PlaneNoise, in_tiles, shares, starts
from tests.oracles import GaussianDenoiser, sampler_cases, uniform

NOISE = NoisePlan.of(3, [77])


def tiled(purify: Callable[..., Tensor], x: Tensor, **settings: Any) -> Tensor:
    """The purified image (C, H, W), its bands put together."""
    bands = list(in_tiles(purify, lambda top, bottom: x[:, top:bottom], tuple(x.shape), NOISE, **settings))
    assert [top for top, _ in bands] == [sum(b.shape[1] for _, b in bands[:k]) for k in range(len(bands))]
    return torch.cat([band for _, band in bands], dim=1)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 31, 50, 129, 1000])
@pytest.mark.parametrize(("tile", "overlap"), [(16, 4), (16, 0), (64, 16)])
def test_tiles_cover_a_side_and_overlap_enough(length: int, tile: int, overlap: int) -> None:
    found = starts(length, tile, overlap)
    size = min(tile, length)
    assert found[0] == 0
    assert found[-1] + size == length
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(found))
    assert len(found) <= max(1, -(-(length - overlap) // (tile - overlap)))
    covered = torch.zeros(length)
    for begin in found:
        share = shares(begin, size, length, overlap)
        assert bool(((share > 0) & (share <= 1)).all())
        covered[begin : begin + size] += share
    assert bool((covered > 0).all())
    assert covered[0] >= 1 or length > size


def test_tiles_that_are_all_overlap_are_refused() -> None:
    for overlap in (16, 20, -1):
        with pytest.raises(UserError, match="overlap"):
            starts(100, 16, overlap)


def test_noise_belongs_to_a_place_whatever_the_window() -> None:
    whole = PlaneNoise.over(NOISE, [(0, 0)]).normal("forward", 2, torch.zeros(1, 3, 90, 100))
    corners = [(0, 0), (5, 31), (CELL, CELL), (33, 64)]
    windows = PlaneNoise.over(NOISE, corners)
    drawn = windows.normal("forward", 2, torch.zeros(4, 3, 40, 36))
    for window, (top, left) in zip(drawn, corners, strict=True):
        assert torch.equal(window, whole[0, :, top : top + 40, left : left + 36])
    assert torch.equal(windows.rows([2, 0]).normal("forward", 2, torch.zeros(2, 3, 40, 36)), drawn[[2, 0]])
    assert torch.equal(windows.rows(slice(1, 3)).uniform("churn", 0, torch.zeros(2, 1, 8, 8)),
                       windows.uniform("churn", 0, torch.zeros(4, 1, 8, 8))[1:3])  # fmt: skip


def test_noise_on_the_plane_is_normal_and_of_its_image_and_step_alone() -> None:
    like = torch.zeros(1, 3, 128, 128, dtype=torch.float64)
    one = PlaneNoise.over(NOISE, [(0, 0)]).normal("forward", 0, like)
    n = one.numel()
    assert abs(one.mean()) < 4 / n**0.5
    assert abs(one.var() - 1) < 4 * (2 / n) ** 0.5
    for shifted in (
        one[..., :-CELL] * one[..., CELL:],
        one[:, 1:] * one[:, :-1],
        one[..., 1:] * one[..., :-1],
    ):
        assert abs(shifted.mean()) < 4 / shifted.numel() ** 0.5
    others = (
        PlaneNoise.over(NoisePlan.of(3, [78]), [(0, 0)]).normal("forward", 0, like),
        PlaneNoise.over(NoisePlan.of(4, [77]), [(0, 0)]).normal("forward", 0, like),
        PlaneNoise.over(NOISE, [(0, 0)]).normal("forward", 1, like),
        PlaneNoise.over(NOISE, [(0, 0)]).normal("reverse", 0, like),
    )
    assert all(abs((one * other).mean()) < 4 / n**0.5 for other in others)


def test_noise_of_windows_is_refused_for_another_batch() -> None:
    windows = PlaneNoise.over(NOISE, [(0, 0), (8, 8)])
    for like in (torch.zeros(3, 1, 8, 8), torch.zeros(2, 8)):
        with pytest.raises(UserError, match="noise of 2 windows was drawn like"):
            windows.normal("forward", 0, like)
    with pytest.raises(UserError, match="windows are of one image"):
        PlaneNoise.over(NoisePlan.of(0, [1, 2]), [(0, 0)])


OF_PIXELS = [
    (name, options)
    for name, options in sampler_cases()
    if name != "likelihood" and not {"corrector_steps", "distance"} & set(options)
]


@pytest.mark.parametrize(("name", "options"), OF_PIXELS)
@pytest.mark.parametrize("batch", [1, 5])
def test_a_denoiser_of_single_pixels_gives_the_whole_image_exactly(
    name: str, options: dict[str, Any], batch: int
) -> None:
    """Its estimate of a pixel depends on this pixel alone, so tiles and image are the same, noise included.

    The Langevin corrector, SSIM and the length of a likelihood's gradient measure whole images.
    """
    purifier = Purifier(GaussianDenoiser(), name, steps=20, t_star=0.3, options=options)
    x = uniform(3, 43, 50).float()
    whole = purifier(x[None], noise=PlaneNoise.over(NOISE, [(0, 0)]))[0]
    made = tiled(lambda x, noise: purifier(x, noise=noise), x, tile=16, overlap=5, batch=batch)
    assert torch.equal(made, whole)
    assert name in samplers


class Blur(nn.Module):
    """Sees one pixel further, with nothing beyond the border."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns a mean of 3 x 3, of zeros outside."""
        return nn.functional.avg_pool2d(x, 3, stride=1, padding=1) + 0 * sigma


def test_borders_that_a_network_sees_fade_out() -> None:
    """A network with a border of its own is off where tiles end; their share there is small."""
    purifier = Purifier(Blur(), "one_step", t_star=0.05)
    x = torch.full((1, 60, 60), 0.9)
    whole = purifier(x[None], noise=PlaneNoise.over(NOISE, [(0, 0)]))[0]
    gaps = {
        overlap: float((tiled(lambda x, noise: purifier(x, noise=noise), x, tile=20, overlap=overlap) - whole)
                       .abs().max())
        for overlap in (0, 8)
    }  # fmt: skip
    assert gaps[0] > 0.2
    assert gaps[8] < 0.2 * gaps[0], gaps


def test_an_image_smaller_than_a_tile_is_one_tile() -> None:
    x, seen = uniform(1, 9, 30).float(), []

    def purify(x: Tensor, noise: NoisePlan) -> Tensor:
        seen.append(tuple(x.shape))
        return x

    assert torch.equal(tiled(purify, x, tile=16, overlap=4, batch=2), x)
    assert seen == [(2, 1, 9, 16), (1, 1, 9, 16)]


def test_too_many_tiles_for_the_memory_are_halved() -> None:
    x, seen = uniform(1, 16, 60).float(), []

    def purify(x: Tensor, noise: NoisePlan) -> Tensor:
        seen.append(len(x))
        if len(x) > 2:
            raise MemoryError
        return x + 0 * noise.normal("forward", 0, x)

    assert torch.equal(tiled(purify, x, tile=16, overlap=4, batch=8), x)
    assert max(seen[1:]) <= 4
    assert set(seen[2:]) <= {1, 2}
