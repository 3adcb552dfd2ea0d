"""The recommendation: no gradient through a purifier in the screen, and the right order where it is known."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dbpkit.analyses.analysis import Subject, Unit
from dbpkit.analyses.recommend import (
    ELSEWHERE,
    FRIENDLY,
    Confirmation,
    Recommend,
    Screened,
    _front,
    _uncertainty,
)
from dbpkit.analyses.run import analyse, make_analysis
from dbpkit.analyses.tools.configurations import Setting, settings
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import validate
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.analysis import AnalysisResult

PARTS = {
    "data": "tests.parts:data",
    "classifier": "tests.parts:ChannelMean",
    "denoiser": "tests.parts:gaussian_denoiser",
    "threat": {"norm": "l2", "eps": "2"},
}
SETTINGS = [{"sampler": "one_step", "t_star": t, "steps": 100} for t in (0.05, 0.1, 0.2)]
SETTINGS += [{"sampler": "ddpm", "t_star": 0.1, "steps": 50, "options": {"variance": "small"}}]
OPTIONS = {"configurations": SETTINGS, "images": 12, "confirm": 2, "others": 1, "iterations": 5}


@pytest.fixture(scope="module")
def spec() -> EvaluationSpec:
    return validate(PARTS, EvaluationSpec, "tiny")


@pytest.fixture(scope="module")
def done(spec: EvaluationSpec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AnalysisResult]:
    out = tmp_path_factory.mktemp("recommend") / "run"
    return out, analyse(spec, out, {"recommend": OPTIONS})[0]


def measured(out: Path) -> dict[Unit, Any]:
    tiny = validate(PARTS, EvaluationSpec, "tiny")
    lines = (out / "analyses/recommend/records.jsonl").read_text().splitlines()
    found = {r["unit"]: r["measured"] for r in map(json.loads, lines)}
    units = Recommend(**OPTIONS).units(Subject(tiny, build(tiny)))
    return {unit: found[str(unit)] for unit in units}


def test_prediction_matches_the_attack_where_it_is_exact(done) -> None:
    numbers = {n.name: n for n in done[1].numbers}
    best = done[1].sentences[0].removeprefix("Use ").split(":")[0]
    guess = numbers[f"predicted accuracy at fixed randomness, {best}"].value
    assert numbers[f"accuracy under exact attack, {best}"].value == pytest.approx(guess, abs=0.03)
    share = numbers["pairs of settings that the prediction ordered as the attack does"]
    assert 0 <= share.low <= share.value <= share.high <= 1
    assert share.holds is None, "six orders of three settings: chance puts them right one time in six"
    assert "which chance may do as well" in done[1].sentences[1]


def test_the_best_and_random_others_are_confirmed_once_each(done) -> None:
    confirmed = {r["setting"] for u, r in measured(done[0]).items() if isinstance(u.of, Confirmation)}
    assert len(confirmed) == 3
    assert done[1].sentences[0].removeprefix("Use ").split(":")[0] in confirmed


def test_the_lines_for_the_spec_are_valid(done, spec) -> None:
    table = tomllib.loads(done[1].sentences[2].partition("\n")[2])
    pasted = validate({**PARTS, **table}, EvaluationSpec, "pasted")
    assert table["purifier"].keys() >= {"sampler", "t_star", "steps"}
    assert build(pasted).model.purifier.calls >= 1


def test_screen_takes_no_gradient_through_a_purifier(spec, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Purifier.forward

    def watched(self, x, *, noise):
        assert not (torch.is_grad_enabled() and x.requires_grad)
        return forward(self, x, noise=noise)

    monkeypatch.setattr(Purifier, "forward", watched)
    analysis = Recommend(**{**OPTIONS, "confirm": 0})
    subject = Subject(spec, build(spec))
    units = analysis.units(subject)
    assert not [u for u in units if isinstance(u.of, Confirmation)]
    result = analysis.conclude({u: json.loads(json.dumps(analysis.measure(subject, u))) for u in units})
    assert "must be confirmed" in result.sentences[1]
    assert len(result.charts) == 1


def test_recommend_resumes_without_repeating_units(done, spec, monkeypatch: pytest.MonkeyPatch) -> None:
    path = done[0] / "analyses/recommend"
    whole = (path / "result.json").read_bytes()
    lines = (path / "records.jsonl").read_bytes().splitlines(keepends=True)
    (path / "records.jsonl").write_bytes(b"".join(lines[:-2]))
    units, measure = [], Recommend.measure
    monkeypatch.setattr(Recommend, "measure", lambda s, subject, u: units.append(u) or measure(s, subject, u))
    analyse(spec, done[0], {"recommend": OPTIONS})
    assert [str(u) for u in units] == ["confirm 2 0-7", "confirm 2 8-11"]
    assert (path / "result.json").read_bytes() == whole


def test_recommend_does_not_depend_on_micro_batch(done, spec, tmp_path: Path) -> None:
    other = analyse(spec, tmp_path / "run", {"recommend": OPTIONS}, Execution(micro_batch=5))[0]
    assert [n.name for n in other.numbers] == [n.name for n in done[1].numbers]
    assert [n.value for n in other.numbers] == pytest.approx([n.value for n in done[1].numbers], rel=1e-3)


def test_conclusion_is_pure(done) -> None:
    one, two = (Recommend(**OPTIONS).conclude(measured(done[0])) for _ in range(2))
    assert one == two
    assert one.numbers == done[1].numbers


def screened_of(*shares: float, images: int = 40) -> dict[Setting, Screened]:
    """Settings whose first images are predicted to stand, so that all differences are of one sign."""
    found = {}
    for k, share in enumerate(shares):
        stands = (np.arange(images) < share * images).astype(float)[:, None]
        setting = settings([{"sampler": "one_step", "t_star": 0.05 * (k + 1), "steps": 100}])[0]
        found[setting] = Screened(stands[:, 0], np.full(images, 0.3), stands)
    return found


def test_settings_that_the_images_cannot_tell_from_the_best_are_named() -> None:
    screened = screened_of(0.9, 0.875, 0.2)
    best, near, far = screened
    text = _uncertainty(best, screened)
    assert f"cannot tell it from 1 of 2 others: {near}." in text
    assert str(far) not in text
    assert "above that of every other setting on these 40 images" in _uncertainty(best, screened_of(0.9, 0.2))


def test_what_is_said_of_the_prediction_elsewhere_is_what_was_measured() -> None:
    found = json.loads((Path(__file__).parents[3] / "benchmarks/results/law-wide.json").read_text())
    formula = found["rank correlation with attacked accuracy"]["formula: margin > rate x length"]
    assert {key: tuple(formula[key]) for key in ELSEWHERE} == ELSEWHERE
    off = found["formula minus attacked"]["formula"]
    assert tuple(off[f"bias, {data}"] for data in ("cifar10", "digits", "fashion")) == FRIENDLY


def test_front_keeps_what_nothing_beats() -> None:
    points = {"a": (0.9, 0.1), "b": (0.5, 0.5), "c": (0.5, 0.4), "d": (0.1, 0.5), "e": (0.4, 0.9)}
    assert _front(points) == ["e", "b", "a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confirm": -1}, "confirm must be a whole number of at least 0"),
        ({"configurations": []}, "at least one table"),
        ({"eps": ["x"]}, "eps 'x' is not a positive number"),
        ({"confirms": 1}, "has no option 'confirms'"),
    ],
)
def test_recommend_refuses_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_analysis("recommend", options)
