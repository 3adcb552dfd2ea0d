"""AutoAttack: which image replaces which, on whose draws, and that luck is no success."""

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks import AttackOutcome, Target, attacks
from dbpkit.attacks.autoattack import JUDGE, VERSIONS, autoattack
from dbpkit.experiment.build import single_draw
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import PartSpec
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import Linf
from tests.oracles import NoisyClassifier, TinyClassifier, fill, uniform

PUBLISHED: dict[str, Any] = {"eot": 1, "judge_draws": 1, "reevaluate": False}


def shifted(
    target: Target, x: Tensor, y: Tensor, *, threat: Any, noise: NoisePlan, by: float
) -> AttackOutcome:
    """Brightens every image; its loss path tells by how much."""
    del y, threat
    target.visit(x + by, noise)
    path = torch.full_like(x[:, :1, 0, 0], by)
    return AttackOutcome(x + by, path, path)


def shift(by: float) -> dict[str, Any]:
    """A part that brightens."""
    return {"name": "tests.unit.attacks.test_autoattack:shifted", "options": {"by": by}}


class Fading(nn.Module):
    """Right with probability 1 - v on an image of value v: the draws decide, each for itself."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.used: list[tuple[int, int, int]] = []

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.used += [
            (noise.lane, i, d) for i, d in zip(noise.example_ids.tolist(), noise.draw.tolist(), strict=True)
        ]
        value = x.mean(dim=(1, 2, 3))
        wrong = (noise.uniform("forward", 0, x[:, 0, 0, 0]) < value).to(x.dtype)
        return torch.stack([1 - wrong, wrong], dim=1)


def grey(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def run(
    x: Tensor, parts: list[Any], model: nn.Module | None = None, **options: Any
) -> tuple[AttackOutcome, list[NoisePlan]]:
    """Attacks images of class 0 with a budget of 0.5, on 40 judging draws unless told otherwise.

    Returns also the plan of every call of `shifted`.
    """
    target, plans = Target(model or Fading()), []
    target.visit = lambda _x, noise: plans.append(noise)
    settings = {"judge_draws": 40, **options}
    y, noise = torch.zeros(len(x), dtype=torch.long), NoisePlan.of(0, range(10, 10 + len(x)), "attack")
    return autoattack(target, x, y, threat=Linf(0.5), noise=noise, parts=parts, **settings), plans


# ------------------------------------------------------------------ who replaces whom


def test_autoattack_keeps_the_image_that_is_right_least_often() -> None:
    """Judged on the same draws, a brighter image is never right more often."""
    x = grey(0.0, 0.1, 0.3)
    found, _ = run(x, [shift(0.1), shift(0.4), shift(0.2)])
    torch.testing.assert_close(found.x_adv, x + 0.4)


def test_autoattack_equal_accuracy_keeps_the_earlier_part() -> None:
    """No draw tells the brightness 0.4 from 0.4 + 1e-9."""
    x = grey(0.0)
    found, _ = run(x, [shift(0.4), shift(0.4 + 1e-9)])
    assert torch.equal(found.x_adv, x + 0.4)


def test_autoattack_first_part_stands_where_it_changes_nothing_and_falls_where_it_helps_the_model() -> None:
    x = grey(0.3)
    assert torch.equal(run(x, [shift(1e-9)])[0].x_adv, x + 1e-9)
    assert torch.equal(run(x, [shift(-0.25)])[0].x_adv, x)


def test_autoattack_examples_go_on_while_any_judging_draw_is_right() -> None:
    """With 40 draws, value 0.7 is right on some; 1 on none, the clean image still meets the first part."""
    _, plans = run(grey(1.0, 0.2, 0.5), [shift(0.0), shift(0.5), shift(0.1)])
    assert [plan.example_ids.tolist() for plan in plans] == [[10, 11, 12], [11, 12], [11]]


def test_autoattack_stops_when_nothing_is_left() -> None:
    _, plans = run(grey(0.6), [shift(0.4), shift(0.1)])
    assert len(plans) == 1


def test_autoattack_projects_before_it_judges() -> None:
    """A part that leaves the budget wins nothing by it."""
    x = grey(0.2)
    found, _ = run(x, [shift(0.7), shift(0.5)])
    torch.testing.assert_close(found.x_adv, x + 0.5)


def test_autoattack_outcome_is_the_path_of_the_first_part() -> None:
    found, _ = run(grey(0.0, 0.9), [shift(0.1), shift(0.4)])
    assert found.loss.tolist() == found.grad_norm.tolist() == [[0.1], [0.1]]


# ------------------------------------------------------------------ draws


def test_autoattack_parts_and_judge_have_lanes_of_their_own() -> None:
    model, noise = Fading(), NoisePlan.of(0, [10], "attack")
    _, plans = run(grey(0.1), [shift(0.1), shift(0.2), shift(0.3)], model)
    assert [plan.lane for plan in plans] == [noise.branch(n).lane for n in (1, 2, 3)]
    assert {lane for lane, _, _ in model.used} == {noise.branch(JUDGE).lane}
    assert {draw for _, _, draw in model.used} == set(range(40))


def test_autoattack_selects_on_draws_that_no_attack_used() -> None:
    parts = [
        "apgd",
        {"name": "square", "options": {"iterations": 5}},
        {"name": "pgd", "options": {"loss": "margin"}},
    ]
    x, y, noise = grey(0.1, 0.2), torch.zeros(2, dtype=torch.long), NoisePlan.of(0, [1, 2], "attack")
    threat = Linf(0.3)

    class Differentiable(Fading):
        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            return super().forward(x, noise=noise) + 1e-3 * x[:, 0, 0, :1] * torch.tensor([-1.0, 1.0])

    model = Differentiable()
    autoattack(model, x, y, threat=threat, noise=noise, parts=parts, iterations=3, eot=2, judge_draws=6)
    judge = noise.branch(JUDGE).lane
    judged = {key for key in model.used if key[0] == judge}
    assert judged == {(judge, i, d) for i in (1, 2) for d in range(6)}
    assert {lane for lane, _, _ in model.used} == {judge, *(noise.branch(n).lane for n in (1, 2, 3))}


class Coin(nn.Module):
    """Right with probability one half, whatever the image."""

    sites = frozenset({"forward"})

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        z = noise.normal("forward", 0, x[:, :1, 0, 0])
        return torch.cat([z, -z, 0 * z - 9, 0 * z - 9], dim=1) + 1e-3 * x.flatten(1)[:, :4]


def test_autoattack_rand_luck_is_no_success() -> None:
    """A coin is as good after the attack as before: the published form would report 0 after a few draws."""
    x, y, report = uniform(60, 1, 2, 2), torch.zeros(60, dtype=torch.long), NoisePlan.of(0, range(60))
    target = Target(Coin(), 500)
    found = autoattack(
        target, x, y, threat=Linf(0.1), noise=report.on("attack"), version="rand", iterations=5, eot=3
    )
    right = Target(Coin()).draws(found.x_adv, noise=report, count=30).argmax(dim=2) == 0
    assert float(right.double().mean()) == pytest.approx(0.5, abs=4 * 0.5 / (60 * 30) ** 0.5)
    assert target.gradient_rows == 60 * 2 * 6 * 3  # no example was dropped


# ------------------------------------------------------------------ versions


def test_autoattack_versions_are_the_published_ensembles() -> None:
    """Croce & Hein 2020: APGD-CE, APGD-T, FAB-T and Square; with randomness APGD-CE and APGD-DLR."""
    assert [p.name for p in VERSIONS["standard"]] == ["apgd", "apgd_targeted", "fab", "square"]
    assert [(p.name, p.options["loss"]) for p in VERSIONS["rand"]] == [("apgd", "ce"), ("apgd", "dlr")]
    assert all(p.name in attacks for parts in VERSIONS.values() for p in parts)


def spied(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of the attacks that AutoAttack binds."""
    bound: list[tuple[str, dict[str, Any]]] = []

    def make(name: str, given: dict[str, Any]) -> Any:
        bound.append((name, given))
        return partial(shifted, by=0.0)

    monkeypatch.setattr("dbpkit.attacks.autoattack.make_attack", make)
    x, y = grey(0.1), torch.tensor([0])
    autoattack(Fading(), x, y, threat=Linf(0.1), noise=NoisePlan.of(0, [1]), **options)
    return bound


