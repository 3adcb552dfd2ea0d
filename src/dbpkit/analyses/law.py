"""The law: does a purifier's compression rate decide how robust it is once its randomness is fixed?

Many purifiers around one denoiser and one classifier are measured: compression rate (forward passes only),
accuracy at the anchors, margin of the classifier there, and accuracy under an exact attack that knows the
noise. The thing people get wrong: attacked accuracy is bounded by accuracy at the anchors. What compresses
most also changes the image most, so the curve can turn down again where compression is strongest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dbpkit.analyses.analysis import Subject, analyses, batches, check_options, positions
from dbpkit.analyses.boundary import finite, margins
from dbpkit.analyses.compression import budget_length
from dbpkit.analyses.configurations import (
    CONFIGURATIONS,
    budgets,
    eps_name,
    pixels,
    screen,
    settings,
    survival,
    with_eps,
    with_purifier,
)
from dbpkit.analyses.law_charts import law_chart, margin_chart, plane, prediction_chart
from dbpkit.analyses.law_table import CLASSIFIER, Table, at_shared_budgets, clean_margins, tabulate
from dbpkit.analyses.sigmoid import Sigmoid, fit_sigmoid, leave_one_out
from dbpkit.errors import UserError
from dbpkit.options import Count
from dbpkit.results.analysis import (
    AnalysisRecords,
    AnalysisResult,
    Number,
    above,
    below,
    within,
)
from dbpkit.results.intervals import bootstrap, pearson, spearman
from dbpkit.results.run_directory import RunDirectory

CLOSE = 0.05
"""Predicted and measured accuracy that differ by less are the same for a user's decision."""

METHOD = "bootstrap over purifiers, which share their images"


@analyses.register("law")
@dataclass(frozen=True)
class Law:
    """Robustness at fixed randomness against compression rate, over many purifiers.

    Attributes:
        configurations: purifiers, each a table with ``sampler``, ``t_star``, ``steps``, ``options``.
        eps: budgets in pixel units as text, such as ``["0.5/255", "2/255"]``; none takes 1/16, 1/8, 1/4, 1/2
            and all of the spec's.
        images: examples.
        tapes: fixed noises per example.
        directions: random directions per example and tape.
        iterations: steps of the attack at each budget.
    """

    configurations: Sequence[Mapping[str, Any]] = CONFIGURATIONS
    eps: Sequence[str | float] = ()
    images: Count = 16
    tapes: Count = 1
    directions: Count = 2
    iterations: Count = 8
    title = "Compression rate against robustness"

    def __post_init__(self) -> None:
        check_options(self)
        _ = [pixels(eps) for eps in self.eps]
        if len(settings(self.configurations)) < 5:
            raise UserError("law fits three numbers to its configurations. Give at least 5 of them.")

    def units(self, subject: Subject) -> list[str]:
        """The classifier alone and every configuration, by batches of examples."""
        chosen = settings(self.configurations)
        for configuration in chosen.values():
            with_purifier(subject, configuration)  # a wrong name is found now, not after an hour
        return [
            f"{label} {batch}" for batch in batches(subject, self.images) for label in [CLASSIFIER, *chosen]
        ]

    def measure(self, subject: Subject, unit: str) -> dict[str, Any]:
        """One configuration on one batch: what forward passes tell, and what the attack finds."""
        label, _, batch = unit.rpartition(" ")
        x, y, noise = subject.examples(positions(batch))
        if label == CLASSIFIER:
            return {"margin": finite(margins(subject, x, y))}
        chosen = with_purifier(subject, settings(self.configurations)[label])
        eps = budgets(subject, self.eps)
        tapes = []
        for tape in range(self.tapes):
            plan = noise.at(tape)
            anchor = chosen.purify(x, plan)
            seen = screen(chosen, x, y, anchor, plan, self.directions)
            tapes.append({**seen, **survival(chosen, x, y, anchor, noise, tape, eps, self.iterations)})
        return {"eps": eps, "lengths": [budget_length(with_eps(subject, e), x) for e in eps], "tapes": tapes}

    def conclude(self, measured: Mapping[str, Any]) -> AnalysisResult:
        """Correlations, sigmoid, leave-one-out error, and the prediction without an attack."""
        table = tabulate(measured)
        main = int(np.abs(table.attacked.mean(axis=0) - table.right.mean() / 2).argmin())
        at = eps_name(table.eps[main])
        ranks = _correlations(table, main)
        predictions = _predictions(table)
        numbers = [*ranks, *_sigmoid_numbers(table, main), *predictions, *_margin_numbers(measured, table)]
        rank = next((n for n in ranks if n.claim), None)
        error, bias = predictions[:2]
        way = "over" if bias.value > 0 else "under"
        return AnalysisResult(
            "",
            "",
            [
                f"Over {len(table.labels)} purifiers at fixed randomness, a smaller compression rate goes"
                f" with {_goes_with(rank)} at eps {at}, the budget nearest to halving it.",
                "Compression rate and the classifier's margin, measured without attacking the purifier,"
                f" predict the attacked accuracy to within {100 * error.value:.0f} points on average; they"
                f" {way}estimate it by {100 * abs(bias.value):.0f}.",
            ],
            numbers,
            [
                law_chart(table, main),
                prediction_chart(table),
                margin_chart(measured, table),
                plane(table),
            ],
        )


