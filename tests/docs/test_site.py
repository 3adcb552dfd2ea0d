"""The documentation site: every page is found and begins with its question; tests/browser has the rest."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dbpkit
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, blocks
from tests.docs.site import config, navigated

DOCS = ROOT / "docs"
OF_THE_ROOT = {"project/contributing.md", "project/changelog.md", "project/security.md"}
"""Pages that docs/site.py makes of files of the root."""

OWN = [page for page in PAGES if DOCS in page.parents]
LONGEST_BEGINNING = 60
"""Words of a page's first paragraph, at most."""


def place(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


# ------------------------------------------------------------------ pages


def test_every_page_is_in_the_navigation_once() -> None:
    found = list(navigated(config()["nav"]))
    assert sorted(found) == sorted({place(page) for page in OWN} | OF_THE_ROOT)


@pytest.mark.parametrize("page", OWN, ids=place)
def test_page_has_one_title_and_begins_with_a_short_paragraph(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    title, first, *_ = [b for b in re.split(r"\n\s*\n", text) if not b.startswith("<!--")]
    assert re.findall(r"^# .+", text, flags=re.M) == [title.strip()]
    assert not first.startswith(("#", "|", "- ", "!["))
    assert 3 < len(first.split()) <= LONGEST_BEGINNING


def test_blocks_are_of_languages_that_a_test_runs_or_are_marked_as_text() -> None:
    wrong = []
    for page in PAGES:
        open_ = False
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            if not (fence := re.match(r"\s*(`{3,}|~{3,})(.*)", line)):
                continue
            known = line == "```" if open_ else line in {f"```{language}" for language in LANGUAGES}
            wrong += [] if known else [f"{page.name}:{number}: {fence[0]}"]
            open_ = not open_
        assert not open_, page
    assert wrong == []


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_read(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", blocks("bibtex"), ids=str)
def test_bibtex_is_an_entry_with_the_fields_that_a_citation_needs(block: Block) -> None:
    entries = re.split(r"^(?=@)", block.text.strip(), flags=re.M)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"@\w+\{[\w:-]+,\n", entry), entry
        assert entry.count("{") == entry.count("}"), entry
        assert {"author", "title"} <= set(re.findall(r"^\s*(\w+)\s*=", entry, flags=re.M)), entry


def test_console_blocks_have_prompts_and_shell_blocks_have_none() -> None:
    for block in blocks("sh", "console"):
        prompted = [line for line in block.text.splitlines() if line.startswith("$ ")]
        assert bool(prompted) == (block.language == "console"), str(block)


def test_paths_of_pages_that_source_and_specs_name_exist() -> None:
    files = [
        p
        for d in ("src", "specs", "benchmarks")
        for s in ("py", "toml", "html")
        for p in (ROOT / d).rglob(f"*.{s}")
    ]
    named = {
        (n, p.name)
        for p in files
        for n in re.findall(r"\bdocs/[\w/.-]+\.md\b", p.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert [(name, where) for name, where in sorted(named) if not (ROOT / name).is_file()] == []


def test_package_data_ships_every_page() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "dbpkit.docs"
    ]
    shipped = {path for pattern in patterns for path in DOCS.glob(pattern)}
    assert set(OWN) <= shipped


# ------------------------------------------------------------------ reference


def test_every_public_name_is_on_one_page_of_the_python_reference() -> None:
    shown = [
        name
        for page in (DOCS / "reference" / "api").glob("*.md")
        for name in re.findall(r"^::: dbpkit\.(\w+)$", page.read_text(encoding="utf-8"), flags=re.M)
    ]
    assert sorted(shown) == dbpkit.__all__


@pytest.mark.slow
def test_pages_written_from_the_source_are_up_to_date() -> None:
    words = [sys.executable, str(DOCS / "generated.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["cli.md", "spec.md", "parts.md", "specs.md"])
def test_pages_written_from_the_source_say_what_everything_means(name: str) -> None:
    rows = [
        re.split(r"(?<!\\)\|", line)[1:-1]
        for line in (DOCS / "reference" / name).read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") or line.startswith("| [")
    ]
    assert len(rows) > 30
    assert [row for row in rows if not row[-1].strip() or row[1].strip() in ("", "anything")] == []
