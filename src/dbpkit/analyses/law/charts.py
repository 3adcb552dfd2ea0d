"""The law's charts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.law.sigmoid import fit_sigmoid
from dbpkit.analyses.law.table import Table, clean_margins
from dbpkit.analyses.tools.configurations import by_group, eps_name
from dbpkit.results.analysis import Chart, Series
from dbpkit.statistics.intervals import wilson

RATE = "compression rate (random directions, fixed noise)"


def law_chart(table: Table, main: int) -> Chart:
    """Attacked accuracy against compression rate, with the sigmoid."""
    y = table.attacked[:, main]
    line = np.linspace(table.rate.min(), table.rate.max(), 40)
    fit = fit_sigmoid(table.rate, y)
    return Chart(
        "scatter",
        f"Accuracy at fixed randomness, eps {eps_name(table.eps[main])}",
        RATE,
        "accuracy under exact attack",
        [
            *(
                Series(
                    name,
                    table.rate[rows].tolist(),
                    y[rows].tolist(),
                    *(list(end) for end in zip(*(wilson(v, table.images) for v in y[rows]), strict=True)),
                )
                for name, rows in _by_sampler(table)
            ),
            Series("sigmoid", line.tolist(), fit.at(line).tolist()),
        ],
        "Every purifier's accuracy under attack against its compression rate, with the fitted sigmoid.",
        curves=("sigmoid",),
    )


def prediction_chart(table: Table) -> Chart:
    """Predicted against measured accuracy, one cloud per budget."""
    return Chart(
        "scatter",
        "Accuracy predicted without an attack",
        "predicted from compression rate and margin",
        "measured under exact attack",
        [
            *(
                Series(f"eps {eps_name(eps)}", table.predicted[:, e].tolist(), table.attacked[:, e].tolist())
                for e, eps in enumerate(table.eps)
            ),
            Series("equal", [0, 1], [0, 1]),
        ],
        "Measured against predicted accuracy of every purifier and budget; on the diagonal both agree.",
        curves=("equal",),
    )


def margin_chart(runs: Sequence[Mapping[Unit, Any]], table: Table) -> Chart:
    """Distribution functions of the margins."""
    clean = np.concatenate([clean_margins(measured) for measured in runs])
    return Chart(
        "line",
        "Margin of the classifier",
        "Euclidean distance to the nearest boundary (pixel units)",
        "share of images closer than that",
        [
            Series(name, values.tolist(), ((np.arange(len(values)) + 1) / len(values)).tolist())
            for name, values in (
                ("at the images", np.sort(clean[np.isfinite(clean)])),
                ("at the anchors", np.sort(table.margins[np.isfinite(table.margins)])),
            )
        ],
        "How far images and anchors are from the nearest boundary; 0 means misclassified.",
    )


def plane(table: Table) -> Chart:
    """Clean accuracy against compression rate."""
    return Chart(
        "scatter",
        "What compression costs",
        RATE,
        "accuracy at the anchors, without attack",
        [
            Series(name, table.rate[rows].tolist(), table.right[rows].tolist())
            for name, rows in _by_sampler(table)
        ],
        "Accuracy of the purified, unattacked images against compression rate; high and left is best.",
    )


def _by_sampler(table: Table) -> list[tuple[str, list[int]]]:
    """Positions of the configurations of each sampler (and run, if there are several)."""
    places = {setting: i for i, setting in enumerate(table.settings)}
    return [(name, [places[s] for s in own]) for name, own in by_group(table.settings).items()]
