"""A first number without a spec: own parts on the command line; mistakes are one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbpkit import L2, Linf
from dbpkit.checks.first_number import short_attack
from dbpkit.cli.parts import Asked
from dbpkit.experiment.build import attack_options
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from tests.integration.test_cli import run
from tests.integration.test_cli_start import ROOT

__all__ = ["run"]

PARTS = ["--classifier", "tests.parts:ChannelMean", "--denoiser", "tests.parts:gaussian_denoiser"]
SHORT = ["--set", "attacks.0.options.iterations=2", "--set", "attacks.0.options.eot=1", "--steps", "20"]
QUIET = ["--quiet", "--device", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of a user, from which the tests' parts can still be imported."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(here: Path) -> Path:
    """Two images each of three classes, brighter in the channel of their class."""
    for k in range(3):
        for i in range(2):
            pixels = np.full((8, 8, 3), 100 + i, dtype=np.uint8)
            pixels[..., k] += 20
            (here / "images" / "abc"[k]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(here / "images" / "abc"[k] / f"{i}.png")
    return here / "images"


def test_parts_alone_give_table_page_and_a_flag_that_the_attack_is_short(run, here: Path) -> None:
    words = ["evaluate", *PARTS, "--data", "tests.parts:data", "--limit", "3", *SHORT, *QUIET]
    code, out, err = run(*words)
    assert code == 0, err
    folder = here / "runs" / "tests.parts.ChannelMean-tests.parts.gaussian_denoiser-tests.parts.data"
    spec = json.loads((folder / "spec.json").read_text())["spec"]
    assert spec["classifier"]["name"] == "tests.parts:ChannelMean"
    assert spec["examples"]["count"] == 3
    assert spec["purifier"]["steps"] == 20
    flags = json.loads((folder / "summary.json").read_text())["flags"]
    assert "short_attack" in {f["name"] for f in flags}
    assert "white box (EoT)" in out
    assert "short_attack" in out
    assert "iterations = 20" in out
    page = (folder / "report.html").read_text()
    assert "short_attack" in page
    assert "tests.parts.ChannelMean + tests.parts.gaussian_denoiser on tests.parts.data: first number" in page
    code, _, err = run(*words, "--eps", "1/255")
    assert code == 2
    assert err.startswith("error: runs/tests.parts.ChannelMean")
    assert "was made with another spec: threat.eps 8/255 -> 1/255. Use a new --out" in err


def test_folder_of_images_is_data(run, here: Path, pictures: Path) -> None:
    code, _, err = run("evaluate", *PARTS, "--data", "images", "--limit", "3", *SHORT, *QUIET, "--out", "run")
    assert code == 0, err
    assert json.loads((here / "run" / "env.json").read_text())[0]["examples"] == 3


def test_options_beside_a_spec_change_it_and_set_comes_last(run, here: Path) -> None:
    toml = here / "own.toml"
    toml.write_text('name = "own"\ndata = "tests.parts:data"\n[purifier]\nsteps = 50\n')
    words = [*PARTS, "--limit", "2", "--t-star", "0.2", "--norm", "l2", "--eps", "0.5", *SHORT]
    last = ["--set", "examples.count=1", "--set", 'knowledge=["white_box"]']
    code, _, err = run("evaluate", "own.toml", *words, *last, *QUIET)
    assert code == 0, err
    spec = json.loads((here / "runs" / "own" / "spec.json").read_text())["spec"]
    assert spec["name"] == "own"
    assert spec["threat"] == {"norm": "l2", "eps": "0.5"}
    assert spec["purifier"]["t_star"] == 0.2
    assert spec["purifier"]["steps"] == 20
    assert spec["examples"]["count"] == 1
    flags = json.loads((here / "runs" / "own" / "summary.json").read_text())["flags"]
    assert "short_attack" not in {f["name"] for f in flags}  # the user chose the settings


def test_sampler_without_a_spec_has_its_own_options(run, here: Path) -> None:
    code, out, err = run(
        "estimate", *PARTS, "--data", "tests.parts:data", "--limit", "2", "--sampler", "ddim"
    )
    assert code == 0, err
    assert "white_box" in out


def test_check_takes_parts(run, here: Path) -> None:
    code, out, err = run("check", *PARTS, "--data", "tests.parts:data", "--examples", "2", *SHORT, *QUIET)
    assert code in (0, 1), err
    assert "checks ran" in out


def test_analyse_takes_parts_with_names_of_analyses(run, here: Path) -> None:
    few = ["--set", "analyses.compression.images=2"]
    code, _, err = run(
        "analyse", "compression", *PARTS, "--data", "tests.parts:data", "--limit", "2", *SHORT, *few, *QUIET,
        "--out", "run",
    )  # fmt: skip
    assert code == 0, err
    assert (here / "run" / "analyses" / "compression" / "result.json").is_file()


def test_published_settings_are_not_called_short() -> None:
    attack = {"name": "pgd", "options": {"iterations": 20, "eot": 10}}
    whole = validate({"attacks": [attack], "purifier": {"steps": 1000}}, EvaluationSpec, "whole")
    assert short_attack(whole) == []
    fewer = validate({"attacks": [attack], "purifier": {"steps": 999}}, EvaluationSpec, "fewer")
    assert "a chain of 999 steps" in short_attack(fewer)[0].message


@pytest.mark.parametrize(("norm", "eps"), [("linf", "1/255"), ("linf", "16/255"), ("l2", "0.5")])
def test_step_follows_the_budget(norm: str, eps: str) -> None:
    """Ten steps reach the border of any budget, and one does not leap over it."""
    spec = Asked(None, {"data": "tests.parts:data", "norm": norm, "eps": eps}).read([])
    threat, options = {"linf": Linf, "l2": L2}[norm](spec.threat.budget), attack_options(spec.attacks[0])
    step = options.get("step_size", threat.default_step_size)
    assert threat.eps / options["iterations"] < step < threat.eps


@pytest.mark.parametrize("words", [[], ["--limit", "4"], ["--eps", "4/255", "--steps", "10"]])
def test_nothing_named_is_told_what_to_name(run, here: Path, words: list[str]) -> None:
    for command in ("evaluate", "check", "estimate", "analyse"):
        code, out, err = run(command, *words)
        assert (code, out) == (2, "")
        assert "nothing was named to evaluate" in err
        assert "dbpkit demo" in err
        assert "dbpkit init" in err
        assert err.count("error: ") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--classifier", "tests.parts:Nope"], "module 'tests.parts' has no 'Nope'"),
        (["--classifier", "no_module:x"], "classifier module 'no_module' cannot be imported"),
        (["--denoiser", "empty"], "denoiser 'empty' is a folder. Name the weights file."),
        (["--denoiser", "nowhere"], "unknown denoiser 'nowhere'"),
        (["--denoiser", "nowhere"], "No file or folder of this name is here either"),
        (["--classifier", "mine.py:make"], "without '.py', such as mine:make."),
        (["--classifier", "code/mine.py"], "without '.py', such as mine:make."),
        (["--data", "empty"], "data 'folder': 'empty' has no"),
        (["--data", "flat"], "flat"),
        (["--data", "file.npz"], "data 'file.npz' is a file. Name a data set"),
        (["--data", "nowhere"], "unknown data set 'nowhere'"),
        (["--data", "images", "--limit", "7"], "Lower examples.count (--limit)"),
        (["--data", "images", "--eps", "x"], "threat.eps = x: 'x' is not a number"),
        (["--data", "images", "--t-star", "3"], "purifier.t_star = 3"),
        (["--data", "images", "--sampler", "nix"], "unknown sampler 'nix'"),
        (["--data", "images", "--norm", "l7"], "unknown threat"),
        (["--data", "four"], "the classifier has 3 classes, but the labels go up to 3"),
    ],
)
def test_mistake_is_one_sentence(run, here: Path, pictures: Path, words: list[str], message: str) -> None:
    (here / "empty").mkdir()
    (here / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(here / "flat" / "a.png")
    (here / "file.npz").write_bytes(b"")
    for k in "abcd":
        (here / "four" / k).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(here / "four" / k / "0.png")
    given = dict(zip(PARTS[::2], PARTS[1::2], strict=True)) | {"--data": "images", "--limit": "3"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    code, out, err = run("evaluate", *(word for pair in given.items() for word in pair), *QUIET)
    assert (code, out) == (2, "")
    assert message in err
    assert "quick.toml" not in err  # a file that nobody named
    assert err.count("error: ") == 1
    assert not (here / "runs").exists() or not list((here / "runs").iterdir())
