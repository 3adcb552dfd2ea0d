"""Every adapter around the ideal network of Gaussian data, which its definition gives in closed form.

The pixels of the data are normal with one mean and deviation. Then the best estimate of x0 is linear in the
noisy image, and each parametrisation's ideal network is too; it is written here from the definitions, in the
network's own range of pixels and from nothing but what the network gets.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dbpkit import NoisePlan, Purifier
from dbpkit.foundation.errors import UserError
from dbpkit.models.denoisers import (
    BlindDenoiser,
    ConsistencyDenoiser,
    EDMDenoiser,
    FlowDenoiser,
    IDDPMDenoiser,
    MeanFlowDenoiser,
    VEDenoiser,
    VEPrecondDenoiser,
    VPDenoiser,
    VPPrecondDenoiser,
    denoiser_adapters,
    reinterpreted,
)
from dbpkit.models.discrete import schedule_of
from dbpkit.models.schedule import vp_sigma
from tests.derivatives import assert_derivatives
from tests.oracles import uniform
from tests.reference import reference

MEAN, DEVIATION = -0.2, 0.4
COSINE_4000 = {"beta_schedule": "cosine", "num_train_timesteps": 4000}
RANGES = [(-1.0, 1.0), (0.0, 1.0), (0.0, 255.0)]


class Data(NamedTuple):
    """Normal pixels in some range; a network's own."""

    mean: float
    deviation: float

    def denoised(self, u: Tensor, sigma: Tensor) -> Tensor:
        """The mean of u0 given u0 + sigma z."""
        signal = self.deviation**2 / (self.deviation**2 + sigma**2)
        return self.mean + signal * (u - self.mean)


Ideal = Callable[[Data, Tensor, Tensor], Tensor]
"""The ideal network's answer for data, a state and times as (B, 1, 1, 1)."""


class Network(nn.Module):
    """An ideal network."""

    def __init__(self, ideal: Ideal, image_range: tuple[float, float]) -> None:
        super().__init__()
        low, high = image_range
        half = (high - low) / 2
        self.ideal, self.data = ideal, Data(low + half * (MEAN + 1), half * DEVIATION)

    def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        assert label is None
        times = [v.double()[:, None, None, None] for v in (t if isinstance(t, tuple) else (t,))]
        return self.ideal(self.data, x, *times)


def vp_state(data: Data, state: Tensor, alpha_bar: Tensor, kind: str) -> Tensor:
    """What a variance-preserving network returns."""
    signal, noise = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x0 = data.denoised(state / signal, noise / signal)
    z = (state - signal * x0) / noise
    return {"x0": x0, "noise": z, "v": signal * z - noise * x0, "score": -z / noise}[kind]


