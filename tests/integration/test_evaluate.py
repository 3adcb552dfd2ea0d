import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import Execution, RunDirectory, UserError, evaluate, summarise
from dbpkit.checks import Checked
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.results.compare import compare
from tests import parts
from tests.integration.conftest import comparable

Tiny = Callable[..., EvaluationSpec]
ROWS = [
    "undefended_clean",
    "undefended",
    "clean",
    "noise_control",
    "transfer",
    "white_box",
    "dw_both",
    "fixed",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dbpkit.foundation.spec import validate
    from tests.parts import TINY

    out = tmp_path_factory.mktemp("runs") / "a"
    evaluate(validate(TINY, EvaluationSpec, "tiny"), out)
    return out


def test_evaluate_tiny_records_every_row_and_example(finished: Path) -> None:
    records = RunDirectory(finished).records()
    expected = {(row, 0, i) for row in ROWS for i in range(100, 112)} | {
        ("fixed", 1, i) for i in range(100, 112)
    }
    assert {(r["row"], r["tape"], r["example"]) for r in records} == expected


def test_evaluate_summary_is_recomputable_from_the_directory_alone(finished: Path) -> None:
    stored = json.loads((finished / "summary.json").read_text())
    assert json.loads(json.dumps(summarise(RunDirectory(finished)).as_json())) == stored
    white = next(r for r in stored["rows"] if r["name"] == "white_box")
    records = [r for r in RunDirectory(finished).records() if r["row"] == "white_box"]
    share = sum(sum(p == r["label"] for p in r["predicted"]) for r in records) / (3 * len(records))
    assert white["estimates"][0]["value"] == pytest.approx(share)
    assert white["gradient_passes"] == 3 * 2  # iterations x EoT


def test_evaluate_known_noise_uses_one_draw_and_one_gradient_a_step(finished: Path) -> None:
    rows = {r.name: r for r in summarise(RunDirectory(finished)).rows}
    assert rows["dw_both"].gradient_passes == 3
    assert rows["dw_both"].estimates[0].draws == 1
    assert rows["fixed"].tapes == 2


def test_evaluate_fixed_tape_zero_is_dw_both(finished: Path) -> None:
    found = comparable(finished)
    for i in range(100, 112):
        a, b = found["dw_both", 0, i], found["fixed", 0, i]
        assert a["predicted"] == b["predicted"]
        assert a["pixels"] == b["pixels"]


def test_evaluate_attacked_images_stay_in_the_budget_and_the_box(finished: Path) -> None:
    data = parts.data()
    clean = dict(zip(data.ids.tolist(), data.images, strict=True))
    for (row, _, example), record in comparable(finished).items():
        if "pixels" in record:
            x_adv = torch.tensor(record["pixels"])
            assert (x_adv - clean[example]).abs().max() <= 8 / 255 + 1e-6, row
            assert 0 <= x_adv.min() <= x_adv.max() <= 1, row


def test_evaluate_again_does_no_work_and_changes_no_record(finished: Path, tiny: Tiny) -> None:
    before = (finished / "records.jsonl").read_bytes()
    calls: list[str] = []
    evaluate(tiny(), finished, progress=lambda _, what: calls.append(what))
    assert (finished / "records.jsonl").read_bytes() == before
    assert "checks" not in calls


@pytest.mark.parametrize(
    "execution",
    [
        Execution(batch_size=1, micro_batch=4, deterministic=True),
        Execution(batch_size=3, micro_batch=4, deterministic=True),
        Execution(batch_size=16, micro_batch=4, deterministic=True, reverse=True),
    ],
)
def test_evaluate_deterministic_records_do_not_depend_on_batches(
    execution: Execution, tiny: Tiny, tmp_path: Path
) -> None:
    evaluate(tiny(), tmp_path / "reference", Execution(batch_size=16, micro_batch=4, deterministic=True))
    evaluate(tiny(), tmp_path / "other", execution)
    # Passes per example are means over a batch, equal by construction; everything else is compared exactly.
    assert comparable(tmp_path / "other") == comparable(tmp_path / "reference")


def test_evaluate_interrupted_then_resumed_equals_uninterrupted(tiny: Tiny, tmp_path: Path) -> None:
    execution = Execution(batch_size=5)
    evaluate(tiny(), tmp_path / "whole", execution)
    for stop_at in (3, 9, 14):
        count = 0

        def stop(share: float, what: str, stop_at: int = stop_at) -> None:
            nonlocal count
            count += 1
            if count == stop_at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny(), tmp_path / "cut", execution, stop)
    evaluate(tiny(), tmp_path / "cut", execution)
    assert (tmp_path / "cut" / "records.jsonl").read_bytes() == (
        tmp_path / "whole" / "records.jsonl"
    ).read_bytes()