def combine(runs: Sequence[str | Path]) -> AnalysisResult:
    """Concludes from the law's records of several run directories at once, such as two data sets.

    Args:
        runs: directories in which ``law`` has been run; the budgets that all of them have are used.

    Raises:
        UserError: if one holds no records of it, or they have no budget in common.
    """
    joined: dict[str, Any] = {}
    for run in runs:
        found = AnalysisRecords(RunDirectory(run), "law").read()
        if not found:
            raise UserError(
                f"'{run}' holds no records of the analysis 'law'. Run 'dbpkit analyse' there first."
            )
        joined |= {f"{Path(run).name}: {unit}": record for unit, record in found.items()}
    return Law().conclude(at_shared_budgets(joined))._replace(name="law", title=Law.title)


def _correlations(table: Table, main: int) -> list[Number]:
    """Spearman's and Pearson's correlation of rate and attacked accuracy at every budget that has both."""
    numbers = []
    for e, eps in enumerate(table.eps):
        pairs = np.stack([table.rate, table.attacked[:, e]], axis=1)
        for name, correlation in (("Spearman", spearman), ("Pearson", pearson)):
            if np.ptp(pairs[:, 0]) and np.ptp(pairs[:, 1]):
                claim = (
                    "negative: what compresses more is more robust" if e == main and name[0] == "S" else ""
                )
                value, low, high = bootstrap(pairs, correlation)
                what = f"{name}, compression rate and accuracy at eps {eps_name(eps)}"
                holds = below(low, high, 0) if claim else None
                numbers.append(Number(what, value, low, high, len(pairs), METHOD, claim=claim, holds=holds))
    some = table.right > 0
    kept = np.stack([table.rate[some], table.attacked[some, main] / table.right[some]], axis=1)
    if len(kept) > 2 and np.ptp(kept[:, 0]) and np.ptp(kept[:, 1]):
        what = "Spearman, compression rate and share of right anchors that survive eps "
        what += eps_name(table.eps[main])
        numbers.append(Number(what, *bootstrap(kept, spearman), len(kept), METHOD))
    return numbers


