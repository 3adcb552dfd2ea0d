"""What the tables of `tapes` say: levels, spread, chosen tapes, what carries over, what knowing gains."""

import math
from collections.abc import Mapping

import numpy as np

from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.crossed import crossed, crossed_mean
from dbpkit.statistics.effects import (
    carried_over,
    chosen_elsewhere,
    column_ratio,
    column_share,
    column_spread,
    no_column_effect,
    residual_correlation,
    rest_share,
    row_share,
)
from dbpkit.statistics.intervals import CROSSED_EXAMPLES, Interval, difference, share

KNOWN = "known"
"""Table of the attack that all others are compared with."""

OTHERS = {"other_attack": "the other attack", "other_classifier": "the other classifier"}

LEVELS = {
    "clean": "accuracy without an attack",
    "unknown_once": "the attacker does not know the tape, as many gradient passes",
    "unknown": "the attacker does not know the tape, EoT {eot}",
    KNOWN: "the attacker knows the tape (DW_Both)",
    "other_attack": "the same, the other attack",
    "other_clean": "the other classifier without an attack",
    "other_classifier": "the other classifier, the attacker knows the tape",
}
"""Numbers that are means over images and tapes, by table."""

FEWEST = 3
"""Images and tapes from which on their effects are told apart."""

Tables = Mapping[str, np.ndarray]


def conclusion(tables: Tables, *, shared: bool, eot: int) -> Conclusion:
    """Draws the conclusion from whether images (rows) were right under tapes (columns).

    Args:
        tables: 0 or 1, (n, T) each, by name: those of `LEVELS`.
        shared: whether tape t is the same draw for every image.
        eot: draws averaged by the stronger attacker who does not know the tape.
    """
    levels = {k: _mean(tables[k]) for k in LEVELS if k in tables}
    numbers = [Number.of(LEVELS[k].format(eot=eot), found) for k, found in levels.items()]
    gains = {k: _mean(tables[k] - tables[KNOWN], paired=True) for k in ("unknown_once", "unknown")}
    passes = {"unknown_once": "as many gradient passes", "unknown": f"{eot} times as many gradient passes"}
    for k, found in gains.items():
        name = f"gained by knowing the tape, against {passes[k]} without"
        numbers.append(Number.of(name, found, claim=_claim("above 0: knowing the draw gains", least=0)))
    charts = [_levels_chart(levels, eot)]
    said = [_knowing(levels, gains["unknown"], eot)]
    if min(tables[KNOWN].shape) >= FEWEST:
        numbers += [
            *_spread(tables[KNOWN], shared),
            *_shares(tables[KNOWN], shared),
            *_carried(tables, shared),
        ]
        charts += [_shares_chart(numbers), _ranks_chart(tables[KNOWN])]
        said = [_answer(tables[KNOWN], levels[KNOWN], numbers, shared), *_shared_out(numbers), *said]
    finite = [number for number in numbers if math.isfinite(number.value)]
    return Conclusion(said, finite, [chart for chart in charts if chart.series])


def _claim(words: str, least: float = -math.inf, most: float = math.inf) -> Claim:
    return Claim(words, least, most, CROSSED_EXAMPLES)


def _mean(table: np.ndarray, *, paired: bool = False) -> Interval:
    """Mean over images and tapes, both of which are a sample, of answers or of paired differences."""
    images, tapes = table.shape
    axes = crossed(tapes, images)
    found = crossed_mean(table.mean(axis=0), axes.weights @ table, axes)
    by_image = table.mean(axis=1)
    alone = difference(by_image) if paired else share(by_image)
    low, high = min(found.low, alone.low), max(found.high, alone.high)  # 0 % and 100 % have a width too
    method = f"{tapes} tapes crossed with {images} images"
    return found._replace(low=max(-1.0, low), high=min(1.0, high), method=method)


def _spread(table: np.ndarray, shared: bool) -> list[Number]:
    """How far tapes differ beyond chance, and the worst and the best one on images that did not choose it."""
    tapes, by_tape = table.shape[1], table.mean(axis=0)
    ratio, p = column_ratio(table), no_column_effect(table)
    differ = _claim("above 1: some draws are more robust than others", least=1) if shared else None
    worst = _claim("below 0: the worst draw is worse on other images too", most=0) if shared else None
    best = _claim("above 0: the best draw is better on other images too", least=0) if shared else None
    plain = Interval(
        0.0, math.nan, math.nan, len(table), f"of {tapes} measured; chosen and judged on the same"
    )
    return [
        Number.of(
            "variance of the tapes' accuracies, as a multiple of what chance over images makes",
            ratio,
            claim=differ,
            how=f"p = {p:.2g} by exchanging the tapes of every image",
        ),
        Number.of("spread of a tape's accuracy on endless images, standard deviation", column_spread(table)),
        Number.of("lowest accuracy of a tape", plain._replace(value=float(by_tape.min()))),
        Number.of("highest accuracy of a tape", plain._replace(value=float(by_tape.max()))),
        Number.of("worst tape minus the mean", chosen_elsewhere(table, lowest=True), claim=worst),
        Number.of("best tape minus the mean", chosen_elsewhere(table, lowest=False), claim=best),
    ]


ENDS = ("low", "high")

PARTS = {
    "images": "share of the variance that images make",
    "tapes": "share of the variance that tapes make",
    "rest": "share of the variance that image and tape make together",
}


