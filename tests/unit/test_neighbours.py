"""Every convention that leaves shapes valid, planted in a sound network, is found by its error and named.

The networks are ideal for Gaussian data, so that what is right is known in closed form; those with a time
embedding or a qkv convolution read from it what they need, and fail if it is read in another order. The thing
people get wrong: random weights, which fit no data under any convention.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dbpkit
from dbpkit import EDMDenoiser, Linf, NoisePlan, PurifiedClassifier, Purifier, VPDenoiser
from dbpkit.checks import Flag, Note, Probe
from dbpkit.checks.conventions import (
    _no_better,
    behaviour,
    classifier_mismatch,
    denoiser_mismatch,
    neighbouring_conventions,
    trial,
)
from dbpkit.checks.culprits import Plain
from dbpkit.models.neighbours import STATISTICS, changed, classifier_neighbours, neighbours, rescaled
from dbpkit.models.networks.conventions import split_qkv, time_embedding
from dbpkit.models.schedule import discrete_sigmas, vp_sigma, vp_time
from tests.oracles import GaussianDenoiser, uniform
from tests.parts import ChannelMean

COUNT, MEAN, VARIANCE = 8, 0.2, 0.05
LEVELS = (0.17, 0.34, 0.68)


def images(count: int = COUNT, side: int = 16, seed: int = 0, channels: int = 3) -> Tensor:
    """White Gaussian images of variance 0.05 around 0.2 in [-1, 1] units, in [0, 1]."""
    z = NoisePlan.of(seed, range(count)).normal("probe", 0, torch.zeros(count, channels, side, side))
    return (1 + MEAN + math.sqrt(VARIANCE) * z) / 2


IDEAL = GaussianDenoiser(MEAN, VARIANCE)
X = images()


def named(denoiser: Any, x: Tensor = X) -> str:
    better = trial(denoiser, x, levels=LEVELS).better
    return better.neighbour.name if better else ""


def test_ideal_denoiser_has_no_better_neighbour() -> None:
    found = trial(IDEAL, X, levels=LEVELS)
    assert (found.better, found.tried) == (None, 14)


WRONG = {
    "range 0 1": (2.0, -1.0, 2.0, (0.5, 0.5)),  # a network of [0, 1] that is given [-1, 1] looks like this
    "range -1 1": (0.5, 0.5, 0.5, (2.0, -1.0)),
    "input halved": (2.0, 0.0, 2.0, (0.5, 0.0)),
    "input doubled": (0.5, 0.0, 0.5, (2.0, 0.0)),
    "output 0 1": (1.0, 0.0, 1.0, (0.5, 0.5)),
    "output -1 1": (1.0, 0.0, 1.0, (2.0, -1.0)),
    "input 0 1": (2.0, -1.0, 2.0, (1.0, 0.0)),
    "input -1 1": (0.5, 0.5, 0.5, (1.0, 0.0)),
    "sigma 0.5": (1.0, 0.0, 2.0, (1.0, 0.0)),
    "sigma 2": (1.0, 0.0, 0.5, (1.0, 0.0)),
}
"""What a wrapper does wrongly, and what the neighbour that puts it right is called."""


@pytest.mark.parametrize("right", WRONG)
def test_foreign_denoiser_wrong_range_or_level_is_named(right: str) -> None:
    assert named(rescaled(IDEAL, *WRONG[right])) == right


class Network(nn.Module):
    """The ideal network of white images: told times that ``level`` turns into sigma, predicting ``kind``."""

    def __init__(self, level: Callable[[Tensor], Tensor], kind: str = "noise") -> None:
        super().__init__()
        self.level, self.kind = level, kind

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        sigma = self.level(time).to(state)[:, None, None, None]
        x = state * (1 + sigma**2).sqrt()
        x0 = IDEAL(x, sigma)
        z, signal = (x - x0) / sigma, (1 + sigma**2).rsqrt()
        return {"noise": z, "x0": x0, "v": signal * (z - sigma * x0), "score": -z / (signal * sigma)}[
            self.kind
        ]


def index(time: Tensor) -> Tensor:
    return discrete_sigmas()[time.round().long().clamp(0, 999)]


@pytest.mark.parametrize("taken", ["noise", "v", "x0", "score"])
@pytest.mark.parametrize("kind", ["noise", "v", "x0", "score"])
def test_vp_prediction_is_named(kind: str, taken: str) -> None:
    assert named(VPDenoiser(Network(index, kind), taken)) == ("" if kind == taken else f"prediction {kind}")


UNITS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "time 1 t": (lambda t: vp_sigma(t.clamp(max=1)), {"time": "continuous"}),
    "time 999 t": (lambda t: vp_sigma(t / 999), {"time": "continuous", "time_scale": 1.0}),
    "time index": (index, {"time": "continuous", "time_scale": 1.0}),
    "time ln": (lambda t: (4 * t.clamp(max=1)).exp(), {}),
    "schedule cosine": (lambda t: cosine(t), {}),
}  # fmt: skip


def cosine(time: Tensor) -> Tensor:
    """Levels of the cosine schedule by index, written out."""
    signal = [
        math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
        / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
        for k in range(1, 1001)
    ]  # fmt: skip
    return (1 / torch.tensor(signal, dtype=torch.float64) - 1).sqrt()[time.round().long().clamp(0, 999)]


@pytest.mark.parametrize("right", UNITS)
def test_vp_unit_of_time_is_named(right: str) -> None:
    """An index is 999 t but for rounding, so the message has to name both."""
    level, options = UNITS[right]
    better = trial(VPDenoiser(Network(level), **options), X, levels=LEVELS).better
    assert right in {better.neighbour.name, *(n.name for n in better.equal)}


def test_edm_unit_of_time_is_named() -> None:
    class Raw(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            sigma = label.to(x).exp()[:, None, None, None]  # ln(sigma), not a quarter of it
            total = (sigma**2 + 0.25).sqrt()
            state = x * total
            return (IDEAL(state, sigma) - 0.25 / total**2 * state) / (0.5 * sigma / total)

    assert named(EDMDenoiser(Raw())) == "time ln"


class Embedded(nn.Module):
    """Reads its time back from an embedding that is sine first, exponents over half."""

    def __init__(self, order: str, divisor: str) -> None:
        super().__init__()
        self.time_order, self.time_divisor = order, divisor
        self.network = Network(index)

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        found = time_embedding(time.double(), 64, self.time_order, self.time_divisor)
        return self.network(state, torch.atan2(found[:, 31], found[:, 63]) * 10_000 ** (31 / 32))


@pytest.mark.parametrize(
    ("order", "divisor", "right"),
    [
        ("sin_cos", "half", ""),
        ("cos_sin", "half", "time_order sin_cos"),
        ("sin_cos", "half-1", "time_divisor half"),
    ],
)
@pytest.mark.parametrize("foreign", [False, True])
def test_time_embedding_is_named(order: str, divisor: str, right: str, foreign: bool) -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = VPDenoiser(Embedded(order, divisor))

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return self.inside(x, sigma)

    denoiser = Wrapper() if foreign else VPDenoiser(Embedded(order, divisor))
    assert named(denoiser) == right


class Attentive(nn.Module):
    """The ideal network of images of one colour in noise: attention takes the mean over all positions."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.qkv_order = order
        rows = torch.zeros(12, 4)  # two heads of two channels, in blocks of q, k and v
        rows[8:] = torch.eye(4)
        self.weight = nn.Parameter(rows)

    def forward(self, state: Tensor, time: Tensor) -> Tensor:
        sigma = index(time).to(state)[:, None, None, None]
        x = state * (1 + sigma**2).sqrt()
        q, k, v = split_qkv(self.weight @ x.flatten(2), 2, self.qkv_order)
        mean = torch.softmax(q @ k.transpose(2, 3), dim=3) @ v  # (B, heads, N, 2)
        x0 = mean.transpose(2, 3).reshape(x.shape)
        return (x - x0) / sigma


