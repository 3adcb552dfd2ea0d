"""Runs under a protocol: iterates judged while the attack runs, cost, and what the page and JSON say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dbpkit import Execution, RunDirectory, evaluate
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.reporting import write_report
from dbpkit.results.compare import compare_runs
from tests.integration.conftest import comparable

Tiny = Callable[..., EvaluationSpec]
LAYOUT_1 = Path(__file__).parents[1] / "golden" / "run-schema-1"
WATCHED = {"protocol": "while_optimising", "examples": {"count": 5}}


def test_while_optimising_records_do_not_depend_on_batches_or_interruptions(
    tiny: Tiny, tmp_path: Path
) -> None:
    spec = tiny(**WATCHED, knowledge=["white_box", {"name": "fixed", "tapes": 2}])
    evaluate(spec, tmp_path / "a", Execution(batch_size=5, micro_batch=4, deterministic=True))
    other = Execution(batch_size=2, micro_batch=4, deterministic=True, reverse=True)
    calls = 0

    def stop(share: float, what: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(spec, tmp_path / "b", other, stop)
    summary = evaluate(spec, tmp_path / "b", other)
    assert comparable(tmp_path / "b") == comparable(tmp_path / "a")
    rows = {r["row"]: r for r in RunDirectory(tmp_path / "b").records()}
    assert rows["white_box"]["queries"] == 3 * 3  # iterations x report draws
    assert rows["fixed"]["queries"] == 3  # nothing is random: one query tells
    assert rows["undefended"]["queries"] == 3
    assert "queries" not in rows["clean"]
    assert summary.row("white_box").headline.estimand == "any_iterate@9"
    assert summary.row("white_box").control is not None


def test_while_optimising_changes_no_attack_and_no_score(tiny: Tiny, tmp_path: Path) -> None:
    """Judging on the side uses draws of its own, so every other key is as without it."""
    evaluate(tiny(**WATCHED, knowledge=["white_box"]), tmp_path / "watched")
    evaluate(tiny(examples={"count": 5}, knowledge=["white_box"]), tmp_path / "plain")
    own = {"queries", "failed_at", "control_failed_at"}
    watched = {
        key: {k: v for k, v in record.items() if k not in own}
        for key, record in comparable(tmp_path / "watched").items()
    }
    assert watched == comparable(tmp_path / "plain")


def test_while_optimising_adds_up_the_attacks_and_judges_one_that_shows_nothing(
    tiny: Tiny, tmp_path: Path
) -> None:
    attacks = ["tests.parts:lazy_attack", {"name": "pgd", "options": {"iterations": 2, "eot": 1}}]
    evaluate(tiny(**WATCHED, knowledge=["white_box"], attacks=attacks), tmp_path / "run")
    records = [r for r in RunDirectory(tmp_path / "run").records() if r["row"] == "white_box"]
    assert {r["queries"] for r in records} == {(1 + 2) * 3}


def test_protocol_decides_the_headline_of_table_page_and_json(tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(protocol="worst_of_n", examples={"count": 5}, knowledge=["white_box", "dw_both"])
    summary = evaluate(spec, tmp_path / "run")
    row = next(r for r in summary.as_json()["rows"] if r["name"] == "white_box")
    assert row["headline"]["estimand"] == row["control"]["estimand"] == "all_draws@3"
    assert row["control"]["value"] == summary.row("clean").headline.value
    page = write_report([tmp_path / "run"]).read_text()
    assert "Right on all N draws" in page
    assert "The same, unattacked" in page
    assert "protocol worst_of_n" in page


def test_network_calls_are_recorded_and_shown(tiny: Tiny, tmp_path: Path) -> None:
    """DDPM with S = 100 makes 11 calls; PGD of 3 iterations and 2 draws has 6 passes, 3 on known noise."""
    spec = tiny(
        examples={"count": 2},
        knowledge=[
            "white_box", "dw_both", {"name": "surrogate", "gradient_options": {"steps": 50}}, "blind",
        ],
    )  # fmt: skip
    summary = evaluate(spec, tmp_path / "run")
    calls = {row.name: row.network_calls for row in summary.rows}
    assert calls == {
        "undefended_clean": 0,
        "undefended": 3,
        "clean": 0,
        "noise_control": 0,
        "transfer": 0,
        "white_box": 66,
        "dw_both": 33,
        "surrogate": 36,
        "blind": 3,
    }
    run = RunDirectory(tmp_path / "run")
    assert compare_runs(run, run).network_calls["white_box"] == (66, 66)
    assert ">66</td>" in write_report([run.path]).read_text()


def test_run_without_recorded_network_calls_is_still_read(tmp_path: Path) -> None:
    """Runs of layout 1 may lack them; their lines carry no digest, so that one can be made here."""
    shutil.copytree(LAYOUT_1, tmp_path / "run")
    path = tmp_path / "run" / "records.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()]
    assert any("network_calls" in r for r in old)
    path.write_text(
        "".join(json.dumps({k: v for k, v in r.items() if k != "network_calls"}) + "\n" for r in old)
    )
    run = RunDirectory(tmp_path / "run")
    assert compare_runs(run, run).network_calls["white_box"] == (None, None)
    assert "Network calls per image" in write_report([run.path]).read_text()


def test_mean_logits_is_recomputed_from_the_stored_logits(tiny: Tiny, tmp_path: Path) -> None:
    """Classes of averaged draws, the headline, and the page, from the logits that the run stored."""
    changes = {
        "examples": {"count": 5},
        "draws": {"report": 4, "select": 2},
        "knowledge": ["white_box", "dw_both"],
    }
    summary = evaluate(tiny(protocol="mean_logits", **changes), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    records = {(r["row"], r["example"]): r for r in run.records()}
    right = []
    for (name, example), record in records.items():
        if name == "white_box":
            ids, logits, _ = run.read_logits(name, 0, example)[0]
            own = logits[ids.tolist().index(example)].double()
            answers = [int(own[a:b].mean(dim=0).argmax()) for a, b in ((0, 2), (2, 4), (0, 3), (0, 4))]
            assert record["ensembles"] == answers
            right.append(answers[-1] == record["label"])
    assert len(right) == 5
    row = summary.row("white_box")
    assert (row.headline.estimand, row.headline.value) == ("mean_logits@4", sum(right) / 5)
    assert [e.estimand for e in row.estimates[-3:]] == ["mean_logits@2", "mean_logits@3", "mean_logits@4"]
    assert row.estimates[-1].value == row.headline.value
    assert row.control is not None
    assert not any("ensembles" in r for (name, _), r in records.items() if name == "dw_both")
    page = write_report([tmp_path / "run"]).read_text()
    assert "Class of the mean logits of N draws, by N" in page
    assert page.count("N = 3") == 1
    evaluate(tiny(**changes), tmp_path / "plain")
    found = comparable(tmp_path / "run")
    assert {key: {k: v for k, v in r.items() if k != "ensembles"} for key, r in found.items()} == comparable(
        tmp_path / "plain"
    )


def test_attacker_of_the_ensemble_who_knows_its_noise_is_judged_by_the_ensemble(
    tiny: Tiny, tmp_path: Path
) -> None:
    both = {
        "shared_sites": ["forward", "reverse"],
        "gradient": "mean_logits",
        "gradient_options": {"members": 3},
    }
    spec = tiny(protocol="mean_logits", examples={"count": 3}, knowledge=[{"name": "known_ensemble", **both}])
    evaluate(spec, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    found = [r for r in run.records() if r["row"] == "known_ensemble"]
    assert all(len(r["predicted"]) == 1 and "error" not in r for r in found)
    assert len(found) == 3
    assert {r["network_calls"] % 3 for r in found} == {0}
