"""Frechet distances against closed forms and scipy, and the quality of denoisers whose quality is known."""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from dbpkit.fidelity import (
    Chain,
    Features,
    classifier_features,
    feature_statistics,
    frechet_distance,
    generate,
    make_features,
    quality,
)
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.networks import ResNet9
from dbpkit.models.sources import load_classifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.samplers import make_sampler, samplers
from tests.oracles import GaussianDenoiser, TinyClassifier, few_steps, tiny_denoiser, uniform
from tests.parts import data

ROUND_OFF = 1e-10
"""Float64 arithmetic on values of order one, but for roots of eigenvalues that ought to be 0."""
ROOT_ROUND_OFF = 1e-6
"""The root of a round-off of 1e-16, for each of a few dimensions."""
PIXELS = Features(lambda x: x.flatten(1), "distance of pixels", {"name": "pixels"})
MEANS = Features(lambda x: x.mean(dim=(2, 3)), "distance of means", {"name": "means"})

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def covariance(size: int, rank: int, seed: int) -> Tensor:
    """A covariance matrix of chosen rank."""
    root = uniform(size, rank, seed=seed, low=-1)
    return root @ root.T


# ------------------------------------------------------------------ the distance


def test_frechet_distance_diagonal_gaussians_matches_closed_form() -> None:
    """For commuting covariances it is |m - n|^2 + sum of (sigma - tau)^2."""
    mean_a, mean_b = uniform(5, seed=1), uniform(5, seed=2)
    std_a, std_b = uniform(5, seed=3), uniform(5, seed=4)
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    found = frechet_distance(mean_a, (std_a**2).diag(), mean_b, (std_b**2).diag())
    assert found == pytest.approx(expected, abs=ROUND_OFF)


@pytest.mark.parametrize("size", [1, 2, 12])
def test_frechet_distance_general_gaussians_matches_scipy(size: int) -> None:
    mean_a, mean_b = uniform(size, seed=1), uniform(size, seed=2)
    cov_a, cov_b = covariance(size, size + 3, 3), covariance(size, size + 3, 4)
    root = scipy.linalg.sqrtm(cov_a.numpy() @ cov_b.numpy()).real
    expected = float((mean_a - mean_b).square().sum() + (cov_a + cov_b).trace()) - 2 * np.trace(root)
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, abs=1e-8)


def test_frechet_distance_singular_covariances_matches_closed_form() -> None:
    """For B = u u^T the trace of (A B)^(1/2) is the root of u^T A u; A has rank 2 of 6."""
    mean, u, cov_a = torch.zeros(6), uniform(6, seed=1, low=-1), covariance(6, 2, 2)
    expected = float(cov_a.trace() + u @ u - 2 * (u @ cov_a @ u).sqrt())
    for pair in ((cov_a, u.outer(u)), (u.outer(u), cov_a)):
        assert frechet_distance(mean, pair[0], mean, pair[1]) == pytest.approx(expected, abs=ROOT_ROUND_OFF)


@pytest.mark.parametrize("rank", [2, 6, 9])
def test_frechet_distance_of_a_gaussian_from_itself_is_zero(rank: int) -> None:
    mean, cov = uniform(6, seed=1), covariance(6, rank, 2)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < ROOT_ROUND_OFF


def test_frechet_distance_float32_inputs_are_computed_in_float64() -> None:
    mean, cov = uniform(4, seed=1).float(), covariance(4, 8, 2).float()
    assert frechet_distance(mean, cov, mean, 4 * cov) == pytest.approx(float(cov.double().trace()), rel=1e-7)


def test_frechet_distance_other_shapes_raise() -> None:
    with pytest.raises(
        UserError, match=r"means \(F,\) with covariances \(F, F\), got \[\(3,\), \(3, 3\), \(2,"
    ):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(2), torch.eye(2))


