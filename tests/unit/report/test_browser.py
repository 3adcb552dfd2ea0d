"""The page in a real browser: its script runs, its policy forbids and nothing asks for more."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dbpkit.report import write_report
from dbpkit.results.run_directory import RunDirectory

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
    assert page.count("<button") == 7  # the script has made every header of the table a button


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