def cosine_bar(index: Tensor, steps: int) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17; away from the last times, where beta is capped."""
    return (
        torch.cos(((index + 1) / steps + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
    ) ** 2


def vp_bar(t: Tensor) -> Tensor:
    """Song et al. 2021, eq. 29."""
    return torch.exp(-(0.1 * t + 19.9 * t**2 / 2))


def edm(data: Data, state: Tensor, label: Tensor) -> Tensor:
    sigma = torch.exp(4 * label)
    x = state * (sigma**2 + 0.25).sqrt()
    skip = 0.25 / (sigma**2 + 0.25)
    return (data.denoised(x, sigma) - skip * x) * (sigma**2 + 0.25).sqrt() / (0.5 * sigma)


def consistency(data: Data, state: Tensor, label: Tensor) -> Tensor:
    sigma = torch.exp(label / 250)
    x, above = state * (sigma**2 + 0.25).sqrt(), sigma - 0.002
    skip = 0.25 / (above**2 + 0.25)
    return (data.denoised(x, sigma) - skip * x) * (sigma**2 + 0.25).sqrt() / (0.5 * above)


def ve_precond(data: Data, state: Tensor, label: Tensor) -> Tensor:
    sigma = 2 * torch.exp(label)
    return (data.denoised(state, sigma) - state) / sigma


def iddpm(data: Data, state: Tensor, index: Tensor) -> Tensor:
    """The table is the cosine schedule where its ratios are not capped."""
    power = torch.sin(math.pi / 2 * (999 - index) / (1000 * 1.008)) ** 2
    sigma = (math.sin(math.pi / 2 / 1.008) ** 2 / power - 1).sqrt()
    return vp_state(data, state, 1 / (1 + sigma**2), "noise")


def linear_flow(data: Data, state: Tensor, noisy: Tensor, *_: Tensor) -> Tensor:
    """E[z - x0] at (1 - s) x0 + s z."""
    x0 = data.denoised(state / (1 - noisy), noisy / (1 - noisy))
    return (state - x0) / noisy


def additive_flow(data: Data, state: Tensor, noisy: Tensor) -> Tensor:
    """0.3 E[z] at x0 + 0.3 s z."""
    return (state - data.denoised(state, 0.3 * noisy)) / noisy


def index_of_table(steps: int) -> Tensor:
    """Levels of a cosine schedule at indices, exactly."""
    bars = cosine_bar(torch.tensor([0.02, 0.2, 0.5, 0.9], dtype=torch.float64) * steps, steps)
    return ((1 - bars) / bars).sqrt()


LEVELS = torch.tensor([0.02, 0.3, 2.0, 40.0], dtype=torch.float64)
LINEAR = schedule_of(None).levels()[[3, 100, 400, 999]]
FEW = schedule_of({"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08})
BELOW = torch.tensor([0.02, 0.1, 0.2, 0.3], dtype=torch.float64)
IDDPM = (
    math.sin(math.pi / 2 / 1.008) ** 2
    / torch.sin(math.pi / 2 * torch.tensor([990, 700, 500, 99], dtype=torch.float64) / 1008) ** 2
    - 1
).sqrt()


def few_bar(index: Tensor) -> Tensor:
    table = torch.cumprod(1 - torch.linspace(4e-4, 0.08, 250, dtype=torch.float64), 0)
    return table[index.long()]


CASES: dict[str, tuple[Callable[..., nn.Module], Ideal, Tensor]] = {
    **{
        f"vp cosine 4000 {kind}": (
            lambda n, r, kind=kind: VPDenoiser(
                n, kind, "rescaled", schedule=COSINE_4000, image_range=r
            ),
            lambda d, s, t, kind=kind: vp_state(d, s, cosine_bar(t * 4, 4000), kind),
            index_of_table(4000),
        )
        for kind in ("noise", "v", "x0", "score")
    },
    "vp linear 250": (
        lambda n, r: VPDenoiser(n, schedule=FEW, image_range=r),
        lambda d, s, t: vp_state(d, s, few_bar(t), "noise"),
        FEW.levels()[[3, 50, 100, 249]],
    ),
    "vp sigmas": (
        lambda n, r: VPDenoiser(n, sigmas=LEVELS.tolist(), image_range=r),
        lambda d, s, t: vp_state(d, s, 1 / (1 + LEVELS[t.long()] ** 2), "noise"),
        LEVELS,
    ),
    "vp continuous": (
        lambda n, r: VPDenoiser(n, "noise", "continuous", image_range=r),
        lambda d, s, t: vp_state(d, s, vp_bar(t / 999), "noise"),
        LEVELS,
    ),
    "vp_precond": (
        lambda n, r: VPPrecondDenoiser(n, image_range=r),
        lambda d, s, t: vp_state(d, s, vp_bar(t / 999), "noise"),
        LEVELS,
    ),
    "edm": (lambda n, r: EDMDenoiser(n, image_range=r), edm, LEVELS),
    "ve": (
        lambda n, r: VEDenoiser(n, image_range=r),
        lambda d, s, t: -(s - d.mean) / (d.deviation**2 + t**2),
        LEVELS,
    ),
    "ve_precond": (lambda n, r: VEPrecondDenoiser(n, image_range=r), ve_precond, LEVELS),
    "iddpm": (lambda n, r: IDDPMDenoiser(n, image_range=r), iddpm, IDDPM),
    "consistency": (lambda n, r: ConsistencyDenoiser(n, image_range=r), consistency, LEVELS),
    "consistency with EDM's scalings": (
        lambda n, r: ConsistencyDenoiser(n, scalings="edm", image_range=r),
        lambda d, s, t: edm(d, s, t / 1000),
        LEVELS,
    ),
    "flow": (lambda n, r: FlowDenoiser(n, image_range=r), linear_flow, LEVELS),
    "flow of 1000 times, clean at 1": (
        lambda n, r: FlowDenoiser(n, clean_at=1, time_scale=1000.0, image_range=r),
        lambda d, s, t: -linear_flow(d, s, 1 - t / 1000),
        LEVELS,
    ),
    "FlowPure": (
        lambda n, r: FlowDenoiser(n, path="additive", clean_at=1, image_range=r),
        lambda d, s, t: -additive_flow(d, s, 1 - t),
        BELOW,
    ),
    "additive flow, clean at 0": (
        lambda n, r: FlowDenoiser(n, path="additive", image_range=r),
        additive_flow,
        BELOW,
    ),
    "meanflow at an instant": (
        lambda n, r: MeanFlowDenoiser(n, velocity="instant", image_range=r),
        linear_flow,
        LEVELS,
    ),
}  # fmt: skip
"""Adapter, ideal network, and levels of its own range."""


def drawn(image_range: tuple[float, float], own: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy images in our range and their levels, for levels of the network's range."""
    sigma = own / ((image_range[1] - image_range[0]) / 2)
    x0 = MEAN + DEVIATION * uniform(len(own), 1, 3, 2, seed=1, low=-2.0, high=2.0).double()
    z = uniform(len(own), 1, 3, 2, seed=2, low=-2.0, high=2.0).double()
    return x0 + sigma[:, None, None, None] * z, sigma


