"""Findings: claims with a verdict, of analyses and of the evaluation, as text and as JSON."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dbpkit import cli
from dbpkit.foundation.spec import as_toml
from dbpkit.results.analysis import AnalysisRecords, AnalysisResult, Claim, Number
from dbpkit.results.findings import findings, verdict
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.intervals import Interval
from tests.parts import TINY
from tests.unit.test_compare import SPEC

Command = Callable[..., tuple[int, str, str]]
SITES = {
    "white_box": [],
    "dw_rev": ["reverse"],
    "dw_both": ["forward", "reverse"],
    "fixed": ["forward", "reverse"],
}
HOLDS = Number("rate", 0.28, 0.26, 0.3, 16, "t", 0.24, "a paper", "below 1: drawn together", most=1.0)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line; returns exit code, standard output and standard error."""

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dbpkit", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def evaluated(path: Path, right: dict[str, list[int]]) -> RunDirectory:
    """A run whose rows are right (1) or wrong (0) on one draw of every example."""
    run = RunDirectory(path)
    knowledge = [
        {"name": name, "gradient": "exact", "gradient_options": {}, "shared_sites": SITES[name], "tapes": 1}
        for name in right
    ]
    spec = {**SPEC, "name": "a run", "knowledge": knowledge}
    run.claim(spec)
    run.append(
        {"row": row, "tape": 0, "example": i, "label": 0, "predicted": [1 - r]}
        for row, rights in right.items()
        for i, r in enumerate(rights)
    )
    return run


def analysed(run: RunDirectory, *numbers: Number, name: str = "compression") -> RunDirectory:
    AnalysisRecords(run, name).write_result(AnalysisResult(name, "Title", ["It is so."], list(numbers), []))
    return run


@pytest.mark.parametrize(
    ("number", "said", "because"),
    [
        (Number("x", 1.0), None, "nothing is claimed that could be tested"),
        (Number("x", 1.0, 0.5, 1.5, 16, "t", claim="so it is", least=0), "holds", ""),
        (Number("x", 1.0, 0.5, 1.5, 16, "t", claim="so it is", most=0), "does not hold", ""),
        (
            Number("x", 1.0, 0.5, 1.5, 16, "t", claim="so it is", most=1),
            "undecided",
            "the interval leaves it open",
        ),
        (
            Number("x", 1.0, 0.5, 1.5, 15, "t", claim="so it is", least=0),
            "undecided",
            "a verdict needs at least 16 images, here are 15",
        ),
        (
            Number("x", 1.0, 0.5, 1.5, 63, "t", claim="so it is", least=0, needs=64),
            "undecided",
            "a verdict needs at least 64 images, here are 63",
        ),
        (Number("x", 1.0, 0.5, 1.5, 16, claim="no method", least=0), "undecided", "it has no interval"),
        (Number("x", 1.0, None, None, 16, "t", claim="so", least=0), "undecided", "it has no interval"),
        (Number("x", math.nan, 1, 2, 16, "t", claim="so", least=0), "undecided", "it has no interval"),
    ],
)
def test_verdict_follows_from_interval_range_method_and_number_of_images(
    number: Number, said: str | None, because: str
) -> None:
    assert verdict(number) == said
    assert number.open_because == because
    assert number.holds is {"holds": True, "does not hold": False}.get(str(said))


@pytest.mark.parametrize(
    ("low", "high", "above_it", "below_it", "between"),
    [
        (0.2, 0.3, True, False, True),
        (0.0, 0.3, None, None, None),
        (-0.2, -0.1, False, True, False),
        (0.1, 0.1, None, None, None),
        (0.5, 0.6, True, False, False),
        (0.02, 0.9, None, None, None),  # as wide as 2 to 90 around 4.8 to 7: it overlaps and says nothing
    ],
)
def test_a_boundary_inside_the_interval_leaves_a_claim_open(
    low: float, high: float, above_it: bool | None, below_it: bool | None, between: bool | None
) -> None:
    found = Interval((low + high) / 2, low, high, 16, "t")
    claims = Claim("above", least=0.1), Claim("below", most=0.1), Claim("between", 0.1, 0.4)
    assert [Number.of("x", found, claim=c).holds for c in claims] == [above_it, below_it, between]


def test_verdicts_cannot_be_set() -> None:
    with pytest.raises(TypeError, match="holds"):
        Number("x", 1.0, holds=True)  # type: ignore[call-arg]


def test_results_written_before_are_judged_again(tmp_path: Path) -> None:
    result = AnalysisResult("a", "A", [], [HOLDS._replace(examples=8)], [])
    content = json.loads(json.dumps(result.as_json()))
    content["numbers"][0]["holds"] = True
    assert AnalysisResult.from_json(content).numbers[0].holds is None


def test_findings_of_evaluation_compare_pairs(tmp_path: Path) -> None:
    right = {
        "white_box": [1] * 18 + [0] * 2,
        "dw_rev": [1] * 12 + [0] * 8,
        "dw_both": [0] * 20,
        "fixed": [0] * 20,
    }
    fixed, lowest = (f for f in findings(evaluated(tmp_path / "a", right)))
    assert (fixed.analysis, fixed.verdict) == ("evaluation", "holds")
    assert fixed.number.value == pytest.approx(0.9)
    assert "dw_rev" in lowest.number.name  # fixed randomness knows as much as DW_Both: it is no rival
    assert lowest.number.value == pytest.approx(0.6)
    assert (lowest.verdict, lowest.number.examples) == ("holds", 20)


