"""The law's numbers, each with an interval that resamples images and purifiers.

A resample may hold a purifier twice, so leaving one out of it would not leave it out. The error at a purifier
that was left out is taken from fits over all other purifiers; only its images are resampled.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dbpkit.analyses.analysis import Unit
from dbpkit.analyses.law.sigmoid import Sigmoid, fit_sigmoid, leave_one_out
from dbpkit.analyses.law.table import Table, clean_margins, joined, tabulate
from dbpkit.analyses.tools.configurations import eps_name
from dbpkit.results.analysis import Claim, Number
from dbpkit.statistics.crossed import Axes, crossed, crossed_correlation, crossed_mean, crossed_statistic
from dbpkit.statistics.intervals import CROSSED_EXAMPLES, median, pearson

PREDICTION = "prediction from compression rate and margin"
"""Name of the numbers of the prediction that attacks no purifier."""

CLOSE = 0.05
"""Predicted and measured accuracy that differ by less are the same for a user's decision."""

RANK = "Spearman, compression rate and accuracy at eps {}"
"""Name of the number that carries the law's claim."""

LAW = Claim("negative: what compresses more is more robust", most=0, needs=CROSSED_EXAMPLES)
SEES_AHEAD = Claim("above 0: the law predicts a purifier it has not seen", least=0, needs=CROSSED_EXAMPLES)
EXACT = Claim(
    f"within {100 * CLOSE:g} points of 0: the formula is the attacked accuracy",
    -CLOSE,
    CLOSE,
    CROSSED_EXAMPLES,
)

FITS = 200
"""Resamples in which the sigmoid is fitted again."""

LEFT_OUT = 50
"""Resamples in which every purifier is left out in turn; a variance needs no more."""


class Sample(NamedTuple):
    """A table and its resamples.

    Attributes:
        table: from all images.
        moved: from resamples of the images, every column with a leading axis B.
        axes: the resamples.
    """

    table: Table
    moved: Table
    axes: Axes

    def mean(self, name: str, statistic: Callable[[Table], np.ndarray], claim: Claim | None = None) -> Number:
        """A mean over purifiers of a function from tables (..., N, E) to values (..., N)."""
        found = crossed_mean(statistic(self.table), statistic(self.moved), self.axes)
        return Number.of(name, found, claim=claim)

    def correlation(
        self,
        name: str,
        statistic: Callable[[Table], tuple[np.ndarray, np.ndarray]],
        claim: Claim | None = None,
    ) -> list[Number]:
        """Spearman's correlation over purifiers of two functions of tables; none where one is constant."""
        pairs = statistic(self.table)
        if not all(np.isfinite(v).all() and np.ptp(v) for v in pairs) or len(pairs[0]) < 3:
            return []
        return [Number.of(name, crossed_correlation(pairs, statistic(self.moved), self.axes), claim=claim)]


def law_numbers(runs: Sequence[Mapping[Unit, Any]]) -> list[Number]:
    """All numbers of the records of one run, or of several pooled; images are resampled within each run."""
    sample = _sample(runs)
    main = nearest_to_halving(sample.table)
    return [
        *_correlations(sample, main),
        *_sigmoid_numbers(sample, main),
        *_predictions(sample),
        *_margin_numbers(runs, sample.table),
    ]


def nearest_to_halving(table: Table) -> int:
    """The budget whose mean attacked accuracy is nearest to half of that at the anchors."""
    return int(np.abs(table.attacked.mean(axis=0) - table.right.mean() / 2).argmin())


def _sample(runs: Sequence[Mapping[Unit, Any]]) -> Sample:
    tables = [tabulate(measured) for measured in runs]
    axes = [crossed(len(t.settings), t.images, data_set=i) for i, t in enumerate(tables)]
    moved = [tabulate(measured, a.weights) for measured, a in zip(runs, axes, strict=True)]
    starts = np.cumsum([0, *(len(t.settings) for t in tables)])
    rows = np.concatenate([a.rows + start for a, start in zip(axes, starts[:-1], strict=True)], axis=1)
    fewest = min(axes, key=lambda a: a.weights.shape[1])
    return Sample(joined(tables), joined(moved), fewest._replace(rows=rows))


def _correlations(sample: Sample, main: int) -> list[Number]:
    """Correlation of rate and attacked accuracy at every budget that has both."""
    numbers = []
    for e, eps in enumerate(sample.table.eps):
        claim = LAW if e == main else None
        numbers += sample.correlation(RANK.format(eps_name(eps)), partial(_rate_and_accuracy, e), claim)
        if np.ptp(sample.table.rate) and np.ptp(sample.table.attacked[:, e]):
            rows = sample.axes.rows
            both = (
                np.take_along_axis(v, rows, axis=1)
                for v in (sample.moved.rate, sample.moved.attacked[..., e])
            )
            value = float(pearson(sample.table.rate, sample.table.attacked[:, e]))
            found = crossed_statistic(value, pearson(*both), sample.axes)
            name = f"Pearson, compression rate and accuracy at eps {eps_name(eps)}"
            numbers.append(Number.of(name, found))
    what = "Spearman, compression rate and share of right anchors that survive eps "
    what += eps_name(sample.table.eps[main])
    return numbers + sample.correlation(what, lambda t: (t.rate, _share_of_right(t, main)))


