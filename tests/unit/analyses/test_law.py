"""The law: fits and correlations against scipy, and the prediction where it is exact."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from scipy.stats import pearsonr, spearmanr

from dbpkit.analyses.analysis import Subject, Unit, cut
from dbpkit.analyses.law.law import Law, combine
from dbpkit.analyses.law.sigmoid import fit_sigmoid, leave_one_out
from dbpkit.analyses.law.table import tabulate
from dbpkit.analyses.run import analyse, make_analysis
from dbpkit.analyses.tools.configurations import Setting, eps_name, pixels, predicted, settings
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import validate
from dbpkit.results.analysis import AnalysisResult
from tests.integration.test_cli import run
from tests.oracles import uniform
from tests.parts import ChannelMean

__all__ = ["run"]


class TwoChannels(ChannelMean):
    """Two classes: every gradient of the loss is along the one normal of the boundary."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)[:, :2]


PARTS = {
    "data": {"name": "tests.parts:data", "options": {"classes": 2, "count": 12}},
    "classifier": "tests.unit.analyses.test_law:TwoChannels",
    "denoiser": "tests.parts:gaussian_denoiser",
    "threat": {"norm": "l2", "eps": "2"},
}
SETTINGS = [{"sampler": "one_step", "t_star": t, "steps": 100} for t in (0.05, 0.1, 0.15, 0.2, 0.3)]
OPTIONS = {"configurations": SETTINGS, "images": 12, "eps": ["0.1", "0.25", "0.4", "0.8"], "iterations": 6}
LAW = {"law": OPTIONS}


@pytest.fixture(scope="module")
def spec() -> EvaluationSpec:
    return validate(PARTS, EvaluationSpec, "tiny")


@pytest.fixture(scope="module")
def done(spec: EvaluationSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnalysisResult]:
    out = tmp_path_factory.mktemp("law") / "run"
    return out, analyse(spec, out, LAW)[0]


def measured(out: Path) -> dict[Unit, Any]:
    lines = (out / "analyses/law/records.jsonl").read_text().splitlines()
    found = {r["unit"]: r["measured"] for r in map(json.loads, lines)}
    return {unit: found[str(unit)] for unit in Law(**OPTIONS).of_each(cut(12))}


def test_rate_of_a_linear_purifier_is_theta(done) -> None:
    for unit, batch in measured(done[0]).items():
        if isinstance(unit.of, Setting):
            t = unit.of.purifier.t_star
            beta = np.linspace(1e-4, 2e-2, 1000)
            alpha_bar = np.cumprod(1 - beta)[round(1000 * t)]
            theta = 0.05 * alpha_bar / (0.05 * alpha_bar + 1 - alpha_bar)
            assert batch["tapes"][0]["rate"] == pytest.approx(
                [theta] * len(batch["tapes"][0]["rate"]), rel=1e-2
            )


def test_prediction_is_exact_for_linear_classifier_and_purifier(done) -> None:
    """A linear system is fooled if and only if theta * eps exceeds the anchor's margin."""
    table = tabulate(measured(done[0]))
    assert table.predicted == pytest.approx(table.attacked, abs=1e-9)
    assert table.informed == pytest.approx(table.attacked, abs=1e-9)
    assert 0 < table.attacked.mean() < table.right.mean()
    error = next(n for n in done[1].numbers if n.name.endswith("and margin: mean error"))
    assert error.value == pytest.approx(0, abs=1e-12)


def test_correlations_are_those_of_scipy(done) -> None:
    table = tabulate(measured(done[0]))
    found = {n.name: n for n in done[1].numbers}
    checked = 0
    for e, eps in enumerate(table.eps):
        for name, oracle in (("Spearman", spearmanr), ("Pearson", pearsonr)):
            number = found.get(f"{name}, compression rate and accuracy at eps {eps_name(eps)}")
            if number:
                expected = oracle(table.rate, table.attacked[:, e]).statistic
                assert number.value == pytest.approx(expected, abs=1e-9)
                assert number.low <= number.value <= number.high
                checked += 1
    assert checked


def test_claims_are_judged_by_intervals(done) -> None:
    claims = [n for n in done[1].numbers if n.claim]
    assert {n.claim.split(":")[0] for n in claims} == {"negative", "above 0", "within 5 points of 0"}
    for n in claims:
        low, high = {"n": (-math.inf, 0), "a": (0, math.inf), "w": (-0.05, 0.05)}[n.claim[0]]
        outside = n.high < low or n.low > high
        judged = n._replace(needs=12).holds
        assert judged is (True if low < n.low and n.high < high else False if outside else None)
        assert n.open_because == "a verdict needs at least 64 images, here are 12"


def test_conclusion_is_pure_and_describes_the_charts(done) -> None:
    one = Law(**OPTIONS).conclude(measured(done[0]))
    assert one.numbers == done[1].numbers
    assert one.charts == done[1].charts
    assert "5 purifiers" in one.sentences[0]
    assert [c.kind for c in one.charts] == ["scatter", "scatter", "line", "scatter"]
    assert all(c.description for c in one.charts)


