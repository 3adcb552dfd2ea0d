"""What stands in for the search's worker on pages of file:, where browsers start none."""

from pathlib import Path

import pytest

from tests.browser.chrome import BROWSER, Tab

SCRIPT = Path(__file__).parents[2] / "docs" / "iframe-worker.js"

PAGE = """<!DOCTYPE html><body><script>SCRIPT</script><script>
  window.got = [];
  const worker = new Worker("worker.js");
  worker.addEventListener("message", (event) => got.push(event.data));
  worker.postMessage("own");
</script>"""

STRANGER = """
  const other = Object.assign(document.createElement("iframe"), { sandbox: "allow-scripts" });
  const words = "parent.frames[0].postMessage('stranger', '*'); parent.postMessage(1, '*')";
  other.srcdoc = `<script>${words}</script>`;
  addEventListener("message", () => worker.postMessage("last"));
  document.body.append(other);
"""

pytestmark = [
    pytest.mark.slow,  # a browser
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]


def test_only_the_page_gives_the_search_work(tab: Tab, tmp_path: Path) -> None:
    """A message tells it which scripts to load; any window can send one to a frame, and none to a worker."""
    page = tmp_path / "page.html"
    page.write_text(PAGE.replace("SCRIPT", SCRIPT.read_text()))
    (tmp_path / "worker.js").write_text(
        "addEventListener('message', (event) => postMessage(`answer to ${event.data}`))"
    )
    tab.open(page)
    assert tab.until("got.length && got") == ["answer to own"]
    tab.eval(STRANGER)
    assert tab.until("got.includes('answer to last') && got") == ["answer to own", "answer to last"]