def _shares(table: np.ndarray, shared: bool) -> list[Number]:
    """How images and tapes share the variance of one answer."""
    few = _claim("below 5 %: hardly any draw is good for all images", most=0.05) if shared else None
    return [
        Number.of(PARTS["images"], row_share(table)),
        Number.of(PARTS["tapes"], column_share(table), claim=few),
        Number.of(PARTS["rest"], rest_share(table)),
    ]


def _carried(tables: Tables, shared: bool) -> list[Number]:
    """Whether a good tape is good for other images, another attack and another classifier."""
    numbers = []
    first = tables[KNOWN]
    for name, where in {KNOWN: "the same attack", **OTHERS}.items():
        if name not in tables:
            continue
        good = _claim("above 0: a good tape is good for other images", least=0) if shared else None
        label = f"order of the tapes on other images, {where}"
        numbers.append(Number.of(label, carried_over(first, tables[name]), claim=good))
        if name != KNOWN:
            same = _claim("above 0: a tape that saves an image from one saves it from the other", least=0)
            label = f"agreement image by image beyond images and tapes, {where}"
            numbers.append(Number.of(label, residual_correlation(first, tables[name]), claim=same))
    return numbers


def _by_name(numbers: list[Number], start: str) -> Number:
    return next(number for number in numbers if number.name.startswith(start))


def _answer(table: np.ndarray, level: Interval, numbers: list[Number], shared: bool) -> str:
    """The first sentence: whether tapes differ."""
    images, tapes = table.shape
    by_tape = table.mean(axis=0)
    span = (
        f"Robust accuracy against an attacker who knows the draw of the noise is {level.value:.0%}"
        f" ({level.low:.0%} to {level.high:.0%}); over {tapes} draws it lies between {by_tape.min():.0%} and"
        f" {by_tape.max():.0%}"
    )
    if not shared:
        return f"{span}, every image with draws of its own, so that only chance makes them differ."
    ratio = _by_name(numbers, "variance of the tapes")
    worst = _by_name(numbers, "worst tape")
    if ratio.low is not None and ratio.low > 1:
        verdict = "more than chance makes of"
    elif ratio.low is None:
        verdict = "without any variance that chance could make over"
    else:
        verdict = "no more than chance makes of"
    return (
        f"{span}, {verdict} {images} images; on images that did not choose it the worst draw is"
        f" {100 * worst.value:+.1f} points from the mean."
    )


def _shared_out(numbers: list[Number]) -> list[str]:
    """How images and tapes share the variance, and what carries over."""
    images, tapes, rest = (_by_name(numbers, PARTS[part]).value for part in PARTS)
    if not images + tapes + rest > 0:
        return ["All answers are equal: nothing is there to be shared out."]
    said = [
        f"Of the variance of one answer, images make {images:.0%}, draws {tapes:.1%}, and which draw an image"
        f" met {rest:.0%}."
    ]
    carried = [n for n in numbers if n.name.startswith("agreement image by image") and math.isfinite(n.value)]
    if carried:
        told = " and ".join(f"{n.value:.2f} for {n.name.rsplit(', ', 1)[1]}" for n in carried)
        said.append(
            "Which draws save which image, beyond what image and draw say alone, agrees with a correlation of"
            f" {told}."
        )
    return said


def _knowing(levels: Mapping[str, Interval], gain: Interval, eot: int) -> str:
    return (
        f"Knowing the draw gains {100 * gain.value:.0f} points ({100 * gain.low:.0f} to"
        f" {100 * gain.high:.0f}) over knowing its distribution with {eot} times the gradient passes:"
        f" {levels[KNOWN].value:.0%} against {levels['unknown'].value:.0%}."
    )


def _levels_chart(levels: Mapping[str, Interval], eot: int) -> Chart:
    names = [LEVELS[k].format(eot=eot) for k in levels]
    return Chart(
        "bar",
        "Accuracy by what the attacker knows",
        "",
        "share of images and tapes that are right",
        [Series.of("accuracy", names, levels.values())],
        "Accuracy without an attack, against an attacker who knows the distribution of the noise, and against"
        " one who knows the draw.",
    )


def _shares_chart(numbers: list[Number]) -> Chart:
    parts = [_by_name(numbers, name) for name in PARTS.values()]
    low, high = ([n.value if e is None else e for n, e in ((n, getattr(n, k)) for n in parts)] for k in ENDS)
    kinds = ["images", "tapes", "image and tape together"]
    finite = all(math.isfinite(n.value) for n in parts)
    series = [Series("share", kinds, [n.value for n in parts], low, high)] if finite else []
    return Chart(
        "bar",
        "What the variance of one answer is made of",
        "",
        "share of the variance",
        series,
        "Shares of the variance of being right that images, draws of the noise, and the two together make.",
    )


def _ranks_chart(table: np.ndarray) -> Chart:
    """Tapes in the order of their accuracy on half of the images, with their accuracy on the other half."""
    count = table.shape[1]
    halves = table[::2], table[1::2]
    orders = [half.mean(axis=0).argsort(kind="stable") for half in halves]
    chosen = np.concatenate([half[:, order] for half, order in zip(halves, orders, strict=True)])
    other = np.concatenate([half[:, order] for half, order in zip(halves, orders[::-1], strict=True)])
    ranks = list(range(1, count + 1))
    return Chart(
        "line",
        "Tapes in the order that half of the images gives them",
        "rank of the tape on one half of the images",
        "robust accuracy",
        [
            Series("on the half that ordered them", ranks, chosen.mean(axis=0).tolist()),
            Series.of("on the other half", ranks, [share(column) for column in other.T]),
        ],
        "Accuracy of the tapes by rank: it rises on the images that ordered them, and on others only as far"
        " as a good tape is good for all images.",
    )
