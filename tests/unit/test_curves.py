"""Curves against eps: grouping, and the joint interval against closed forms and scipy's paired bootstrap."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dbpkit.foundation.errors import UserError
from dbpkit.results.curves import eps_curves
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.estimates import paired_difference, per_draw
from tests.oracles import uniform

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""

SPEC: dict[str, Any] = {
    "name": "vanilla",
    "data": {"name": "embedded", "options": {}},
    "classifier": {"name": "embedded", "options": {}},
    "denoiser": {"name": "embedded", "options": {}},
    "purifier": {"sampler": "ddpm", "t_star": 0.1, "steps": 100, "options": {}, "grid": {}, "clamp": None},
    "threat": {"norm": "linf", "eps": "8/255"},
    "attacks": [{"name": "pgd", "options": {"iterations": 3}}],
    "knowledge": [{"name": "white_box", "gradient": "exact", "shared_sites": [], "tapes": 1}],
    "examples": {"count": 4, "first": 0, "order": "file"},
    "draws": {"report": 1, "select": 10},
    "seed": 0,
}

Make = Callable[..., RunDirectory]
Right = Sequence[int] | np.ndarray[Any, Any]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Returns a function that writes a run: a model's denoiser, eps, and which examples are right."""

    def write(
        denoiser: str,
        eps: str,
        right: Right,
        change: Callable[[dict[str, Any]], object] = lambda _: None,
        session: dict[str, str] | None = None,
        label: int = 1,
    ) -> RunDirectory:
        spec = copy.deepcopy(SPEC)
        spec["denoiser"]["name"] = spec["name"] = denoiser
        spec["threat"]["eps"] = eps
        change(spec)
        run = RunDirectory(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        run.claim(spec)
        run.write_json("env.json", [{"data_sha256": "d", **(session or {})}])
        run.append(
            {"row": "white_box", "tape": 0, "example": i, "label": label, "predicted": [label * int(r)]}
            for i, r in enumerate(right)
        )
        return run

    return write


def drawn(n: int, share: float, seed: int) -> np.ndarray[Any, Any]:
    return (uniform(n, seed=seed) < share).long().numpy()


def test_eps_curves_groups_by_model_and_sorts_by_eps(make: Make) -> None:
    runs = [
        make(model, eps, [1, 0, 1, 0]) for eps in ("8/255", "1/255", "4/255") for model in ("van", "addt")
    ]
    curves = eps_curves(runs)
    assert [model.name for model in curves.models] == ["van", "addt"]
    assert list(curves.eps.values()) == ["1/255", "4/255", "8/255"]
    assert list(curves.eps) == pytest.approx([1 / 255, 4 / 255, 8 / 255])
    for model in curves.models:
        assert list(model.runs) == list(curves.eps)
    assert curves.models[1].runs[1 / 255].path == runs[3].path


def test_eps_curves_accuracy_is_per_draw_with_wilsons_interval(make: Make) -> None:
    right = [1, 0, 1, 1]
    curve = eps_curves([make("van", "8/255", right)]).models[0]
    assert curve.rows["white_box"][8 / 255] == per_draw([[r] for r in right], [1] * 4)


def test_eps_curves_title_and_step_size_may_follow_eps(make: Make) -> None:
    def at(k: int) -> Callable[[dict[str, Any]], None]:
        def change(spec: dict[str, Any]) -> None:
            spec["name"] = f"my model, Linf {k}/255"
            spec["attacks"][0]["options"]["step_size"] = f"{k}/1020"

        return change

    (model,) = eps_curves([make("van", f"{k}/255", [1, 0], at(k)) for k in (1, 8)]).models
    assert model.name == "my model, Linf"


@pytest.mark.parametrize(
    "change", [lambda s: s.update(seed=1), lambda s: s["attacks"][0]["options"].update(iterations=9)]
)
def test_eps_curves_other_settings_are_another_model(change, make: Make) -> None:
    assert len(eps_curves([make("van", "1/255", [1]), make("van", "8/255", [1], change)]).models) == 2


def test_eps_curves_other_weights_are_another_model(make: Make) -> None:
    runs = [make("van", "1/255", [1], session={"denoiser_sha256": s}) for s in ("a", "b")]
    curves = eps_curves(runs)
    assert len(curves.models) == 2
    assert curves.difference is not None
    assert curves.difference.changed == ["denoiser_sha256 a -> b"]


def test_eps_curves_one_or_three_models_have_no_difference(make: Make) -> None:
    runs = [make(model, "1/255", [1, 0]) for model in ("a", "b", "c")]
    assert eps_curves(runs[:1]).difference is None
    assert eps_curves(runs).difference is None


def test_eps_curves_same_model_twice_at_one_eps_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="the same model at the same eps 8/255"):
        eps_curves([make("van", "8/255", [1]), make("van", "8/255", [0])])


def test_eps_curves_two_norms_are_refused(make: Make) -> None:
    l2 = make("van", "0.5", [1], lambda s: s["threat"].update(norm="l2"))
    with pytest.raises(UserError, match="one norm, but the runs have linf and l2"):
        eps_curves([make("van", "8/255", [1]), l2])


