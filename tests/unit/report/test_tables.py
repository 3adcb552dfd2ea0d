"""Tables: the numbers of the summary, as text, none lost."""

import io
import math
from collections.abc import Callable

import pytest
from rich.console import Console

from dbpkit.reporting import console_flags, console_table, replay_table
from dbpkit.reporting.tables import difference_rows, percent, points, short_title, table_rows
from dbpkit.results.flags import Flag
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise

MakeRun = Callable[..., RunDirectory]


def printed(renderable: object, width: int = 80) -> str:
    """What a terminal of a width shows."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table_rows_have_values_and_intervals_of_summary(make_run: MakeRun) -> None:
    summary = summarise(make_run())
    rows = table_rows(summary)
    assert [r.name for r in rows] == [r.name for r in summary.rows]
    for shown, row in zip(rows, summary.rows, strict=True):
        estimate = row.estimates[0]
        assert shown.accuracy.value == f"{100 * estimate.value:.1f}%"
        assert shown.accuracy.interval == f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}%"
        assert (shown.accuracy.share, shown.examples, shown.draws) == (
            estimate.value,
            estimate.examples,
            estimate.draws,
        )


def test_table_rows_name_count_of_draws_and_tapes(make_run: MakeRun) -> None:
    rows = {r.name: r for r in table_rows(summarise(make_run()))}
    assert rows["white_box"].every is not None
    assert rows["white_box"].every.over == "R = 4"
    assert rows["fixed"].every is not None
    assert rows["fixed"].every.over == "T = 2"
    assert rows["dw_both"].majority is None
    assert rows["dw_both"].every is None


def test_table_rows_gradient_passes_are_per_image(make_run: MakeRun) -> None:
    rows = {r.name: r for r in table_rows(summarise(make_run()))}
    assert rows["clean"].gradient_passes == "0"
    assert rows["white_box"].gradient_passes == "12"
    assert rows["fixed"].gradient_passes == "24"  # 12 on each of 2 tapes


def test_difference_rows_are_signed_points_of_summary(make_run: MakeRun) -> None:
    summary = summarise(make_run())
    rows = difference_rows(summary)
    assert len(rows) == len(summary.differences) == 3
    # white box 8 of 24 draws right, DW_Both none: + 33.3 points
    assert (rows[0].title, rows[0].value) == ("white box (EoT) − DW_Both (all noise known)", "+33.3")
    low, high = summary.differences["white_box - dw_both"][2:4]
    assert rows[0].interval == f"{points(low)} to {points(high)}"


def test_numbers_as_text() -> None:
    assert percent(0.71875) == "71.9%"
    assert percent(math.nan) == "–"
    assert points(math.nan) == "–"
    assert (points(0.71875), points(-0.05), points(-0.0001)) == ("+71.9", "−5.0", "0.0")


def test_console_table_has_every_row_with_interval(make_run: MakeRun) -> None:
    summary = summarise(make_run())
    text = printed(console_table(summary), width=120)
    for row in table_rows(summary):
        assert f"{row.accuracy.value} ({row.accuracy.interval})" in text
        assert row.title.partition(", ")[2] in text
    assert "R=4" in text
    assert "T=2" in text
    assert "Wilson" in text


def test_console_table_fits_80_columns_without_losing_numbers(make_run: MakeRun) -> None:
    summary = summarise(make_run())
    text = printed(console_table(summary))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for row in table_rows(summary):
        assert f"{row.accuracy.value} ({row.accuracy.interval})" in text


@pytest.mark.parametrize("width", [30, 40, 50, 60])
def test_narrow_console_loses_no_name_and_no_number(make_run: MakeRun, width: int) -> None:
    """A table of 50 columns had no names of rows and cut every interval."""
    summary = summarise(make_run())
    text = printed(console_table(summary), width=width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    words = " ".join(text.split())
    for row in table_rows(summary):
        assert (
            f"{short_title(row.title)} accuracy per draw {row.accuracy.value} ({row.accuracy.interval})"
            in words
        )
    assert "all draws@R 0.0% R=4" in words
    assert "Wilson score" in words


@pytest.mark.parametrize("width", range(60, 100, 3))
def test_console_cuts_no_column_at_any_width(make_run: MakeRun, width: int) -> None:
    summary = summarise(make_run())
    text = printed(console_table(summary), width=width)
    for row in table_rows(summary):
        assert f"{row.accuracy.value} ({row.accuracy.interval})" in " ".join(text.split())
    assert "draws" in text.replace("draws@R", "").replace("R draws", "").replace("per draw", "")
    assert "network" in text or "gradient" in text


def test_narrow_console_shows_the_largest_logits_of_a_replay() -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    table = replay_table([[float(k) for k in range(10)]], [3], names)
    assert "airpla" in printed(table, width=120)
    for width in (50, 60, 80):
        text = printed(table, width=width)
        assert "…" not in text
        assert "truck 9.000, ship 8.000, horse 7.000" in " ".join(text.split()) or width < 60
        assert "9.000" in text
        assert "cat" in text


def test_console_table_shows_users_brackets_as_text(make_run: MakeRun) -> None:
    run = make_run(name="[red]a[/red] [/oops]", knowledge=("white_box", "[bold]mine[/]"))
    text = printed(console_table(summarise(run)), width=140)
    assert "[red]a[/red] [/oops]" in text
    assert "[bold]mine[/]" in text


def test_console_table_of_empty_run_says_so(make_run: MakeRun) -> None:
    run = make_run(recorded=0, strip=False)
    assert "Nothing recorded yet." in printed(console_table(summarise(run)))


def test_console_flags_shows_errors_first() -> None:
    text = printed(
        console_flags(
            [Flag("late", "warning", "A [b]warning[/b]."), Flag("first", "error", "An error.", "white_box")]
        )
    )
    assert text.index("error first [white_box]: An error.") < text.index("warning late: A [b]warning[/b].")
    assert "docs/reference/flags.md" in text


def test_console_flags_without_flag_says_so() -> None:
    assert "No flag" in printed(console_flags([]))


@pytest.mark.parametrize("recorded", [1, 6])
def test_table_rows_examples_are_those_recorded(make_run: MakeRun, recorded: int) -> None:
    assert {r.examples for r in table_rows(summarise(make_run(recorded=recorded)))} == {recorded}