@pytest.mark.parametrize("image_range", RANGES, ids=str)
@pytest.mark.parametrize("case", list(CASES))
def test_ideal_network_gives_the_ideal_denoiser(case: str, image_range: tuple[float, float]) -> None:
    """float64; cancellation leaves 1e-16 times the square of the level where the score is used."""
    adapt, ideal, own = CASES[case]
    denoiser = adapt(Network(ideal, image_range), image_range)
    x, sigma = drawn(image_range, own)
    expected = Data(MEAN, DEVIATION).denoised(x, sigma[:, None, None, None])
    assert float((denoiser(x, sigma) - expected).abs().max()) < 1e-8
    one = denoiser(x[:1], sigma[0])  # a level for all
    assert float((one - expected[:1]).abs().max()) < 1e-8


def test_every_adapter_is_in_the_table_above() -> None:
    made = {type(adapt(Network(ideal, RANGES[0]), RANGES[0])) for adapt, ideal, _ in CASES.values()}
    assert made | {MeanFlowDenoiser, BlindDenoiser} == {
        denoiser_adapters.get(name) for name in denoiser_adapters
    }


@pytest.mark.parametrize("image_range", RANGES[:2], ids=str)
def test_average_velocity_leads_along_the_flow(image_range: tuple[float, float]) -> None:
    """It maps quantiles to quantiles: the state has mean (1 - t) m and variance (1 - t)^2 s^2 + t^2."""

    def average(data: Data, state: Tensor, t: Tensor, way: Tensor) -> Tensor:
        assert t.equal(way)
        spread = ((1 - t) ** 2 * data.deviation**2 + t**2).sqrt()
        x0 = data.mean + data.deviation * (state - (1 - t) * data.mean) / spread
        return (state - x0) / t

    denoiser = MeanFlowDenoiser(Network(average, image_range), image_range=image_range)
    x, sigma = drawn(image_range, LEVELS)
    spread = (DEVIATION**2 + sigma**2).sqrt()[:, None, None, None]
    expected = MEAN + DEVIATION * (x - MEAN) / spread  # of x0 + sigma z
    assert float((denoiser(x, sigma) - expected).abs().max()) < 1e-9


class Shrinking(nn.Module):
    """The ideal estimate at one level, of images in a range of their own, or what is to be taken away."""

    def __init__(self, image_range: tuple[float, float], level: float, residual: bool) -> None:
        super().__init__()
        self.half, self.middle = (image_range[1] - image_range[0]) / 2, sum(image_range) / 2
        self.level, self.residual = level, residual

    def forward(self, x: Tensor) -> Tensor:
        ours = Data(MEAN, DEVIATION).denoised(
            (x - self.middle) / self.half, torch.tensor(self.level).double()
        )
        out = self.middle + self.half * ours
        return x - out if self.residual else out