def test_frechet_distance_not_finite_raises() -> None:
    with pytest.raises(UserError, match=r"of the features is not finite\. Check the network"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([0, torch.nan]), torch.eye(2))


def test_frechet_distance_too_large_for_a_number_raises() -> None:
    far = torch.tensor([1e200, 0.0], dtype=torch.float64)  # finite, and its square is not
    with pytest.raises(UserError, match="is too large for a number"):
        frechet_distance(far, torch.eye(2), torch.zeros(2), torch.eye(2))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [([[1.0, 0.5], [0.0, 1.0]], "must be symmetric"), ([[1.0, 2.0], [2.0, 1.0]], "no negative eigenvalue")],
)
def test_frechet_distance_of_what_is_no_covariance_raises(wrong: list[list[float]], said: str) -> None:
    # The eigenvalues of the second are 3 and -1; a floor at 0 would take it for another matrix.
    for a, b in ((torch.tensor(wrong), torch.eye(2)), (torch.eye(2), torch.tensor(wrong))):
        with pytest.raises(UserError, match=said):
            frechet_distance(torch.zeros(2), a, torch.zeros(2), b)


def test_feature_statistics_name_the_image_whose_features_are_not_finite() -> None:
    batches = [torch.zeros(3, 2), torch.tensor([[0.0, 1.0], [0.0, torch.inf]])]
    with pytest.raises(UserError, match="features of image 4 are not finite"):
        feature_statistics(batches)


def test_feature_statistics_of_another_width_raise() -> None:
    with pytest.raises(UserError, match="features of 3 values follow features of 2"):
        feature_statistics([torch.zeros(3, 2), torch.zeros(3, 3)])


def test_classifier_features_of_layers_that_are_not_used_raise() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))

    with pytest.raises(UserError, match=r"uses none of its nn\.Linear layers"):
        classifier_features(Unused(), "mine").extract(torch.zeros(1, 3, 4, 4))


# ------------------------------------------------------------------ statistics of features


@pytest.mark.parametrize("size", [1, 7, 40])
def test_feature_statistics_any_batches_match_numpy(size: int) -> None:
    """The offset of 1e6 would cost a difference of sums of squares twelve of its sixteen digits."""
    features = 1e6 + uniform(40, 5)
    found = feature_statistics(features.split(size))
    assert found.images == 40
    torch.testing.assert_close(found.mean, features.mean(dim=0), rtol=1e-14, atol=0)
    expected = torch.from_numpy(np.cov(features.numpy(), rowvar=False, ddof=1))
    torch.testing.assert_close(found.covariance, expected, rtol=0, atol=1e-9)


def test_feature_statistics_float32_batches_are_summed_in_float64() -> None:
    assert feature_statistics([torch.zeros(3, 2)]).covariance.dtype == torch.float64


@pytest.mark.parametrize("batches", [[], [torch.zeros(1, 3)]])
def test_feature_statistics_fewer_than_two_images_raise(batches: list[Tensor]) -> None:
    with pytest.raises(UserError, match=rf"{len(batches)} images have no covariance\. Use at least 2"):
        feature_statistics(batches)


def test_feature_statistics_feature_maps_raise() -> None:
    with pytest.raises(UserError, match=r"features must be \(B, F\), not \(2, 3, 4, 4\)\. Flatten or pool"):
        feature_statistics([torch.zeros(2, 3, 4, 4)])


# ------------------------------------------------------------------ Inception features


class FakeInception(nn.Module):
    """The published file's signature; features are the pixels of each channel's first row, as given."""

    def __init__(self, count: int = 2048) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        assert return_features
        rows = x[:, :, 0].flatten(1).float()
        return torch.cat([rows, torch.zeros(len(x), self.count - rows.shape[1])], dim=1)


