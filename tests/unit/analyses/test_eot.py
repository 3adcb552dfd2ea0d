"""EoT against a model whose gradient is m + s z: cosines in closed form, losses along known directions."""

from typing import Any

import numpy as np
import pytest

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.eot import PUBLISHED, EoT
from dbpkit.analyses.run import make_analysis
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from tests.unit.analyses import stubs

IDS = range(stubs.FIRST_ID, stubs.FIRST_ID + 12)
OPTIONS: dict[str, Any] = {
    "images": 12,
    "counts": (1, 2, 5),
    "iterations": 2,
    "draws": 3,
    "semi": 4,
    "stride": 8,
}


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    measured = stubs.measure_all(EoT(**OPTIONS), stubs.subject(stubs.Linear()))
    return [r for unit in measured.values() for r in unit]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_eot_cosines_are_those_of_means_of_attack_draws_to_report_draws(
    records: list[dict[str, Any]],
) -> None:
    for example, record in zip(IDS, records, strict=True):
        fresh = [stubs.gradient(example, r, "attack") for r in range(5)]
        tapes = [stubs.gradient(example, t) for t in range(2)]
        for count in (1, 2, 5):
            groups = [np.mean(fresh[g * count : (g + 1) * count], axis=0) for g in range(5 // count)]
            expected = np.mean([cosine(group, tape) for group in groups for tape in tapes])
            assert record["cosine"][str(count)] == pytest.approx(expected, abs=1e-5)


def test_eot_cosine_follows_the_law_of_a_common_part(records: list[dict[str, Any]]) -> None:
    """|m|^2 = 48 and s^2 D = 192, so that draws share c = 0.2 of their power."""
    c = 0.2
    for count in (1, 2, 5):
        mean = np.mean([r["cosine"][str(count)] for r in records])
        expected = c / np.sqrt(c + (1 - c) / count)
        assert mean == pytest.approx(expected, abs=0.06)  # 4 / sqrt(192 D * 24 tapes)


def test_eot_published_cosines_follow_the_law_with_a_tenth_in_common() -> None:
    for count, (_, published) in PUBLISHED.items():
        assert published == pytest.approx(0.1 / np.sqrt(0.1 + 0.9 / count), abs=0.012)


def test_eot_losses_along_the_three_directions_are_those_of_the_linear_model(
    records: list[dict[str, Any]],
) -> None:
    steps = [-16, -8, 0, 8, 16]
    like = stubs.parts.data().x()[:1]
    for example, record in zip(IDS, records, strict=True):
        g = [stubs.gradient(example, t) for t in range(4)]
        z = NoisePlan.of(0, [example], "control").normal("probe", 0, like)[0].numpy()
        semi = np.sign(np.mean(g, axis=0))
        assert record["steps"] == steps
        for at, k in enumerate(steps):
            for name, signs in {
                "DW": [np.sign(g[0]), np.sign(g[1])],
                "DW_semi": [semi, semi],
                "random": [np.sign(z)] * 2,
            }.items():
                expected = np.mean([stubs.softplus(k / 255 * (g[t] * signs[t]).sum()) for t in range(2)])
                assert record[name][at] == pytest.approx(expected, rel=1e-3, abs=1e-6)  # float32


def test_eot_linear_model_conclusions_hold(records: list[dict[str, Any]]) -> None:
    found = stubs.numbers(EoT(**OPTIONS).conclude({Unit(range(12)): records}))
    assert stubs.judged(found["rise along DW minus along DW_semi"]) is True
    rises = [found[f"rise of the loss at 16/255 along {name}"].value for name in ("DW", "DW_semi", "random")]
    assert rises == sorted(rises, reverse=True)
    assert found["robust accuracy, N = 5"].published == 0.485
    assert found["cosine to the DW gradient, N = 2"].published == 0.14


def test_eot_semi_of_one_draw_is_the_attacker_who_knows_it() -> None:
    options = {**OPTIONS, "counts": (1,), "semi": 1, "tapes": 1, "stride": 16}
    measured = stubs.measure_all(EoT(**options), stubs.subject(stubs.Linear()))
    assert all(r["DW"] == r["DW_semi"] for unit in measured.values() for r in unit)


def test_eot_attacks_draw_on_their_stream_and_are_judged_on_report() -> None:
    model = stubs.Blocks()
    stubs.measure_all(EoT(**{**OPTIONS, "images": 2, "semi": 2}), stubs.subject(model))
    assert model.streams[False] == {"report"}  # True also holds the DW gradients


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": [2, 1]}, "counts must increase, not \\[2, 1\\]"),
        (
            {"counts": [0, 1]},
            "counts must be a list of at least 1 with each entry a whole number of at least 1",
        ),
        ({"semi": 1}, "semi 1 must be at least tapes 2"),
        ({"stride": 5}, "stride 5 must divide 16"),
        ({"eot": 3}, "has no option 'eot'"),
    ],
)
def test_eot_bad_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("eot", options)