def test_autoattack_rand_has_the_published_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"iterations": 100, "eot": 20, "judge_draws": 20}
    assert spied(monkeypatch, version="rand") == [
        ("apgd", {**settings, "loss": "ce"}),
        ("apgd", {**settings, "loss": "dlr"}),
    ]


def test_autoattack_standard_for_a_deterministic_model_has_the_published_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the runner passes on where nothing is random; Square makes 5000 queries."""
    once = {"iterations": 100, "eot": 1, "judge_draws": 1}
    options = single_draw(PartSpec(name="autoattack"))
    assert spied(monkeypatch, **options) == [
        ("apgd", {**once, "stop": True}),
        ("apgd_targeted", {**once, "stop": True}),
        ("fab", {"iterations": 100, "eot": 1}),
        ("square", {"iterations": 5000, "eot": 1, "reevaluate": False}),
    ]


def test_autoattack_options_of_a_part_go_before_shared_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = ["apgd", {"name": "apgd", "options": {"iterations": 7, "loss": "dlr"}}]
    assert spied(monkeypatch, parts=parts, iterations=3, eot=2) == [
        ("apgd", {"iterations": 3, "eot": 2, "judge_draws": 20}),
        ("apgd", {"iterations": 7, "eot": 2, "judge_draws": 20, "loss": "dlr"}),
    ]


class Perceptron(nn.Module):
    """A small classifier of (B, 3, 8, 8) images."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.Tanh(), nn.Linear(24, 10))
        fill(self, seed=2)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.body(x - 0.5)


