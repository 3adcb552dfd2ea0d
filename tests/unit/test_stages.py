"""Sizes, margins and normalisation: values against closed forms and Pillow, gradients against adjoints."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dbpkit import UserError
from dbpkit.evaluation.computation import computation_sha256
from dbpkit.models.networks import networks
from dbpkit.models.sources import load_classifier, state_sha256
from dbpkit.models.stages import (
    NORMALISATIONS,
    Resize,
    StagedClassifier,
    asked_multiple,
    by_matrices,
    own_multiple,
    padded,
    resized,
)
from tests.oracles import uniform

WAYS = [("bilinear", False), ("bilinear", True), ("bicubic", False), ("bicubic", True)]


def by_hand(column: np.ndarray, after: int) -> np.ndarray:
    """Bilinear values of a column at the middles of ``after`` pixels, the ends held."""
    before = len(column)
    where = ((np.arange(after) + 0.5) * before / after - 0.5).clip(0, before - 1)
    low = np.floor(where).astype(int).clip(0, max(0, before - 2))
    share = where - low
    return column[low] * (1 - share) + column[np.minimum(low + 1, before - 1)] * share


@pytest.mark.parametrize(("before", "after"), [((7, 5), (9, 8)), ((16, 14), (14, 16)), ((9, 1), (4, 3))])
def test_bilinear_values_are_those_of_the_formula(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = uniform(1, 2, *before)
    rows = np.apply_along_axis(by_hand, 2, x.numpy(), after[0])
    expected = np.apply_along_axis(by_hand, 3, rows, after[1])
    assert np.abs(resized(x, after).numpy() - expected).max() < 1e-14


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("after", [(5, 9), (13, 20)])
def test_antialiased_values_are_pillows(mode: str, after: tuple[int, int]) -> None:
    x = uniform(1, 1, 16, 15).float()
    filtering = Image.Resampling.BILINEAR if mode == "bilinear" else Image.Resampling.BICUBIC
    expected = np.asarray(Image.fromarray(x[0, 0].numpy()).resize(after[::-1], filtering))
    assert np.abs(resized(x, after, mode, True)[0, 0].numpy() - expected).max() < 2e-6


@pytest.mark.parametrize(("mode", "antialias"), WAYS)
def test_a_constant_stays_and_only_bicubic_overshoots(mode: str, antialias: bool) -> None:
    stage = Resize((11, 13), mode, antialias)
    assert torch.allclose(stage(torch.full((1, 3, 8, 8), 0.3)), torch.tensor(0.3), atol=1e-6)
    edge = stage((torch.arange(8.0)[None, None, None] > 3).float().expand(1, 1, 8, 8))
    assert bool((edge.max() > 1.001) | (edge.min() < -0.001)) == (mode == "bicubic")


@pytest.mark.parametrize(("mode", "antialias"), WAYS)
def test_gradient_is_the_adjoint(mode: str, antialias: bool) -> None:
    """<A x, y> = <x, A' y>, with A' from the matrices of the weights, and from autograd."""
    x, y = uniform(2, 3, 8, 7).requires_grad_(), uniform(2, 3, 11, 4, seed=1)
    out = resized(x, (11, 4), mode, antialias)
    (grad,) = torch.autograd.grad(out, x, y)
    leaf = x.detach().requires_grad_()
    (other,) = torch.autograd.grad(by_matrices(leaf, (11, 4), mode, antialias), leaf, y)
    assert torch.allclose(grad, other, rtol=0, atol=1e-14)
    assert abs((out * y).sum() - (x * grad).sum()).item() < 1e-12
    assert torch.allclose(by_matrices(x, (11, 4), mode, antialias), out, rtol=0, atol=1e-14)


def test_second_derivatives_go_through_a_resize() -> None:
    x = uniform(1, 1, 4, 4).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: resized(x, (6, 5)).square().sum(), (x,))


def test_the_shorter_side_gets_the_size_and_an_image_of_that_size_is_left_alone() -> None:
    assert Resize(256).sides(480, 640) == (256, 341)
    assert Resize(256).sides(640, 480) == (341, 256)
    assert Resize((5, 9)).sides(480, 640) == (5, 9)
    x = uniform(1, 3, 4, 4)
    assert Resize(4)(x) is x


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "size must be a whole number"),
        (2.5, "size to resize to is a number or"),
        ("256", "size to resize to is a number or"),
        ([1, 2, 3], "size to resize to is a number or"),
        ({"mode": "bilinear"}, "resize needs a size"),
        ({"size": 3, "model": 1}, "no key of resize 'model'|unknown key of resize 'model'"),
        ({"size": 3, "mode": "nearest"}, "nearest"),
        ({"size": 3, "antialias": 1}, "antialias is true or false"),
    ],
)
def test_wrong_sizes_are_refused(value: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Resize.of(value)


def test_a_resize_and_its_table_are_each_other() -> None:
    for stage in (Resize(7), Resize((7, 9), "bicubic", True)):
        assert Resize.of(stage.table()) == stage
    assert Resize.of(None) is None
    assert Resize.of(8) == Resize(8)
    assert Resize.of([8, 9]) == Resize((8, 9))


@pytest.mark.parametrize(("side", "multiple"), [(5, 8), (8, 8), (9, 4), (3, 16), (1, 4), (2, 7)])
def test_padding_reflects_and_cropping_undoes_it(side: int, multiple: int) -> None:
    x = uniform(2, 1, side, side + 1)
    made = padded(x, multiple)
    assert made.shape[-2] % multiple == made.shape[-1] % multiple == 0
    more = [(0, -s % multiple) for s in x.shape[-2:]]
    assert np.array_equal(made.numpy(), np.pad(x.numpy(), [(0, 0), (0, 0), *more], mode="reflect"))
    assert torch.equal(made[..., :side, : side + 1], x)


def test_gradient_of_padding_is_the_adjoint() -> None:
    x, y = uniform(1, 2, 5, 3).requires_grad_(), uniform(1, 2, 16, 16, seed=2)
    (grad,) = torch.autograd.grad(padded(x, 16), x, y)
    assert abs((padded(x, 16) * y).sum() - (x * grad).sum()).item() < 1e-12


class Picky(nn.Module):
    """Takes sides that are multiples of a number, and says so or not."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple, self.calls = multiple, 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns the image, or raises."""
        self.calls += 1
        if x.shape[-1] % self.multiple or x.shape[-2] % self.multiple:
            raise ValueError(f"multiples of {self.multiple} only")
        return x