class Unnamed(nn.Module):
    """Another network."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def scripted(module: nn.Module, folder: Path) -> str:
    """Writes a module as TorchScript; returns the path."""
    path = folder / "inception.pt"
    torch.jit.script(module).save(str(path))
    return str(path)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_gets_eight_bit_colour_images(tmp_path: Path, channels: int) -> None:
    features = make_features("inception", {"path": scripted(FakeInception(), tmp_path), "trust": True})
    assert features.metric == "Frechet distance of the features of inception.pt"
    assert len(features.about["sha256"]) == 64
    levels = torch.tensor([0, 3, 128, 255]).expand(2, channels, 4, 4)
    found = features.extract((levels + 0.4) / 255 * (levels < 255) + (levels == 255))  # rounds to the nearest
    assert found.shape == (2, 2048)
    assert found[0, :12].tolist() == [0, 3, 128, 255] * 3


class Writes(nn.Module):
    """What TorchScript may do: write a file when it is called."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        torch.save(x, "WRITTEN")  # noqa: TID251 - what must not run
        return x


def test_inception_file_that_is_not_the_published_one_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scripted(Writes(), tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"is not the published inception-2015-12-05\.pt: its sha256 is [0-9a-f]{64} where f58cb9b6.* "
        r"was expected\. TorchScript can run code: .* or give --trust if you trust this file\.$",
    ):
        make_features("inception", {"path": path})
    assert not (tmp_path / "WRITTEN").exists()
    made = make_features("inception", {"path": path, "trust": True})
    with pytest.raises(UserError, match="were expected"):
        made.extract(torch.zeros(1, 3, 2, 2))
    assert (tmp_path / "WRITTEN").exists()  # the file was dangerous indeed


def test_inception_published_file_is_the_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scripted(FakeInception(), tmp_path)
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    monkeypatch.setattr("dbpkit.fidelity.features.INCEPTION_SHA256", sha256)
    features = make_features("inception", {"path": path})
    assert features.metric == "FID"
    assert features.about == {"name": "inception", "sha256": sha256}


def test_inception_file_of_a_terabyte_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.pt").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(
        UserError, match=r"has 1099511627776 bytes, and inception-2015-12-05\.pt has 95607719"
    ):
        make_features("inception", {"path": str(tmp_path / "sparse.pt"), "trust": True})


def test_inception_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Inception file '.*none\.pt' is missing\. Download inception-2015"):
        make_features("inception", {"path": str(tmp_path / "none.pt")})


def test_inception_other_file_raises(tmp_path: Path) -> None:
    path = tmp_path / "text.pt"
    path.write_text("not a network")
    with pytest.raises(UserError, match=r"text\.pt' is not a TorchScript file \(.+\)\. Download inception"):
        make_features("inception", {"path": str(path), "trust": True})


