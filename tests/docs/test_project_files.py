"""Files for those who work on the project: the citation, the hooks before a commit, the container."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from dbpkit import __version__

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOOKS: dict[str, Any] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())


def test_citation_has_what_the_format_demands_and_is_of_this_version() -> None:
    """The Citation File Format 1.2.0: its required keys, and the types of those that are there."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited.keys() >= {"cff-version", "message", "title", "authors"}
    assert cited.keys() <= {
        "cff-version",
        "message",
        "title",
        "authors",
        "type",
        "version",
        "license",
        "abstract",
    } | {
        "keywords",
        "references",
    }
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (__version__, PROJECT["license"])
    for work in (cited, *cited["references"]):
        assert work["title"]
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"given-names", "family-names"})
    for work in cited["references"]:
        assert work["type"] in ("article", "conference-paper")
        assert isinstance(work["year"], int)
        assert all(one.keys() == {"type", "value"} for one in work["identifiers"])


def test_hooks_before_a_commit_are_what_make_lint_runs_and_fetch_nothing() -> None:
    (own,) = HOOKS["repos"]
    assert own["repo"] == "local"
    assert all(hook["language"] == "system" for hook in own["hooks"])
    run = " ".join(hook["entry"] for hook in own["hooks"])
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert lint is not None
    tools = re.findall(r"\$\(BIN\)/([\w-]+)", lint[1])
    assert tools
    assert [tool for tool in tools if f".venv/bin/{tool}" not in run] == []


def test_hook_of_written_pages_checks_every_script_that_writes_one() -> None:
    (hook,) = [h for h in HOOKS["repos"][0]["hooks"] if h["id"] == "written-pages"]
    writers = {p.stem for p in (ROOT / "docs").glob("*.py") if '"--check"' in p.read_text()}
    listed = re.search(r"for script in ([\w ]+);", hook["entry"])
    assert listed is not None
    assert set(listed[1].split()) == writers


def test_container_has_a_python_that_the_package_is_for() -> None:
    container = (ROOT / ".devcontainer" / "Containerfile").read_text()
    found = re.search(r"^FROM \S+/python:(\d+\.\d+)", container, re.M)
    assert found is not None
    assert f"Programming Language :: Python :: {found[1]}" in PROJECT["classifiers"]
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    assert (ROOT / ".devcontainer" / settings["build"]["dockerfile"]).is_file()
    assert settings["postCreateCommand"] == "make .venv/.installed-dev"


def test_classifiers_name_the_versions_that_ci_tries() -> None:
    tried = re.search(r"^MINORS = \(([\d, ]+)\)", (ROOT / ".ci" / "package.py").read_text(), re.M)
    assert tried is not None
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named == [f"3.{minor}" for minor in tried[1].split(", ")]
    assert PROJECT["requires-python"] == f">={named[0]}"