def test_findings_of_evaluation_where_dw_both_is_not_lowest(tmp_path: Path) -> None:
    right = {"white_box": [1] * 20, "dw_rev": [0] * 20, "dw_both": [1] * 20}
    [lowest] = findings(evaluated(tmp_path / "a", right))
    assert (lowest.number.value, lowest.verdict) == (-1.0, "does not hold")


def test_findings_of_evaluation_without_a_difference_are_undecided(tmp_path: Path) -> None:
    [lowest] = findings(evaluated(tmp_path / "a", {"white_box": [0] * 20, "dw_both": [0] * 20}))
    assert lowest.verdict == "undecided"


def test_findings_need_rows_to_compare(tmp_path: Path) -> None:
    assert findings(evaluated(tmp_path / "a", {"white_box": [1]})) == []
    assert findings(evaluated(tmp_path / "b", {"dw_both": [1], "fixed": [1]})) == []


def test_findings_command_prints_every_claim_with_value_interval_and_verdict(
    run: Command, tmp_path: Path
) -> None:
    directory = analysed(
        evaluated(tmp_path / "a", {"white_box": [1] * 20, "dw_both": [0] * 20}),
        HOLDS,
        Number("without claim", 1.0),
        Number("a gap", 0.1, -0.1, 0.3, 16, "t", claim="above 0: more", least=0),
        Number("slope", -1.0, -1.0, -1.0, 16, "t", claim="rises", least=0),
    )
    code, out, err = run("findings", directory.path)
    assert (code, err) == (0, "")
    assert "✓ holds         rate: 0.280 (95 % interval 0.260 to 0.300, n = 16)" in out
    assert "claim: below 1: drawn together" in out
    assert "published: 0.24 (a paper)" in out
    assert "? undecided     a gap: 0.10" in out
    assert "✗ does not hold slope: −1" in out
    assert "without claim" not in out
    assert "2 of 4 tested claims hold here: 1 does not, 1 is undecided." in out


def test_findings_command_json_is_all_of_it(run: Command, tmp_path: Path) -> None:
    directory = analysed(evaluated(tmp_path / "a", {}), HOLDS, Number("x", math.nan, claim="c", least=0))
    code, out, _ = run("findings", directory.path, "--json")
    assert code == 0
    first, second = json.loads(out)[str(directory.path)]
    assert first == {"analysis": "compression", **HOLDS._asdict(), "verdict": "holds"}
    assert (second["value"], second["verdict"]) == (None, "undecided")


def test_findings_command_of_several_runs_names_them(run: Command, tmp_path: Path) -> None:
    runs = [analysed(evaluated(tmp_path / name, {}), HOLDS).path for name in ("a", "b")]
    _, out, _ = run("findings", *runs)
    assert out.index(str(runs[0])) < out.index("rate") < out.index(str(runs[1]))
    _, out, _ = run("findings", *runs, "--json")
    assert list(json.loads(out)) == [str(path) for path in runs]


def test_findings_command_without_claims_says_how_to_get_them(run: Command, tmp_path: Path) -> None:
    code, out, _ = run("findings", evaluated(tmp_path / "a", {}).path)
    assert code == 0
    assert "dbpkit analyse SPEC --out DIR" in out


def test_findings_command_of_no_run_directory_is_named(run: Command, tmp_path: Path) -> None:
    code, out, err = run("findings", tmp_path)
    assert (code, out) == (2, "")
    assert "is not a run directory" in err


SMALL = as_toml(
    {
        **TINY,
        "knowledge": ["white_box", "dw_both"],
        "draws": {"report": 2},
        "attacks": [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}],
        "analyses": {"compression": {"images": 4, "tapes": 1, "directions": 1, "attack_iterations": 1}},
    }
)


def test_demo_full_evaluates_analyses_and_continues(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo.toml").write_text(SMALL)
    monkeypatch.setattr(
        "dbpkit.cli.evaluate.asset", lambda _name: tmp_path / "demo.toml"
    )  # the real one takes minutes
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    code, out, _ = run("demo", "--full", "--out", tmp_path / "run")
    assert code == 0
    for words in ("DW_Both", "compression", "tested claim", "report.html"):
        assert words in out
    assert "Why: the analyses" in (tmp_path / "run" / "report.html").read_text()
    lines = (tmp_path / "run" / "analyses" / "compression" / "records.jsonl").read_text()
    code, out, _ = run("demo", "--full", "--out", tmp_path / "run", "--json")
    assert {*json.loads(out)} == {"summary", "analyses"}
    assert (tmp_path / "run" / "analyses" / "compression" / "records.jsonl").read_text() == lines


def test_demo_without_full_runs_no_analysis(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo.toml").write_text(SMALL)
    monkeypatch.setattr("dbpkit.cli.evaluate.asset", lambda _name: tmp_path / "demo.toml")
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    code, _, _ = run("demo", "--out", tmp_path / "run")
    assert code == 0
    assert not (tmp_path / "run" / "analyses").exists()
