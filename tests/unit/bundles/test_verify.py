"""A bundle is judged again: equal where nothing differs, and every kind of tampering is found."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit import RunDirectory, UserError, verify
from dbpkit.bundles.packing import bundle
from dbpkit.bundles.tally import RowTally, count_batch
from dbpkit.results.records import Key, judged
from tests import parts
from tests.bundled import PARTS, REPOSITORY, command, forget_typed, small_run


def unpacked(packed: Path, folder: Path) -> RunDirectory:
    """The run of a bundle, to be changed by somebody who can compute every hash."""
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(folder)
    return RunDirectory(folder / "run")


def records_of(run: RunDirectory, row: str) -> list[dict[str, Any]]:
    return [dict(r) for r in run.records() if r["row"] == row]


def test_own_models_give_equal_records(packed: Path) -> None:
    found = verify(packed, **PARTS, fresh_seed=1)
    assert (found.verdict, found.reasons, found.equal) == ("stands", [], True)
    assert all(row.gap == 0 and row.differ == 0 for row in found.rows)
    assert {row.row for row in found.rows} >= {"clean", "noise_control", "transfer", "white_box", "dw_both"}
    assert found.budget is not None
    assert found.budget.images == 15
    assert found.budget.largest <= 8 / 255 + 1e-6
    assert all(h.equal for h in found.hashes)
    assert len(found.hashes) == 3
    assert json.dumps(found.as_json())


def test_names_of_the_bundle_are_followed_only_where_it_is_trusted(packed: Path) -> None:
    forget_typed()
    found = verify(packed)
    assert found.verdict == "cannot be judged"
    assert "is an import path that bundle" in found.reasons[0]
    assert verify(packed, trust=True, fresh=0).verdict == "stands"


def test_some_examples_are_judged_and_chosen_by_the_seed(packed: Path) -> None:
    found = verify(packed, **PARTS, examples=2, rows=["white_box"], fresh_seed=3)
    assert (found.verdict, found.examples) == ("stands", (2, 5))
    assert [row.predictions for row in found.rows] == [2 * 3]
    with pytest.raises(UserError, match=r"unknown row in '.*': 'white_bocks'\. Did you mean 'white_box'"):
        verify(packed, rows=["white_bocks"])


def test_only_judges_can_be_set(packed: Path) -> None:
    with pytest.raises(UserError, match="would change what the bundle claims"):
        verify(packed, overrides=["threat.eps=1/255"])


def test_wrong_model_is_found(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = verify(packed, **PARTS, overrides=["denoiser.options.variance=4.0"], fresh=0)
    assert found.verdict == "does not stand"
    assert "predictions are another class" in found.reasons[0]
    assert found.changed == ["denoiser.options.variance null -> 4.0"]
    monkeypatch.setattr(parts.ChannelMean.__init__, "__defaults__", (-40.0,))
    found = verify(packed, **PARTS, fresh=0)
    assert not found.stands
    assert [h.part for h in found.hashes if not h.equal] == ["classifier"]


def test_models_that_cannot_judge_are_missing(packed: Path) -> None:
    named = {**PARTS, "classifier": "tests.parts:Broken", "denoiser": "tests.parts:one_channel_denoiser"}
    found = verify(packed, **named)
    assert found.verdict == "cannot be judged"
    assert "your models fail on its images" in found.reasons[0]
    found = verify(packed, **{**PARTS, "data": "digits"})
    assert found.verdict == "cannot be judged"


def test_changed_predictions_are_found_even_with_all_hashes_made_anew(packed: Path, tmp_path: Path) -> None:
    run = unpacked(packed, tmp_path)
    changed = [{**r, "predicted": [r["label"]] * 3} for r in records_of(run, "white_box")]
    run.append(changed)  # its digest is right; the logits are those of before, and named
    sealed = run.columns().seals[0]["files"]
    assert sealed
    found = verify(bundle(run, tmp_path / "b.zip").path, **PARTS, fresh=0)
    assert found.verdict == "does not stand"
    assert "white_box" in found.reasons[0]


def test_changed_answers_of_averaged_draws_are_found(tmp_path: Path) -> None:
    """Under a protocol that averages, they are the number that is published."""
    honest = bundle(small_run(tmp_path / "run", protocol="mean_logits"), tmp_path / "a.zip").path
    assert verify(honest, **PARTS, fresh_seed=1).equal
    run = unpacked(honest, tmp_path / "forged")
    records = records_of(run, "white_box")
    assert any(r["ensembles"][-1] != r["label"] for r in records)
    run.append([{**r, "ensembles": [r["label"]] * len(r["ensembles"])} for r in records])
    found = verify(bundle(run, tmp_path / "b.zip").path, **PARTS, rows=["white_box"], fresh=0)
    assert found.verdict == "does not stand"
    assert "predictions are another class" in found.reasons[0]


def test_examples_that_were_left_out_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run over chosen examples whose spec says that they are all there are."""
    made = parts.data
    with monkeypatch.context() as here:
        here.setattr(parts, "data", lambda: made().select(torch.arange(2, 7)))
        run = small_run(tmp_path / "run", examples={"order": "file"})
    packed = bundle(run, tmp_path / "a.zip").path
    found = verify(packed, **PARTS, rows=["white_box"], fresh=0)
    assert found.verdict == "does not stand"
    assert "lacks 7 of the examples that its spec chooses" in found.reasons[0]