@pytest.mark.slow
def test_autoattack_standard_is_as_strong_as_pyautoattack() -> None:
    """The same ensemble, budget and iterations on a deterministic model: within one of 24 examples."""
    pyautoattack = pytest.importorskip("pyautoattack")
    model, x, eps = Perceptron().float(), uniform(24, 3, 8, 8).float(), 0.01
    y = model(x).argmax(dim=1)
    noise = NoisePlan.of(0, range(24), "attack")
    found = autoattack(Target(Undefended(model)), x, y, threat=Linf(eps), noise=noise, **PUBLISHED)
    reference = pyautoattack.AutoAttack(model, eps=eps, norm="Linf", seed=0, version="standard", device="cpu")
    tracer = sys.gettrace()  # its check for dynamic models ends any tracing, that of coverage too
    try:
        theirs = reference.run_standard_evaluation(x, y)
    finally:
        sys.settrace(tracer)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    left, other = (model(images).argmax(dim=1) == y for images in (found.x_adv, theirs))
    assert 3 < int(other.sum()) < 21
    assert int(left.sum()) <= int(other.sum()) + 1
    assert int((left != other).sum()) <= 1


def test_autoattack_is_at_least_as_strong_as_each_part_on_the_judging_draws() -> None:
    model, x = NoisyClassifier(Perceptron(), 0.05), uniform(16, 3, 8, 8)
    y, noise = model.classifier(x).argmax(dim=1), NoisePlan.of(0, range(16), "attack")
    settings: dict[str, Any] = {"threat": Linf(0.008), "iterations": 5, "eot": 3, "judge_draws": 10}
    both = ["apgd", {"name": "apgd", "options": {"loss": "dlr"}}]
    right = []
    for parts in (both, both[:1]):
        x_adv = autoattack(model, x, y, noise=noise, parts=parts, **settings).x_adv
        logits = Target(model).draws(x_adv, noise=noise.branch(JUDGE), count=10)
        right.append((logits.argmax(dim=2) == y[:, None]).double().mean(dim=1))
    assert bool((right[0] <= right[1]).all())
    assert bool((right[0] < right[1]).any())


# ------------------------------------------------------------------ errors


def test_autoattack_unknown_version_raises() -> None:
    with pytest.raises(
        UserError, match="attack 'autoattack': version must be 'standard' or 'rand', not 'plus'"
    ):
        autoattack(
            Fading(),
            grey(0.1),
            torch.tensor([0]),
            threat=Linf(0.1),
            noise=NoisePlan.of(0, [1]),
            version="plus",
        )


def test_autoattack_judge_draws_below_one_raises() -> None:
    with pytest.raises(
        UserError, match="attack 'autoattack': judge_draws must be a whole number of at least 1, not 0"
    ):
        run(grey(0.1), [shift(0.1)], judge_draws=0)


@pytest.mark.parametrize("parts", [[], "apgd", ["apgd"] * 15])
def test_autoattack_empty_or_long_list_of_parts_raises(parts: Any) -> None:
    with pytest.raises(
        UserError, match=r"autoattack takes a list of 1 to 14 parts|'autoattack': parts must be a list"
    ):
        run(grey(0.1), parts)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("apdg", r"unknown attack 'apdg'\. Did you mean 'apgd'\?"),
        ({"name": "apgd", "options": {"steps": 3}}, "attack 'apgd' has no option 'steps'"),
        ({"name": "apgd", "option": {}}, "spec 'autoattack parts': unknown key 'option'"),
    ],
)
def test_autoattack_wrong_part_raises(part: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(grey(0.1), [part])


def test_autoattack_within_autoattack_raises() -> None:
    """It would take the lanes of its siblings."""
    with pytest.raises(UserError, match="has no branch"):
        run(grey(0.1), [{"name": "autoattack", "options": {"parts": [shift(0.1)]}}])


def test_autoattack_standard_three_classes_raises() -> None:
    x = uniform(1, 1, 4, 4)
    with pytest.raises(UserError, match="needs at least 4 classes, not 3"):
        autoattack(
            NoisyClassifier(TinyClassifier(), 0.0),
            x,
            TinyClassifier()(x).argmax(dim=1),
            threat=Linf(1e-6),
            noise=NoisePlan.of(0, [1]),
            iterations=1,
            eot=1,
        )