@pytest.mark.parametrize("prediction", ["image", "residual"])
@pytest.mark.parametrize("image_range", RANGES, ids=str)
def test_blind_denoiser_hands_over_the_image_alone(image_range: tuple[float, float], prediction: str) -> None:
    """It is ideal at the level of its network, and answers alike whatever level it is told."""
    network = Shrinking(image_range, 0.3, prediction == "residual")
    denoiser = BlindDenoiser(network, prediction, image_range)  # type: ignore[arg-type]
    x, _ = drawn(image_range, LEVELS)
    expected = Data(MEAN, DEVIATION).denoised(x, torch.tensor(0.3).double())
    for told in (0.3, 0.01):
        assert float((denoiser(x, torch.tensor(told)) - expected).abs().max()) < 1e-12
    assert_derivatives(lambda x: denoiser(x, torch.tensor(0.3)), x[:2])


class Nonlinear(nn.Module):
    """A network that bends, with one output per channel or two."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(uniform(outputs, 1, 3, 3, seed=3, low=-1.0, high=1.0).double())
        self.seen: list[Any] = []

    def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
        self.seen.append((t, label))
        return torch.tanh(nn.functional.conv2d(x.tanh(), self.weight, padding=1))


@pytest.mark.parametrize("image_range", RANGES[:2], ids=str)
@pytest.mark.parametrize("case", list(CASES))
def test_gradients_are_those_of_central_differences(case: str, image_range: tuple[float, float]) -> None:
    denoiser = CASES[case][0](Nonlinear(), image_range)
    sigma = CASES[case][2][1]
    assert_derivatives(lambda x: denoiser(x, sigma), uniform(2, 1, 3, 2, seed=4, low=-1.0, high=1.0))


class Untold(Nonlinear):
    """The same, for an adapter that tells no time."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(x, None, label)


@pytest.mark.parametrize("name", sorted(denoiser_adapters))
def test_label_is_told_of_every_image(name: str) -> None:
    network = Untold() if name == "blind" else Nonlinear()
    denoiser = denoiser_adapters.get(name)(network, label=7)
    denoiser(torch.zeros(3, 1, 4, 4), torch.tensor(0.2))
    assert network.seen[0][1].tolist() == [7, 7, 7]
    assert network.seen[0][1].dtype == torch.int64
    denoiser_adapters.get(name)(network)(torch.zeros(3, 1, 4, 4), torch.tensor(0.2))
    assert network.seen[1][1] is None
    with pytest.raises(UserError, match="label must be a whole number"):
        denoiser_adapters.get(name)(network, label=-1)


def test_network_that_needs_a_label_says_what_to_write() -> None:
    network = Nonlinear()
    network.needs_label = True  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"class-conditional and has no unconditional class.*label = 0"):
        VPDenoiser(network)(torch.zeros(1, 1, 4, 4), torch.tensor(0.2))
    with pytest.raises(UserError, match=r"class-conditional"):
        Purifier(VPDenoiser(network), "one_step")
    assert Purifier(VPDenoiser(network, label=3), "one_step").denoiser.label == 3


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("label_emb", nn.Embedding(4, 2)),
        ("map_label", nn.Linear(4, 2)),
        ("class_embedding", nn.Embedding(4, 2)),
    ],
)
def test_label_beyond_the_classes_is_refused(name: str, layer: nn.Module) -> None:
    network = Nonlinear()
    setattr(network, name, layer)
    x, sigma = torch.zeros(1, 1, 4, 4), torch.tensor(0.2)
    assert VPDenoiser(network, label=3)(x, sigma).shape == x.shape
    with pytest.raises(UserError, match=r"label = 4 is none of the 4 classes of the network.*from 0 to 3"):
        VPDenoiser(network, label=4)(x, sigma)
    with pytest.raises(UserError, match="label = 4 is none"):
        Purifier(VPDenoiser(network, label=4), "one_step")
    VPDenoiser(Nonlinear(), label=4)(x, sigma)  # a network that shows no classes is asked