def test_one_draw_that_was_chosen_is_compared_with_fresh_ones(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", draws={"report": 1, "select": 2}, knowledge=["white_box"])
    found = verify(bundle(run, tmp_path / "a.zip").path, **PARTS, fresh=4, fresh_seed=1)
    assert found.luck is not None
    assert found.luck.draws == 4


def test_changed_image_and_image_outside_the_budget_are_found(packed: Path, tmp_path: Path) -> None:
    run = unpacked(packed, tmp_path)
    records = [r for r in records_of(run, "white_box") if r["example"] <= 102]
    images = run.read_images(records[0]["images"])
    ids = torch.tensor(list(images))
    clean = parts.data().images[: len(ids)]
    for name, forged, said in (
        ("harmless", clean, ""),
        ("far", (clean + 0.2).clamp(0, 1), "outside the budget of your clean ones"),
    ):
        stored = run.write_images(f"white_box-0-{name}", ids, forged)
        run.append([{**r, "images": stored.name} for r in records], [stored])
        found = verify(bundle(run, tmp_path / f"{name}.zip").path, **PARTS, fresh=0)
        assert any(said in reason for reason in found.reasons) or not said


def test_other_labels_are_found(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts.data

    def turned(count: int = 12) -> Any:
        data = made(count)
        return type(data)("t", data.images, (data.labels + 1) % 3, data.ids, data.class_names)

    monkeypatch.setattr(parts, "turned", turned, raising=False)
    found = verify(packed, **{**PARTS, "data": "tests.parts:turned"}, fresh=0)
    assert "have another label in your data" in found.reasons[0]


def test_near_ties_are_explained_by_rounding_and_others_are_not() -> None:
    old = torch.tensor([[[5.0, 4.995, 0.0], [5.0, 1.0, 0.0]]])
    key = Key("white_box", 0, 7)
    new = torch.tensor([[[4.997, 4.999, 0.0], [5.0, 1.0, 0.0]]])
    tally = RowTally("white_box")
    count_batch(tally, [judged(key, 0, [0, 0])], [judged(key, 0, [1, 0])], old, new, "float32")
    assert (tally.differ, tally.near, tally.unlike, tally.holds, tally.equal) == (1, 1, 0, True, False)
    assert tally.gap == pytest.approx(0.004, abs=1e-6)
    tally = RowTally("white_box")
    count_batch(tally, [judged(key, 0, [0, 0])], [judged(key, 0, [0, 1])], old, old, "float32")
    assert (tally.differ, tally.near, tally.holds) == (1, 0, False)
    tied, apart = torch.tensor([[[5.0, 4.999, 0.0]]]), torch.tensor([[[1.0, 5.0, 0.0]]])
    tally = RowTally("white_box")  # a sender writes logits that are nearly tied beside a wrong class
    count_batch(tally, [judged(key, 0, [0])], [judged(key, 0, [1])], tied, apart, "float32")
    assert (tally.differ, tally.near, tally.holds) == (1, 0, False)
    tally = RowTally("white_box")
    count_batch(tally, [judged(key, 0, [0, 2])], [judged(key, 0, [0, 0])], old, old, "float32")
    assert tally.unlike == 1


ELSEWHERE = """
import sys, torch
torch.set_num_threads(2)
from dbpkit import verify
found = verify(sys.argv[1], classifier="tests.parts:ChannelMean", denoiser="tests.parts:gaussian_denoiser",
               data="tests.parts:data", fresh_seed=5)
print(found.verdict, found.equal, max(row.gap for row in found.rows))
"""


@pytest.mark.slow
def test_another_process_folder_home_umask_and_thread_count_find_equal_records(
    packed: Path, tmp_path: Path
) -> None:
    """A process of its own is the subject: what a machine brings along must not matter."""
    path = f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}"
    home = tmp_path / "home"
    home.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(packed)],
        cwd=tmp_path, env=environment, umask=0o077, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["stands", "True", "0.0"]