@pytest.mark.parametrize("multiple", [1, 2, 8, 64])
def test_a_network_that_says_nothing_is_asked(multiple: int) -> None:
    assert asked_multiple(Picky(multiple), torch.zeros(3, 3, 17, 32)) == multiple
    with pytest.raises(UserError, match=r"no images of 17 x 32 .* up to 64 \(multiples of 128 only\)"):
        asked_multiple(Picky(128), torch.zeros(1, 3, 17, 32))


def test_a_network_that_returns_another_size_does_not_take_it() -> None:
    pooled = nn.Sequential(nn.MaxPool2d(4), nn.Upsample(scale_factor=4))
    assert asked_multiple(pooled, torch.zeros(1, 3, 10, 12)) == 4


def test_the_package_s_networks_say_their_multiple() -> None:
    unet = networks.get("unet")(channels=(8, 8, 8), blocks=(1, 1, 1), embedding_size=8)
    assert own_multiple(nn.Sequential(unet)) == unet.side_multiple
    assert own_multiple(nn.Conv2d(3, 3, 1)) is None


def test_a_staged_classifier_is_its_parts_one_after_the_other() -> None:
    body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).double()
    model = StagedClassifier(body, resize=8, normalise="imagenet").double()
    x = uniform(2, 3, 5, 5)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in NORMALISATIONS["imagenet"])
    assert torch.allclose(model(x), body((resized(x, (8, 8)) - mean) / std), atol=1e-6)
    assert torch.autograd.gradcheck(model, (x.requires_grad_(),))


def test_normalisation_by_table_and_its_errors() -> None:
    identity = nn.Identity()
    x = uniform(2, 1, 2, 2).float()
    assert torch.allclose(StagedClassifier(identity, normalise={"mean": [0.5], "std": [0.5]})(x), 2 * x - 1)
    for wrong, said in (
        ("imagnet", "imagenet"),
        ({"mean": [0.5]}, "normalise is a name"),
        ({"mean": [0.5], "std": [0.0]}, "deviations above 0"),
        ({"mean": [0.5, 0.5], "std": [0.5]}, "as many means"),
        ({"mean": [], "std": []}, "one number for each channel"),
        ({"mean": ["a"], "std": [1.0]}, "must be a number"),
    ):
        with pytest.raises(UserError, match=said):
            StagedClassifier(identity, normalise=wrong)
    with pytest.raises(UserError, match="made for 3 channels, not 1"):
        StagedClassifier(identity, normalise="half")(x)


def test_stages_tell_models_apart_and_no_stage_leaves_the_classifier_as_it_is() -> None:
    plain = load_classifier("tests.parts:ChannelMean")
    assert type(plain).__name__ == "ChannelMean"
    told = {
        computation_sha256(StagedClassifier(plain, resize=r, normalise=n))
        for r in (None, 8, [8, 8], {"size": 8, "antialias": True})
        for n in (None, "half", "imagenet")
    }
    assert len(told) == 12
    assert state_sha256(plain) != state_sha256(load_classifier("tests.parts:ChannelMean", resize=16))
