"""The checks of ``dbpkit check`` in both directions: each fault is caught and named, sound models are silent.

The thing people get wrong: a check that is only tested on what it should catch cries wolf on everything.
"""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import dbpkit
from dbpkit import L2, Linf, NoisePlan, PurifiedClassifier, Purifier, UserError
from dbpkit.attacks import AttackOutcome, attacks
from dbpkit.checks import Planned, Probe, checks, draws
from dbpkit.checks import short_attacks as sanity
from dbpkit.checks.attacking import shared_attacks
from dbpkit.checks.culprits import Plain
from dbpkit.checks.model import piecewise_constant
from dbpkit.checks.outputs import saturated_loss
from dbpkit.results.flags import Flag
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

EPS = 8 / 255


class Rounded(nn.Module):
    """Pixels of ``levels`` + 1 values, with no gradient or with a straight-through one."""

    def __init__(self, levels: int, straight_through: bool = False) -> None:
        super().__init__()
        self.levels, self.straight_through = levels, straight_through

    def forward(self, x: Tensor) -> Tensor:
        rounded = torch.round(x * self.levels) / self.levels
        return x + (rounded - x).detach() if self.straight_through else rounded


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Detached(nn.Module):
    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        return x.detach() if self.share == 1 else self.share * x.detach() + (1 - self.share) * x


class Noisy(nn.Module):
    """Noise of its own, which nobody seeds."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.empty_like(x).normal_()


class NoisyInside(nn.Module):
    """The same, drawn between two children."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.first, self.classifier = nn.Identity(), classifier

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.classifier(x + 0.01 * torch.empty_like(x).normal_())


