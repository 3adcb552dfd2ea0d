"""A run directory is read, not obeyed: whoever made it does not choose what is imported or called."""

import itertools
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dbpkit.foundation.registry
from dbpkit import RunDirectory, evaluate, replay, summarise, trust
from dbpkit.cli import app
from dbpkit.cli.listing import REGISTRIES
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.reporting import write_report
from dbpkit.results.compare import compare_runs
from dbpkit.results.findings import findings
from dbpkit.results.layout import canonical_hash
from dbpkit.results.protocols import Protocol

Tiny = Callable[..., EvaluationSpec]
numbers = itertools.count()


def lenient(record: dict[str, Any]) -> float:
    """One right answer is enough (any_right@N)."""
    return float(record["label"] in record["predicted"])


own = Protocol(lenient, "any_right", "right at least once")


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes this process one in which nobody has typed an import path yet."""

    def clear() -> None:
        monkeypatch.setattr(dbpkit.foundation.registry, "_trusted", set())
        for registry in REGISTRIES.values():
            monkeypatch.setattr(registry, "_typed", set())

    return clear


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory that leaves a file behind when it is imported."""
    name = f"trap_{next(numbers)}"
    (tmp_path / f"{name}.py").write_text("open('EXECUTED', 'w').close()\n\ndef x(*_, **__):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    return name


OLD = Path(__file__).parents[1] / "golden" / "run-schema-1"
"""A run whose files no hashes bind to each other, so that a stranger could change any of them."""

TYPED = ("tests.parts:data", "tests.parts:ChannelMean", "tests.parts:gaussian_denoiser")
"""What its spec names."""


def run_with(tiny: Tiny, path: Path, **changes: Any) -> Path:
    """A small finished run."""
    evaluate(tiny(examples={"count": 2, "order": "file"}, knowledge=["white_box"], **changes), path)
    return path


def stranger(path: Path, **changes: Any) -> Path:
    """The old run with other leaves in its spec."""
    shutil.copytree(OLD, path)
    content = json.loads((path / "spec.json").read_text())
    content["spec"] |= changes
    content["hash"] = canonical_hash(content["spec"])
    (path / "spec.json").write_text(json.dumps(content))
    return path


def test_reading_a_run_whose_protocol_is_an_import_path_imports_nothing(
    tmp_path: Path, trap: str, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stranger(tmp_path / "run", protocol=f"{trap}:x")
    forget()
    monkeypatch.chdir(run)
    (run / f"{trap}.py").write_text((tmp_path / f"{trap}.py").read_text())
    summary = summarise(RunDirectory("."))
    write_report(["."], tmp_path / "page.html")
    findings(RunDirectory("."))
    compare_runs(RunDirectory("."), RunDirectory(run))
    assert trap not in sys.modules
    assert not (run / "EXECUTED").exists()
    flag = next(f for f in summary.flags if f.name == "own_protocol")
    assert f"--plugin {trap}:x" in flag.message
    assert summary.row("white_box").headline.estimand == "per_draw"
    assert "own_protocol" in (tmp_path / "page.html").read_text()


def test_own_protocol_is_the_headline_again_once_it_is_typed(
    tiny: Tiny, tmp_path: Path, forget: Callable[[], None]
) -> None:
    run = run_with(tiny, tmp_path / "run", protocol=f"{__name__}:own")
    written = json.loads((run / "summary.json").read_text())
    row = next(r for r in written["rows"] if r["name"] == "white_box")
    assert row["headline"]["estimand"] == "any_right@3"
    assert not [f for f in written["flags"] if f["name"] == "own_protocol"]
    forget()
    shown = CliRunner().invoke(app, ["show", str(run), "--json"])
    assert "own_protocol" in [f["name"] for f in json.loads(shown.stdout)["flags"]]
    shown = CliRunner().invoke(app, ["show", str(run), "--json", "--plugin", f"{__name__}:own"])
    row = next(r for r in json.loads(shown.stdout)["rows"] if r["name"] == "white_box")
    assert row["headline"]["estimand"] == "any_right@3"


def test_protocol_that_is_none_raises_before_the_run(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must be a dbpkit\.results\.protocols\.Protocol, not function"):
        evaluate(tiny(protocol=f"{__name__}:lenient"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


PARTS = {
    "data": lambda path: {"name": path},
    "classifier": lambda path: {"name": path, "options": {"command": "touch EXECUTED"}},
    "denoiser": lambda path: {"name": path},
    "purifier": lambda path: {"sampler": path, "t_star": 0.1, "steps": 100},
    "threat": lambda path: {"norm": path, "eps": "8/255"},
    "attacks": lambda path: [{"name": path}],
    "knowledge": lambda path: [{"name": "white_box", "gradient": path}],
    "protocol": lambda path: path,
}


@pytest.mark.parametrize("leaf", PARTS)
def test_replay_follows_no_import_path_of_the_run(
    leaf: str, tmp_path: Path, trap: str, forget: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are the user's own and typed, so that this leaf is what is met."""
    run = stranger(tmp_path / "run", **{leaf: PARTS[leaf](f"{trap}:x")})
    forget()
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    for path in TYPED:
        trust(path)
    with pytest.raises(
        UserError,
        match=rf"'{trap}:x' is an import path that '.*spec\.json' names.*Give the spec of the run "
        r"\(--spec FILE\), or --trust-run if you trust the directory\.$",
    ):
        replay(run, 100)
    assert trap not in sys.modules
    assert not (tmp_path / "EXECUTED").exists()


def test_replay_with_the_spec_or_with_trust(
    tiny: Tiny, tiny_toml: Path, tmp_path: Path, forget: Callable[[], None]
) -> None:
    run = run_with(tiny, tmp_path / "run")
    spec = tiny(examples={"count": 2, "order": "file"}, knowledge=["white_box"])
    assert replay(run, 100, attack=False, spec=spec).reproduced
    forget()
    assert replay(run, 100, attack=False, trust_run=True).reproduced
    with pytest.raises(
        UserError, match=r"was made with another spec: examples\.count 2 -> 3\. Give the run's own"
    ):
        replay(run, 100, spec=tiny(examples={"count": 3, "order": "file"}, knowledge=["white_box"]))
    forget()
    arguments = ["replay", str(run), "--example", "100", "--no-attack"]
    refused = CliRunner().invoke(app, arguments)
    assert "is an import path that" in str(refused.exception)
    changes = [
        "--set",
        "examples.count=2",
        "--set",
        "examples.order=file",
        "--set",
        'knowledge=["white_box"]',
        "--set",
        "draws.select=2",
    ]
    given = CliRunner().invoke(app, [*arguments, "--spec", str(tiny_toml), *changes])
    assert given.exit_code == 0, given.exception


def test_show_spec_imports_nothing(tmp_path: Path, trap: str, forget: Callable[[], None]) -> None:
    spec = tmp_path / "spec.toml"
    named = "\n".join(f'{leaf} = "{trap}:x"' for leaf in ("data", "classifier", "denoiser", "protocol"))
    spec.write_text(
        f'{named}\n[purifier]\nsampler = "{trap}:x"\n[threat]\nnorm = "{trap}:x"\n'
        f'[[attacks]]\nname = "{trap}:x"\n[[knowledge]]\nname = "mine"\ngradient = "{trap}:x"\n'
    )
    shown = CliRunner().invoke(app, ["show", str(spec)])
    assert shown.exit_code == 0
    assert shown.stdout.count(f"{trap}:x") == 8
    assert trap not in sys.modules