def test_inception_network_of_another_signature_raises(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not take return_features\. Give inception-2015-12-05\.pt"):
        make_features("inception", {"path": scripted(Unnamed(), tmp_path), "trust": True})


def test_inception_features_of_another_width_raise(tmp_path: Path) -> None:
    features = make_features("inception", {"path": scripted(FakeInception(64), tmp_path), "trust": True})
    with pytest.raises(
        UserError, match=r"features \(2, 64\) where \(2, 2048\) were expected\..* it would not be an FID"
    ):
        features.extract(torch.zeros(2, 3, 4, 4))


def test_inception_two_channels_raise(tmp_path: Path) -> None:
    features = make_features("inception", {"path": scripted(FakeInception(), tmp_path), "trust": True})
    with pytest.raises(UserError, match="Inception features need images of 1 or 3 channels, not 2"):
        features.extract(torch.zeros(2, 2, 4, 4))


# ------------------------------------------------------------------ classifier features


class Backwards(nn.Module):
    """A classifier whose last linear layer is not the last one it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.hidden = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x.flatten(1))))


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module of the user's own, for import paths."""
    made = ModuleType("users_features")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_classifier_features_embedded_are_its_body() -> None:
    features = make_features("classifier", {})
    network = load_classifier("embedded")
    assert isinstance(network, ResNet9)
    x = uniform(2, 3, 32, 32).float()
    torch.testing.assert_close(features.extract(x), network.body(network.normalise(x)))
    assert features.metric == "Frechet distance of embedded classifier features"
    assert features.about["options"] == {"mirror": False}


def test_classifier_features_users_module_are_what_its_last_linear_layer_is_given(
    module: ModuleType,
) -> None:
    module.net = Backwards()
    x = uniform(4, 3, 2, 2).float()
    found = make_features("classifier", {"classifier": "users_features:net"})
    torch.testing.assert_close(found.extract(x), torch.relu(module.net.hidden(x.flatten(1))))
    assert found.metric == "Frechet distance of users_features:net classifier features"
    assert not module.net.head._forward_pre_hooks


def test_classifier_features_any_name_is_no_fid() -> None:
    assert not classifier_features(TinyClassifier(), "FID").metric.startswith("FID")


def test_classifier_features_module_without_linear_layer_raises() -> None:
    with pytest.raises(UserError, match=r"classifier 'conv' has no nn\.Linear to take features from"):
        classifier_features(nn.Conv2d(1, 1, 1), "conv")


# ------------------------------------------------------------------ generating images


GENERATES = [n for n in samplers if make_sampler(n).generates and n not in ("one_step", "reverse_only")]


@pytest.mark.parametrize("sampler", [n for n in samplers if not make_sampler(n).generates])
def test_generate_from_noise_by_a_sampler_that_needs_an_image_raises(sampler: str) -> None:
    with pytest.raises(UserError, match=f"sampler '{sampler}' works on an image that is there"):
        generate(tiny_denoiser(), torch.zeros(1, 1, 4, 4), Chain(1, sampler), noise=NoisePlan.of(0, [0]))


@pytest.mark.parametrize("sampler", GENERATES)
def test_generate_from_noise_ideal_denoiser_makes_the_data(sampler: str) -> None:
    """Every sampler turns noise into the Gaussian that the denoiser is made for, at the error of its grid."""
    clip = {} if sampler in ("vpsde", "heun") else {"options": {"clip": False}}
    chain = Chain(1, sampler, steps=100 if sampler == "heun" else 1000, **clip)
    x = torch.zeros(50, 1, 16, 16, dtype=torch.float64)
    made = generate(GaussianDenoiser(-0.2, 0.01), x, chain, noise=NoisePlan.of(0, range(50)))
    assert float(made.mean()) == pytest.approx(0.4, abs=0.005)  # (1 - 0.2) / 2; sampling error 0.05 / 113
    assert float(made.std()) == pytest.approx(0.05, rel=0.05)  # half of 0.1; sampling error 0.6 per cent


def test_generate_from_noise_ignores_the_images() -> None:
    noise, x = NoisePlan.of(0, [3, 9]), uniform(2, 1, 4, 4)
    made, other = (generate(tiny_denoiser(), images, Chain(1), noise=noise) for images in (x, 1 - x))
    assert torch.equal(made, other)
    assert not torch.equal(made[0], made[1])


def test_generate_from_images_purifies_them_and_clips() -> None:
    x, noise = uniform(2, 1, 4, 4), NoisePlan.of(0, [3, 9])
    chain = Chain(0.3, "ddpm", 100, {"variance": "small", "clip": False})
    expected = Purifier(
        tiny_denoiser(),
        "ddpm",
        t_star=0.3,
        steps=100,
        options={"variance": "small", "clip": False},
        clamp=True,
    )
    assert torch.equal(generate(tiny_denoiser(), x, chain, noise=noise), expected(x, noise=noise))


@pytest.mark.parametrize("t_star", [0.3, 1])
def test_generate_in_another_size_comes_back_in_that_of_the_data(t_star: float) -> None:
    x, noise = uniform(2, 1, 5, 5), NoisePlan.of(0, [3, 9])
    made = generate(tiny_denoiser(), x, Chain(t_star, steps=50, resize=8), noise=noise)
    grown = torch.nn.functional.interpolate(x, (8, 8), mode="bilinear", align_corners=False)
    inner = generate(tiny_denoiser(), grown, Chain(t_star, steps=50), noise=noise)
    expected = torch.nn.functional.interpolate(inner, (5, 5), mode="bilinear", align_corners=False)
    assert torch.equal(made, expected)
    assert Chain(t_star).table().keys() == {"t_star", "sampler", "steps", "options", "grid"}
    assert Chain(t_star, resize=8).table()["resize"]["size"] == 8


@pytest.mark.parametrize("t_star", [0.2, 1])
def test_generate_a_row_is_the_same_in_every_batch(t_star: float) -> None:
    x, noise, chain = (
        uniform(3, 1, 4, 4),
        NoisePlan.of(0, [3, 9, 4]),
        Chain(t_star, "ddpm", few_steps("ddpm")),
    )
    whole = generate(tiny_denoiser(), x, chain, noise=noise)
    part = generate(tiny_denoiser(), x[[2, 0]], chain, noise=noise.rows([2, 0]))
    torch.testing.assert_close(part, whole[[2, 0]], rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("t_star", [0.0, -0.1, 1.01])
def test_chain_t_star_out_of_range_raises(t_star: float) -> None:
    with pytest.raises(UserError, match=rf"t_star {t_star} is outside \(0, 1\]\. Use 1 to start from noise"):
        Chain(t_star)


def test_generate_sampler_without_forward_noise_raises() -> None:
    with pytest.raises(UserError, match=r"sampler 'reverse_only' adds no noise .* Use one such as 'ddim'"):
        generate(tiny_denoiser(), uniform(1, 1, 4, 4), Chain(0.5, "reverse_only"), noise=NoisePlan.of(0, [0]))


def test_generate_not_finite_raises() -> None:
    with pytest.raises(
        UserError, match=r"pixels that are not finite, starting from noise\. Start at a smaller"
    ):
        generate(lambda x, _: x / 0 * 0, uniform(1, 1, 4, 4), Chain(1), noise=NoisePlan.of(0, [0]))


# ------------------------------------------------------------------ the quality of a denoiser


def ideal(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of the tests' data where pixels are independent of each other: nearly true."""
    return GaussianDenoiser(-0.08, 0.004)(x, sigma)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """A denoiser that believes in data of another contrast."""
    return GaussianDenoiser(-0.08, 0.2)(x, sigma)


def test_quality_value_and_floor_are_the_distances_they_are_said_to_be() -> None:
    """Recomputed from the images alone: the halves are disjoint, and the chains start from the first."""
    images, chain, seen = data(24), Chain(0.3, "ddpm", 50), []
    recorded = Features(lambda x: seen.append(x) or MEANS.extract(x), "m", {})
    found = quality(blurred, images, recorded, chain, images=12, seed=4, batch_size=5)
    real, made, start = torch.cat(seen).split(12)
    both = torch.cat([real, start])
    assert sorted(map(tuple, both.flatten(1).tolist())) == sorted(map(tuple, images.x().flatten(1).tolist()))
    ids = [int(images.ids[(images.x() == x).flatten(1).all(dim=1)][0]) for x in start]
    expected = generate(blurred, start, chain, noise=NoisePlan.of(4, ids, "report"))
    torch.testing.assert_close(made, expected)
    real, made, start = (feature_statistics([MEANS.extract(x)]) for x in (real, made, start))
    for value, of in ((found.value, made), (found.floor, start)):
        assert value == pytest.approx(frechet_distance(*of[:2], *real[:2]), abs=ROUND_OFF)


@pytest.mark.parametrize("t_star", [0.3, 1])
def test_quality_better_denoiser_has_the_smaller_distance_above_the_floor(t_star: float) -> None:
    good, bad = (quality(d, data(60), PIXELS, Chain(t_star, steps=100)) for d in (ideal, blurred))
    assert good.floor == bad.floor
    assert good.floor is not None
    assert 0 < good.floor < bad.value / 2
    assert good.value < bad.value / 2


def test_quality_other_batch_size_changes_nothing() -> None:
    progress: list[tuple[int, int]] = []
    a = quality(ideal, data(24), MEANS, Chain(0.3), batch_size=5, progress=lambda *p: progress.append(p))
    b = quality(ideal, data(24), MEANS, Chain(0.3), batch_size=100)
    assert a.value == pytest.approx(b.value, rel=1e-4)  # float32 images
    assert progress == [(5, 12), (10, 12), (12, 12)]


def test_quality_same_seed_repeats_and_another_differs() -> None:
    a, b, c = (quality(ideal, data(24), MEANS, Chain(1), seed=seed) for seed in (1, 1, 2))
    assert a == b
    assert a.value != c.value
    assert a.floor != c.floor


def test_quality_is_ready_for_json_and_says_how_it_was_made() -> None:
    chain = Chain(0.3, "ddpm", 50, {"variance": "small"})
    found = quality(
        tiny_denoiser(3).float(), data(8), classifier_features(TinyClassifier(3).float(), "tiny"), chain
    )
    told = json.loads(json.dumps(found._asdict()))
    assert told["metric"] == "Frechet distance of tiny classifier features"
    assert told["start"] == "real images noised to t* = 0.3"
    assert told["chain"] == {
        "t_star": 0.3,
        "sampler": "ddpm",
        "steps": 50,
        "options": {"variance": "small"},
        "grid": {},
    }
    assert (told["images"], told["reference_images"], told["features"]["count"]) == (4, 4, 4)
    assert told["reference"] is None


def test_quality_no_more_images_than_features_warns() -> None:
    few, many = (quality(ideal, data(count), MEANS, Chain(0.3)) for count in (6, 8))
    assert few.warning is not None
    assert few.warning.startswith("3 images for 3 features: the covariance is singular")
    assert many.warning is None


def test_quality_reference_is_used_whole() -> None:
    images = data(24)
    other = images.select(slice(10, 24))
    found = quality(ideal, images.select(slice(0, 10)), MEANS, Chain(0.3), reference=other)
    assert (found.images, found.reference_images) == (10, 14)
    assert found.reference == {"name": "tiny", "sha256": other.sha256}
    real = feature_statistics([MEANS.extract(other.x())])
    start = feature_statistics([MEANS.extract(images.x()[:10])])
    assert found.floor == pytest.approx(frechet_distance(*start[:2], *real[:2]), abs=ROUND_OFF)


def test_quality_reference_of_the_same_images_has_no_floor() -> None:
    found = quality(ideal, data(), MEANS, Chain(1), reference=data())
    assert found.floor is None
    assert found.value > 0
    assert found.start == "noise"


def test_quality_images_compared_with_themselves_raise() -> None:
    with pytest.raises(UserError, match=r"reference 'tiny' holds the images that the chains start from"):
        quality(ideal, data(), MEANS, Chain(0.3), reference=data())


@pytest.mark.parametrize("images", [0, 1, 7])
def test_quality_number_of_images_out_of_range_raises(images: int) -> None:
    with pytest.raises(
        UserError, match=rf"images {images} is outside 2 to 6, the 12 images of 'tiny' in two ha"
    ):
        quality(ideal, data(), MEANS, Chain(0.3), images=images)


def test_quality_reference_of_another_shape_raises() -> None:
    with pytest.raises(UserError, match=r"images of data 'tiny' are \(3, 8, 8\) and those of .* \(4, 8, 8\)"):
        quality(ideal, data(), MEANS, Chain(0.3), reference=data(channels=4))
