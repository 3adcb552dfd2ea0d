"""Tapes against a model whose answers follow from image and tape in closed form, and against made records."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dbpkit.analyses.analysis import Subject, Unit
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.tapes.tapes import OnTape, Tapes
from dbpkit.analyses.tools.configurations import with_eps
from dbpkit.attacks import Target
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from tests import parts
from tests.docs.pages import ROOT
from tests.oracles import uniform
from tests.unit.analyses import stubs

EPS = 0.01
WIDTH = 0.08
SCALE = 100.0
TAPES = 6


class Shifted(nn.Module):
    """Right where the label's channel leads by more than a width times the tape's uniform number."""

    sites = frozenset({"forward"})

    def __init__(self) -> None:
        super().__init__()
        self.classifier = parts.ChannelMean().requires_grad_(False)
        self.rows = 0

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.rows += len(x)
        means = x.mean(dim=(2, 3))
        u = noise.uniform("forward", 0, x[:, 0, 0, :1].detach())
        second = means.topk(2, dim=1).values[:, 1:]
        return SCALE * torch.cat([means, second + WIDTH * u], dim=1)


def tape(example: int, draw: int) -> float:
    plan = NoisePlan.of(0, [example], "report", draw)
    return float(plan.uniform("forward", 0, torch.zeros(1, 1))[0, 0])


def expected(*, shared: bool, budget: float) -> np.ndarray:
    """Right answers (12, T): an attack within eps moves the lead by 2 eps, whatever it knows."""
    data = parts.data()
    found = np.zeros((12, TAPES))
    for i, (x, y) in enumerate(zip(data.x(), data.labels.tolist(), strict=True)):
        means = x.mean(dim=(1, 2)).tolist()
        lead = means[y] - max(m for k, m in enumerate(means) if k != y) - 2 * budget
        for t in range(TAPES):
            found[i, t] = lead > WIDTH * tape(0 if shared else stubs.FIRST_ID + i, t)
    return found


def subject(model: nn.Module) -> Subject:
    return with_eps(stubs.subject(model), EPS)


@pytest.mark.parametrize("shared", [True, False])
def test_tapes_answers_are_those_of_the_tape_in_closed_form(shared: bool) -> None:
    analysis = Tapes(images=12, tapes=TAPES, iterations=4, eot=3, shared=shared)
    measured = stubs.measure_all(analysis, subject(Shifted()))
    found = [record for unit in measured.values() for record in unit]
    clean, attacked = (expected(shared=shared, budget=b) for b in (0.0, EPS))
    assert 0.1 < attacked.mean() < clean.mean() < 1
    for name, right in (
        ("clean", clean),
        ("known", attacked),
        ("other_attack", attacked),
        ("unknown", attacked),
    ):
        assert np.array_equal([record[name] for record in found], right), name


def test_tapes_effect_of_a_shared_shift_is_found_and_of_own_ones_is_not() -> None:
    def conclude(shared: bool) -> dict[str, Any]:
        analysis = Tapes(images=12, tapes=TAPES, iterations=4, eot=3, shared=shared)
        return stubs.numbers(analysis.conclude(stubs.measure_all(analysis, subject(Shifted()))))

    together, apart = conclude(True), conclude(False)
    ratio = "variance of the tapes' accuracies, as a multiple of what chance over images makes"
    assert together[ratio].low > 1
    assert stubs.judged(together[ratio]) is True
    assert apart[ratio].low < 1
    assert not apart[ratio].claim
    assert together["gained by knowing the tape, against 3 times as many gradient passes without"].value == 0


def test_tapes_rows_that_fell_are_left_alone() -> None:
    model = Shifted()
    x, y, _ = subject(model).examples(range(2))
    tapes = NoisePlan.of(0, [0, 0]).repeat(TAPES)
    image = torch.arange(2).repeat_interleave(TAPES)
    target = OnTape(subject(model), tapes)
    left = target(x[image], noise=tapes).argmax(dim=1) == y[image]
    assert 0 < left.sum() < len(left)
    model.rows = 0
    first = target.gradient(x[image], y[image], noise=tapes, eot=5, loss="ce")
    again = target.gradient(x[image], y[image], noise=tapes, eot=5, loss="ce")
    assert model.rows == len(left) + int(left.sum())
    plain = Target(model).gradient(x[image], y[image], noise=tapes).grad
    assert torch.equal(again.grad[left], plain[left])
    assert torch.equal(first.grad, again.grad)
    assert not again.grad[~left].any()
    assert torch.equal(target.survived(x[image], y[image]), left)
    assert torch.equal(target.first, left)


def records(known: np.ndarray, **others: np.ndarray) -> dict[Any, Any]:
    """Records of tables (n, T); those not given are as `known`."""
    names = ("clean", "known", "other_attack", "unknown_once", "unknown")
    tables = {**dict.fromkeys(names, known), **others}
    found = [
        {"id": i, **{name: table[i].astype(int).tolist() for name, table in tables.items()}}
        for i in range(len(known))
    ]
    return {Unit(range(len(known))): found}


def answers(effect: float, seed: int) -> np.ndarray:
    """Zeros and ones (96, 16): chances of 0.2, 0.5 or 0.8 by image, and a shift of either sign by tape."""
    chance = np.array([0.2, 0.5, 0.8])[np.arange(96) % 3, None] + effect * (-1.0) ** np.arange(16)
    return (uniform(96, 16, seed=seed).numpy() < chance).astype(float)


ORDER = "order of the tapes on other images, "


def test_tapes_numbers_tell_an_effect_from_chance() -> None:
    plain = stubs.numbers(Tapes().conclude(records(answers(0, 1), other_attack=answers(0, 2))))
    shifted = stubs.numbers(Tapes().conclude(records(answers(0.2, 1), other_attack=answers(0.2, 2))))
    share = "share of the variance that tapes make"
    assert plain[share].holds is True
    assert shifted[share].holds is False
    assert shifted[share].value == pytest.approx(0.04 / (0.06 + 0.04 + 0.15), abs=0.05)
    for name in (f"{ORDER}the same attack", f"{ORDER}the other attack"):
        assert plain[name].holds is None
        assert shifted[name].holds is True
    for name in ("worst tape minus the mean", "best tape minus the mean"):
        assert plain[name].holds is None
        assert shifted[name].holds is True
        assert abs(shifted[name].value) == pytest.approx(0.2, abs=0.1)
    lowest = plain["lowest accuracy of a tape"]
    assert (lowest.low, lowest.value) == (None, pytest.approx(answers(0, 1).mean(axis=0).min()))


def test_tapes_gain_is_paired_and_has_a_width_where_all_are_equal() -> None:
    known = answers(0, 1)
    more = np.maximum(known, answers(0, 3))
    found = stubs.numbers(Tapes(eot=7).conclude(records(known, unknown=more)))
    gain = found["gained by knowing the tape, against 7 times as many gradient passes without"]
    assert gain.value == pytest.approx((more - known).mean())
    assert gain.holds is True
    none = found["gained by knowing the tape, against as many gradient passes without"]
    assert none.value == 0
    assert none.low < 0 < none.high


def test_tapes_agreement_is_of_the_same_image_and_tape() -> None:
    known = answers(0, 1)
    name = "agreement image by image beyond images and tapes, the other classifier"
    same = stubs.numbers(Tapes().conclude(records(known, other_classifier=known)))[name]
    other = stubs.numbers(Tapes().conclude(records(known, other_classifier=answers(0, 9))))[name]
    assert same.value == pytest.approx(1)
    assert same.holds is True
    assert other.low < 0 < other.high


def test_tapes_constant_answers_have_levels_and_no_other_number() -> None:
    result = Tapes().conclude(records(np.ones((20, 5))))
    assert all(math.isfinite(number.value) for number in result.numbers)
    assert "share of the variance that images make" in stubs.numbers(result)
    assert not any(number.name.startswith("variance of the tapes") for number in result.numbers)


def test_tapes_chart_of_ranks_shows_accuracies() -> None:
    chart = Tapes().conclude(records(answers(0, 1)[:6])).charts[-1]
    assert "order that half" in chart.title
    ends = [*(chart.series[1].low or []), *(chart.series[1].high or [])]
    assert ends
    assert 0 <= min(ends) <= max(ends) <= 1


def test_tapes_recorded_numbers_follow_from_the_recorded_answers() -> None:
    recorded = json.loads((ROOT / "benchmarks/results/tapes.json").read_text())
    tables = {name: np.array([[*map(int, row)] for row in rows]) for name, rows in recorded["tables"].items()}
    result = Tapes(eot=recorded["settings"]["eot"]).conclude(records(tables.pop("known"), **tables))
    found = stubs.numbers(result)
    assert [n["name"] for n in recorded["numbers"]] == list(found)
    for number in recorded["numbers"]:
        assert found[number["name"]].value == pytest.approx(number["value"])
        assert found[number["name"]].holds == number["holds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"other_norm": "l2"}, "other_norm needs a budget of its own"),
        ({"other_eps": "much"}, "other_eps must be an amount"),
        ({"classifier": "nobody"}, "nobody"),
    ],
)
def test_tapes_wrong_second_parts_are_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("tapes", options).units(stubs.subject())
