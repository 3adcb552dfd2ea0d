import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit import evaluate
from dbpkit.checks.gradient import replay
from dbpkit.checks.outputs import squashed_outputs
from dbpkit.checks.passes import slopes
from dbpkit.checks.preflight import SharedPreflight, passes_of, preflight, probe_of
from dbpkit.evaluation.quick_check import quick_check
from dbpkit.experiment.build import build
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.replay import Replay
from dbpkit.results.flags import Flag, record_flags
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary
from tests import parts

Tiny = Callable[..., EvaluationSpec]


def names(spec: EvaluationSpec) -> set[str]:
    return {flag.name for flag in preflight(build(spec), spec).flags}


def test_preflight_sound_set_up_raises_nothing(tiny: Tiny) -> None:
    assert names(tiny()) == set()


def test_quick_check_sound_set_up_finds_nothing_and_says_so(tiny: Tiny) -> None:
    found = quick_check(tiny(), examples=6)
    assert found.flags == []
    assert found.verdict == "Trustworthy on these examples. Nothing suspicious was found."
    assert {"derivative", "black_box_stronger", "planned_attacks"} <= set(found.checks)


def test_quick_check_runs_the_settings_of_the_spec_and_no_others(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []

    def noted(spec: EvaluationSpec, *arguments: Any) -> Summary:
        ran.append(spec)
        return evaluate(spec, *arguments)

    monkeypatch.setattr("dbpkit.evaluation.quick_check.evaluate", noted)
    attack = {"name": "pgd", "options": {"iterations": 100, "eot": 1, "step_size": "2/255"}}
    quick_check(tiny(knowledge=["dw_fwd", {"name": "fixed", "tapes": 5}], attacks=[attack]), examples=4)
    (spec,) = ran
    assert [(k.name, k.tapes) for k in spec.knowledge] == [("dw_fwd", 1), ("fixed", 1)]
    assert spec.attacks[0].options.items() >= {"iterations": 5, "eot": 1, "step_size": "2/255"}.items()
    assert spec.examples.count == 4


def test_quick_check_attacker_who_sees_no_noise_needs_no_check_of_it(tiny: Tiny) -> None:
    every = quick_check(tiny(knowledge=["white_box"]), examples=4).checks
    known = quick_check(tiny(knowledge=["dw_both"]), examples=4).checks
    assert set(every) - set(known) == {"gradient_noise", "worst_of_n_control"}


def test_quick_check_broken_model_is_not_attacked(tiny: Tiny) -> None:
    found = quick_check(tiny(classifier="tests.parts:Detached"), examples=4)
    assert not found.trustworthy
    assert "fix gradient_mismatch first" in found.verdict
    assert "black_box_stronger" not in found.checks
    assert "planned_attacks" not in found.checks


@pytest.mark.parametrize(
    ("classifier", "flag"),
    [
        ("Softmaxed", "probabilities"),
        ("Detached", "gradient_mismatch"),
        ("Dropped", "untracked_randomness"),
        ("Saturated", "zero_gradient"),
        ("Saturated", "piecewise_constant"),
    ],
)
def test_preflight_broken_classifier_is_flagged(classifier: str, flag: str, tiny: Tiny) -> None:
    assert flag in names(tiny(classifier=f"tests.parts:{classifier}"))


def test_evaluate_squashed_classifier_is_flagged_and_check_says_so(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(
        classifier="tests.parts:Squashed", knowledge=["white_box", "unsquashed"], examples={"count": 4}
    )
    summary = evaluate(spec, tmp_path / "run")
    (flag,) = [f for f in summary.flags if f.name == "squashed_outputs"]
    assert flag.severity == "error"
    assert summary.row("unsquashed").title == "purified, values before the head attacked"
    run = RunDirectory(tmp_path / "run")
    assert [f["name"] for f in run.checks() or []].count("squashed_outputs") == 1
    assert {"squashed_outputs", "replay_differs"} <= (run.checks_run() or {}).keys()
    found = quick_check(spec, examples=4)
    assert not found.trustworthy
    assert "squashed_outputs" in found.verdict


def test_preflight_squashed_classifier_whose_attackers_all_see_its_values_only_warns(tiny: Tiny) -> None:
    known = {"name": "dw_both", "gradient": "unsquashed"}
    first = {"order": "file"}  # of others, most are so saturated that nothing moves at all
    spec = tiny(classifier="tests.parts:Squashed", knowledge=["unsquashed", known], examples=first)
    (flag,) = [f for f in preflight(build(spec), spec).flags if f.name == "squashed_outputs"]
    assert flag.severity == "warning"
    assert "Every attacker of this spec attacks the values before it" in flag.message


def test_preflight_network_that_changes_is_flagged_twice(tiny: Tiny) -> None:
    assert names(tiny(denoiser="tests.parts:RandomDenoiser")) >= {"untracked_randomness", "replay_differs"}


def test_preflight_sampler_that_hides_a_tensor_from_its_step_is_flagged(tiny: Tiny) -> None:
    assert "replay_differs" in names(tiny(purifier={"sampler": "tests.parts:captures"}))


@pytest.mark.slow  # three models are checked twice
def test_shared_preflight_looks_at_a_model_once_and_says_what_preflight_says(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, rows = SharedPreflight(), []
    estimate_of = Purifier._estimate
    monkeypatch.setattr(Purifier, "_estimate", lambda p, x, s: (rows.append(len(x)), estimate_of(p, x, s))[1])
    for changes, looks in (
        ({}, True),
        ({}, False),
        ({"purifier": {"sampler": "tests.parts:captures"}}, True),
    ):
        spec = tiny(**changes)
        built = build(spec)
        rows.clear()
        found = shared(built, spec, lambda *_: None)
        assert bool(rows) == looks
        assert found == preflight(built, spec)
    assert any(flag.name == "replay_differs" for flag in found.flags)


def test_preflight_makes_as_many_passes_as_the_estimate_says(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, rows = tiny(), []
    built = build(spec)
    estimate_of = Purifier._estimate
    monkeypatch.setattr(Purifier, "_estimate", lambda p, x, s: (rows.append(len(x)), estimate_of(p, x, s))[1])
    assert preflight(built, spec).flags == []
    _, plain, differentiated = passes_of(built, spec)
    passes = sum(rows) / built.model.purifier.calls
    # A pass is differentiated three times, for three sums of the logits.
    assert 0.85 * (plain + differentiated) <= passes <= plain + differentiated


def test_replay_check_takes_no_more_memory_than_an_attack_and_one_image(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, budgets, rows = tiny(), [], []
    built = build(spec, memory_bytes=12345)

    class Noted(Replay):
        def __init__(self, steps: int, memory_bytes: int, **more: Any) -> None:
            budgets.append(memory_bytes)
            super().__init__(steps, memory_bytes, **more)

        def __call__(self, step: Any, state: Any) -> Any:
            rows.append(len(state[0]))
            return super().__call__(step, state)

    probe = probe_of(built, spec, 4)
    assert slopes(probe) is not None
    monkeypatch.setattr("dbpkit.purification.diffusion.Replay", Noted)
    assert replay(probe) == []
    assert (budgets, set(rows)) == ([0, 12345], {1})
    assert built.model.purifier.memory_bytes == 12345


def test_squashed_outputs_keeps_no_graph_of_the_diffusion_chain(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network's time embedding has the shape of logits, and noting it made the whole chain's graph."""
    spec, graphs = tiny(), []
    built = build(spec)
    estimate_of = Purifier._estimate
    monkeypatch.setattr(
        Purifier,
        "_estimate",
        lambda p, x, s: (graphs.append(torch.is_grad_enabled()), estimate_of(p, x, s))[1],
    )
    assert squashed_outputs(probe_of(built, spec, 4)) == []
    assert set(graphs) == {False}


@pytest.mark.parametrize(
    ("purifier", "flag"),
    [
        ({"sampler": "ddpm", "t_star": 0.01, "steps": 1000}, "suspicious_level"),
        ({"sampler": "ddpm", "t_star": 0.9, "steps": 1000}, "suspicious_level"),
        ({"sampler": "ddpm", "t_star": 0.1, "steps": 20}, "suspicious_grid"),
    ],
)
def test_preflight_suspicious_settings_are_flagged(purifier: dict, flag: str, tiny: Tiny) -> None:
    assert flag in names(tiny(purifier=purifier))


def test_preflight_nan_gradient_is_flagged(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    class Rooted(parts.ChannelMean):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits + 0 * torch.sqrt((x * 0).sum(dim=(2, 3)))  # d sqrt(0) is infinite, times 0 is NaN

    monkeypatch.setattr(parts, "Rooted", Rooted, raising=False)
    assert "non_finite_gradient" in names(tiny(classifier="tests.parts:Rooted"))


def test_evaluate_attack_that_does_nothing_is_flagged(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(attacks=["tests.parts:lazy_attack"], knowledge=["white_box"])
    flags = {(f.name, f.row) for f in evaluate(spec, tmp_path / "run").flags}
    assert ("loss_not_rising", "white_box") in flags
    assert ("no_better_than_noise", "white_box") in flags


def record(row: str, predicted: list[int], **more: object) -> dict:
    return {"row": row, "tape": 0, "example": 0, "label": 1, "predicted": predicted, **more}


GOOD = {"grad_norm": [1.0, 1.0], "loss": [0.1, 2.0], "excess": 0.0}


@pytest.mark.parametrize(
    ("records", "flag"),
    [
        ([record("white_box", [1], **{**GOOD, "grad_norm": [0.0, 1.0]})], "zero_gradient"),
        ([record("white_box", [1], **{**GOOD, "grad_norm": [1.0, None]})], "non_finite_gradient"),
        ([record("white_box", [1], **{**GOOD, "loss": [2.0, 1.9]})], "loss_not_rising"),
        ([record("white_box", [1], **{**GOOD, "excess": 0.1})], "budget_exceeded"),
        ([record("white_box", [1, 1], **GOOD), record("noise_control", [1, 0])], "no_better_than_noise"),
        ([record("white_box", [1, 1], **GOOD), record("transfer", [1, 0])], "transfer_stronger"),
        ([{"row": "clean", "tape": 0, "example": 3, "error": "RuntimeError: x"}], "failed_examples"),
    ],
)
def test_record_flags_each_defect_is_named_once(records: list[dict], flag: str) -> None:
    assert [f.name for f in record_flags(records)] == [flag]


def test_record_flags_healthy_records_are_silent_and_preflight_is_kept() -> None:
    healthy = [record("white_box", [0], **GOOD), record("noise_control", [1]), record("transfer", [1])]
    assert record_flags(healthy) == []
    early = Flag("probabilities", "error", "x")
    assert record_flags(healthy, [early]) == [early]


def test_every_flag_has_a_section_in_the_docs() -> None:
    import re

    root = Path(__file__).parents[2]
    source = "".join(path.read_text() for path in (root / "src/dbpkit").rglob("*.py"))
    used = set(re.findall(r'(?:Flag|_ahead|_against_white_box)\(\s*"([a-z_]+)"', source))
    for constant in re.findall(r"Flag\(\s*([A-Z_]+),", source):
        used |= set(re.findall(rf'^{constant} = "([a-z_]+)"$', source, flags=re.M))
    documented = set(
        re.findall(r"^## ([a-z_]+)$", (root / "docs/reference/flags.md").read_text(), flags=re.M)
    )
    assert used == documented


@pytest.mark.parametrize(
    "changes",
    [
        {"classifier": "tests.parts:Squashed"},
        {"classifier": "tests.parts:Softmaxed"},
        {"classifier": "tests.parts:Detached"},
        {"purifier": {"sampler": "tests.parts:captures"}},
        {"denoiser": "tests.parts:RandomDenoiser"},
    ],
)
def test_evaluate_says_every_error_of_a_check_before_a_run(changes: dict, tiny: Tiny, tmp_path: Path) -> None:
    """What check finds with its first checks, the summary of the same spec has too."""
    spec = tiny(**changes, knowledge=["dw_both"], examples={"count": 4})
    doubted = {f.name for f in quick_check(spec, examples=4).flags if f.severity == "error"}
    assert doubted
    said = {f.name for f in evaluate(spec, tmp_path / "run").flags if f.severity == "error"}
    assert doubted <= said


def test_evaluate_shifted_labels_are_named_in_the_summary(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted() -> Any:
        data = parts.data(36)
        return dataclasses.replace(data, labels=(data.labels + 1) % 3)

    monkeypatch.setattr(parts, "shifted", shifted, raising=False)
    spec = tiny(data="tests.parts:shifted", knowledge=["dw_both"])
    (flag,) = [f for f in evaluate(spec, tmp_path / "run").flags if f.name == "labels_permuted"]
    assert (flag.severity, flag.row) == ("error", "undefended_clean")
    assert "on 100.0% of the unattacked images" in flag.message