def _rate_and_accuracy(budget: int, table: Table) -> tuple[np.ndarray, np.ndarray]:
    return table.rate, table.attacked[..., budget]


def _off(column: str, size: Callable[[np.ndarray], np.ndarray], table: Table) -> np.ndarray:
    """How far a predicted column is from the measured accuracy, mean over budgets."""
    return size(getattr(table, column) - table.attacked).mean(axis=-1)


def _share_of_right(table: Table, main: int) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(table.attacked[..., main] / table.right)


def _sigmoid_numbers(sample: Sample, main: int) -> list[Number]:
    """Fits at one budget and over all, and what they predict of a purifier that was left out."""

    def at_main(t: Table) -> tuple[np.ndarray, np.ndarray]:
        return t.rate[..., None], t.attacked[..., main : main + 1]

    def over_all(t: Table) -> tuple[np.ndarray, np.ndarray]:
        return t.rate[..., None] * sample.table.lengths, t.attacked

    def gain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        others = (y.sum() - y) / (len(y) - 1)
        return np.asarray(np.round(np.abs(y - others)[:, 0] - leave_one_out(x, y, 8), 9))  # but for rounding

    where = f"at eps {eps_name(sample.table.eps[main])}"
    return [
        *_fit_numbers(sample, at_main, where),
        _left_out(sample, "sigmoid: error at a purifier left out", at_main, leave_one_out),
        _left_out(
            sample, "sigmoid: less error than the mean of the other purifiers", at_main, gain, SEES_AHEAD
        ),
        *_fit_numbers(sample, over_all, "over all eps, of rate x length of a uniform perturbation"),
        _left_out(sample, "sigmoid over all eps: error at a purifier left out", over_all, leave_one_out),
    ]


Points = Callable[[Table], tuple[np.ndarray, np.ndarray]]


def _fit_numbers(sample: Sample, points: Points, where: str) -> list[Number]:
    """The three numbers of a sigmoid."""
    x, y = points(sample.table)
    best = fit_sigmoid(x.ravel(), y.ravel())
    moved = zip(*points(sample.moved), sample.axes.rows, strict=True)
    fits = np.array(
        [
            fit_sigmoid(xx[rows].ravel(), yy[rows].ravel(), 8)
            for (xx, yy, rows), _ in zip(moved, range(FITS), strict=False)
        ]
    )
    return [
        Number.of(
            f"sigmoid {where}: {name}",
            crossed_statistic(best[k], fits[:, k], sample.axes),
            how="least squares",
        )
        for k, name in enumerate(Sigmoid._fields)
    ]


def _left_out(
    sample: Sample,
    name: str,
    points: Points,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    claim: Claim | None = None,
) -> Number:
    """A mean over purifiers of what fits over the others say of it."""
    moved = zip(*points(sample.moved), strict=True)
    draws = np.array([statistic(x, y) for (x, y), _ in zip(moved, range(LEFT_OUT), strict=False)])
    return Number.of(name, crossed_mean(statistic(*points(sample.table)), draws, sample.axes), claim=claim)


def _predictions(sample: Sample) -> list[Number]:
    """Error and bias of the formula, with random directions and with the attack's."""
    numbers = []
    tried = np.isfinite(sample.table.attack_rate).all()
    columns = {"predicted": "compression rate", **({"informed": "rate along the attack"} if tried else {})}
    for column, name in columns.items():
        numbers += [
            sample.mean(
                f"prediction from {name} and margin: mean error",
                partial(_off, column, np.abs),
            ),
            sample.mean(
                f"prediction from {name} and margin: bias",
                partial(_off, column, np.asarray),
                EXACT,
            ),
        ]
    numbers += sample.correlation(
        "Spearman, predicted and attacked accuracy (mean over eps)",
        lambda t: (t.predicted.mean(axis=-1), t.attacked.mean(axis=-1)),
    )
    if tried:
        numbers.append(
            sample.mean("compression rate along the attack / random", lambda t: t.attack_rate / t.rate)
        )
    return numbers


def _margin_numbers(runs: Sequence[Mapping[Unit, Any]], table: Table) -> list[Number]:
    """Median margins, at the images and at the anchors."""
    clean = np.concatenate([clean_margins(measured) for measured in runs])
    how = "Euclidean, pixel units; 0 where misclassified"
    return [
        Number.of("median margin of the classifier at the images", median(clean), how=how),
        Number(
            "median margin of the classifier at the anchors",
            float(np.median(table.margins)),
            examples=table.images,
            method=f"median; {how}",
        ),
    ]
