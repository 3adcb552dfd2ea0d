"""What a new user types first: published specs by name, a spec of their own, where the documentation is."""

import importlib.metadata
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from setuptools import find_packages

from dbpkit import EvaluationSpec, TrainingSpec, __version__, read_spec
from dbpkit.cli import COMPLETION, app
from dbpkit.cli.listing import check_parts
from dbpkit.foundation import packaged
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.packaged import specs, write_template
from dbpkit.foundation.spec import spec_hash
from dbpkit.foundation.toml import read_table
from tests.integration.test_cli import run

__all__ = ["run"]

ROOT = Path(__file__).parents[2]


def test_published_specs_are_found_by_name_from_anywhere(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cifar10-ddpm", "cifar10-ddpm.toml"):
        code, out, _ = run("show", name, "--json")
        assert code == 0
        assert json.loads(out) == read_spec(ROOT / "specs/cifar10-ddpm.toml", EvaluationSpec).model_dump(
            mode="json"
        )
    assert packaged.specs().keys() >= {"addt-ddim", "cifar10-ddpm", "train/cifar10-addt"}


def test_file_comes_before_a_published_spec_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar10-ddpm").write_text('name = "mine"')
    assert read_spec("cifar10-ddpm", EvaluationSpec).name == "mine"


def test_name_that_no_spec_has_is_told_the_nearest(run) -> None:
    code, _, err = run("evaluate", "cifar10-dpm", "--out", "x")
    assert code == 2
    assert "spec 'cifar10-dpm' does not exist. Did you mean 'cifar10-ddpm'?" in err


def test_installed_package_has_specs_and_docs_beside_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the wheel lays them out; without them the message says what is missing."""
    monkeypatch.setattr(packaged, "HERE", tmp_path / "site-packages" / "dbpkit")
    with pytest.raises(UserError, match="this installation of dbpkit has no specs"):
        packaged.specs()
    (packaged.HERE / "specs" / "train").mkdir(parents=True)
    (packaged.HERE / "specs" / "train" / "a.toml").write_text("# A title.\n")
    assert packaged.specs() == {"train/a": packaged.HERE / "specs" / "train" / "a.toml"}
    assert packaged.title(packaged.specs()["train/a"]) == "A title."


def test_wheel_takes_every_package_and_every_spec_and_page() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["packages"]) == {*find_packages(ROOT / "src"), "dbpkit.docs", "dbpkit.specs"}
    for kind in ("specs", "docs"):
        assert settings["package-dir"][f"dbpkit.{kind}"] == kind
        taken = {
            p for pattern in settings["package-data"][f"dbpkit.{kind}"] for p in (ROOT / kind).glob(pattern)
        }
        scripts = set((ROOT / kind).glob("*.py"))  # they make and check pages, in a checkout
        assert taken == {p for p in (ROOT / kind).rglob("*") if p.is_file()} - scripts


def test_init_writes_a_spec_that_is_read_and_never_overwrites(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("init")
    assert code == 0
    assert out.startswith("Written: my-model.toml\n")
    spec = read_spec("my-model.toml", EvaluationSpec)
    assert spec.classifier.name == "my_module:make_classifier"
    Path("my-model.toml").write_text("mine")
    code, _, err = run("init", "my-model.toml")
    assert code == 2
    assert "'my-model.toml' exists already and is left as it is" in err
    assert Path("my-model.toml").read_text() == "mine"


def test_init_names_every_key_and_its_comments_are_the_defaults() -> None:
    """Every key of a spec is there; with the # of its settings taken away, the spec stays the same."""
    text = packaged.TEMPLATE.read_text()
    written = read_spec(packaged.TEMPLATE, EvaluationSpec)
    settings = re.compile(r"^# (?=(?:protocol|precision|seed|name|options|grid|first|order|select) = )", re.M)
    full = tomllib.loads(settings.sub("", text))
    assert spec_hash(EvaluationSpec.model_validate(full)) == spec_hash(written)
    assert full.keys() | {"protocol", "precision"} >= EvaluationSpec.model_fields.keys() - {"analyses"}
    assert "# [analyses." in text
    unset = {"clamp", "resize", "pad"}
    assert all(f"# {key} = " in text for key in unset)
    for part in ("purifier", "threat", "examples", "draws"):
        fields = EvaluationSpec.model_fields[part].annotation.model_fields.keys()  # type: ignore[union-attr]
        assert full[part].keys() | {"options"} | unset >= fields


def test_docs_says_where_every_page_is(run) -> None:
    code, out, _ = run("docs", "--json")
    assert code == 0
    pages = json.loads(out)
    assert pages.keys() >= {"flags", "run-directory", "your-models"}
    assert all(Path(path).is_file() for path in pages.values())
    for name in ("flags", "reference/flags", "reference/flags.md"):
        assert run("docs", name)[1].strip() == pages["flags"]
    assert "They lie in" in run("docs")[1]
    assert "Did you mean 'flags'?" in run("docs", "flag")[2]


def test_version_and_help(run) -> None:
    code, out, err = run("--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"dbpkit {__version__}\n")
    assert __version__ == importlib.metadata.version("dbpkit")
    for words in (["-h"], ["evaluate", "-h"], ["--help"]):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        assert "Usage: dbpkit" in out


def test_main_module_is_the_command_line() -> None:
    from dbpkit import __main__, cli

    assert __main__.main is cli.main


@pytest.mark.parametrize(
    ("words", "found"), [("dbpkit show cifar10-ddpm-", "cifar10-ddpm-l2"), ("dbpkit list samp", "samplers")]
)
def test_shell_completes_specs_and_parts(
    words: str, found: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(COMPLETION, "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(prog_name="dbpkit")
    assert found in capsys.readouterr().out


def test_list_of_a_part_with_options_says_type_default_and_meaning(run) -> None:
    code, out, _ = run("list", "pgd", "--options")
    assert code == 0
    assert "iterations = 20           number of steps. Takes a whole number of at least 1." in out
    assert "step_size = unset" in out
    assert "Takes 'zero' or 'random'." in out
    found = json.loads(run("list", "samplers", "--options", "--json")[1])["samplers"]
    assert found["heun"]["grid.rho"]["default"] == "7.0"
    assert found["heun"]["grid.sigma_min"]["meaning"] == "lowest noise level above 0."
    assert found["vpsde"]["grid.t_last"]["meaning"] == "last time of the grid."
    assert found["vpsde"]["corrector_steps"]["takes"] == "a whole number of at least 0"


def test_list_of_every_kind_gives_a_meaning_for_every_option(run) -> None:
    """A part without a docstring for its option is a gap in the documentation."""
    found = json.loads(run("list", "--options", "--json")[1])
    every = [
        (f"{kind} {name}: {key}", said)
        for kind, parts in found.items()
        for name, own in parts.items()
        for key, said in own.items()
    ]
    missing = [where for where, said in every if not said["takes"] or not said["meaning"]]
    assert missing == []


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize("words", [["list"], ["list", "attacks", "--options"], ["docs"]])
def test_lists_fit_a_narrow_terminal(
    words: list[str], columns: int, run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(*words)
    assert code == 0
    heads = [line for line in out.splitlines() if len(line) > columns]
    assert all(" " not in line.strip() or "/" in line for line in heads), heads


def test_show_fills_in_defaults_of_parts_and_reads_training_specs(run, tmp_path: Path) -> None:
    code, out, _ = run("show", "train/cifar10-addt")
    assert code == 0
    assert "# objective 'denoising': flip = true" in out
    (tmp_path / "again.toml").write_text(out)
    assert read_spec(tmp_path / "again.toml", TrainingSpec) == read_spec("train/cifar10-addt", TrainingSpec)
    out = run("show", "cifar10-ddpm")[1]
    assert '# attacks.0 \'pgd\': start = "zero", keep = "last", keep_draws = 10, loss = "ce"' in out


def test_show_imports_nothing_that_a_spec_names(run, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'classifier = "no_such_module_anywhere:make"\n[purifier]\nsampler = "no_such:x"'
    )
    code, out, _ = run("show", tmp_path / "s.toml")
    assert code == 0
    assert 'name = "no_such_module_anywhere:make"' in out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (['purifier.options.clip="False"'], "clip must be true or false without quotes, not 'False'"),
        (["purifier.options.eta=1"], "sampler 'ddpm' has no option 'eta'"),
        (["purifier.grid.t_last=1e-3"], "the grid of sampler 'ddpm' has no option 't_last'"),
        (['purifier.sampler="ddmp"'], "unknown sampler 'ddmp'. Did you mean 'ddpm'?"),
        (["threat.eps=8"], "threat.eps 8 exceeds the pixel range [0, 1]"),
        (['threat.norm="l2"', "threat.eps=300"], "L2: eps 300 turns most images into any other"),
        (['threat.norm="zzz"'], "unknown threat model 'zzz'"),
        (['threat.norm="perceptual"', "threat.options.layer=1"], "'perceptual' has no option 'layer'"),
        (['denoiser="weights"'], "denoiser 'weights' needs the option 'path'"),
        (['classifier="embeded"'], "unknown classifier 'embeded'. Did you mean 'embedded'?"),
        (['attacks=[{name="pgd", options={loss="zz"}}]'], "attack 'pgd': loss: unknown loss 'zz'"),
        (['attacks=[{name="pgd", options={eot=0}}]'], "eot must be a whole number of at least 1"),
        (['knowledge=[{name="own", gradient="zz"}]'], "unknown gradient 'zz'"),
        (["analyses.eot.x=1"], "analysis 'eot' has no option 'x'"),
    ],
)
def test_show_refuses_what_every_other_command_refuses(
    run: Callable[..., tuple[int, str, str]], changes: list[str], said: str
) -> None:
    code, out, err = run("show", "cifar10-ddpm", *(word for c in changes for word in ("--set", c)))
    assert (code, out) == (2, "")
    assert said in err


def test_show_follows_no_import_path_anywhere(run: Callable[..., tuple[int, str, str]]) -> None:
    """None of these modules exists, so following one path would be an error."""
    changes = [
        'data="no:a"',
        'classifier="no:b"',
        'denoiser="no:c"',
        'purifier.sampler="no:d"',
        'threat.norm="no:e"',
        "threat.eps=8",
        'attacks=["no:f", {name="pgd", options={loss="no:g"}},'
        ' {name="autoattack", options={parts=["no:h"]}}]',
        'knowledge=[{name="own", gradient="no:i"}]',
        'protocol="no:j"',
        'analyses={"no:k"={x=1}}',
    ]
    code, out, _ = run("show", "cifar10-ddpm", *(word for c in changes for word in ("--set", c)), "--json")
    assert code == 0
    assert all(f"no:{letter}" in out for letter in "abcdefghij")


def test_show_admits_every_published_spec_and_the_template(tmp_path: Path) -> None:
    write_template(tmp_path / "own.toml")
    refused = {}
    for name, path in {**specs(), tmp_path / "own.toml": tmp_path / "own.toml"}.items():
        kind = TrainingSpec if "optimiser" in read_table(path) else EvaluationSpec
        try:
            check_parts(read_spec(name, kind))
        except UserError as error:
            refused[name] = str(error)
    assert refused == {}