def test_eps_curves_other_data_is_refused(make: Make) -> None:
    other = make("addt", "8/255", [1], session={"data_sha256": "e"}, label=2)
    with pytest.raises(UserError, match="runs on different data"):
        eps_curves([make("van", "8/255", [1]), other])


def test_eps_curves_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="at least one run"):
        eps_curves([])


def difference(make: Make, van: Sequence[Right], addt: Sequence[Right]):
    runs = [make("van", f"{k}/255", right) for k, right in enumerate(van, 1)]
    runs += [make("addt", f"{k}/255", right) for k, right in enumerate(addt, 1)]
    found = eps_curves(runs).difference
    assert found is not None
    return found


def test_curve_difference_at_each_eps_is_the_paired_difference_there(make: Make) -> None:
    van, addt = [drawn(50, 0.8, 1), drawn(50, 0.3, 2)], [drawn(50, 0.8, 3), drawn(50, 0.6, 4)]
    found = difference(make, van, addt)
    assert found.changed == ["denoiser.name van -> addt"]
    assert found.warnings == []
    for k, eps in enumerate((1 / 255, 2 / 255)):
        assert found.at["white_box"][eps] == paired_difference(van[k].tolist(), addt[k].tolist())
    mean = np.mean([e.value for e in found.at["white_box"].values()])
    assert found.average["white_box"].value == pytest.approx(mean, abs=ROUND_OFF)


def test_curve_difference_average_of_equal_points_is_no_surer_than_one_point(make: Make) -> None:
    """The same difference at every eps: four points tell as much as one, not twice as much."""
    van, addt = drawn(60, 0.7, 1), drawn(60, 0.4, 2)
    found = difference(make, [van] * 4, [addt] * 4)
    single = found.at["white_box"][1 / 255]
    assert found.average["white_box"][1:5] == pytest.approx(single[1:5], abs=ROUND_OFF)


def test_curve_difference_average_of_opposite_points_is_zero_for_every_example(make: Make) -> None:
    """What A wins at one eps it loses at the other, image by image: all averages are 0."""
    a, b = drawn(60, 0.7, 1), drawn(60, 0.4, 2)
    found = difference(make, [a, b], [b, a])
    assert found.average["white_box"].value == pytest.approx(0, abs=ROUND_OFF)
    same = found.average["white_box"]
    assert same[1:5] == pytest.approx(paired_difference([0.0] * 60, [0.0] * 60)[1:5], abs=ROUND_OFF)
    at = found.at["white_box"][1 / 255]
    assert same.high - same.low < at.high - at.low


def test_curve_difference_joint_interval_matches_scipys_paired_bootstrap(make: Make) -> None:
    """Curves that fall with a common hardness of the images.

    Ends of two independent bootstraps of 10,000 differ by less than 0.19 standard errors, see
    test_paired_difference_interval_matches_scipys_bootstrap; means of quarters lie 1 / (3 n) apart.
    """
    n, hardness = 200, uniform(200, seed=5)
    van, addt = (
        [(hardness + 0.3 * uniform(n, seed=10 * k + s) < top / k).long().numpy() for k in (1, 2, 3)]
        for s, top in ((1, 0.9), (2, 1.2))
    )
    found = difference(make, van, addt).average["white_box"]
    columns = [a - b for a, b in zip(van, addt, strict=True)]

    def mean_of_curve(*resampled: np.ndarray[Any, Any], axis: int = -1) -> Any:
        return np.mean([column.mean(axis=axis) for column in resampled], axis=0)

    expected = stats.bootstrap(
        columns, mean_of_curve, n_resamples=10_000, paired=True, method="percentile", rng=0
    )
    tolerance = 0.19 * float(expected.standard_error) + 1 / (3 * n)
    assert found.value == pytest.approx(mean_of_curve(*columns), abs=ROUND_OFF)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=tolerance)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=tolerance)
    assert found.examples == n


def test_curve_difference_average_is_over_examples_common_to_all_eps(make: Make) -> None:
    found = difference(make, [[1, 1, 0, 0], [1, 1, 0]], [[0, 0, 0, 0], [0, 0, 0, 0]])
    assert [e.examples for e in found.at["white_box"].values()] == [4, 3]
    assert found.average["white_box"].examples == 3
    assert found.average["white_box"].value == pytest.approx(2 / 3)


def test_curve_difference_only_one_common_eps_has_no_average(make: Make) -> None:
    runs = [make("van", "1/255", [1, 0]), make("van", "2/255", [1, 0]), make("addt", "2/255", [1, 1])]
    found = eps_curves(runs).difference
    assert found is not None
    assert list(found.at["white_box"]) == [2 / 255]
    assert found.average == {}
    assert any("not evaluated at the same eps" in sentence for sentence in found.warnings)


def test_curve_difference_other_seed_warns_once(make: Make) -> None:
    runs = [make("van", f"{k}/255", [1, 0]) for k in (1, 2)]
    runs += [make("addt", f"{k}/255", [1, 1], lambda s: s.update(seed=1)) for k in (1, 2)]
    found = eps_curves(runs).difference
    assert found is not None
    assert len(found.warnings) == 1
    assert "The seeds differ" in found.warnings[0]
