"""The page in a real browser: its script runs, its policy forbids and nothing asks for more."""

import fcntl
import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dbpkit.reporting import write_report
from dbpkit.reporting.figures.charts import chart_csv
from dbpkit.results.run_directory import RunDirectory
from tests.unit.report.conftest import CHARTS

MakeRun = Callable[..., RunDirectory]

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

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


class Tab:
    """One page in a browser, spoken to over a pipe: what a person sees and presses."""

    def __init__(self, profile: Path) -> None:
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
            "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
        ]  # fmt: skip
        pipes = [os.pipe(), os.pipe()]
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (pipes[0][0], pipes[1][1])]  # beyond 3 and 4
        words = ["bash", "-c", f'exec 3<&{theirs[0]} 4>&{theirs[1]} "$@"', "_", str(BROWSER), *options]
        self.process = subprocess.Popen(words, pass_fds=theirs, stderr=subprocess.DEVNULL)
        for fd in (*theirs, pipes[0][0], pipes[1][1]):
            os.close(fd)
        self.out, self.into = os.fdopen(pipes[0][1], "wb"), os.fdopen(pipes[1][0], "rb")
        self.count, self.session, self.buffer = 0, "", b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Asks the browser and waits for its answer; events that come before are kept."""
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        request |= {"sessionId": self.session} if self.session else {}
        self.out.write(json.dumps(request).encode() + b"\0")
        self.out.flush()
        while (message := self.message()).get("id") != self.count:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.into], [], [], 120)
            part = os.read(self.into.fileno(), 2**20) if ready else b""
            if not part:
                pytest.skip("the browser does not start or does not answer here")
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def wait(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self.events.append(self.message())

    def open(self, page: Path, width: int = 1200, scheme: str = "light", media: str = "screen") -> "Tab":
        """Loads a page at a width and waits for it."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.wait("Page.loadEventFired")
        return self

    def eval(self, script: str) -> Any:
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"Enter": 13, "Tab": 9, " ": 32}
        text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
        common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def complaints(self) -> list[Any]:
        """What the console said, and every request for something that is not in the page."""
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        found: list[Any] = [e for e in self.events if e.get("method") in said]
        asked = [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]
        return found + [url for url in asked if not url.startswith(("data:", "file:"))]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.into.close()


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
