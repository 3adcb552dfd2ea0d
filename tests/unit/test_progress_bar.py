"""`progress_bar`: one output of a notebook is replaced; elsewhere a line now and then."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

import dbpkit
from dbpkit.foundation import progress
from dbpkit.foundation.progress import ProgressBar


class Shown:
    """What a notebook shows: one output for every display, with the last that it was updated to."""

    def __init__(self) -> None:
        self.outputs: list[list[str]] = []

    def display(self, content: Any, display_id: bool) -> Any:
        assert display_id
        output = [content]
        self.outputs.append(output)
        return SimpleNamespace(update=output.append)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    shown = Shown()
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=shown.display))
    return shown


def test_bar_replaces_one_output_at_most_twice_a_second(shown: Shown) -> None:
    now = [0.0]
    bar = ProgressBar(lambda: now[0])
    for k in range(100):
        now[0] = k / 10
        bar(k / 100, "white_box")
    bar(1.0, "<done>")
    (output,) = shown.outputs
    assert len(output) == 10 / progress.EVERY_SECONDS + 1
    assert 'value="0.5000"' in output[10]
    assert "white_box: 80 % after 8 s, about 2 s left" in output[16]
    assert "&lt;done&gt;: 100 %" in output[-1]


def test_full_bar_begins_anew(shown: Shown) -> None:
    bar = dbpkit.progress_bar()
    for _ in range(2):
        bar(0.0, "checks")
        bar(1.0, "done")
    assert len(shown.outputs) == 2


def test_lines_outside_notebooks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    now = [0.0]
    bar = ProgressBar(lambda: now[0])
    for k in range(61):
        now[0] = float(k)
        bar(k / 100, "white_box")
    bar(1.0, "done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["white_box"] * 3 + ["done"]