def test_evaluate_torn_last_line_is_dropped_and_redone(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    evaluate(tiny(), tmp_path / "torn")
    path = tmp_path / "torn" / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    evaluate(tiny(), tmp_path / "torn")
    records = RunDirectory(tmp_path / "torn").records()
    assert path.read_bytes() == whole
    assert len(records) == len(whole.splitlines())


def test_evaluate_other_spec_names_the_difference(finished: Path, tiny: Tiny) -> None:
    with pytest.raises(
        UserError, match=r"was made with another spec: threat\.eps 8/255 -> 4/255\. Use a new --out"
    ):
        evaluate(tiny(threat={"norm": "linf", "eps": "4/255"}), finished)


def test_evaluate_other_weights_are_refused(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tiny(), tmp_path / "run")
    monkeypatch.setattr(parts.ChannelMean.__init__, "__defaults__", (41.0,))
    with pytest.raises(UserError, match="was made with another classifier"):
        evaluate(tiny(), tmp_path / "run")


def test_evaluate_out_that_is_something_else_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a run directory"):
        evaluate(tiny(), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_evaluate_failing_example_is_recorded_and_tried_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = parts.data()
    bad = whole.images.clone()
    bad[7, :, 0, 0] = 0.95

    def broken_data() -> Any:
        from dataclasses import replace

        return replace(whole, images=bad)

    monkeypatch.setattr(parts, "broken_data", broken_data, raising=False)
    spec = tiny(data="tests.parts:broken_data", classifier="tests.parts:Broken", knowledge=["white_box"])
    summary = evaluate(spec, tmp_path / "run")
    failed = [r for r in RunDirectory(tmp_path / "run").records() if "error" in r]
    assert {(r["row"], r["example"]) for r in failed} >= {("undefended_clean", 107), ("undefended", 107)}
    assert all("corner is too bright" in r["error"] for r in failed)
    assert summary.row("undefended").failed == 1
    assert summary.row("undefended").estimates[0].examples == 11
    assert any(f.name == "failed_examples" for f in summary.flags)
    monkeypatch.setattr(parts.Broken, "forward", parts.ChannelMean.forward)
    again = evaluate(spec, tmp_path / "run")
    assert again.row("undefended").failed == 0
    assert again.row("undefended").estimates[0].examples == 12
    assert not any(f.name == "failed_examples" for f in again.flags)


def test_evaluate_first_example_failing_alone_does_not_stop_the_run(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    whole = parts.data()
    bad = whole.images.clone()
    bad[0, :, 0, 0] = 0.95
    monkeypatch.setattr(parts, "broken_data", lambda: replace(whole, images=bad), raising=False)
    spec = tiny(data="tests.parts:broken_data", classifier="tests.parts:Broken", knowledge=["dw_both"])
    # The preflight looks at the first images and would refuse; it is another test's matter.
    monkeypatch.setattr("dbpkit.evaluation.run.preflight", lambda *_: Checked([], ()))
    summary = evaluate(spec, tmp_path / "run", Execution(batch_size=1))
    assert summary.row("undefended").failed == 1
    assert summary.row("undefended").estimates[0].examples == 11


def test_evaluate_resumed_with_many_failures_goes_on_if_the_row_ever_worked(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    whole = parts.data()
    bad = whole.images.clone()
    bad[3:, :, 0, 0] = 0.95  # nine of twelve fail, which is more than GIVE_UP_AFTER
    monkeypatch.setattr(parts, "broken_data", lambda: replace(whole, images=bad), raising=False)
    monkeypatch.setattr("dbpkit.evaluation.run.preflight", lambda *_: Checked([], ()))
    spec = tiny(data="tests.parts:broken_data", classifier="tests.parts:Broken", knowledge=["dw_both"])
    for _ in range(2):
        summary = evaluate(spec, tmp_path / "run", Execution(batch_size=1))
        assert summary.row("undefended").failed == 9


def test_evaluate_cost_counts_every_attack(tiny: Tiny, tmp_path: Path) -> None:
    attacks = ["tests.parts:lazy_attack", {"name": "pgd", "options": {"iterations": 5, "eot": 2}}]
    summary = evaluate(tiny(attacks=attacks, knowledge=["white_box"]), tmp_path / "run")
    spent = [
        r["gradient_passes"] for r in RunDirectory(tmp_path / "run").records() if r["row"] == "white_box"
    ]
    assert set(spent) == {1, 1 + 5 * 2}  # an example that fails as it is meets the first only
    assert summary.row("white_box").gradient_passes == sum(spent) / len(spent)


def test_evaluate_blind_attacker_needs_no_averaging(tiny: Tiny, tmp_path: Path) -> None:
    summary = evaluate(tiny(knowledge=["blind"]), tmp_path / "run")
    assert summary.row("blind").gradient_passes == 3  # iterations; the classifier alone is deterministic


def test_evaluate_every_example_failing_stops_with_the_reason(
    tiny: Tiny, tmp_path: Path, monkeypatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("nothing to divide by")

    monkeypatch.setattr(parts, "fails", fails, raising=False)
    with pytest.raises(
        UserError,
        match=r"'tests\.parts:fails' fails on every example that was tried: ZeroDivisionError: nothing to"
        r" divide by \(test_evaluate\.py, line \d+\)",
    ):
        evaluate(tiny(attacks=["tests.parts:fails"]), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the mended spec may use the same --out"


def test_evaluate_attack_that_fails_only_in_earnest_stops_and_keeps_the_traceback(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(target: Any, x: Any, y: Any, *, threat: Any, noise: Any, iterations: int = 5) -> Any:
        if iterations > 2:
            raise ZeroDivisionError("too many values to unpack")
        return parts.lazy_attack(target, x, y, threat=threat, noise=noise)

    monkeypatch.setattr(parts, "late", late, raising=False)
    spec = tiny(attacks=["tests.parts:late"], knowledge=["white_box"])
    with pytest.raises(
        UserError, match=r"failed on every one of 12 examples: ZeroDivisionError: too many.*errors"
    ):
        evaluate(spec, tmp_path / "run")
    failed = [r for r in RunDirectory(tmp_path / "run").records() if "error" in r]
    file = f"errors/undefended-0-{failed[0]['example']}.txt"
    assert failed[0]["error"].endswith(f"(traceback in {file})")
    kept = (tmp_path / "run" / file).read_text()
    assert "Traceback" in kept
    assert "in late" in kept
    monkeypatch.setattr(parts, "late", parts.lazy_attack)
    evaluate(spec, tmp_path / "run")
    assert not (tmp_path / "run" / "errors").exists(), "what has been mended is not kept"


def test_evaluate_full_disk_keeps_what_is_recorded(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dbpkit.results import journal

    real, room = journal.os.fsync, [12]

    def fsync(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    # spec, session, checks, five shards and the first records before it; then in the middle of a unit.
    monkeypatch.setattr(journal.os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left on device"):
        evaluate(tiny(), tmp_path / "run", Execution(batch_size=3))
    monkeypatch.undo()
    monkeypatch.chdir(Path(__file__).parents[2])
    lines = (
        (tmp_path / "run" / "records.jsonl").read_text().splitlines()
        if (tmp_path / "run/records.jsonl").is_file()
        else []
    )
    assert all(json.loads(line) for line in lines)
    summary = evaluate(tiny(), tmp_path / "run", Execution(batch_size=3))
    assert summary.row("fixed").estimates[0].examples == 12


def test_evaluate_worst_attack_is_chosen_on_select_draws(tiny: Tiny, tmp_path: Path) -> None:
    attacks = ["tests.parts:lazy_attack", {"name": "pgd", "options": {"iterations": 5, "eot": 2}}]
    evaluate(tiny(attacks=attacks, knowledge=["dw_both"], threat={"eps": "24/255"}), tmp_path / "run")
    records = [r for r in RunDirectory(tmp_path / "run").records() if r["row"] == "dw_both"]
    fooled = [r for r in records if r["predicted"] != [r["label"]]]
    assert any(r["attack"] == "pgd" for r in fooled)
    # With everything known the select draw is the report draw, so a tie keeps the first attack: a right
    # answer means that no attack was strictly worse than leaving the image alone.
    assert all(r["attack"] == "tests.parts:lazy_attack" for r in records if r not in fooled)


def test_evaluate_own_attack_is_projected_by_the_runner_and_flagged(tiny: Tiny, tmp_path: Path) -> None:
    summary = evaluate(tiny(attacks=["tests.parts:grey_attack"], knowledge=["white_box"]), tmp_path / "run")
    assert any(f.name == "budget_exceeded" and f.row == "white_box" for f in summary.flags)
    distances = [r["distance"] for r in RunDirectory(tmp_path / "run").records() if r["row"] == "white_box"]
    assert max(distances) <= 8 / 255 + 1e-6


@pytest.mark.parametrize("gradient", ["bpda", "surrogate", "blind"])
def test_evaluate_other_gradients_are_rows_of_their_own(gradient: str, tiny: Tiny, tmp_path: Path) -> None:
    setting = {"name": gradient, "gradient_options": {"steps": 50} if gradient == "surrogate" else {}}
    summary = evaluate(tiny(knowledge=[setting]), tmp_path / "run")
    assert summary.row(gradient).estimates[0].examples == 12


def test_evaluate_user_sampler_and_custom_knowledge_run(tiny: Tiny, tmp_path: Path) -> None:
    custom = {"name": "forward_guessed", "shared_sites": ["forward"], "tapes": 2}
    spec = tiny(purifier={"sampler": "tests.parts:half"}, knowledge=[custom])
    assert evaluate(spec, tmp_path / "run").row("forward_guessed").tapes == 2


def test_evaluate_l2_threat_keeps_the_norm(tiny: Tiny, tmp_path: Path) -> None:
    evaluate(
        tiny(
            threat={"norm": "l2", "eps": "0.5"},
            knowledge=["dw_both"],
            attacks=[{"name": "pgd", "options": {"iterations": 8}}],
        ),
        tmp_path / "run",
    )
    distances = [r["distance"] for r in RunDirectory(tmp_path / "run").records() if r["row"] == "dw_both"]
    assert 0.4 < max(distances) <= 0.5 + 1e-6


def test_compare_same_run_is_zero_and_other_data_is_refused(
    finished: Path, tiny: Tiny, tmp_path: Path
) -> None:
    differences = compare(finished, finished).differences
    assert set(differences) == set(ROWS)
    assert all(e.value == 0 for e in differences.values())
    evaluate(tiny(data={"name": "tests.parts:data", "options": {"classes": 2}}), tmp_path / "other")
    with pytest.raises(UserError, match="runs on different data"):
        compare(RunDirectory(finished), RunDirectory(tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"denoiser": "tests.parts:one_channel_denoiser"},
            r"the denoiser does not accept images of shape \(3, 8, 8\)",
        ),
        (
            {"classifier": "tests.parts:two_classes"},
            "has 2 classes, but the labels go up to 2",
        ),
        (
            {"classifier": "embedded", "data": "digits"},
            r"the classifier does not accept images of shape \(1, 8, 8\)",
        ),
        ({"classifier": "tests.parts:nothing"}, "module 'tests.parts' has no 'nothing'"),
        ({"classifier": "no_such_module:x"}, "module 'no_such_module' cannot be imported"),
        ({"classifier": "tests.parts:data"}, "must be a torch.nn.Module, not Dataset"),
        ({"data": "tests.parts:ChannelMean"}, "must return a dbpkit.Dataset, not ChannelMean"),
        ({"purifier": {"sampler": "ddmp"}}, r"unknown sampler 'ddmp'\. Did you mean 'ddpm'\?"),
        ({"purifier": {"sampler": "ddpm", "options": {"eta": 1}}}, "sampler 'ddpm' has no option 'eta'"),
        ({"purifier": {"sampler": "ddim", "options": {"eta": 1.5}}}, r"eta must be a number from 0 to 1"),
        ({"attacks": ["pdg"]}, r"unknown attack 'pdg'\. Did you mean 'pgd'\?"),
        ({"attacks": [{"name": "pgd", "options": {"steps": 3}}]}, "attack 'pgd' has no option 'steps'"),
        ({"threat": {"norm": "linfinity"}}, r"unknown threat model 'linfinity'\. Did you mean 'linf'\?"),
        ({"threat": {"eps": "8"}}, "exceeds the pixel range"),
        ({"examples": {"count": 99}}, r"examples 0 to 98 were asked for, but data 'tests.parts:data' has 12"),
        ({"knowledge": [{"name": "mine", "shared_sites": ["sideways"]}]}, "unknown noise site 'sideways'"),
        ({"knowledge": [{"name": "mine", "gradient": "adjoint"}]}, "unknown gradient 'adjoint'"),
    ],
)
def test_evaluate_parts_that_do_not_fit_are_one_sentence(
    changes: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tiny(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the mended spec may use the same --out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knowledge": ["white_bocks"]}, "unknown knowledge 'white_bocks'. Did you mean 'white_box'"),
        ({"knowledge": ["white_box", "white_box"]}, "every name may occur once"),
        ({"atacks": []}, "unknown key 'atacks'. Did you mean 'attacks'"),
        ({"purifier": {"t_star": 100}}, "purifier.t_star = 100: Input should be less than 1"),
        ({"threat": {"eps": "8/0"}}, "is not a number"),
        ({"threat": {"eps": "-1"}}, "is negative"),
        ({"knowledge": [1]}, "must be the name of a setting or a table"),
        ({"knowledge": [{"name": "a/b", "shared_sites": []}]}, "knowledge.0.name = a/b"),
        ({"knowledge": [{"name": "clean", "shared_sites": []}]}, "may not be named 'clean'"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_spec_wrong_values_name_the_key(changes: dict[str, Any], message: str, tiny: Tiny) -> None:
    with pytest.raises(UserError) as caught:
        tiny(**changes)
    assert message in str(caught.value)
