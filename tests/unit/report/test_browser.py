"""The page in a real browser: its script runs, its policy forbids and nothing asks for more."""

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dbpkit import board
from dbpkit.reporting import write_report
from dbpkit.reporting.figures.charts import chart_csv
from dbpkit.reporting.page import Live
from dbpkit.results.run_directory import RunDirectory
from tests.browser.chrome import BROWSER, Tab
from tests.unit.report.conftest import CHARTS

MakeRun = Callable[..., RunDirectory]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium found"),
]


def load(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Returns the page after its script has run, and what the browser's console said."""
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
        "--enable-logging=stderr", f"--user-data-dir={profile}", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run([str(BROWSER), *options], capture_output=True, text=True, timeout=120, check=False)
    if "<html" not in done.stdout:
        pytest.skip(f"the browser does not start here: {done.stderr[-300:]}")
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_page_loads_without_console_message(make_run: MakeRun, tmp_path: Path) -> None:
    # The page's policy forbids every request: one that was tried would be a message on the console.
    run = make_run(name="<script>console.error('broken out')</script><img src='http://example.com/x.png'>")
    page, console = load(write_report([run.path]), tmp_path / "profile")
    assert console == []
    assert page.count("<button") == 14  # the script has made every header of two tables a button


def test_console_message_of_forbidden_request_is_seen(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run().path])
    page.write_text(page.read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    _, console = load(page, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in console)


def test_table_sorts_by_clicked_header(make_run: MakeRun, tmp_path: Path) -> None:
    page = write_report([make_run().path])
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    click = "<script>document.querySelectorAll('thead button')[1].click()</script>"
    page.write_text(text.replace("</body>", f"{click}</body>"))
    shown, console = load(page, tmp_path / "profile")
    assert console == []
    assert 'aria-sort="descending"' in shown
    first_table = shown[shown.index("<tbody") : shown.index("</tbody")]
    shares = [float(s) for s in re.findall(r'</th>\s*<td class="number" data-sort="([^"]*)"', first_table)]
    assert len(shares) == 8
    assert shares == sorted(shares, reverse=True)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    tab = Tab(tmp_path_factory.mktemp("browser") / "profile")
    yield tab
    tab.close()


Pages = Callable[[str], Path]


@pytest.fixture
def page(make_run: MakeRun, analysed: Callable[..., RunDirectory]) -> Pages:
    """Makes a page with an evaluation and analyses, with analyses alone, or of two runs."""

    def make(what: str) -> Path:
        if what == "alone":
            return write_report([analysed(charts=list(CHARTS.values())).path])
        first = analysed(make_run("a"))
        analysed(first, name="spectrum", title="A second analysis", charts=[CHARTS["heat"]])
        return write_report([first.path] if what == "one" else [first.path, analysed(make_run("b")).path])

    return make


SORTED = """(() => {
  const table = [...document.querySelectorAll("table.numbers")].at(-1);
  return { sort: [...table.tHead.rows[0].cells].map(c => c.getAttribute("aria-sort")),
           values: [...table.tBodies[0].rows].map(r => r.cells[1].dataset.sort) };
})()"""


@pytest.mark.parametrize("what", ["one", "alone", "two"])
def test_page_with_analyses_asks_for_nothing_says_nothing_and_fits(tab: Tab, page: Pages, what: str) -> None:
    path = page(what)
    for width in (360, 400, 1200):
        tab.open(path, width=width)
        assert tab.complaints() == []
        assert tab.eval("document.documentElement.scrollWidth") <= width
    images = tab.eval("[...document.images].map(i => [i.alt, i.complete && i.naturalWidth])")
    assert len(images) >= 3
    assert all(alt and size for alt, size in images)


def test_board_asks_for_nothing_says_nothing_and_fits(tab: Tab, make_run: MakeRun, tmp_path: Path) -> None:
    name = "<script>console.error('broken out')</script><img src='http://example.com/x.png'>"
    path = board([make_run(name).path, make_run("b").path], tmp_path / "board.html").page
    for width in (390, 1200):
        tab.open(path, width=width)
        assert tab.complaints() == []
        assert tab.eval("document.documentElement.scrollWidth") <= width
    assert tab.eval("document.querySelectorAll('table.board tbody tr').length") == 2


def test_charts_follow_the_colour_scheme_and_print_is_light(tab: Tab, page: Pages) -> None:
    path = page("one")
    shown = "[...document.querySelectorAll('picture img')].map(i => i.currentSrc)"
    paper = "getComputedStyle(document.body).backgroundColor"
    light, light_paper = tab.open(path).eval(shown), tab.eval(paper)
    dark, dark_paper = tab.open(path, scheme="dark").eval(shown), tab.eval(paper)
    assert len(light) == 3
    assert not set(light) & set(dark)
    assert (light_paper, dark_paper) == ("rgb(255, 255, 255)", "rgb(20, 24, 29)")
    assert tab.open(path, scheme="dark", media="print").eval(paper) == light_paper


def test_table_of_numbers_sorts_by_click_with_missing_values_last(tab: Tab, page: Pages) -> None:
    tab.open(page("alone"))
    assert tab.eval(SORTED)["sort"] == [None] * 6
    button = '[...document.querySelectorAll("table.numbers")].at(-1).querySelectorAll("thead button")[1]'
    for direction in ("descending", "ascending"):
        tab.eval(f"{button}.click()")
        found = tab.eval(SORTED)
        assert found["sort"] == [None, direction, *[None] * 4]
        *numbers, last = found["values"]
        assert last == ""  # what is not a number stands last in both directions
        assert [*map(float, numbers)] == sorted(map(float, numbers), reverse=direction == "descending")
    tab.eval(f"{button}.click()")
    assert tab.eval(SORTED)["values"][0] == "0.42"  # as written


@pytest.mark.parametrize("key", ["Enter", " "])
def test_table_of_numbers_sorts_by_keyboard(tab: Tab, page: Pages, key: str) -> None:
    tab.open(page("alone"))
    tab.eval('[...document.querySelectorAll("table.numbers")].at(-1).querySelector("thead button").focus()')
    tab.press("Tab")
    assert tab.eval("document.activeElement.textContent") == "Value"
    assert tab.eval("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press(key)
    assert tab.eval(SORTED)["sort"][1] == "descending"


def test_link_to_data_saves_the_csv(tab: Tab, page: Pages, tmp_path: Path) -> None:
    path, folder = page("alone"), tmp_path / "downloads"
    folder.mkdir()
    session, tab.session = tab.session, ""
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
    tab.session = session
    tab.open(path).eval("document.querySelector('a[download]').click()")
    while not any(e.get("params", {}).get("state") == "completed" for e in tab.events):
        tab.events.append(tab.message())
    assert (folder / "compression-1.csv").read_text() == chart_csv(CHARTS["line"])
    assert tab.complaints() == []


def test_page_of_a_run_that_goes_on_loads_again_where_it_is_read(
    make_run: MakeRun, tab: Tab, tmp_path: Path
) -> None:
    run = make_run(recorded=3)
    later = write_report([run.path], tmp_path / "later.html", live=Live(600, 0.57, "dw_both")).read_text()
    page = write_report([run.path], tmp_path / "now.html", live=Live(2, 0.43, "white_box"))
    tab.open(page, 900)
    assert "43\u00a0% is done, now white_box" in tab.eval("document.body.innerText")
    tab.eval("scrollTo(0, 300)")
    page.write_text(later)
    shown = "document.body.innerText.includes('57\u00a0% is done, now dw_both')"
    assert tab.until(f"{shown} && Math.round(scrollY) == 300")
    assert tab.complaints() == []
