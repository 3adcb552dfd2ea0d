"""The wide law's statistics: groups are never mixed, a unit is left out whole, chance looks like chance."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import law_wide
from benchmarks.law_wide_fit import (
    NORMS,
    Study,
    Unit,
    averaged,
    by_chance,
    left_out,
    mixed,
    ranking,
    standardised,
)
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.philox import uniforms
from dbpkit.foundation.spec import validate

IMAGES = 24


def unit(data: str, classifier: str, purifier: int, u: np.ndarray, kept: float, rate: float) -> Unit:
    """A unit of which a share of the images withstands, and whose rate is known; ``u`` (3, n) in [0, 1]."""
    survived = u[0] < kept
    norm: dict[str, Any] = {
        "step_rate": (2 * rate * np.ones(IMAGES)).tolist(),
        "step_length": [0.5] * IMAGES,
        "budget_length": [0.5] * IMAGES,
        "survived": survived.tolist(),
        "attack_rate": [0.5 if v > 0.1 else None for v in u[1]],
    }
    images: dict[str, Any] = {
        "right": (survived | (u[1] < 0.5)).tolist(),
        "rate": (rate + 0.01 * (u[2] - u[2].mean())).tolist(),
        "margin": [float(v) if v < 0.95 else None for v in u[2]],
        "products": [[[1.0, 0.3 + 0.1 * v], [0.3 + 0.1 * v, 1.0]] for v in u[2]],
        **dict.fromkeys(NORMS, norm),
    }
    return Unit(data, classifier, f"d{purifier % 2}", f"p{purifier}", images)


def study(purifiers: int = 5, slope: float = -1.0, shift: float = 0.3, resamples: int = 60) -> Study:
    """Two data sets of three classifiers; what differs between the data sets runs against the slope."""
    units = []
    for d, data in enumerate(("a", "b")):
        for c, classifier in enumerate("xyz"):
            for p in range(purifiers):
                u = uniforms(3, IMAGES + 1, "probe", 100 * d + 10 * c + p)
                rate = 0.2 + 0.3 * float(u[0, -1]) + shift * d
                kept = 0.3 + slope * (rate - shift * d - 0.35) + 0.3 * d + 0.06 * c
                units.append(unit(data, classifier, p, u[:, :IMAGES], kept, rate))
    return Study(units, resamples)


def column(made: Study, name: str) -> tuple[np.ndarray, np.ndarray]:
    plain, moved = made.tables
    return plain[name][0], moved[name]


def test_columns_are_plain_means_and_the_formula_counts_images() -> None:
    made = study()
    plain = made.tables[0]
    for i, u in enumerate(made.units):
        margin = np.array([np.inf if v is None else v for v in u.images["margin"]])
        right, rate = np.array(u.images["right"]), np.mean(u.images["rate"])
        tried = [v for v in u.images["linf"]["attack_rate"] if v is not None]
        assert plain["attacked"][0, i, 0] == pytest.approx(np.mean(u.images["linf"]["survived"]))
        assert plain["formula"][0, i, 1] == pytest.approx((right & (margin > 0.5 * rate)).mean())
        assert plain["attack_rate"][0, i, 0] == pytest.approx(np.mean(tried))
        assert plain["snr"][0, i, 0] == pytest.approx(np.mean([p[0][1] for p in u.images["products"]]))


def test_ranking_is_the_mean_of_the_groups_own_correlations() -> None:
    made = study()
    x, moved = column(made, "rate")
    y = made.tables[0]["attacked"][0]
    for within, keys in ((False, ("data",)), (True, ("data", "classifier"))):
        groups: dict[tuple[str, ...], list[int]] = {}
        for i, u in enumerate(made.units):
            groups.setdefault(tuple(getattr(u, k) for k in keys), []).append(i)
        found = [stats.spearmanr(x[g, n], y[g, n])[0] for g in groups.values() for n in range(2)]
        assert ranking(made, x, moved, within)[0] == pytest.approx(np.mean(found))  # groups of equal size


def test_what_differs_between_data_sets_does_not_make_a_correlation() -> None:
    made = study(purifiers=8)
    x, moved = column(made, "rate")
    y = made.tables[0]["attacked"][0]
    assert stats.spearmanr(x.ravel(), y.ravel())[0] > 0.4  # pooled: the sign is that of the data sets
    value, draws = ranking(made, x, moved, within=True)
    assert value < -0.3
    assert np.nanquantile(draws, 0.75) < 0


def test_averaged_leaves_out_groups_without_a_correlation() -> None:
    found = [(3, np.array([1.0, np.nan])), (5, np.array([0.0, 0.5]))]
    assert averaged(found).tolist() == pytest.approx([2 / 6, 0.5])


def test_left_out_is_a_refit_without_the_unit_and_both_its_norms() -> None:
    made = study()
    table = made.tables[0]
    said, errors = left_out(made, table, ["rate", "margin"])
    z = np.stack([standardised(made, table[k][0]) for k in ("rate", "margin")], axis=-1)
    y = table["attacked"][0]
    data = np.array([u.data for u in made.units])
    for i in (0, 7, 22):
        rows = [(j, n) for j in range(len(made.units)) for n in range(2) if j != i]
        groups = [(d, n) for d in ("a", "b") for n in range(2)]
        design = np.array([[*z[j, n], *((data[j], n) == g for g in groups)] for j, n in rows], dtype=float)
        fit = np.linalg.lstsq(design, np.array([y[j, n] for j, n in rows]), rcond=None)[0]
        for n in range(2):
            whole = z[i, n] @ fit[:2] + fit[2 + groups.index((data[i], n))]
            assert said[i, n] == pytest.approx(z[i, n] @ fit[:2], abs=1e-9)
            assert errors[i, n] == pytest.approx(abs(whole - y[i, n]), abs=1e-9)


def test_left_out_of_nothing_is_the_mean_of_the_others() -> None:
    made = study()
    y, rows = made.tables[0]["attacked"][0], made.of("a")
    errors = left_out(made, made.tables[0], ())[1]
    others = (y[rows, 0].sum() - y[rows, 0]) / (len(rows) - 1)
    np.testing.assert_allclose(errors[rows, 0], np.abs(others - y[rows, 0]))


def test_chance_finds_a_planted_order_and_not_a_random_one() -> None:
    made = study(purifiers=8)
    assert by_chance(made, column(made, "rate")[0], within=True) < 0.01
    random = uniforms(len(made.units), 2, "probe", 999)
    assert by_chance(made, random, within=True) > 0.02


def test_draws_hold_units_of_the_drawn_classifier_only() -> None:
    made = study()
    for data in made.data_sets:
        for rows in made.drawn[data]:
            names = np.array([u.classifier for u in made.units])[rows]
            assert rows.shape == (60, 5)
            assert all(len(set(line)) == 1 for line in names)
        first, *others = (np.array([u.purifier for u in made.units])[rows] for rows in made.drawn[data])
        assert all((first == other).all() for other in others)  # the same purifiers around every classifier


def test_mixed_fit_finds_the_planted_slope() -> None:
    pytest.importorskip("statsmodels")
    found = mixed(study(purifiers=8), ["rate"])
    value, low, high = found["slopes per deviation"]["rate"]
    assert low < -0.085 < high < 0  # minus the deviation of the rates, 0.3 / sqrt(12)
    assert value < 0
    assert {"classifier", "rest"} <= found["deviations"].keys()


def test_every_unit_of_the_study_is_a_spec_and_has_a_name_of_its_own(tmp_path: Any) -> None:
    works = list(law_wide.works())
    assert len({w.name for w in works}) == len(works)
    assert 2 * len(works) >= 48
    assert len({w.group for w in works}) == 3
    assert all(len(m.classifiers) == 4 for m in law_wide.STUDY.values())
    for work in works:
        assert isinstance(work.spec(tmp_path), EvaluationSpec)
        assert not set("*= /") & set(work.name)
    first = works[: len(law_wide.STUDY["digits"].classifiers)]
    assert len({w.classifier for w in first}) == 4


def test_measured_of_a_batch_has_a_value_per_image_and_the_attack_is_judged() -> None:
    table = {
        "data": "tests.parts:data",
        "classifier": "tests.parts:ChannelMean",
        "denoiser": "tests.parts:gaussian_denoiser",
        "threat": {"norm": "linf", "eps": "8/255"},
    }
    from dbpkit.analyses.analysis import Subject
    from dbpkit.analyses.tools.configurations import settings, with_purifier
    from dbpkit.experiment.build import build

    spec = validate(table, EvaluationSpec, "tiny")
    subject = with_purifier(Subject(spec, build(spec)), settings([law_wide.ONE])[0])
    batches = [
        law_wide.measured(subject, images, {"linf": "60/255", "l2": "1.0"})
        for images in (range(0, 4), range(4, 6))
    ]
    found = law_wide.merged(batches)
    assert len(found["right"]) == len(found["products"]) == 6
    assert all(len(found[norm]["survived"]) == 6 for norm in NORMS)
    for norm in NORMS:
        assert all(not s or r for s, r in zip(found[norm]["survived"], found["right"], strict=True))
        assert all(step <= 1.0 + 1e-5 for step in found["l2"]["step_length"])
    whole = law_wide.measured(subject, range(0, 6), {"linf": "60/255", "l2": "1.0"})
    np.testing.assert_allclose(found["rate"], whole["rate"], rtol=1e-4)
