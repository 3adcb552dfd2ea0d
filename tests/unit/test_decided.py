"""Attacks that leave a decided image alone publish what they publish without it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit.attacks import Target, attacks, make_attack
from dbpkit.evaluation.rows import STOPPING, Rows
from dbpkit.evaluation.run import evaluate
from dbpkit.experiment.build import build
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import options_of
from dbpkit.foundation.spec import validate
from dbpkit.purification.classifier import Undefended
from dbpkit.results.run_directory import RunDirectory
from dbpkit.threats.pixels import L2, Linf
from tests.oracles import TinyClassifier, uniform
from tests.parts import TINY

APGD = {"name": "apgd", "options": {"iterations": 6, "eot": 2, "judge_draws": 2}}
SHORT: dict[str, dict[str, Any]] = {
    "apgd": {"iterations": 8, "eot": 1, "judge_draws": 1, "n_restarts": 2},
    "apgd_targeted": {"iterations": 6, "eot": 1, "judge_draws": 1, "n_targets": 2},
}


def test_every_attack_that_can_stop_is_named() -> None:
    assert {name for name in attacks if "stop" in options_of(attacks.get(name))} == STOPPING


@pytest.mark.parametrize("threat", [Linf(0.05), L2(0.2)], ids=["linf", "l2"])
@pytest.mark.parametrize("name", list(SHORT))
def test_stopping_breaks_the_same_images_of_a_deterministic_model(name: str, threat: Any) -> None:
    """Over many seeds: the same accuracy, image by image, for fewer passes."""
    classifier, passes, broken = TinyClassifier(classes=4), {True: 0, False: 0}, 0
    for seed in range(12):
        x = uniform(8, 1, 4, 4, seed=seed, low=0.2, high=0.8)
        y, noise = classifier(x).argmax(1), NoisePlan.of(seed, range(8), "attack")
        right = {}
        for stop in (True, False):
            target = Target(Undefended(classifier), 8, fixed_shape=True)
            attack = make_attack(name, {**SHORT[name], "stop": stop})
            found = attack(target, x, y, threat=threat, noise=noise)
            right[stop] = classifier(found.x_adv).argmax(1) == y
            passes[stop] += target.forward_rows
        assert torch.equal(right[True], right[False])
        broken += int((~right[True]).sum())
    assert 10 < broken < 8 * 12 - 10
    assert passes[True] < 0.9 * passes[False]


def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopping: bool) -> dict[Any, Any]:
    """What a run records of APGD on the tiny spec, with and without stopping."""
    if not stopping:
        monkeypatch.setattr("dbpkit.evaluation.rows.STOPPING", frozenset())
    spec = validate({**TINY, "attacks": [APGD], "examples": {"count": 8}}, EvaluationSpec, "tiny")
    evaluate(spec, tmp_path / str(stopping), Execution(deterministic=True))
    run = RunDirectory(tmp_path / str(stopping))
    return {(r["row"], r["tape"], r["example"]): r for r in run.records()}


def test_run_publishes_the_same_and_spends_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that leave something to chance, and the classifier alone, do not change at all."""
    fewer, all_of_them = (records(tmp_path, monkeypatch, stopping) for stopping in (True, False))
    saved = 0
    assert fewer.keys() == all_of_them.keys()
    for key, record in fewer.items():
        other = all_of_them[key]
        if key[0] not in ("dw_both", "fixed"):
            assert record == other
            continue
        wrong, without = ([p != r["label"] for p in r["predicted"]] for r in (record, other))
        assert wrong == without
        assert record["forward_passes"] <= other["forward_passes"]
        saved += other["forward_passes"] - record["forward_passes"]
    assert saved > 0


@pytest.mark.parametrize(
    ("row", "changes", "stops"),
    [
        ("dw_both", {}, True),
        ("fixed", {}, True),
        ("white_box", {}, False),  # a draw that is wrong decides nothing
        ("undefended", {}, False),  # its images stand before the purifier next
        ("other_tape", {}, False),  # what judges is another tape
        ("dw_both", {"protocol": "while_optimising"}, False),  # every iterate counts
        ("dw_both", {"attacks": [{"name": "apgd", "options": {"stop": False}}]}, False),  # told so
        ("dw_both", {"attacks": [{"name": "pgd"}]}, False),  # the published PGD
    ],
)
def test_attacks_stop_only_where_one_wrong_answer_decides(
    row: str, changes: dict[str, Any], stops: bool, tmp_path: Path
) -> None:
    table = {**TINY, "attacks": [APGD], "knowledge": [*TINY["knowledge"], "other_tape"], **changes}
    spec = validate(table, EvaluationSpec, "tiny")
    rows = Rows(spec, build(spec), Execution(), RunDirectory(tmp_path))
    ((_, attack),) = rows._attacks(row)
    assert attack.keywords.get("stop", False) is stops
