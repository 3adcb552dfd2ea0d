"""Every block of Python and TOML, and every command, that the README and docs/ show."""

import importlib.util
import inspect
import json
import re
import runpy
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import dbpkit
from dbpkit import EvaluationSpec, Linf, NoisePlan, TrainingSpec, cli, read_spec
from dbpkit.analyses.analysis import analyses
from dbpkit.attacks import AttackOutcome
from dbpkit.foundation.packaged import asset
from dbpkit.training.objectives import objectives
from tests.docs.pages import ROOT, Block, blocks, commands, inline, scripts

Run = Callable[..., int]

NEVER = ("demo", "law")
"""Commands that only `long` tests elsewhere run: minutes, or runs that take them."""

SEEN: dict[Path, set[tuple[str, ...]]] = {}
"""What pages have shown already, by folder: a like command is not run again in small."""

LONG = ("check",)
"""Commands that run only in the long mode."""


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs the command line in this process and returns its exit code."""

    def command(words: list[str]) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["dbpkit", *words])
            try:
                cli.main()
            except SystemExit as stop:
                return int(stop.code or 0)
        return 0

    return command


def parsed(words: list[str], where: str) -> None:
    """Reads a command line without running it; fails if a command, an argument or an option is wrong."""
    found = typer.main.get_command(cli.app).commands
    assert words[0] in found, f"{where}: unknown command"
    try:
        found[words[0]].make_context(words[0], list(words[1:]))
    except Exception as error:  # typer brings its own click, whose errors have no public name
        pytest.fail(f"{where}: {error}")


# ------------------------------------------------------------------ Python


@pytest.mark.parametrize("block", [b for b in blocks("python") if b.name], ids=str)
def test_python_file_runs(folder: Path, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    text = block.text.replace(
        '"my-model.toml", EvaluationSpec, [', '"my-model.toml", EvaluationSpec, ["data=embedded", '
    )
    (folder / block.name).write_text(text)
    main = sys.modules["__main__"]
    try:
        names = runpy.run_path(block.name, run_name="__main__")
    finally:
        sys.modules["__main__"] = main
    assert names["__name__"] == "__main__"
    assert "print(" not in text or capsys.readouterr().out.strip()


@pytest.fixture(scope="module", autouse=True)
def _lent(folder: Path, run: Run) -> None:
    """A run of the models of my_module.py, which pages may take for granted."""
    assert run(evaluated(["evaluate", "my-model.toml", "--out", "lent"])) == 0
    Path("runs").symlink_to(folder / "runs-0")
    shutil.copytree("lent", "runs-0/a")


@pytest.fixture(scope="module")
def taken_for_granted(folder: Path) -> dict[str, Any]:
    """The names that fragments use: a model, data and noise, in small, and modules."""
    import foolbox

    names: dict[str, Any] = {"dbpkit": dbpkit, "foolbox": foolbox, "Linf": Linf, "NoisePlan": NoisePlan}
    names |= {"AttackOutcome": AttackOutcome, "Tensor": dbpkit.Target, "nn": None}
    import my_module

    denoiser, classifier = my_module.make_denoiser(), my_module.make_classifier()
    model = dbpkit.PurifiedClassifier(dbpkit.Purifier(denoiser, "one_step"), classifier)
    data = dbpkit.load_dataset("embedded").select(slice(0, 2))
    names |= {
        "model": model,
        "data": data,
        "x": data.x(),
        "y": data.labels,
        "ids": data.ids,
        "id": int(data.ids[0]),
    }
    return names


@pytest.mark.parametrize("block", [b for b in blocks("python") if not b.name], ids=str)
def test_python_fragment_runs(
    folder: Path, block: Block, taken_for_granted: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(block.text, str(block), "exec"), dict(taken_for_granted))
    if block.place == "reference/run-directory.md":  # recomputes the headline from the records alone
        summary = json.loads(Path("runs/a/summary.json").read_text())
        row = next(r for r in summary["rows"] if r["name"] == "white_box")
        said = float(capsys.readouterr().out)
        assert said == pytest.approx(row["estimates"][0]["value"], abs=1e-9)


def test_design_shows_signatures_as_text() -> None:
    """They are no Python that runs; as text they are not taken for it."""
    assert not [b for b in blocks("python") if b.page.name == "design.md"]


# ------------------------------------------------------------------ TOML


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_is_a_spec_or_a_part_of_one(folder: Path, block: Block) -> None:
    text = block.text
    if block.name == "my-parts.toml":
        importlib.import_module("my_parts")  # registers what it names
    if not block.name:  # a part of a spec: its other keys have defaults
        (folder / "part.toml").write_text(text)
    model = TrainingSpec if "objective" in tomllib.loads(text) else EvaluationSpec
    assert read_spec(folder / (block.name or "part.toml"), model)


# ------------------------------------------------------------------ commands


def each_command(folder: Path) -> Iterator[tuple[Block, list[str]]]:
    for script in scripts():
        for words in commands(script, folder):
            yield script, words


def test_commands_are_found(folder: Path) -> None:
    names = {words[1] for _, words in each_command(folder) if words[0] == "dbpkit"}
    every = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    missing = every - names - {"init", "docs"}
    assert not missing, f"commands that no page shows: {missing}"


def test_every_command_has_the_arguments_and_options_it_is_shown_with(folder: Path) -> None:
    for script, words in each_command(folder):
        where = f"{script}: {' '.join(words)}"
        match words[0]:
            case "dbpkit":
                parsed(words[1:], where)
            case "accelerate" | "torchrun":
                assert words[words.index("-m") + 1] in ("dbpkit", "dbpkit.cli"), where
                parsed(words[words.index("-m") + 2 :], where)
            case "sbatch":
                assert any((ROOT / "docs" / "examples" / word).is_file() for word in words), where
            case "python" if words[1] != "-m":
                assert (ROOT / "docs" / "examples" / words[1]).is_file(), where
            case "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), where
            case "python":
                assert importlib.util.find_spec(words[2]), where
            case "pip":
                for extra in re.findall(r"dbpkit\[(.*?)\]", " ".join(words)):
                    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                    assert extra in project["optional-dependencies"], where


def test_commands_in_sentences_have_the_options_they_are_shown_with() -> None:
    group = typer.main.get_command(cli.app)
    seen = 0
    for page, text in inline("dbpkit [a-z]"):
        words = text.split()
        command = group.commands.get(words[1])
        assert command is not None, f"{page}: {text}"
        options = {o for p in command.params for o in [*p.opts, *p.secondary_opts]}
        for word in words[2:]:
            flag = word.partition("=")[0]
            assert not flag.startswith("--") or flag in options | {"--help"}, f"{page}: {text}"
        seen += 1
    for page, text in inline("python -m benchmarks"):
        assert importlib.util.find_spec(text.split()[2]), f"{page}: {text}"
        seen += 1
    assert seen > 10


@pytest.mark.parametrize("script", scripts(), ids=str)
def test_commands_run_in_small(folder: Path, script: Block, run: Run) -> None:
    go(folder, script, run, whole=False)


@pytest.mark.long
@pytest.mark.parametrize("script", scripts(), ids=str)
def test_commands_run_in_small_with_all_checks_and_analyses(folder: Path, script: Block, run: Run) -> None:
    go(folder, script, run, whole=True)


def go(folder: Path, script: Block, run: Run, whole: bool) -> None:
    """Runs the commands of a script, each made small; of like ones the first alone."""
    own = folder / f"runs-{script.place.replace('/', '-')}-{whole}"  # every page has runs of its own
    if not own.exists():
        shutil.copytree("lent", own / "a")
    Path("runs").unlink(missing_ok=True)
    Path("runs").symlink_to(own)
    last, seen = None, SEEN.setdefault(folder, set())
    for words in commands(script, folder):
        kind = tuple(re.sub(r"=.*|^runs/.*", "", word) for word in words)
        if kind in seen and not whole:
            continue
        seen.add(kind)
        if words[0] != "dbpkit" or words[1] in NEVER or (words[1] in LONG and not whole):
            continue
        if "--inception" in words:
            continue  # a file of 96 MB that nobody may pass on
        last = lend_runs(words, last)
        smaller = small(words[1:], whole)
        code = run(smaller)
        assert code == 0 or (code == 1 and words[1] == "check"), f"{script}: {' '.join(smaller)}"


def lend_runs(words: list[str], last: str | None) -> str | None:
    """Copies a run to every place where a command expects one; returns the newest run."""
    for place in map(Path, re.findall(r"runs/[\w-]+/weights\.safetensors", " ".join(words))):
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "src/dbpkit/assets/cifar10-unet.safetensors", place)
            (place.parent / "lent").touch()
    if words[1] in ("evaluate", "analyse", "train"):
        if "--out" not in words:
            return last
        if "--out" not in words:  # a directory of the run's name
            return last
        out = words[words.index("--out") + 1]
        if Path(out, "lent").is_file():  # what a page before took for granted is made here
            shutil.rmtree(out)
        return last if words[1] == "train" else out
    for word in words[2:]:
        place = Path(word)
        if re.fullmatch(r"runs/[\w-]+", word) and not place.exists():
            shutil.copytree(last if last and Path(last).exists() else "runs/a", place)
            (place / "lent").touch()
    return last


def small(words: list[str], whole: bool) -> list[str]:
    """The same command for two images and short attacks."""
    match words[0]:
        case "reproduce" if (
            len(words) > 1
        ):  # tests/integration/test_reproduce.py runs a small table to the end
            return ["reproduce", words[1], "--no-run"]
        case "evaluate" | "estimate":
            return evaluated(words)
        case "analyse":
            shorter = evaluated(words)  # imports what a plugin registers
            named = [w for w in words[2:4] if w.isidentifier() and words[words.index(w) - 1] != "--out"]
            chosen = named or (list(analyses) if whole else ["compression"])
            sets = [f"analyses.{name}.images=2" for name in chosen if takes_images(name)]
            return [
                *shorter,
                *(w for s in sets for w in ("--set", s)),
                *(chosen if not named else []),
            ]
        case "check":
            return [*evaluated(words), "--examples", "2"]
        case "train":
            sets = [
                "optimiser.updates=1",
                "optimiser.batch_size=2",
                "data=embedded",
                "test_data=embedded",
            ]
            if objectives.get(tomllib.loads(Path(words[1]).read_text())["objective"]).kind == "denoiser":
                sets.append("objective_options.report_times=[100]")
            return [*words, *(w for s in sets for w in ("--set", s)), "--device", "cpu"]
        case "quality":
            return [*words, "--images", "4", "--data", "embedded", "--t-star", "0.05"]
        case "replay":
            records = [
                json.loads(line) for line in (Path(words[1]) / "records.jsonl").read_text().splitlines()
            ]
            place = words.index("--example") + 1
            example = next(r["example"] for r in records if r["row"] == "white_box")
            return [*words[:place], str(example), *words[place + 1 :]]
    return words


def takes_images(name: str) -> bool:
    return "images" in inspect.signature(analyses.get(name)).parameters


def evaluated(words: list[str]) -> list[str]:
    """An evaluation, a check or an analysis of the same spec, in small."""
    given = [words[i + 1] for i, w in enumerate(words) if w == "--set"]
    plugin = [words[i + 1] for i, w in enumerate(words) if w == "--plugin"]
    for name in plugin:
        importlib.import_module(name)
    spec = read_spec(asset("quick.toml") if words[1].startswith("--") else words[1], EvaluationSpec, given)
    sets = ["examples.count=2", "draws.report=2"]
    if spec.purifier.is_diffusion:
        sets += ["purifier.steps=20"]
    for number, attack in enumerate(spec.attacks):
        sets += [f"attacks.{number}.options.{o}=1" for o in ("iterations", "eot") if o in attack.options]
        if attack.name == "pgd" and not attack.options:
            sets += [f"attacks.{number}.options={{iterations=1, eot=1}}"]
    if "cifar10" in (spec.data.name, *words):
        sets += ["data=embedded"]
    return [*words, *(w for s in sets for w in ("--set", s))]