def test_law_resumes_without_repeating_units(done, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    path = done[0] / "analyses/law"
    whole = (path / "result.json").read_bytes()
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(lines[:-2]))
    units, measure = [], Law.measure
    monkeypatch.setattr(Law, "measure", lambda s, subject, u: units.append(u) or measure(s, subject, u))
    analyse(spec, done[0], LAW)
    assert [str(u) for u in units] == [json.loads(line)["unit"] for line in lines[-2:]]
    assert (path / "result.json").read_bytes() == whole


def test_law_does_not_depend_on_micro_batch(done, spec, tmp_path: Path) -> None:
    analyse(spec, tmp_path / "run", LAW, Execution(micro_batch=5))
    one, other = tabulate(measured(done[0])), tabulate(measured(tmp_path / "run"))
    for name in ("rate", "attacked", "predicted", "attack_rate", "margins"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), rel=1e-3)


def test_combine_joins_the_purifiers_of_two_runs(done, spec, tmp_path: Path) -> None:
    other = tmp_path / "other"
    analyse(spec.model_copy(update={"seed": 3}), other, LAW)
    joint = combine([done[0], other])
    assert "Pooled over 10 purifiers of 2 runs" in joint.sentences[0]
    assert [s.split(":")[0] for s in joint.sentences[1:]] == ["Within run"] * 2 + ["Within other"] * 2
    kinds = {n.name.split(": ")[0] for n in joint.numbers}
    assert kinds == {"run", "other", "pooled"}
    assert all(n.name.split(": ")[0] in ("run", "other") for n in joint.numbers if n.claim)
    alone = {n.name: n for n in combine([other]).numbers}
    within = {n.name.removeprefix("other: "): n for n in joint.numbers if n.name.startswith("other: ")}
    assert {k: n.value for k, n in within.items()} == {k: n.value for k, n in alone.items()}
    assert {s.name for s in joint.charts[0].series} == {"run: one_step", "other: one_step", "sigmoid"}
    with pytest.raises(UserError, match="holds no records of the analysis 'law'"):
        combine([tmp_path])


def test_combine_keeps_runs_whose_folders_have_the_same_name(done, spec, tmp_path: Path) -> None:
    """``dbpkit law a/run b/run``: both end in ``run``, and both count."""
    analyse(spec.model_copy(update={"seed": 3}), tmp_path / "run", LAW)
    joint = combine([done[0], tmp_path / "run"])
    assert "Pooled over 10 purifiers of 2 runs" in joint.sentences[0]
    names = {s.name for s in joint.charts[0].series} - {"sigmoid"}
    assert len(names) == 2
    assert all(name.endswith("/run: one_step") for name in names)


def test_combine_tells_three_runs_of_one_name_apart(done, tmp_path: Path) -> None:
    for place in ("a/x", "a/y", "b/x"):
        shutil.copytree(done[0], tmp_path / place / "run")
    joint = combine([tmp_path / place / "run" for place in ("a/x", "a/y", "b/x")])
    assert "Pooled over 15 purifiers of 3 runs" in joint.sentences[0]
    names = {n.name.split(": ")[0] for n in joint.numbers}
    assert names == {"a/x/run", "a/y/run", "b/x/run", "pooled"}


@pytest.mark.parametrize("again", ["{run}", "{run}/", "{run}/../run", "run", "./run/"])
def test_combine_refuses_one_run_given_twice_however_it_is_written(
    done, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done[0].parent)
    with pytest.raises(UserError, match=r"the same run directory was given twice\. Give each once"):
        combine([done[0], again.format(run=done[0])])


def test_law_of_unfinished_records_uses_the_images_that_all_purifiers_have(done) -> None:
    found = measured(done[0])
    first, second = settings(SETTINGS)[:2]
    del found[Unit(range(8, 12), first)]
    assert tabulate(found).images == 8
    del found[Unit(range(8), second)]
    with pytest.raises(UserError, match="no image in common"):
        tabulate(found)


def test_table_of_resampled_images_is_that_of_the_images_taken_so_often(done) -> None:
    found = measured(done[0])
    weights = np.array([[2, 1, 0, 0, 1, 1, 1, 1, 1, 2, 1, 1], [1] * 12]) / 12
    table, plain = tabulate(found, weights), tabulate(found)
    rates = np.concatenate(
        [found[Unit(b, plain.settings[0])]["tapes"][0]["rate"] for b in (range(8), range(8, 12))]
    )
    assert table.rate[0, 0] == pytest.approx(weights[0] @ rates)
    for name in ("rate", "right", "attacked", "predicted", "attack_rate", "informed"):
        assert getattr(table, name)[1] == pytest.approx(getattr(plain, name), nan_ok=True)