def test_commands_say_the_verdict_in_their_exit_codes(
    finished: Path, packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    run: Callable[..., tuple[int, str, str]] = command(capsys, monkeypatch)
    code, out, _ = run("bundle", finished, "--out", tmp_path / "c.zip")
    assert code == 0
    assert "tests.parts:ChannelMean" in out
    assert (tmp_path / "c.zip").read_bytes() == packed.read_bytes()
    own = [word for part, name in PARTS.items() for word in (f"--{part}", name)]
    code, out, _ = run("show", packed)
    assert (code, "judge it with dbpkit verify" in out) == (0, True)
    code, out, _ = run("verify", packed, *own, "--row", "white_box", "--fresh-seed", 1)
    assert code == 0
    assert "'tiny' stands (5 of 5 examples judged again)." in out
    assert "Fresh draws (seed 1)" in out
    other = ["--set", "denoiser.options.variance=4.0", "--fresh", 0, "--json"]
    code, out, _ = run("verify", packed, *own, *other)
    assert (code, json.loads(out)["verdict"]) == (1, "does not stand")
    code, out, _ = run("verify", packed, *own[:4], "--data", "digits")
    assert code == 2
    assert "cannot be judged" in out
    code, _, err = run("verify", tmp_path / "none.zip")
    assert (code, err.count("\n")) == (2, 1)


def test_headline_of_iterates_cannot_be_judged_from_final_images(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", protocol="while_optimising")
    found = verify(bundle(run, tmp_path / "run.zip").path, **PARTS, fresh=0)
    assert (found.verdict, found.equal) == ("cannot be judged", True)
    assert "does not follow from final images" in found.reasons[0]


def test_rows_that_hardly_move_are_remarked_upon(packed: Path, tmp_path: Path) -> None:
    assert not [said for said in verify(packed, **PARTS, fresh=0).remarks if "hardly moves" in said]
    attack = {"name": "pgd", "options": {"iterations": 1, "eot": 1, "step_size": "1/255"}}
    run = small_run(tmp_path / "run", attacks=[attack])
    found = verify(bundle(run, tmp_path / "run.zip").path, **PARTS, fresh=0)
    assert found.verdict == "stands"
    assert sorted(said.split("'")[1] for said in found.remarks) == ["dw_both", "white_box"]