@pytest.mark.parametrize("order", ["heads", "interleaved"])
def test_qkv_order_is_named(order: str) -> None:
    colours = 0.2 + 0.6 * NoisePlan.of(1, range(COUNT)).uniform("probe", 0, torch.zeros(COUNT, 4, 1, 1))
    x = (colours + 0.02 * images(COUNT, 8, channels=4)).expand(-1, -1, 8, 8)
    assert named(VPDenoiser(Attentive("blocks")), x) == ""
    assert named(VPDenoiser(Attentive(order)), x) == "qkv_order blocks"


def test_diffusers_embedding_is_varied_as_its_configuration_would_be() -> None:
    """The neighbour is the network that diffusers builds of the other configuration and the same weights."""
    diffusers = pytest.importorskip("diffusers")

    def made(**config: Any) -> nn.Module:
        return diffusers.UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), norm_num_groups=4,
            layers_per_block=1, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), **config,
        ).eval()  # fmt: skip

    network = made(flip_sin_to_cos=False, freq_shift=1).requires_grad_(False)
    found = {n.name: n.denoiser for n in neighbours(VPDenoiser(network))}
    x = images(2, 8, channels=1)
    for name, config in {
        "flip_sin_to_cos True": {"flip_sin_to_cos": True, "freq_shift": 1},
        "downscale_freq_shift 0": {"flip_sin_to_cos": False, "freq_shift": 0},
        "flip_sin_to_cos True downscale_freq_shift 0": {"flip_sin_to_cos": True, "freq_shift": 0},
    }.items():
        other = made(**config)
        other.load_state_dict(network.state_dict())
        expected = VPDenoiser(other)(x, torch.tensor(0.34))
        gap = float((found[name](x, torch.tensor(0.34)) - expected).abs().max())
        assert gap < 1e-5, name  # the same sums in another order
        assert float((VPDenoiser(network)(x, torch.tensor(0.34)) - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("wrong", [{"time_shift": 1.0}, {"time_shift": -1.0}, {"time_index": "floor"}])
def test_one_index_more_or_less_or_floor_is_tried_and_too_little_to_be_seen(wrong: dict[str, Any]) -> None:
    """An error is flat around the right time: it changes with the square of what is told wrongly."""
    denoiser = VPDenoiser(Network(index), **wrong)
    names = {n.name for n in neighbours(denoiser)}
    assert {"time +1", "time -1"} & names
    assert {"index nearest", "index floor"} & names
    made = trial(denoiser, X, levels=LEVELS)
    assert made.better is None
    right = trial(VPDenoiser(Network(index)), X, levels=LEVELS)
    for own, best in zip(made.own.levels, right.own.levels, strict=True):
        assert own.error.value == pytest.approx(best.error.value, rel=0.01)


def test_label_that_is_not_wanted_is_named() -> None:
    class Conditional(GaussianModule):
        label: int | None = 3

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return super().forward(x, sigma) + (0.1 if self.label is not None else 0.0)

    assert named(Conditional()) == "label none"


class GaussianModule(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return IDEAL(x, sigma)


def test_changed_leaves_the_denoiser_and_its_network_alone() -> None:
    denoiser = VPDenoiser(Network(index))
    network = denoiser.network
    other = changed(denoiser, network=nn.Identity(), prediction="v")
    assert (denoiser.network, denoiser.prediction) == (network, "noise")
    assert (type(other.network), other.prediction) == (nn.Identity, "v")


def test_neighbours_share_weights() -> None:
    denoiser = VPDenoiser(Attentive("blocks"))
    weights = {id(denoiser.network.weight)}
    modules = [n.denoiser for n in neighbours(denoiser) if isinstance(n.denoiser, nn.Module)]
    assert len(modules) > 8
    assert {id(p) for m in modules for p in m.parameters()} == weights


def test_neighbour_that_cannot_be_asked_is_passed_over() -> None:
    def picky(x: Tensor, sigma: Tensor) -> Tensor:
        if float(sigma) > 0.7:
            raise ValueError("too noisy")
        return IDEAL(x, sigma)

    assert named(picky) == ""


def test_sound_denoisers_are_seldom_flagged_by_chance() -> None:
    """Ideal denoisers of 50 sets of 8 images; and neighbours that are equal in truth, which is worst."""
    for seed in range(50):
        assert trial(IDEAL, images(8, 8, seed + 1), levels=(0.17, 0.34)).better is None
    gains = NoisePlan.of(5, range(20_000)).normal("probe", 0, torch.zeros(20_000, 8)).numpy()
    flagged = np.mean([_no_better(row) <= 0.01 for row in gains])
    assert 0.007 < flagged < 0.013


def flags(denoiser: Any, x: Tensor, check: Callable[[Probe], Any], **options: Any) -> list[Flag | Note]:
    model = PurifiedClassifier(Purifier(denoiser, "ddim", steps=100, **options), ChannelMean())
    y = torch.zeros(len(x), dtype=torch.long)
    return list(check(Probe(model, x, y, NoisePlan.of(0, range(len(x)), "select"), Linf(8 / 255))))


def test_check_tells_the_proof_and_flags_the_better_convention() -> None:
    note, flag = flags(rescaled(IDEAL, *WRONG["range 0 1"]), X, neighbouring_conventions)
    assert note.text.startswith("Denoising error ")
    assert "at noise levels 0.0856, 0.171, 0.342" in note.text
    assert (flag.name, flag.severity) == ("denoiser_mismatch", "error")
    assert flag.message.endswith("its pixels are in [0, 1].")
    (alone,) = flags(IDEAL, X, neighbouring_conventions)
    assert isinstance(alone, Note)


def test_check_before_a_run_asks_a_settled_denoiser_once() -> None:
    calls = []

    class Knowing(nn.Module):
        """Knows the images, and so has a fraction of the error of any linear estimate."""

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            calls.append(len(x))
            return 0.9 * (2 * X - 1) + 0.1 * x

    assert flags(Knowing(), X, denoiser_mismatch) == []
    assert calls == [len(X)]


class Silent(nn.Module):
    """A network that has learned nothing: it answers 0, as one does whose last layer starts at zero."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0 * x


def test_network_that_learned_nothing_fits_no_convention() -> None:
    x = (1 + math.sqrt(0.5) * (2 * X - 1 - MEAN) / math.sqrt(VARIANCE)) / 2  # white, of variance 0.5
    found = trial(VPDenoiser(Silent()), x, levels=LEVELS)
    read_as_v = next(fit for fit in found.fits if fit.neighbour.name == "prediction v")  # shrinks its input
    assert read_as_v.ratio < 0.9
    assert read_as_v.p < 1e-6
    assert found.better is None


def test_two_images_and_one_prove_nothing() -> None:
    for count in (1, 2):
        assert named(rescaled(IDEAL, *WRONG["range 0 1"]), X[:count]) == ""


class Normalised(nn.Module):
    """The embedded classifier behind a normalisation that it was not trained with."""

    def __init__(self, mean: Any, deviation: Any) -> None:
        super().__init__()
        self.inside = dbpkit.load_embedded()[1]
        self.pair = [torch.tensor(v)[:, None, None] for v in (mean, deviation)]

    def forward(self, x: Tensor) -> Tensor:
        return self.inside((x - self.pair[0]) / self.pair[1])


def test_classifier_wrong_normalisation_is_named_and_the_right_one_is_not() -> None:
    data = dbpkit.load_dataset("embedded").select(slice(0, 32))
    plan = NoisePlan.of(0, range(32), "select")

    def found(classifier: nn.Module) -> list[Flag | Note]:
        return list(classifier_mismatch(Probe(Plain(classifier), data.x(), data.labels, plan, Linf(8 / 255))))

    note, flag = found(Normalised(*STATISTICS["CIFAR-10"]))
    assert note.text.startswith("The classifier is right on 53.1% of 32")
    assert "the mean and deviation of CIFAR-10 is undone" in flag.message
    (note,) = found(dbpkit.load_embedded()[1])
    assert note.text.startswith("The classifier is right on ")


def test_one_answer_for_all_images_is_no_better_preparation() -> None:
    x = uniform(64, 1, 2, 2).float()
    of_pixel = x[:, 0, 0, 0]
    model = Plain(lambda x: torch.stack([0.5 + 0 * x[:, 0, 0, 0], x[:, 0, 0, 0]], dim=1))

    def found(y: Tensor) -> list[Flag | Note]:
        plan = NoisePlan.of(0, range(64), "select")
        return list(classifier_mismatch(Probe(model, x, y, plan, Linf(8 / 255))))

    (note,) = found(
        torch.zeros(64, dtype=torch.long)
    )  # of one class, which pixels divided by 255 always give
    assert isinstance(note, Note)
    assert 20 < int((of_pixel < 0.5).sum()) < 44
    _, flag = found((2 * of_pixel - 1 > 0.5).long())
    assert "but on 64 if it is given pixels in [-1, 1]" in flag.message


def test_behaviour_is_said_in_sentences() -> None:
    data = dbpkit.load_dataset("embedded").select(slice(0, 8))
    denoiser, classifier = dbpkit.load_embedded()
    (said,) = behaviour(denoiser, data.x(), data.labels)
    assert said.startswith("Denoising error ")
    (said,) = behaviour(classifier, data.x(), data.labels)
    assert said.startswith("The classifier is right on 100.0% of 8")
    wrong = rescaled(denoiser, 1.0, 0.0, 2.0)
    assert "its noise level is 0.5 times this one" in behaviour(wrong, data.x(), data.labels)[1]


def test_classifier_neighbours_of_grey_images_leave_colours_alone() -> None:
    seen = []
    for _, classifier in classifier_neighbours(lambda x: seen.append(x.shape) or x, channels=1):
        classifier(torch.zeros(2, 1, 4, 4))
    assert set(seen) == {(2, 1, 4, 4)}
    assert float(vp_time(torch.tensor(0.342))) == pytest.approx(0.1, abs=1e-3)  # the level of t* = 0.1
