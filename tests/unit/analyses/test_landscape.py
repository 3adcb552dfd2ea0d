"""The loss landscape of a linear model, where surface, paths and ends are known."""

from typing import Any

import numpy as np
import pytest
import torch

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.landscape import Landscape, coordinates, plane
from dbpkit.analyses.run import make_analysis
from dbpkit.foundation.errors import UserError
from tests.oracles import uniform
from tests.unit.analyses import stubs

STEPS = 4
ANALYSIS = Landscape(images=12, grid=5, extent=2.0, iterations=STEPS, eot=1)
LANES = {"EoT": 2, "single draw": 3}


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    measured = stubs.measure_all(ANALYSIS, stubs.subject(stubs.Linear()))
    return [r for unit in measured.values() for r in unit]


def walk(example: int, lane: int) -> np.ndarray:
    """Perturbations of single-draw PGD on the linear model: eps / 4 along each draw's sign."""
    signs = [np.sign(stubs.gradient(example, s, "attack", lane)) for s in range(STEPS)]
    return stubs.EPS / 4 * np.cumsum([0 * signs[0], *signs], axis=0)


def axes(example: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The known gradient, d and |d| u of the linear model, from Gram and Schmidt."""
    g = stubs.gradient(example, 0)
    d, e = stubs.EPS * np.sign(g), walk(example, LANES["EoT"])[-1]
    r = e - (e * d).sum() / (d * d).sum() * d
    return g, d, r / np.linalg.norm(r) * np.linalg.norm(d)


def test_landscape_surface_is_the_linear_models(records: list[dict[str, Any]]) -> None:
    """log(1 + exp(<g, i d + j v>)) at every grid point; row j, column i."""
    for i, record in enumerate(records):
        g, d, v = axes(stubs.FIRST_ID + i)
        assert record["ticks"] == [0, 0.5, 1, 1.5, 2]
        height = [[(g * (a * d + b * v)).sum() for a in record["ticks"]] for b in record["ticks"]]
        assert np.array(record["surface"]) == pytest.approx(
            stubs.softplus(np.array(height)), rel=1e-3, abs=1e-6
        )
        clear = np.abs(height) > 1e-4
        assert (np.array(record["right"]) == (np.array(height) < 0))[clear].all()


def test_landscape_paths_and_ends_are_known(records: list[dict[str, Any]]) -> None:
    for i, record in enumerate(records):
        example = stubs.FIRST_ID + i
        g, d, v = axes(example)
        known = np.array(record["paths"]["DW"])
        assert known == pytest.approx(np.stack([np.arange(5) / 4, np.zeros(5)], axis=1), abs=1e-4)
        for name, lane in LANES.items():
            path = walk(example, lane)
            expected = [[(p * d).sum() / (d * d).sum(), (p * v).sum() / (v * v).sum()] for p in path]
            assert np.array(record["paths"][name]) == pytest.approx(np.array(expected), abs=1e-4)
            assert record["ends"][name] == pytest.approx(
                stubs.softplus((g * path[-1]).sum()), rel=1e-3, abs=1e-6
            )
        assert record["ends"]["start"] == pytest.approx(np.log(2))
        assert record["ends"]["residual"] == pytest.approx(record["surface"][2][0])
        assert record["ends"]["DW"] == pytest.approx(record["surface"][0][2])


def test_landscape_conclusion_is_the_mean_over_images(records: list[dict[str, Any]]) -> None:
    result = ANALYSIS.conclude({Unit(range(12)): records})
    heat, lines = result.charts
    surface = np.mean([r["surface"] for r in records], axis=0)
    assert np.array([s.y for s in heat.series]) == pytest.approx(surface)
    known = next(s for s in lines.series if s.name == "DW")
    assert (known.x[-1], known.y[-1]) == pytest.approx((1, 0), abs=1e-4)
    found = stubs.numbers(result)
    assert found["loss at (2, 0)"].value == pytest.approx(surface[0, -1])
    assert found["loss at (2, 0)"].published == 15.5
    assert stubs.judged(found["loss at (1, 0) minus loss at (0, 1)"]) is True


def test_landscape_end_of_the_eot_attack_lies_in_the_plane() -> None:
    dw, eot = uniform(3, 1, 4, 4, low=-1), uniform(3, 1, 4, 4, seed=1, low=-1)
    d, v = plane(dw, eot)
    at = coordinates(torch.stack([eot]), d, v)[0]
    rebuilt = at[:, 0, None, None, None] * d + at[:, 1, None, None, None] * v
    torch.testing.assert_close(rebuilt, eot)
    torch.testing.assert_close(d.flatten(1).norm(dim=1), v.flatten(1).norm(dim=1))
    assert float((d * v).flatten(1).sum(dim=1).abs().max()) < 1e-12  # float64


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 3.0])
def test_landscape_parallel_attacks_have_no_residual_direction(factor: float) -> None:
    dw = uniform(2, 1, 4, 4, low=-1).float()
    d, v = plane(dw, factor * dw)
    assert torch.equal(d, dw)
    assert float(v.abs().max()) == 0
    assert bool(torch.isfinite(coordinates(torch.stack([dw, 0 * dw]), d, v)).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 1}, "grid must be a whole number of at least 2"),
        ({"extent": 0.5}, "extent must be a number of at least 1, not 0.5"),
        ({"extent": "wide"}, "extent must be a number of at least 1, not 'wide'"),
        ({"iterations": 0}, "iterations must be a whole number of at least 1"),
    ],
)
def test_landscape_bad_option_says_what_is_expected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("landscape", options)
