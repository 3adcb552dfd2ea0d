"""Which purifier setting to use: ranked without attacking any, then checked on a few by the exact attack.

Every setting is screened by forward passes of the purifier: accuracy at the anchors and compression rate. The
margin of the classifier alone uses the classifier's gradient, which is cheap; no gradient goes through a
purifier. The thing people get wrong: a setting that is picked as the best of many on the same few images
looks better than it is. Evaluate it afresh, on other images, before its numbers are published.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from dbpkit.analyses.analysis import Subject, Unit, analyses, batches, check_options, needs_diffusion
from dbpkit.analyses.tools.configurations import (
    CONFIGURATIONS,
    Setting,
    budget_lengths,
    budgets,
    by_group,
    per_image,
    pixels,
    predicted,
    screen,
    settings,
    survival,
    with_purifier,
)
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.crossed import concordance
from dbpkit.statistics.intervals import difference, share

SHOWN = 4
"""Most settings that are named as no worse than the best."""

ELSEWHERE: Mapping[str, tuple[float, float, float]] = {
    "within data set and norm": (0.711, 0.225, 0.855),
    "around one classifier": (0.607, -0.027, 0.931),
}
"""Rank correlation of prediction and attack, with intervals: benchmarks/results/law-wide.json."""

FRIENDLY = (0.133, 0.347, 0.052)
"""By how much the prediction was too high there, on CIFAR-10, the digits and Fashion-MNIST."""


@dataclass(frozen=True)
class Confirmation:
    """What a unit that attacks is about: the setting in a place of those that are checked."""

    place: int

    def __str__(self) -> str:
        return f"confirm {self.place}"


@analyses.register("recommend")
@dataclass(frozen=True)
class Recommend:
    """Ranks purifier settings without a gradient attack on any, and confirms the best with the exact one.

    Attributes:
        configurations: settings, each a table with ``sampler``, ``t_star``, ``steps``, ``options``.
        eps: budgets in pixel units as text; accuracy is averaged over them. None takes 1/16, 1/8, 1/4, 1/2
            and all of the spec's.
        images: examples.
        directions: random directions per example.
        confirm: how many of the best settings are attacked; 0 attacks none.
        others: how many further settings, drawn at random, are attacked too, to judge the ranking.
        iterations: steps of the attack at each budget.
    """

    configurations: Sequence[Mapping[str, Any]] = CONFIGURATIONS
    eps: Sequence[str | float] = ()
    images: Count = 16
    directions: Count = 2
    confirm: CountOrNone = 3
    others: CountOrNone = 2
    iterations: Count = 5
    title = "Recommended purifier setting"
    in_turn = True  # which settings are attacked follows from the ranking

    def __post_init__(self) -> None:
        check_options(self)
        _ = [pixels(eps) for eps in self.eps]
        if not settings(self.configurations):
            raise UserError("recommend needs at least one table in 'configurations'.")

    def units(self, subject: Subject) -> list[Unit]:
        """All settings by batches of examples, then those to be confirmed, whichever they turn out to be."""
        needs_diffusion("recommend", subject)
        chosen = settings(self.configurations)
        for setting in chosen:
            with_purifier(subject, setting)  # a wrong name is found now, not after an hour
        parts = [unit.images for unit in batches(subject, self.images)]
        checked = min(self.confirm + self.others, len(chosen)) if self.confirm else 0
        return [
            *(Unit(images, setting) for images in parts for setting in chosen),
            *(Unit(images, Confirmation(place)) for place in range(checked) for images in parts),
        ]

    def measure(self, subject: Subject, unit: Unit) -> dict[str, Any]:
        """Screens one setting on a batch, or attacks one that is to be confirmed."""
        x, y, noise = subject.examples(unit.images)
        eps, confirms = budgets(subject, self.eps), isinstance(unit.of, Confirmation)
        setting = self._checked(subject)[unit.of.place] if confirms else unit.of
        purified = with_purifier(subject, setting)
        anchor = purified.purify(x, noise)
        if confirms:
            found = survival(purified, x, y, anchor, noise, 0, eps, self.iterations)
            return {"setting": setting.name, "survived": found["survived"]}
        lengths = budget_lengths(subject, eps, x)
        return {"lengths": lengths, **screen(purified, x, y, anchor, noise, self.directions)}

    def _checked(self, subject: Subject) -> list[Setting]:
        """The best settings by what earlier units measured, and random others; order decides the place."""
        order = _ranking(subject.done)
        rest = order[self.confirm :]
        draw = NoisePlan.of(subject.spec.seed, range(len(rest)), "control").uniform(
            "order", 0, torch.zeros(len(rest), 1)
        )
        picked = draw.flatten().argsort(stable=True)[: self.others]
        return [*order[: self.confirm], *(rest[int(i)] for i in picked)]

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """The ranking, the trade-off, and how far the exact attack agrees."""
        best, screened = _ranking(measured)[0], _screened(measured)
        clean, guess = screened[best].right, screened[best].predicted
        attacked = _attacked(measured)
        numbers = [
            Number.of(f"clean accuracy, {best}", share(clean)),
            Number.of(f"predicted accuracy at fixed randomness, {best}", share(guess.mean(axis=1))),
        ]
        for setting, survived in attacked.items():
            numbers.append(Number.of(f"accuracy under exact attack, {setting}", share(survived.mean(axis=1))))
        agreement = _agreement(screened, attacked)
        numbers += [agreement] if agreement else []
        front = _front({k: (v.right.mean(), v.predicted.mean()) for k, v in screened.items()})
        sentences = [
            f"Use {best}: {clean.mean():.0%} of {len(clean)} clean images stay right, and with its"
            f" randomness known {guess.mean():.0%} are predicted to withstand an attack, averaged over the"
            " budgets.",
            _check_sentence(best, attacked, agreement) + " " + _uncertainty(best, screened),
            "Lines for the spec:\n" + _toml(best.purifier),
        ]
        charts = [_plane(screened, front), *_check_chart(screened, attacked)]
        return Conclusion(sentences, numbers, charts)


class Screened(NamedTuple):
    """What is known of a setting without an attack on it.

    Attributes:
        right: 1 where the anchor is classified correctly, (n,).
        rate: compression rates, (n,).
        predicted: 1 where the formula expects an image to stand, by the setting's mean rate, (n, E).
    """

    right: np.ndarray
    rate: np.ndarray
    predicted: np.ndarray


def _screened(measured: Mapping[Unit, Any]) -> dict[Setting, Screened]:
    found: dict[Setting, list[Any]] = {}
    for unit in sorted(measured, key=lambda u: u.images.start):
        if isinstance(unit.of, Setting):
            found.setdefault(unit.of, []).append(measured[unit])
    tables = {}
    for setting, batch in found.items():
        right, margin, rate = ([v for r in batch for v in r[key]] for key in ("right", "margin", "rate"))
        lengths = np.concatenate([per_image(r, len(r["right"])) for r in batch])
        guesses = [predicted(right, margin, float(np.mean(rate)), reach) for reach in lengths.T]
        guessed = np.array(guesses, dtype=float).T
        tables[setting] = Screened(np.array(right, dtype=float), np.array(rate), guessed)
    return tables


def _ranking(measured: Mapping[Unit, Any]) -> list[Setting]:
    """Settings from best to worst: predicted accuracy over the budgets, then clean accuracy, then rate."""
    tables = _screened(measured)

    def place(setting: Setting) -> tuple[float, float, float, str]:
        own = tables[setting]
        return -own.predicted.mean(), -own.right.mean(), own.rate.mean(), setting.name

    return sorted(tables, key=place)


def _attacked(measured: Mapping[Unit, Any]) -> dict[Setting, np.ndarray]:
    """By confirmed setting: survived (n, E)."""
    named = {unit.of.name: unit.of for unit in measured if isinstance(unit.of, Setting)}
    found: dict[Setting, list[Any]] = {}
    for unit, record in measured.items():
        if isinstance(unit.of, Confirmation):
            found.setdefault(named[record["setting"]], []).extend(record["survived"])
    return {setting: np.array(survived, dtype=float) for setting, survived in found.items()}


def _agreement(screened: Mapping[Setting, Screened], attacked: Mapping[Setting, np.ndarray]) -> Number | None:
    """Share of pairs of attacked settings that the ranking put in the measured order; a tie counts half."""
    if len(attacked) < 2:
        return None
    guess = np.array([screened[setting].predicted.mean() for setting in attacked])
    truth = np.array([survived.mean() for survived in attacked.values()])
    return Number.of(
        "pairs of settings that the prediction ordered as the attack does",
        concordance(guess, truth, len(next(iter(attacked.values())))),
        claim=Claim("above 0.5: better than chance", least=0.5),
        how="ties count half",
    )


T = TypeVar("T")


def _front(points: Mapping[T, tuple[float, float]]) -> list[T]:
    """Settings that no other beats in one number without losing in the other, by the first number."""
    beaten = {
        k for k, a in points.items() for b in points.values() if b != a and b[0] >= a[0] and b[1] >= a[1]
    }
    return sorted((k for k in points if k not in beaten), key=lambda k: points[k])


def _toml(setting: PurifierSpec) -> str:
    """The setting as the ``[purifier]`` table of a spec."""
    shown = {"sampler", "t_star", "steps"} | setting.model_fields_set
    chosen = {k: v for k, v in setting.model_dump().items() if k in shown and v not in ({}, None)}
    return "[purifier]\n" + "\n".join(f"{k} = {_inline(v)}" for k, v in chosen.items())


def _inline(value: Any) -> str:
    """A value of TOML on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_inline(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def _check_sentence(best: Setting, attacked: Mapping[Setting, np.ndarray], agreement: Number | None) -> str:
    """What the exact attack said."""
    if best not in attacked:
        return "No setting was attacked (confirm = 0): this is a prediction and must be confirmed."
    text = f"The exact attack leaves it {attacked[best].mean():.0%}"
    top = max(attacked, key=lambda k: attacked[k].mean())
    text += ", the most" if attacked[top].mean() <= attacked[best].mean() else f"; {top} keeps the most"
    text += f" of the {len(attacked)} settings that were attacked"
    if top != best and attacked[top].mean() > attacked[best].mean():
        text += f" ({attacked[top].mean():.0%})"
    if agreement is None:
        return f"{text}."
    sure = {True: "better than chance", False: "worse than chance", None: "which chance may do as well"}
    pairs = f"the order of {agreement.value:.0%} of their pairs right, {sure[agreement.holds]}"
    return f"{text}, and the prediction had {pairs}."


def _uncertainty(best: Setting, screened: Mapping[Setting, Screened]) -> str:
    """Which settings the images cannot tell from the best, and how well the prediction ranks elsewhere."""
    first, others = screened[best].predicted.mean(axis=1), [k for k in screened if k != best]
    apart = {k: difference(first - screened[k].predicted.mean(axis=1), len(others)) for k in others}
    level = [str(k) for k, found in apart.items() if found.low <= 0]
    if not level:
        told = f"Its prediction is above that of every other setting on these {len(first)} images."
    else:
        names = ", ".join(level[:SHOWN]) + (", ..." if len(level) > SHOWN else "")
        told = f"These {len(first)} images cannot tell it from {len(level)} of {len(others)} others: {names}."
    value, low, high = ELSEWHERE["around one classifier"]
    least, most = (round(100 * end) for end in (min(FRIENDLY), max(FRIENDLY)))
    return (
        f"{told} Elsewhere (12 classifiers of 3 data sets) prediction and attack ranked the purifiers around"
        f" a classifier with a correlation of {value:.2f} ({low:.2f} to {high:.2f}), and the prediction was"
        f" {least} to {most} points too high: it is an order to be confirmed, not an accuracy."
    )


def _plane(screened: Mapping[Setting, Screened], front: Sequence[Setting]) -> Chart:
    """The trade-off curve."""

    def series(name: str, chosen: Sequence[Setting]) -> Series:
        means = [(screened[k].right.mean(), screened[k].predicted.mean()) for k in chosen]
        return Series(name, [float(a) for a, _ in means], [float(b) for _, b in means])

    groups, best = by_group(screened), "; ".join(map(str, front))
    return Chart(
        "scatter",
        "Trade-off of purifier settings",
        "clean accuracy (at the anchors)",
        "predicted accuracy at fixed randomness, mean over budgets",
        [
            *(series(name, groups[name]) for name in sorted(groups)),
            series("best trade-offs", front),
        ],
        f"Predicted robustness against clean accuracy. No setting beats {best} in both.",
    )


def _check_chart(screened: Mapping[Setting, Screened], attacked: Mapping[Setting, np.ndarray]) -> list[Chart]:
    """Predicted and measured accuracy of the settings that were attacked."""
    if not attacked:
        return []
    guess = [share(screened[k].predicted.mean(axis=1)) for k in attacked]
    truth = [share(v.mean(axis=1)) for v in attacked.values()]
    return [
        Chart(
            "bar",
            "Prediction and exact attack",
            "setting",
            "accuracy at fixed randomness, mean over budgets",
            [
                Series.of(name, list(map(str, attacked)), values)
                for name, values in (("predicted", guess), ("exact attack", truth))
            ],
            "Accuracy predicted without an attack beside the accuracy under the exact attack.",
        )
    ]
