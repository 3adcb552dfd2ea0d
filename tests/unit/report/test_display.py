"""What results show of themselves in notebooks: escaped HTML, frames equal to the JSON, figures with data."""

import math
import sys
from collections.abc import Callable

import pytest

from dbpkit.foundation.display import html
from dbpkit.foundation.errors import UserError
from dbpkit.results.analysis import AnalysisResult, analysis_results
from dbpkit.results.compare import RunComparison, compare
from dbpkit.results.flags import Flag
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary, summarise

MakeRun = Callable[..., RunDirectory]
ATTACK = "<script>alert(1)</script>\"'&"


@pytest.fixture
def summary(make_run: MakeRun) -> Summary:
    return summarise(make_run(name=ATTACK, knowledge=("white_box", "dw_both", ATTACK), flags=[FLAG]))


FLAG = Flag("suspicious_level", "warning", f"Starts at {ATTACK}.")


@pytest.fixture
def result(analysed: MakeRun) -> AnalysisResult:
    return next(analysis_results(analysed(title=ATTACK, sentences=[ATTACK])))


@pytest.fixture
def comparison(make_run: MakeRun) -> RunComparison:
    return compare(make_run("a", name=ATTACK), make_run("b", name="other", recorded=4))


def test_html_has_the_values_and_no_markup_of_users(
    summary: Summary, result: AnalysisResult, comparison: RunComparison
) -> None:
    for found in (summary, result, comparison._replace(warnings=[ATTACK])):
        page = found._repr_html_()
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert "&#34;&#39;&amp;" in page
        for outside in ("http", "url(", "src=", "class=", "<style"):
            assert outside not in page
    page = summary._repr_html_()
    assert "white box (EoT)" in page
    assert "suspicious_level" in page
    assert f"{summary.row('white_box').estimates[0].value:.1%}" in page
    assert "0.42" in result._repr_html_()
    assert "undecided" in result._repr_html_()


def test_frame_of_summary_is_its_json(summary: Summary) -> None:
    pytest.importorskip("pandas")
    frame = summary.to_frame()
    lines = iter(frame.to_dict("records"))
    for row in summary.as_json()["rows"]:
        for estimate in row["estimates"]:
            line = next(lines)
            assert line["row"] == row["name"]
            assert {k: line[k] for k in estimate} == estimate
            assert line["gradient_passes"] == row["gradient_passes"]
    assert next(lines, None) is None


def test_frame_of_analysis_is_its_json(result: AnalysisResult) -> None:
    pytest.importorskip("pandas")
    lines, numbers = result.to_frame().to_dict("records"), result.as_json()["numbers"]
    assert len(lines) == len(numbers)
    for line, number in zip(lines, numbers, strict=True):
        assert line.keys() == number.keys()
        for key, value in number.items():
            same = line[key] == value or (math.isnan(line[key]) and (value is None or math.isnan(value)))
            assert same, (key, value, line[key])


def test_frame_of_comparison_has_differences_and_costs(comparison: RunComparison) -> None:
    pytest.importorskip("pandas")
    frame = comparison.to_frame().set_index("row")
    assert list(frame.index) == list(comparison.differences)
    for name, estimate in comparison.differences.items():
        assert (frame.loc[name, "value"], frame.loc[name, "examples"]) == (estimate.value, estimate.examples)
    assert {"p_value", "network_calls_a", "network_calls_b"} <= set(frame.columns)


def test_frame_without_pandas_is_one_sentence(summary: Summary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"^to_frame needs pandas\. Install it with: .*dbpkit\[notebook\]"):
        summary.to_frame()


def test_figure_of_summary_has_a_bar_as_long_as_each_accuracy(summary: Summary) -> None:
    axes = summary.plot().axes[0]
    lengths = sorted(bar.get_width() for bar in axes.patches)
    assert lengths == pytest.approx(sorted(100 * row.estimates[0].value for row in summary.rows))


def test_figure_of_analysis_has_the_series(result: AnalysisResult) -> None:
    (axes,) = result.plot().axes
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [0.9, 0.8, 0.6] in drawn
    with pytest.raises(UserError, match="chart"):
        result.plot(1)
    with pytest.raises(UserError, match="has no chart to plot"):
        result._replace(charts=[]).plot()


def test_figure_of_comparison_has_a_bar_for_each_row(comparison: RunComparison) -> None:
    """The two runs of the fixture have equal records, so differences are put in: their bars are in points."""
    apart = {
        name: estimate._replace(value=0.1 * k, low=0.1 * k - 0.05, high=0.1 * k + 0.05)
        for k, (name, estimate) in enumerate(comparison.differences.items(), 1)
    }
    axes = comparison._replace(differences=apart).plot().axes[0]
    lengths = sorted(bar.get_width() for bar in axes.patches)
    assert lengths == pytest.approx([10.0 * k for k in range(1, len(apart) + 1)])


def test_figure_shows_itself_as_png_without_pyplot(summary: Summary) -> None:
    assert summary.plot()._repr_png_()[:8] == b"\x89PNG\r\n\x1a\n"


def test_nothing_recorded_is_shown_and_not_plotted(make_run: MakeRun) -> None:
    summary = summarise(make_run(recorded=0, strip=False))
    assert "<table" not in summary._repr_html_()
    with pytest.raises(UserError, match="no result has been recorded yet"):
        summary.plot()


def test_result_without_a_display_is_named() -> None:
    with pytest.raises(UserError, match="unknown display 'int'"):
        html(3)
