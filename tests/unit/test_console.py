"""What is printed: data stay data, whatever the terminal and the encoding."""

import ast
import io
import json
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from dbpkit.cli.progress import EVERY_SECONDS, Lines, duration, progress
from dbpkit.foundation import console

SRC = Path(console.__file__).parent
HOSTILE = "[/b] [red]x[/red] :a: :smiley: \x1b[31mred\x1b]0;title\x07 \u202eback tab\there"


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch):
    """Replaces the standard streams by ones of an encoding; returns what was written to them, as bytes."""

    def replace(encoding: str) -> tuple[io.BytesIO, io.BytesIO]:
        raw = io.BytesIO(), io.BytesIO()
        for name, buffer in zip(("stdout", "stderr"), raw, strict=True):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(buffer, encoding=encoding, write_through=True))
        console.prepare()
        return raw

    return replace


def test_say_prints_data_as_they_are_and_escapes_what_steers_a_terminal(streams) -> None:
    out, _ = streams("utf-8")
    console.say(HOSTILE, whole=True)
    assert out.getvalue().decode() == (
        "[/b] [red]x[/red] :a: :smiley: \\x1b[31mred\\x1b]0;title \\u202eback tab here\n"
    )


def test_show_table_of_hostile_names_escapes_them_too(streams) -> None:
    out, _ = streams("utf-8")
    table = Table("name")
    table.add_row(Text("\x1b[2Jwiped\r\x08"))
    table.add_row(":smiley: [bold]")
    console.show(table)
    said = out.getvalue().decode()
    assert "\\x1b[2Jwiped" in said
    assert ":smiley: [bold]" in said
    assert "\x1b" not in said
    assert "\r" not in said


@pytest.mark.parametrize("speak", [console.warn, console.fail, console.note])
def test_lines_on_standard_error_stay_one_line(speak, streams) -> None:
    out, err = streams("utf-8")
    speak("first\nsecond \x1b[31m")
    assert err.getvalue().decode().removeprefix("error: ") == "first second \\x1b[31m\n"
    assert out.getvalue() == b""


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp932", "latin-1", "utf-8", "utf-16"])
def test_every_encoding_prints_every_text(encoding: str, streams) -> None:
    out, err = streams(encoding)
    text = "a – b − c → d ≥ e … “f” ∞ ε π 中 \udcff é"
    console.say(text, whole=True)
    console.fail(text)
    said = out.getvalue().decode(encoding)
    assert said.startswith("a ")
    assert err.getvalue()
    if encoding == "ascii":
        assert said == 'a - b - c -> d >= e ... "f" inf eps \\u03c0 \\u4e2d \\udcff e\n'


def test_as_json_is_valid_json_for_every_content(streams) -> None:
    out, _ = streams("ascii")
    console.as_json({"name": HOSTILE, "other": "中\udcff"})
    assert json.loads(out.getvalue()) == {"name": HOSTILE, "other": "中\udcff"}


def test_prepare_closed_streams_swallow_what_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    console.prepare()
    console.say("nobody reads this")
    console.fail("nor this")
    assert sys.stdout is not None
    assert sys.stdout.write("nor this") == len("nor this")


def test_say_on_a_narrow_terminal_breaks_between_words_but_never_a_path(
    streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    out, _ = streams("utf-8")
    console.say("some words that are longer than a line")
    console.say("/a/path/that/is/longer/than/a/line", whole=True)
    lines = out.getvalue().decode().splitlines()
    assert lines == ["some words that are ", "longer than a line", "/a/path/that/is/longer/than/a/line"]


# ------------------------------------------------------------------ progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_at_most_one_every_half_minute_with_share_and_time_left() -> None:
    """At 60 s a quarter is done since the first report at 0 s: 3 times as long is left."""
    clock, said = Clock(), []
    lines = Lines(said.append, clock)
    for second in range(61):
        clock.now = float(second)
        lines.report(0.25 * second / 60, "white_box")
        lines.tick()
    assert EVERY_SECONDS == 30
    assert said == [
        "white_box: 12.5 % done after 30 s, about 4 min left",
        "white_box: 25.0 % done after 60 s, about 3 min left",
    ]


def test_lines_work_that_reports_nothing_still_gets_its_line() -> None:
    clock, said = Clock(), []
    lines = Lines(said.append, clock)
    lines.report(0.0, "checks: gradient")
    clock.now = 3600.0
    lines.tick()
    assert said == ["checks: gradient: 0.0 % done after 60 min"]


def test_lines_time_left_counts_only_what_this_session_did() -> None:
    """A run that goes on at 90 % and does 1 % in 100 s has 900 s left, not 11."""
    clock, said = Clock(), []
    lines = Lines(said.append, clock)
    lines.report(0.90, "dw_both")
    clock.now = 100.0
    lines.report(0.91, "dw_both")
    assert said == ["dw_both: 91.0 % done after 2 min, about 15 min left"]


def test_lines_time_left_does_not_count_the_checks_before_the_work() -> None:
    """Checks take 90 s and leave the share where it is; then a tenth takes 10 s, so 69 s are left at 31 %."""
    clock, said = Clock(), []
    lines = Lines(said.append, clock)
    for second, share, what in ((0, 0.0, "checks: a"), (60, 0.0, "checks: b"), (90, 0.0, "clean")):
        clock.now = float(second)
        lines.report(share, what)
    said.clear()
    clock.now = 121.0
    lines.report(0.31, "white_box")
    assert said == ["white_box: 31.0 % done after 2 min, about 69 s left"]


def test_lines_verbose_has_a_line_for_every_new_thing() -> None:
    clock, said = Clock(), []
    lines = Lines(said.append, clock, verbose=True)
    for share, what in ((0.0, "checks"), (0.1, "clean"), (0.2, "clean"), (0.3, "white_box")):
        clock.now += 1
        lines.report(share, what)
    assert [line.split(":")[0] for line in said] == ["checks", "clean", "white_box"]


def test_progress_quiet_writes_nothing_and_verbose_writes_lines(streams) -> None:
    _, err = streams("utf-8")
    with progress(quiet=True) as report:
        report(0.5, "white_box")
    assert err.getvalue() == b""
    with progress(verbose=True) as report:
        report(0.5, "a class [/b] \x1b[31m")
    assert err.getvalue().decode().startswith("a class [/b] \\x1b[31m: 50.0 % done after 0 s")


def test_progress_without_a_terminal_writes_no_bar(streams) -> None:
    _, err = streams("utf-8")
    with progress() as report:
        report(0.5, "white_box")
        report(1.0, "done")
    assert err.getvalue() == b""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ------------------------------------------------------------------ nobody else prints


def prints(tree: ast.AST) -> list[str]:
    """What in a module prints, or could: print, standard streams, click's echo, consoles of rich."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
            if name in ("print", "print_json", "echo", "secho", "Console", "RichHandler", "rule"):
                found.append(f"{owner}.{name}")
            if name == "write" and owner.startswith(("sys.", "out_console", "err_console")):
                found.append(f"{owner}.{name}")
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_no_other_module_prints(path: Path) -> None:
    found = prints(ast.parse(path.read_text(encoding="utf-8")))
    assert bool(found) == (path.name == "console.py"), found