def _sigmoid_numbers(table: Table, main: int) -> list[Number]:
    """Fits at one budget and over all, and what they predict of a purifier that was left out."""
    y = table.attacked[:, main : main + 1]
    left = leave_one_out(table.rate[:, None], y)
    others = (y.sum() - y) / (len(y) - 1)
    gain = np.round(np.abs(y - others)[:, 0] - left, 9)  # a flat fit is the mean but for rounding
    remaining = table.rate[:, None] * table.lengths
    all_eps = np.stack([remaining, table.attacked], axis=2)
    return [
        *_fit_numbers(np.stack([table.rate[:, None], y], axis=2), f"at eps {eps_name(table.eps[main])}"),
        _over("sigmoid: error at a purifier left out", left),
        _over(
            "sigmoid: less error than the mean of the other purifiers",
            gain,
            "above 0: the law predicts a purifier it has not seen",
            above,
        ),
        *_fit_numbers(all_eps, "over all eps, of rate x length of a uniform perturbation"),
        _over("sigmoid over all eps: error at a purifier left out", leave_one_out(remaining, table.attacked)),
    ]


def _fit_numbers(points: np.ndarray, where: str) -> list[Number]:
    """The three numbers of a sigmoid of points (N, E, 2), configurations resampled."""
    fits: dict[bytes, Sigmoid] = {}  # the same resamples serve all three

    def fit(which: int, sample: np.ndarray) -> float:
        key = sample.tobytes()
        if key not in fits:
            fits[key] = fit_sigmoid(sample[..., 0].ravel(), sample[..., 1].ravel())
        return fits[key][which]

    return [
        Number(
            f"sigmoid {where}: {name}",
            *bootstrap(points, partial(fit, which), 200),
            len(points),
            f"least squares, {METHOD}",
        )
        for which, name in enumerate(Sigmoid._fields)
    ]


def _predictions(table: Table) -> list[Number]:
    """Error and bias of the formula, with random directions and with the attack's."""
    numbers = []
    for name, values in (("compression rate", table.predicted), ("rate along the attack", table.informed)):
        known = np.isfinite(table.attack_rate) | (values is table.predicted)
        off = (values - table.attacked)[known]
        if len(off):
            claim = f"within {100 * CLOSE:g} points of 0: the formula is the attacked accuracy"
            numbers += [
                _over(f"prediction from {name} and margin: mean error", np.abs(off).mean(axis=1)),
                _over(
                    f"prediction from {name} and margin: bias",
                    off.mean(axis=1),
                    claim,
                    lambda low, high: within(low, high, -CLOSE, CLOSE),
                ),
            ]
    pairs = np.stack([table.predicted.mean(axis=1), table.attacked.mean(axis=1)], axis=1)
    if np.ptp(pairs[:, 0]) and np.ptp(pairs[:, 1]):
        numbers.append(
            Number(
                "Spearman, predicted and attacked accuracy (mean over eps)",
                *bootstrap(pairs, spearman),
                len(pairs),
                METHOD,
            )
        )
    ratio = (table.attack_rate / table.rate)[np.isfinite(table.attack_rate)]
    return [*numbers, _over("compression rate along the attack / random", ratio)] if len(ratio) else numbers


def _margin_numbers(measured: Mapping[str, Any], table: Table) -> list[Number]:
    """Median margins, at the images and at the anchors."""
    clean = clean_margins(measured)
    method = "Euclidean, pixel units; 0 where misclassified"
    return [
        Number(f"median margin of the classifier at the {what}", float(np.median(m)), None, None, n, method)
        for what, m, n in (
            ("images", clean, len(clean)),
            ("anchors", table.margins, table.images),
        )
    ]


def _over(
    name: str,
    values: np.ndarray,
    claim: str = "",
    holds: Callable[[float, float], bool | None] = above,
) -> Number:
    """A mean over configurations."""
    value, low, high = bootstrap(values)
    return Number(
        name, value, low, high, len(values), METHOD, claim=claim, holds=holds(low, high) if claim else None
    )


def _goes_with(rank: Number | None) -> str:
    """What a correlation with the rate says, in words."""
    if rank is None or rank.low is None or rank.high is None:
        return "no measurable difference in accuracy"
    word = "more" if rank.high < 0 else "less" if rank.low > 0 else "no clear change in"
    return f"{word} accuracy (rank correlation {rank.value:.2f}, {rank.low:.2f} to {rank.high:.2f})"
