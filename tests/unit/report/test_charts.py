"""Charts of analyses: every kind is drawn, what cannot be drawn is counted, and the CSV has all of it."""

import base64
import csv
import io
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbpkit.foundation.errors import UserError
from dbpkit.reporting.figures.charts import chart_csv, draw
from dbpkit.results.analysis import Chart, Series
from tests.unit.report.conftest import CHARTS


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def line(*series: Series, **changes: Any) -> Chart:
    return Chart("line", "A chart", "x", "y", list(series), "What is seen.")._replace(**changes)


@pytest.mark.parametrize("kind", CHARTS)
def test_draw_gives_svg_for_both_themes_and_png(kind: str) -> None:
    drawn = draw(CHARTS[kind])
    assert drawn.light != drawn.dark
    for uri in (drawn.light, drawn.dark):
        text = svg(uri)
        assert text.rstrip().endswith("</svg>")
        assert not re.search(r'href="(?!#|data:image/png)', text)  # a scale of colours is a picture
    shown = pixels(drawn.png)
    assert (shown[0, 0] == 255).all()
    assert (shown != 255).any()


@pytest.mark.parametrize("kind", CHARTS)
def test_draw_is_the_same_again(kind: str) -> None:
    assert draw(CHARTS[kind]) == draw(CHARTS[kind])


@pytest.mark.parametrize("kind", CHARTS)
def test_csv_has_every_value_that_was_measured(kind: str) -> None:
    chart = CHARTS[kind]
    head, *rows = csv.reader(io.StringIO(chart_csv(chart)))
    assert head == ["series", chart.x_label or "x", chart.y_label or "y", "low", "high"]
    assert draw(chart).csv == chart_csv(chart)
    wanted = [
        [s.name, str(x), str(y), *(str(end[i]) if end else "" for end in (s.low, s.high))]
        for s in chart.series
        for i, (x, y) in enumerate(zip(s.x, s.y, strict=True))
    ]
    assert rows == wanted


@pytest.mark.parametrize("kind", ["line", "bar", "scatter", "heat"])
@pytest.mark.parametrize(
    "series",
    [[], [Series("empty", [], [])], [Series("nan", [1, 2], [math.nan, math.nan])]],
    ids=["none", "empty", "nan"],
)
def test_draw_of_nothing_says_so(kind: Any, series: list[Series]) -> None:
    drawn = draw(line(*series, kind=kind))
    assert drawn.left_out == sum(len(s.x) for s in series)
    assert (pixels(drawn.png) != 255).any()  # "nothing to show"


def test_draw_of_empty_series_beside_a_full_one_draws_the_full_one() -> None:
    full = Series("full", [1, 2], [1, 2])
    assert draw(line(full, Series("empty", [], []))).left_out == 0


@pytest.mark.parametrize("kind", ["line", "scatter", "bar"])
@pytest.mark.parametrize(("x_log", "y_log"), [(True, False), (False, True), (True, True)])
def test_draw_on_log_axes_leaves_out_what_is_not_positive(kind: Any, x_log: bool, y_log: bool) -> None:
    series = Series(
        "a", [0, 1, 10, 1000], [1.0, 0.0, 1e-3, 50.0], [0.5, 0.0, 0.0, 40.0], [2.0, 1.0, 1.0, 60.0]
    )
    drawn = draw(line(series, kind=kind, x_log=x_log, y_log=y_log))
    assert drawn.left_out == (kind != "bar" and x_log) + y_log  # bars stand at categories


def test_draw_on_log_axes_without_positive_value_says_nothing_to_show() -> None:
    chart = line(Series("a", [-1, 0], [-1, 0]), x_log=True, y_log=True)
    assert draw(chart).left_out == 2


def test_draw_counts_nan_and_infinite_values() -> None:
    assert draw(line(Series("a", [1, 2, 3], [math.nan, math.inf, 1.0]))).left_out == 2


def test_draw_of_one_point_and_of_equal_values_needs_no_range() -> None:
    for series in (Series("one", [3], [0.0]), Series("flat", [3, 3], [2.0, 2.0])):
        for kind in ("line", "scatter", "bar", "heat"):
            drawn = draw(line(series._replace(x=[3] if len(series.y) == 1 else [3, 4]), kind=kind))
            assert drawn.left_out == 0
            assert (pixels(drawn.png) != 255).any()


def test_draw_takes_many_series_many_points_and_long_names() -> None:
    names = [f"a name that is long enough for a line of its own, number {k}" for k in range(14)]
    charts = [
        line(*[Series(name, list(range(200)), [float(k)] * 200) for k, name in enumerate(names)]),
        line(Series("a", names, list(range(14))), kind="bar"),
        line(Series("a", names, list(range(14))), Series("b", names[:2], [1, 2]), kind="heat"),
    ]
    for chart in charts:
        drawn = draw(chart)
        assert drawn.left_out == 0
        assert (pixels(drawn.png) != 255).any()


def test_draw_reads_dollars_and_percents_as_plain_text() -> None:
    odd = "$\\frac{$ 50 % <b>"
    for kind in ("line", "bar", "scatter", "heat"):
        chart = line(
            Series(odd, [odd], [1.0]), Series("b", ["c"], [2.0]), kind=kind, x_label=odd, y_label=odd
        )
        drawn = draw(chart._replace(title=odd))
        assert drawn.title == odd
        assert svg(drawn.light).rstrip().endswith("</svg>")


def test_draw_beside_another_has_the_axes_of_both() -> None:
    small, large = line(Series("a", [0, 1], [0.0, 1.0])), line(Series("a", [0, 9], [0.0, 100.0]))
    assert draw(small, [large]).light != draw(small).light
    assert draw(small, [small, large]).light == draw(small, [large]).light


def test_draw_of_uneven_columns_names_chart_and_series() -> None:
    with pytest.raises(UserError, match="chart 'A chart', series 'a': its columns have lengths 2, 1"):
        draw(line(Series("a", [1, 2], [1])))