class Reversed(nn.Module):
    """The identity with a gradient of the wrong sign."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.detach() - x


def with_dropout(classifier: nn.Module) -> nn.Module:
    return nn.Sequential(classifier, nn.Dropout(0.1).train())


def with_batch_norm_in_train_mode(classifier: nn.Module) -> nn.Module:
    model = copy.deepcopy(classifier)
    model.body[0][1].train()
    return model


MASKS: dict[str, tuple[Callable[[nn.Module], nn.Module], str, str]] = {
    "rounded pixels": (lambda c: nn.Sequential(Rounded(15), c), "piecewise_constant", "'0' (Rounded)"),
    "rounded finely": (lambda c: nn.Sequential(Rounded(255), c), "piecewise_constant", "'0' (Rounded)"),
    "straight through": (
        lambda c: nn.Sequential(Rounded(255, True), c),
        "piecewise_constant",
        "'0' (Rounded)",
    ),
    "rounded logits": (lambda c: nn.Sequential(c, Rounded(20)), "piecewise_constant", "'1' (Rounded)"),
    "saturated logits": (lambda c: nn.Sequential(c, Scaled(100)), "saturated_loss", "lost in rounding"),
    "detached": (lambda c: nn.Sequential(Detached(), c), "gradient_mismatch", "'0' (Detached)"),
    "half detached": (lambda c: nn.Sequential(Detached(0.5), c), "gradient_mismatch", "disagree by"),
    "noise": (lambda c: nn.Sequential(Noisy(0.01), c), "untracked_randomness", "'0' (Noisy)"),
    "little noise": (lambda c: nn.Sequential(Noisy(0.0001), c), "untracked_randomness", "'0' (Noisy)"),
    "noise inside": (NoisyInside, "untracked_randomness", "the forward of NoisyInside"),
    "dropout": (with_dropout, "untracked_randomness", "'1' (Dropout)"),
    "train mode": (with_batch_norm_in_train_mode, "batch_dependence", "'body.0.1' (BatchNorm2d)"),
    "wrong sign": (lambda c: nn.Sequential(Reversed(), c), "gradient_mismatch", "disagree by"),
}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    return dbpkit.load_embedded()[1]


def images(first: int, count: int = 4) -> tuple[Tensor, Tensor]:
    data = dbpkit.load_dataset("embedded").select(slice(first, first + count))
    return data.x(), data.labels


def names(flags: list[Flag]) -> set[str]:
    return {flag.name for flag in flags}


@pytest.mark.parametrize("first", [0, 100])
def test_check_sound_classifier_raises_nothing(first: int, classifier: nn.Module) -> None:
    found = dbpkit.check(classifier, *images(first))
    assert found.flags == []
    assert found.trustworthy
    assert found.verdict == "Trustworthy on these examples. Nothing suspicious was found."
    probe = Probe(classifier, *images(first), NoisePlan.of(0, range(4)), Linf(EPS))
    ran = [c.name for stage in ("model", "behaviour", "short attacks") for c in checks.of(stage, probe)]
    assert found.checks == tuple(ran)


@pytest.mark.parametrize("first", [0, 60])
@pytest.mark.parametrize("mask", MASKS)
def test_check_masked_gradient_is_caught_and_named(mask: str, first: int, classifier: nn.Module) -> None:
    wrap, name, said = MASKS[mask]
    found = dbpkit.check(wrap(classifier), *images(first))
    assert not found.trustworthy
    assert name in found.verdict
    assert said in next(f.message for f in found.flags if f.name == name)


@pytest.mark.slow
def test_check_sound_purified_classifier_raises_nothing() -> None:
    denoiser, classifier = dbpkit.load_embedded()
    model = PurifiedClassifier(Purifier(denoiser, "ddim", steps=50), classifier)
    assert dbpkit.check(model, *images(20)).flags == []


def test_check_leaves_model_and_generator_as_they_were(classifier: nn.Module) -> None:
    model = nn.Sequential(with_batch_norm_in_train_mode(classifier), nn.Dropout(0.1).train())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    dbpkit.check(model, *images(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.full((2, 3, 32, 32), 1.5), torch.zeros(2, dtype=torch.long), "in \\[0, 1\\]"),
        (torch.zeros(3, 32, 32), torch.zeros(3, dtype=torch.long), "\\(B, C, H, W\\)"),
        (torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.long), "there are no pixels"),
        (torch.zeros(2, 3, 32, 32), torch.zeros(3, dtype=torch.long), "2 images came with 3 labels"),
        (torch.zeros(2, 3, 32, 32), torch.full((2,), 10), "labels go up to 10"),
    ],
)
def test_check_wrong_images_or_labels_are_refused(
    x: Tensor, y: Tensor, said: str, classifier: nn.Module
) -> None:
    with pytest.raises(UserError, match=said):
        dbpkit.check(classifier, x, y)


# Closed forms: logits (margin of the label, 0), so that every gradient is known.


class Line(nn.Module):
    """Two logits: f(u) for class 1 and 0 for class 0, where u is the mean pixel minus one half."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, *, noise: NoisePlan | None = None) -> Tensor:
        del noise
        value = self.f(x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack([torch.zeros_like(value), value], dim=1)


GREY, ZEROS = torch.full((8, 1, 2, 2), 0.5), torch.zeros(8, dtype=torch.long)
PLAN = NoisePlan.of(3, range(8), "select")


@pytest.mark.parametrize(
    ("threat", "margin", "lost"),
    [
        (Linf(EPS), 80.0, False),  # exp(-80) is 1.8e-35, a float32; its sign is right
        (Linf(EPS), 110.0, True),  # exp(-110) is below the smallest float32, 1.4e-45
        (L2(0.5), 15.0, False),
        (L2(0.5), 60.0, True),  # 9e-27 is lost beside the floor of a Euclidean direction
    ],
)
def test_saturated_loss_begins_where_float32_ends(threat: L2 | Linf, margin: float, lost: bool) -> None:
    flags = saturated_loss(Probe(Line(lambda u: u - margin), GREY, ZEROS, PLAN, threat))
    assert names(flags) == ({"saturated_loss"} if lost else set())
    assert all(f.severity == "error" and f"by up to {margin:g}" in f.message for f in flags)


def test_saturated_loss_of_a_few_images_warns() -> None:
    x = GREY.clone()
    x[0] = 0.0  # margin 60 + 0.5 * 120 = 120 there, 60 elsewhere
    (flag,) = saturated_loss(Probe(Line(lambda u: 120 * u - 60), x, ZEROS, PLAN, Linf(EPS)))
    assert flag.severity == "warning"
    assert "For 1 of 8 images" in flag.message


def test_piecewise_constant_step_of_the_output_alone_is_caught_and_a_smooth_function_is_not() -> None:
    assert piecewise_constant(Probe(Line(lambda u: u), GREY, ZEROS, PLAN, Linf(EPS))) == []
    flags = piecewise_constant(Probe(Line(lambda u: torch.round(9 * u)), GREY, ZEROS, PLAN, Linf(EPS)))
    assert names(flags) == {"piecewise_constant"}


SLOPE = Line(lambda u: 40 * u - 0.6)
"""Wrong from u = 0.015 on, and the budget reaches 0.031."""


@pytest.mark.parametrize("name", [n for n in checks if checks.get(n).stage == "short attacks"])
def test_sanity_check_of_a_straight_slope_is_silent(name: str) -> None:
    told = checks.get(name).look(Probe(SLOPE, GREY, ZEROS, PLAN, Linf(EPS)))
    assert [flag for flag in told if isinstance(flag, Flag)] == []


def reversed_slope() -> Plain:
    return Plain(nn.Sequential(Reversed(), SLOPE))


@pytest.mark.parametrize(
    ("check", "model"),
    [
        (sanity.loss_falls_along_gradient, reversed_slope()),
        (sanity.no_better_than_noise, reversed_slope()),
        (sanity.black_box_stronger, reversed_slope()),
        (sanity.unbounded_attack_fails, reversed_slope()),
        # PGD climbs the first wave of the sine and stays; one long step passes it and all its valleys.
        (
            sanity.single_step_stronger,
            Line(lambda u: torch.sin(2 * torch.pi * u / EPS) / 2 - 1 + 1000 * (u - 0.9 * EPS).relu()),
        ),
    ],
)
def test_sanity_check_flags_its_own_fault(check: Callable[..., list[Flag]], model: nn.Module) -> None:
    (flag,) = check(Probe(model, GREY, ZEROS, PLAN, Linf(EPS)))
    assert (flag.name, flag.severity) == (check.__name__, "error")


@pytest.mark.parametrize("check", [sanity.bpda_stronger, sanity.transfer_stronger])
def test_sanity_exact_gradient_of_a_purifier_that_loses_is_flagged(
    check: Callable[..., list[Flag]],
) -> None:
    class ReversingPurifier(Reversed):
        sampler = SimpleNamespace(sites=frozenset())

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            del noise
            return super().forward(x)

    (flag,) = check(Probe(PurifiedClassifier(ReversingPurifier(), SLOPE), GREY, ZEROS, PLAN, Linf(EPS)))
    assert (flag.name, flag.severity) == (check.__name__, "error")
    assert "0% right" in flag.message
    assert "100%" in flag.message


@pytest.mark.parametrize(("spoiled", "severity"), [(1, None), (2, "warning"), (8, "error")])
def test_more_iterations_that_help_the_defender_are_flagged_beyond_luck(
    spoiled: int, severity: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiring(target, x, y, *, threat, noise, iterations=20) -> AttackOutcome:
        """Finds everything with few iterations and gives some images up with many."""
        x_adv = x + threat.eps
        if iterations > 5:
            x_adv[:spoiled] = x[:spoiled]
        return AttackOutcome(x_adv, x.new_zeros(len(x), 1), x.new_zeros(len(x), 0))

    monkeypatch.setitem(attacks._parts, "tiring", tiring)
    flags = sanity.more_iterations_help(Probe(SLOPE, GREY, ZEROS, PLAN, Linf(EPS), Planned(attack="tiring")))
    assert [f.severity for f in flags] == ([severity] if severity else [])


class NoisySlope(nn.Module):
    """Logits (0, a (w + tau z) . x) with z fresh in every draw: the gradient's signal and noise are known."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        weights = 1 + self.tau * noise.normal("forward", 0, x)
        value = 1e-6 * (weights * x).flatten(1).sum(dim=1)  # so small that the softmax is 1/2 throughout
        return torch.stack([torch.zeros_like(value), value], dim=1)


def test_gradient_noise_finds_the_draws_that_are_needed() -> None:
    """s = |w|^2 / (tau^2 d) = 1 / tau^2 = 0.01; a cosine of 1/2 with the mean needs n = 1 / (3 s) = 33."""
    x = torch.full((8, 3, 32, 32), 0.5, dtype=torch.float64)
    (flag,) = draws.gradient_noise(Probe(NoisySlope(10.0), x, ZEROS, PLAN, Linf(EPS), Planned(eot=1)))
    assert flag.severity == "warning"
    assert (
        25 <= int(flag.message.split("About ")[1].split()[0]) <= 45
    )  # q of 8 draws, 0.074, is known to 0.007
    assert draws.gradient_noise(Probe(NoisySlope(10.0), x, ZEROS, PLAN, Linf(EPS), Planned(eot=20))) == []
    assert draws.gradient_noise(Probe(NoisySlope(1.0), x, ZEROS, PLAN, Linf(EPS), Planned(eot=1))) == []


def test_gradient_without_any_signal_is_flagged_at_every_eot() -> None:
    class Scattered(NoisySlope):
        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            return super().forward(x, noise=noise) - 1e-6 * x.flatten(1).sum(dim=1)[:, None] * torch.tensor(
                [0.0, 1.0]
            )

    x = torch.full((8, 3, 32, 32), 0.5, dtype=torch.float64)
    assert names(
        draws.gradient_noise(Probe(Scattered(10.0), x, ZEROS, PLAN, Linf(EPS), Planned(eot=50)))
    ) == {"gradient_noise"}


def test_worst_of_n_that_only_measures_noise_is_flagged_and_one_under_attack_is_not() -> None:
    class Coin(nn.Module):
        """Wrong in one of forty draws, whatever the image."""

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            value = noise.normal("forward", 0, x[:, 0, 0, 0]) - 2 + 0 * x.flatten(1).sum(dim=1)
            return torch.stack([torch.zeros_like(value), value], dim=1)

    coin = Probe(Coin(), GREY, ZEROS, PLAN, Linf(EPS))
    assert names(draws.worst_of_n_control(coin)) == {"worst_of_n_control"}
    mild = NoisyClassifier(SLOPE, sigma=1e-4)
    assert draws.worst_of_n_control(Probe(mild, GREY, ZEROS, PLAN, Linf(EPS))) == []


def test_worst_of_n_of_a_prediction_that_never_changes_is_no_matter_of_noise() -> None:
    class Constant(nn.Module):
        """Class 0 in every draw, with logits that move."""

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            value = 1e-3 * noise.normal("forward", 0, x[:, 0, 0, 0]) + 0 * x.flatten(1).sum(dim=1)
            return torch.stack([5 + value, value], dim=1)

    assert draws.worst_of_n_control(Probe(Constant(), GREY, ZEROS, PLAN, Linf(EPS))) == []
    labels = torch.arange(len(GREY)) % 2
    assert draws.worst_of_n_control(Probe(Constant(), GREY, labels, PLAN, Linf(EPS))) == []
    assert "one_class" in names(sanity.better_than_chance(Probe(Constant(), GREY, labels, PLAN, Linf(EPS))))


def test_batch_dependence_noise_by_position_is_caught() -> None:
    class ByPosition(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = TinyClassifier()

        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            del noise
            return self.classifier(x + 0.1 * torch.arange(len(x), dtype=x.dtype)[:, None, None, None])

    x = uniform(4, 1, 4, 4)
    found = dbpkit.check(ByPosition(), x, torch.tensor([0, 1, 2, 0]))
    assert "batch_dependence" in names(found.flags)


def test_shared_attacks_are_made_once_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    made, threat = [], Linf(EPS)
    pgd = attacks.get("pgd")

    def counted(target, x, y, *, threat, noise, iterations=20, eot=1) -> AttackOutcome:
        made.append(iterations)
        return pgd(target, x, y, threat=threat, noise=noise, iterations=iterations, eot=eot)

    monkeypatch.setitem(attacks._parts, "pgd", counted)
    for _ in range(2):
        with shared_attacks():
            for check in (sanity.no_better_than_noise, sanity.black_box_stronger):
                check(Probe(SLOPE, GREY, ZEROS, PLAN, threat))
    assert made == [20, 20]
