"""``--watch``: the page loads itself again while the run goes on, and no more once it has ended."""

import json
import re
from pathlib import Path

import pytest

from dbpkit.cli import watch
from dbpkit.cli.watch import Pages, watching
from dbpkit.evaluation.run import evaluate
from dbpkit.experiment.execution import Execution
from tests.integration.test_cli import run

__all__ = ["run"]

AGAIN = ('<meta http-equiv="refresh"', "location.reload()", "This page loads itself again")


def loads_again(page: str) -> bool:
    """Whether a page has all that makes it load itself again; it must not have a part of it."""
    found = {mark in page for mark in AGAIN}
    assert len(found) == 1
    return found.pop()


def test_page_loads_again_while_the_run_goes_on_and_not_when_it_is_finished(
    run, tiny_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(watch, "COST", 1e6)
    pages: list[str] = []
    write = Pages.write

    def kept(self: Pages, share: float, what: str, *, live: bool = True) -> float:
        wait = write(self, share, what, live=live)
        pages.append((self.run / "report.html").read_text())
        return wait

    monkeypatch.setattr(Pages, "write", kept)
    few = ["--set", "examples.count=2", "--set", 'knowledge=["white_box"]']
    code, _, err = run("evaluate", tiny_toml, "--out", tmp_path / "run", "--watch", "--quiet", *few)
    assert code == 0, err
    assert pages
    assert all(loads_again(page) for page in pages)
    assert "No result has been recorded yet" in pages[0]
    assert any("rows are incomplete" in page and "white box (EoT)" in page for page in pages[1:])
    assert not loads_again((tmp_path / "run" / "report.html").read_text())
    assert err.count("Page: ") == 1
    script = re.search(r"script-src 'sha256-([^']+)'", pages[0])
    finished = re.search(r"script-src 'sha256-([^']+)'", (tmp_path / "run" / "report.html").read_text())
    assert script is not None
    assert finished is not None
    assert script[1] != finished[1]


def test_page_of_a_stopped_run_loads_no_more(tiny, tmp_path: Path) -> None:
    evaluate(tiny(knowledge=["white_box"], examples={"count": 1}), tmp_path / "run", Execution("cpu"))
    page = tmp_path / "run" / "report.html"

    def stopped() -> None:
        with watching(tmp_path / "run", lambda *_: None, watch=True) as report:
            report(0.5, "white_box")
            assert loads_again(page.read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not loads_again(page.read_text())


def test_pages_take_a_small_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that takes 10 s is written every 200 s at most; one that takes none every 20 s."""
    (tmp_path / "spec.json").write_text(json.dumps({}))
    now, took, written = [0.0], [10.0], []

    def write(self: Pages, share: float, what: str, *, live: bool = True) -> float:
        written.append(now[0])
        now[0] += took[0]
        return watch.EVERY_SECONDS

    monkeypatch.setattr(Pages, "write", write)
    pages = Pages(tmp_path, lambda: now[0])
    for _ in range(500):
        pages(0.5, "white_box")
        now[0] += 1
    assert written == [0.0, 210.0, 420.0]
    took[0] = 0.0
    now[0] += 200
    for _ in range(50):
        pages(0.5, "white_box")
        now[0] += 1
    assert written[4] - written[3] == 20.0


def test_nothing_is_written_without_watch_or_before_the_run_has_a_spec(tmp_path: Path) -> None:
    for asked in (False, True):
        with watching(tmp_path / "run", lambda *_: None, watch=asked) as report:
            report(0.0, "checks")
    assert not (tmp_path / "run").exists()


def test_page_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("no json")
    with watching(tmp_path, lambda *_: None, watch=True) as report:
        report(0.5, "white_box")
    assert not (tmp_path / "report.html").exists()