def test_combine_uses_the_budgets_that_all_runs_have(done, spec, tmp_path: Path) -> None:
    options = {"law": {**LAW["law"], "eps": [*LAW["law"]["eps"][1:], "1"]}}
    other = tmp_path / "other"
    analyse(spec, other, options)
    joint = combine([done[0], other])
    named = {eps_name(pixels(e)) for e in LAW["law"]["eps"][1:]}
    assert {s.name.removeprefix("eps ") for s in joint.charts[1].series} == {*named, "equal"}
    own = {n.name: n.value for n in combine([done[0]]).numbers}
    again = combine([other])
    names = [n for n in own if n.startswith("Pearson") and any(n.endswith(f"eps {e}") for e in named)]
    assert names
    for name in names:  # the same models and noise: the same numbers, wherever the budget stands in the list
        assert next(n.value for n in again.numbers if n.name == name) == pytest.approx(own[name], abs=1e-9)
    analyse(spec, tmp_path / "apart", {"law": {**LAW["law"], "eps": ["1"]}})
    with pytest.raises(UserError, match="no budget in common"):
        combine([done[0], tmp_path / "apart"])


def test_law_command_joins_runs_and_writes_their_charts(run, done, spec, tmp_path: Path) -> None:
    other = tmp_path / "other"
    analyse(spec.model_copy(update={"seed": 3}), other, LAW)
    joint = combine([done[0], other])
    code, out, _ = run("law", done[0], other, "--out", tmp_path / "charts")
    assert code == 0
    assert joint.sentences[0] in " ".join(out.split())
    assert all(number.name in out for number in joint.numbers)
    assert {p.name for p in (tmp_path / "charts").iterdir()} == {
        f"law-{n}.{kind}" for n in range(1, 5) for kind in ("png", "csv")
    }
    code, out, _ = run("law", done[0], other, "--json")
    assert json.loads(out)["sentences"] == joint.sentences


def test_units_refuse_an_unknown_sampler_at_once(spec) -> None:
    law = Law(configurations=[*SETTINGS, {"sampler": "ddmp"}])
    with pytest.raises(UserError, match=r"unknown sampler 'ddmp'\. Did you mean 'ddpm'"):
        law.units(Subject(spec, build(spec)))


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("truth", [(0.8, 12.0, 0.4), (1.0, 40.0, 0.3), (0.5, 5.0, 0.7)])
def test_fit_sigmoid_is_as_good_as_scipy(truth: tuple[float, ...], noise: float) -> None:
    def curve(x: np.ndarray, plateau: float, slope: float, centre: float) -> np.ndarray:
        return plateau / (1 + np.exp(slope * (x - centre)))

    x = np.linspace(0.05, 0.95, 30)
    y = curve(x, *truth) + noise * (uniform(30, seed=5).numpy() - 0.5)
    oracle, _ = curve_fit(curve, x, y, p0=truth, bounds=([0, 0, -5], [1, 500, 5]))
    found = fit_sigmoid(x, y)
    assert np.sum((found.at(x) - y) ** 2) <= np.sum((curve(x, *oracle) - y) ** 2) * (1 + 1e-3) + 1e-8
    assert found == pytest.approx(oracle, rel=2e-2)


def test_fit_sigmoid_of_constant_points_does_not_fail() -> None:
    assert fit_sigmoid(np.ones(5), np.full(5, 0.4)).at(np.ones(1)) == pytest.approx([0.4], abs=1e-3)


def test_leave_one_out_is_small_on_a_sigmoid_and_large_off_it() -> None:
    x = np.linspace(0, 1, 12)
    y = 0.9 / (1 + np.exp(10 * (x - 0.5)))
    assert leave_one_out(x[:, None], y[:, None]).max() < 0.01
    y[6] += 0.3
    assert leave_one_out(x[:, None], y[:, None])[6] == pytest.approx(0.3, abs=0.01)


def test_predicted_needs_a_right_anchor_and_room() -> None:
    found = predicted([True, True, False, True], [0.3, 0.1, 9.0, None], 0.2, [1.0] * 4)
    assert found == [True, False, False, True]


@pytest.mark.parametrize(
    ("text", "value"), [("0.5/255", 0.5 / 255), ("8/255", 8 / 255), ("0.03", 0.03), (0.25, 0.25)]
)
def test_pixels_reads_fractions_of_255(text: str, value: float) -> None:
    assert pixels(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images must be a whole number of at least 1"),
        ({"eps": ["8/256x"]}, "eps '8/256x' is not a positive number"),
        ({"eps": ["0"]}, "eps '0' is not a positive number"),
        ({"configurations": SETTINGS[:4]}, "at least 5"),
        ({"configurations": [SETTINGS[0]] * 2}, "is listed twice"),
        ({"configurations": [{"smapler": "ddpm"}]}, "Did you mean 'sampler'"),
        ({"configurations": ["ddpm"]}, "each entry a table"),
        ({"tape": 2}, "has no option 'tape'"),
    ],
)
def test_law_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("law", options)


def test_default_configurations_are_at_least_twelve_and_cheap(spec) -> None:
    assert len(settings(Law().configurations)) >= 12
    subject = Subject(spec, build(spec))
    law = Law(images=8)
    assert len(law.units(subject)) == 1 + len(law.configurations)
    assert torch.tensor([c["steps"] for c in law.configurations]).max() <= 20
