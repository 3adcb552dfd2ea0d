"""Figures: pixels that survive, a chart that says its values in words too."""

import base64
import io
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from dbpkit.reporting.figures import LARGEST_SIDE, accuracy_chart, amplified, image_uri
from dbpkit.reporting.tables import table_rows
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import summarise

MakeRun = Callable[..., RunDirectory]


def decoded(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_image_uri_is_lossless() -> None:
    pixels = torch.arange(3 * 8 * 8, dtype=torch.float32).reshape(3, 8, 8)
    shown = np.asarray(decoded(image_uri(pixels / 255)))
    assert (shown == pixels.permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (5, "L")])
def test_image_uri_takes_any_number_of_channels(channels: int, mode: str) -> None:
    picture = decoded(image_uri(torch.full((channels, 6, 4), 0.5)))
    assert (picture.mode, picture.size) == (mode, (4, 6))


def test_image_uri_reduces_large_images() -> None:
    assert decoded(image_uri(torch.zeros(3, 224, 448))).size == (LARGEST_SIDE, LARGEST_SIDE // 2)


def test_amplified_is_eight_times_around_grey() -> None:
    x = np.full((3, 2, 2), 0.5, dtype=np.float32)
    assert np.allclose(amplified(x, x), 0.5)
    assert np.allclose(amplified(x, x + 8 / 255), 0.5 + 64 / 255)
    assert np.allclose(amplified(x, x - 0.4), 0.0)  # cut at black


def test_accuracy_chart_text_lists_every_value(make_run: MakeRun) -> None:
    rows = table_rows(summarise(make_run()))
    chart = accuracy_chart([("", rows)])
    for row in rows:
        assert f"{row.title}: {row.accuracy.value} ({row.accuracy.interval})" in chart.alt


def test_accuracy_chart_has_four_different_svg_pictures(make_run: MakeRun) -> None:
    chart = accuracy_chart([("", table_rows(summarise(make_run())))])
    uris = (chart.light, chart.dark, chart.narrow_light, chart.narrow_dark)
    assert len(set(uris)) == 4
    for uri in uris:
        svg = base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")).decode()
        assert svg.rstrip().endswith("</svg>")
        assert "<image" not in svg
        assert not re.search(r'href="(?!#)', svg)


def test_accuracy_chart_of_several_runs_names_them_by_letter(make_run: MakeRun) -> None:
    rows = table_rows(summarise(make_run()))
    chart = accuracy_chart([("A", rows), ("B", rows[:3])])
    assert chart.alt.count(", run A: ") == len(rows)
    assert chart.alt.count(", run B: ") == 3


def test_accuracy_chart_draws_names_of_many_lines_and_unknown_signs(make_run: MakeRun) -> None:
    run = make_run(
        knowledge=("white_box", "a very long name of an attacker that needs several lines 🦊 $x_{")
    )
    assert "🦊" in accuracy_chart([("", table_rows(summarise(run)))]).alt
