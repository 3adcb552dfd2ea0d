"""The tutorials' output is what their commands print; the concepts' figures are what the package draws."""

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dbpkit import cli
from dbpkit.results.charts import Chart
from tests.docs.pages import ROOT

DOCS = ROOT / "docs"
TUTORIALS = sorted(path.name for path in (DOCS / "tutorials").glob("*.md"))
CONCEPTS = sorted((DOCS / "concepts").glob("*.md"))
LARGEST = 200_000
"""Bytes of an image of a page."""


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "recorded.py"))


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "figures.py"))


@pytest.fixture(scope="module")
def data(figures: dict[str, Any]) -> dict[str, Chart]:
    return figures["from_json"]((DOCS / "images" / "concepts.json").read_text(encoding="utf-8"))


# ------------------------------------------------------------------ output


@pytest.mark.parametrize("name", TUTORIALS)
def test_output_of_a_tutorial_is_as_it_was_recorded(recorded: dict[str, Any], name: str) -> None:
    assert recorded["changed"](name) == ""


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_command_of_a_tutorial_shows_what_it_prints(recorded: dict[str, Any], name: str) -> None:
    found = recorded["commands"]((DOCS / "tutorials" / name).read_text(encoding="utf-8"))
    assert found
    assert [one.command for one in found if not one.output.strip()] == []


def test_changed_output_is_noticed(recorded: dict[str, Any]) -> None:
    page = "```console\n$ dbpkit list\nold\n```\n"
    assert recorded["digest"](page) != recorded["digest"](page.replace("old", "new"))
    assert recorded["digest"](page) == recorded["digest"]("Other words.\n" + page)


def test_form_keeps_words_and_forgets_numbers(recorded: dict[str, Any]) -> None:
    form, moved = recorded["form"], recorded["moved"]
    assert form("white box   28.1% (12.6 to 51.5%)\n────\n") == form("white box 5% (1 to 9%)\n")
    assert form("white box 28.1%") != form("DW_Both 28.1%")
    assert form("takes about 21 seconds on\n1 thread") == form("takes about 2.0\nminutes on 2 threads")
    page = "```console\n$ dbpkit show a\nclean 1.0%\n```\n"
    assert moved("page.md", page, page.replace("1.0%", "2.5%")) == []
    assert len(moved("page.md", page, page.replace("clean", "attacked"))) == 1


def test_a_page_is_filled_from_its_own_files_and_commands(recorded: dict[str, Any], tmp_path: Path) -> None:
    page = (
        "```python\n# said.py\nprint('hello')\n```\n\n```console\n$ python said.py\nold\n$ echo a \\\n> b\n"
        "$ echo long\n...\n```\n\n<!-- recorded 0000000000000000 -->\n"
    )
    filled = recorded["filled"](page, tmp_path)
    assert "$ python said.py\nhello\n$ echo a \\\n> b\na b\n$ echo long\n...\n```" in filled
    assert f"<!-- recorded {recorded['digest'](filled)} -->" in filled
    with pytest.raises(SystemExit, match="ended with 3"):
        recorded["run"]("exit 3", tmp_path)


@pytest.mark.slow  # a run of two images and one step of attack for each
@pytest.mark.parametrize("page", ["tutorials/evaluate.md", pytest.param("start.md", marks=pytest.mark.long)])
def test_table_of_a_page_has_the_rows_that_its_command_prints(
    recorded: dict[str, Any],
    page: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same spec in small: other numbers, the same words in front of them."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if page == "start.md":
        spec, shown = str(ROOT / "src/dbpkit/assets/demo.toml"), text[text.index("dbpkit demo: CIFAR-10") :]
    else:
        spec = "defence.toml"
        one = next(c for c in recorded["commands"](text) if c.command.startswith("dbpkit evaluate"))
        shown = one.output
    for name, content in recorded["files"](text).items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(recorded["COLUMNS"]))
    small = ["examples.count=2", "draws.report=2", "purifier.steps=20"]
    small += [f"attacks.0.options.{option}=1" for option in ("iterations", "eot")]
    sets = [word for each in small for word in ("--set", each)]
    monkeypatch.setattr(sys, "argv", ["dbpkit", "evaluate", spec, "--out", "runs/small", *sets])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    sys.modules.pop("my_defence", None)
    assert not ended.value.code
    assert len(rows(shown)) > 5
    assert rows(capsys.readouterr().out) == rows(shown[: shown.index("Intervals:")])


def rows(output: str) -> list[str]:
    """The words in front of the numbers of a table's lines, and its headings."""
    return [m[1].strip() for line in output.splitlines() if (m := re.match(r" (\S.*?)\s+[\d.]+% \(", line))]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_tutorials_print_what_they_show_in_form() -> None:
    done = subprocess.run(
        [sys.executable, str(DOCS / "recorded.py"), "--form"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------ figures


def test_images_are_small_and_shown() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    images = [*(DOCS / "images").glob("concepts-*"), *(DOCS / "images").glob("report-*")]
    assert len(images) > 10
    assert {path.name: path.stat().st_size for path in images if path.stat().st_size > LARGEST} == {}
    assert [path.name for path in images if path.name not in pages] == []


def test_every_figure_of_the_concepts_has_its_data(data: dict[str, Chart]) -> None:
    drawn = {path.stem.removeprefix("concepts-") for path in (DOCS / "images").glob("concepts-*.png")}
    assert drawn - {"draws"} == set(data)


@pytest.mark.parametrize("name", ["gaussian", "widths"])
def test_data_of_a_figure_without_networks_are_what_the_package_computes(
    figures: dict[str, Any], data: dict[str, Chart], name: str
) -> None:
    made = figures["from_json"](figures["as_json"]({name: figures["FIGURES"][name]()}))[name]
    assert made == data[name]


def test_gaussian_figure_follows_the_closed_form(data: dict[str, Chart]) -> None:
    """theta = abar v / (abar v + 1 - abar), from the schedule's own definition."""
    signal = 1.0
    for t in range(101):
        signal *= 1 - (1e-4 + (2e-2 - 1e-4) * t / 999)
    theta = 0.01 * signal / (0.01 * signal + 1 - signal)
    ddpm, ddim, line, root = (series.y for series in data["gaussian"].series)
    assert ddpm == pytest.approx([theta] * len(ddpm), abs=1e-4)
    assert line == pytest.approx(ddpm, abs=1e-4)
    assert root[0] == pytest.approx(theta**0.5, abs=1e-4)
    assert theta < ddim[0] < ddim[-1] < root[0]
    assert ddim == sorted(ddim)


@pytest.mark.parametrize("page", CONCEPTS, ids=lambda path: path.name)
def test_numbers_beside_a_figure_are_those_of_the_figure(
    figures: dict[str, Any], data: dict[str, Chart], page: Path
) -> None:
    text = page.read_text(encoding="utf-8")
    assert figures["with_numbers"](text, data) == text
    assert figures["with_numbers"]("<!-- rates: Gaussian -->0 %", data) != "<!-- rates: Gaussian -->0 %"