@pytest.mark.parametrize("case", list(CASES))
def test_reinterpreted_shares_weights_and_changes_what_is_asked(case: str) -> None:
    denoiser = CASES[case][0](Nonlinear(), RANGES[0])
    denoiser.trained_levels = (0.1, 2.0)
    other = reinterpreted(denoiser, image_range=(0, 1), label=2)
    assert other.network is denoiser.network
    assert (other.image_range, other.label, other.trained_levels) == ((0.0, 1.0), 2, (0.1, 2.0))
    assert (denoiser.image_range, denoiser.label) == ((-1.0, 1.0), None)
    x, sigma = torch.zeros(1, 1, 4, 4, dtype=torch.float64), CASES[case][2][1]
    fresh = CASES[case][0](denoiser.network, (0.0, 1.0))
    assert other(x, sigma).equal(fresh(x, sigma))
    assert not other(x, sigma).equal(denoiser(x, sigma))
    with pytest.raises(UserError, match=r"has no 'imagerange'\. Available: .*image_range"):
        reinterpreted(denoiser, imagerange=(0, 1))
    with pytest.raises(UserError, match="Nonlinear is no adapter of dbpkit"):
        reinterpreted(denoiser.network, label=1)


def test_time_index_and_shift_change_the_index() -> None:
    network = Nonlinear()
    level = vp_sigma(torch.tensor(0.15, dtype=torch.float64))
    sigma = level.reshape(1)
    for changes, index in (
        ({}, 149),
        ({"time_index": "floor"}, 150),
        ({"time_shift": 1}, 150),
        ({"time_shift": -1}, 148),
    ):
        reinterpreted(VPDenoiser(network), **changes)(torch.zeros(1, 1, 2, 2).double(), level)
        assert network.seen[-1][0].tolist() == [index], changes
    reinterpreted(VPDenoiser(network, time="continuous"), time_shift=1)(
        torch.zeros(1, 1, 2, 2).double(), sigma
    )
    VPDenoiser(network, time="continuous")(torch.zeros(1, 1, 2, 2).double(), sigma)
    assert float(network.seen[-2][0] - network.seen[-1][0]) == pytest.approx(1, abs=1e-4)
    reinterpreted(VPDenoiser(network), time_shift=5)(torch.zeros(1, 1, 2, 2).double(), torch.tensor(200.0))
    assert network.seen[-1][0].tolist() == [999]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: VPDenoiser(n, schedule="cosine", sigmas=[1.0, 2.0]), "a schedule or sigmas, not both"),
        (lambda n: VPDenoiser(n, time="continuous", schedule="cosine"), "continuous times need a schedule"),
        (lambda n: VPDenoiser(n, time_index="ceil"), "time_index 'ceil' is unknown"),
        (lambda n: VPDenoiser(n, variance="large"), "variance 'large' is unknown. Available: drop, learned"),
        (lambda n: VPDenoiser(n, image_range=(1, 0)), "image_range must be two increasing numbers"),
        (lambda n: VPDenoiser(n, image_range=1), "image_range must be two numbers"),
        (lambda n: VPDenoiser(n, image_range=(0, math.nan)), "image_range must be a finite number"),
        (lambda n: FlowDenoiser(n, clean_at=2), "clean_at must be 0 or 1"),
        (lambda n: FlowDenoiser(n, path="curved"), "path 'curved' is unknown. Available: additive, linear"),
        (lambda n: MeanFlowDenoiser(n, velocity="v"), "velocity 'v' is unknown. Available: average, instant"),
        (lambda n: ConsistencyDenoiser(n, scalings="x"), "scalings 'x' is unknown. Available: boundary, edm"),
        (lambda n: IDDPMDenoiser(n, train_steps=1), "train_steps must be a whole number"),
        (lambda n: IDDPMDenoiser(n, train_steps=10**9), "train_steps must be a whole number"),
        (lambda n: IDDPMDenoiser(n, smallest_ratio=0), "smallest_ratio must be above 0"),
        (lambda n: VPPrecondDenoiser(n, train_steps=2.5), "train_steps must be a whole number"),
        (lambda n: FlowDenoiser(n, sigma_max=0.0), "sigma_max must be above 0"),
        (lambda n: ConsistencyDenoiser(n, sigma_data=-1), "sigma_data must be above 0"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(make: Callable[[nn.Module], nn.Module], message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        make(Nonlinear())


def test_iddpm_table_is_that_of_the_published_preconditioner() -> None:
    """Their buffer is float32, summed up from large to small, which leaves 5e-4 at its smallest level."""
    from dbpkit.models.adapters.iddpm import levels_of

    u = reference("edm_adm_iddpmprecond").state["u"].double()
    table = levels_of(1000, 0.001, 0.008, torch.device("cpu"))
    torch.testing.assert_close(table, u, rtol=6e-4, atol=0)


def test_output_of_twice_the_channels_needs_a_word() -> None:
    x, sigma = torch.zeros(1, 1, 4, 4, dtype=torch.float64), torch.tensor(0.3)
    network = Nonlinear(outputs=2)
    with pytest.raises(UserError, match="Drop learned-variance channels"):
        VPDenoiser(network)(x, sigma)
    drop, learned = VPDenoiser(network, variance="drop"), VPDenoiser(network, variance="learned")
    assert drop(x, sigma).equal(learned(x, sigma))
    assert learned.with_variance(x, sigma)[0].equal(drop(x, sigma))
    with pytest.raises(UserError, match=r'no learned variance\. Give it variance = "learned"'):
        drop.with_variance(x, sigma)
    with pytest.raises(UserError, match="Leave variance out"):
        VPDenoiser(Nonlinear(), variance="drop")(x, sigma)


@pytest.mark.parametrize("image_range", RANGES[:2], ids=str)
def test_purifier_walks_the_denoisers_own_table(image_range: tuple[float, float]) -> None:
    """A network on [0, 1] has half the noise in its own units, and the levels in ours are twice as large."""
    network, half = Nonlinear(), (image_range[1] - image_range[0]) / 2
    denoiser = VPDenoiser(network, schedule=COSINE_4000, image_range=image_range)
    purifier = Purifier(denoiser, "ddpm", t_star=0.1, steps=400)
    table = schedule_of(COSINE_4000).levels() / half
    assert list(purifier.sampler.levels) == [*table[torch.arange(400, -1, -10)].tolist(), 0.0]
    purifier(torch.full((2, 1, 4, 4), 0.5), noise=NoisePlan.of(0, [0, 1]))
    assert [int(t[0]) for t, _ in network.seen] == list(range(400, -1, -10))


def test_purifier_refuses_a_start_that_the_path_does_not_have() -> None:
    flow = FlowDenoiser(Nonlinear(), path="additive", clean_at=1)
    with pytest.raises(
        UserError, match=r"starts at noise level 0\.342, and the denoiser's path has no level above 0\.3"
    ):
        Purifier(flow, "one_step", t_star=0.1)
    assert Purifier(flow, "one_step", t_star=0.05).calls == 1


def test_gradient_through_steps_with_a_learned_variance_is_exact() -> None:
    """Through mean and deviation of four steps, all of them run again in the backward pass."""
    denoiser = VPDenoiser(Nonlinear(outputs=2), variance="learned")
    options = {"variance": "learned", "clip": False}
    purifier = Purifier(denoiser, "ddpm", t_star=0.06, steps=50, options=options, clamp=False, memory_bytes=0)
    assert purifier.calls == 4
    plan = NoisePlan.of(0, [0, 1])
    assert_derivatives(lambda x: purifier(x, noise=plan), uniform(2, 1, 3, 2, seed=4))


@pytest.mark.parametrize("sampler", ["ddpm", "reverse_only"])
def test_learned_variance_of_ones_and_minus_ones_is_large_and_small(sampler: str) -> None:
    class Sure(Nonlinear):
        value = 1.0

        def forward(self, x: Tensor, t: Any, label: Tensor | None = None) -> Tensor:
            return torch.cat([super().forward(x, t), torch.full_like(x, self.value)], dim=1)

    network, plan, x = Sure(), NoisePlan.of(0, [0, 1]), uniform(2, 1, 3, 2, seed=4)
    for network.value, kind in ((1.0, "large"), (-1.0, "small")):
        learned = VPDenoiser(network, variance="learned")
        found = Purifier(learned, sampler, steps=100, options={"variance": "learned"})(x, noise=plan)
        expected = Purifier(learned, sampler, steps=100, options={"variance": kind})(x, noise=plan)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_ddpm_with_a_learned_variance_needs_a_denoiser_that_has_one() -> None:
    for denoiser in (VPDenoiser(Nonlinear()), lambda x, sigma: x):
        with pytest.raises(UserError, match='"learned" needs a denoiser whose network returns one'):
            Purifier(denoiser, "ddpm", options={"variance": "learned"})
