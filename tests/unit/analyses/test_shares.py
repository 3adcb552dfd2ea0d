"""Shares against a model whose attacked accuracies follow from its draws, and against arithmetic."""

from typing import Any

import pytest

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.run import make_analysis
from dbpkit.analyses.shares import Shares
from dbpkit.foundation.errors import UserError
from tests import parts
from tests.unit.analyses import stubs

WHITE_BOX_LANE = 2


def test_shares_accuracies_are_those_the_draws_imply() -> None:
    """With one draw a step, a block is raised by eps / 4 whenever a step looked at it; 0.4 eps takes two."""
    model = stubs.Blocks()
    analysis = Shares(images=12, draws=6, tapes=2, iterations=4, eot=1)
    measured = stubs.measure_all(analysis, stubs.subject(model))
    records = [r for unit in measured.values() for r in unit]
    data = parts.data()
    for i, record in enumerate(records):
        example = stubs.FIRST_ID + i
        steps = [stubs.block(example, s, "attack", WHITE_BOX_LANE) for s in range(4)]
        wrong = [steps.count(stubs.block(example, r)) >= 2 for r in range(6)]
        assert record["white_box"] == pytest.approx(1 - sum(wrong) / 6)
        assert record["fixed"] == 0  # the known block is raised by eps
        assert record["clean"] == 1
        means, y = data.x()[i].mean(dim=(1, 2)), int(data.labels[i])
        others = max(float(m) for k, m in enumerate(means) if k != y)
        assert record["undefended"] == float(float(means[y]) - others > 2 * stubs.EPS)  # linear: the optimum
    assert 0 < sum(r["white_box"] for r in records) < 12


STOCHASTIC = "accuracy from stochasticity, at most: white box (EoT 5) minus fixed randomness"
MORE = "accuracy from stochasticity minus accuracy from purification"
SHARE = "share of the white box's accuracy that comes from stochasticity"


def records(white: list[float], fixed: list[float], undefended: list[float]) -> dict[str, Any]:
    rows = zip(white, fixed, undefended, strict=True)
    found = [{"id": 0, "clean": 1.0, "white_box": w, "fixed": f, "undefended": u} for w, f, u in rows]
    return {Unit(range(len(found))): found}


def test_shares_parts_add_up_to_the_white_box() -> None:
    result = Shares().conclude(records([1, 0.8, 0.6, 0.4], [0.5, 0, 0.5, 0], [0.5, 0, 0, 0]))
    found = stubs.numbers(result)
    stochastic = found[STOCHASTIC]
    purified = found["accuracy from purification: fixed randomness minus undefended"]
    assert (stochastic.value, purified.value) == pytest.approx((0.45, 0.125))
    assert found[MORE].value == pytest.approx(0.325)
    share = found[SHARE].value
    assert share == pytest.approx(0.45 / 0.7)
    (bars,) = result.charts[0].series
    assert sum(bars.y) == pytest.approx(0.7)


def test_shares_published_parts_are_the_differences_of_published_accuracies() -> None:
    found = stubs.numbers(Shares().conclude(records([0.5] * 4, [0.2] * 4, [0] * 4)))
    assert found[STOCHASTIC].published == pytest.approx(0.4727 - 0.168)
    share = found[SHARE]
    assert share.published == pytest.approx((0.4727 - 0.168) / 0.4727, abs=1e-3)


def test_shares_nothing_right_under_known_noise_gives_a_share_without_interval() -> None:
    """Of four images next to nothing is known: the white box's accuracy may be next to nothing too."""
    result = Shares().conclude(records([1, 0.5, 0, 0], [0] * 4, [0] * 4))
    share = stubs.numbers(result)[SHARE]
    assert (share.value, share.low, share.high) == (1, None, None)


def test_shares_nothing_robust_has_no_share() -> None:
    result = Shares().conclude(records([0] * 4, [0] * 4, [0] * 4))
    assert SHARE not in stubs.numbers(result)


@pytest.mark.parametrize(("fixed", "holds"), [([0.0] * 16, True), ([1.0] * 16, False)])
def test_shares_claim_is_judged_by_the_interval(fixed: list[float], holds: bool) -> None:
    result = Shares().conclude(records([1.0] * 16, fixed, [0.0] * 16))
    assert stubs.numbers(result)[MORE].holds is holds


@pytest.mark.parametrize("options", [{"tapes": 0}, {"eot": 0}, {"draws": None}])
def test_shares_bad_option_says_what_is_expected(options: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=f"'shares': {next(iter(options))} must be a whole number of at least 1"
    ):
        make_analysis("shares", options)
