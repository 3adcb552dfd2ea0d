"""docs/reference/papers.md: every name can be imported, and nothing that the papers have is left out."""

import importlib
import re
from typing import Any

import pytest

from dbpkit.analyses.analysis import analyses
from dbpkit.experiment.knowledge import known
from dbpkit.training.perturb import perturbations
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "papers.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(dbpkit(?:\.\w+)+)`", PAGE)))

OF_NEITHER = {"gradient_variance", "tapes", "ladder"}
"""Analyses of questions that dbpkit asks itself."""


def found(name: str) -> Any:
    """What a dotted name leads to: a module, or something in one."""
    words = name.split(".")
    for length in range(len(words), 0, -1):
        try:
            part: Any = importlib.import_module(".".join(words[:length]))
        except ModuleNotFoundError as error:
            if error.name and not name.startswith(error.name):
                raise
            continue
        for word in words[length:]:
            part = getattr(part, word)
        return part
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("name", NAMES)
def test_name_of_the_page_can_be_imported(name: str) -> None:
    assert found(name) is not None


def test_a_name_that_is_not_there_is_noticed() -> None:
    with pytest.raises(AttributeError):
        found("dbpkit.training.perturb.rank_gaussian_of_old")
    with pytest.raises(AttributeError):
        found("dbpkit.no_such_room.anything")


def test_specs_of_the_page_exist() -> None:
    specs = set(re.findall(r"`(specs/[\w/-]+\.toml)`", PAGE))
    assert len(specs) > 10
    assert [path for path in sorted(specs) if not (ROOT / path).is_file()] == []


def test_every_analysis_of_a_paper_has_a_line() -> None:
    """A part that is added for a paper is added to the page."""
    shown = {part for name in NAMES if callable(part := found(name))}
    missing = {name for name in analyses if analyses.get(name) not in shown} - OF_NEITHER
    assert missing == set()


def test_every_perturbation_has_a_line() -> None:
    shown = {part for name in NAMES if callable(part := found(name))}
    assert {name for name in perturbations if perturbations.get(name) not in shown} == set()


def test_every_knowledge_setting_of_the_papers_is_named() -> None:
    words = PAGE.lower()
    assert [n for n in ("white_box", "dw_fwd", "dw_rev", "dw_both", "fixed", "bpda") if n not in known] == []
    assert [
        w for w in ("white box", "dw_fwd", "dw_rev", "dw_both", "`fixed`", "bpda") if w not in words
    ] == []


def test_every_line_says_how_dbpkit_differs() -> None:
    """Three columns, none of them empty."""
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "|---" not in line]
    cells = [[c.strip() for c in row.strip("|").split(" | ")] for row in rows]
    assert len(cells) > 90
    assert [row for row in cells if not 2 <= len(row) <= 3 or not all(row)] == []
