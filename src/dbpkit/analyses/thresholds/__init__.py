"""Critical thresholds: how far along an adversarial direction the class changes, and how sharply."""

from dbpkit.analyses.thresholds.slope import (
    BINS,
    PUBLISHED_SLOPE,
    STEEPEST,
    fit_slope,
    slope_interval,
)
from dbpkit.analyses.thresholds.thresholds import KINDS, Thresholds, cap_fraction

__all__ = [
    "BINS",
    "KINDS",
    "PUBLISHED_SLOPE",
    "STEEPEST",
    "Thresholds",
    "cap_fraction",
    "fit_slope",
    "slope_interval",
]
