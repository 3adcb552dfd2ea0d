"""Everything that is drawn: one engine, the marks that stand for data, and the charts made of them."""

from dbpkit.reporting.figures.accuracy import accuracy_chart
from dbpkit.reporting.figures.charts import Drawn, chart_csv, draw
from dbpkit.reporting.figures.curves import curve_chart
from dbpkit.reporting.figures.engine import ResponsiveChart
from dbpkit.reporting.figures.pixels import GAIN, LARGEST_SIDE, amplified, as_picture, image_uri
from dbpkit.reporting.figures.themes import DARK, LIGHT, MARKERS, PALETTE, Theme

__all__ = [
    "DARK",
    "GAIN",
    "LARGEST_SIDE",
    "LIGHT",
    "MARKERS",
    "PALETTE",
    "Drawn",
    "ResponsiveChart",
    "Theme",
    "accuracy_chart",
    "amplified",
    "as_picture",
    "chart_csv",
    "curve_chart",
    "draw",
    "image_uri",
]
