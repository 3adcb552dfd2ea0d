"""What the gradient's variance shows and says: charts and sentences."""

import math
from collections.abc import Mapping, Sequence

from dbpkit.analyses.tools.configurations import Setting, by_group
from dbpkit.analyses.tools.gradient_numbers import (
    ATTACKERS,
    Gradients,
    in_draws,
    parts_of_power,
)
from dbpkit.results.analysis import Chart, Number, Series
from dbpkit.statistics.components import PARTS, needed_draws, power
from dbpkit.statistics.intervals import mean

SHOWN_DRAWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Draws at which the closed form is drawn."""

OWN = "the purifier of the spec"


def cosine_chart(found: Gradients) -> Chart:
    """Cosine by number of draws: measured, and the closed form for each attacker."""
    series = [
        Series(
            f"closed form, knows {ATTACKERS[shared]}",
            list(SHOWN_DRAWS),
            [float(found.draws(shared).cosine(n)) for n in SHOWN_DRAWS],
        )
        for shared in found.attackers
    ]
    measured = {n: mean(values) for n, values in found.cosine.items()}
    few, most = measured[min(measured)], measured[max(measured)]
    return Chart(
        "line",
        "Cosine of the averaged gradient to the gradient under known noise",
        "N: draws averaged",
        "cosine",
        [Series.of("measured, knows no noise", list(measured), measured.values()), *series],
        f"The measured cosine rises from {few.value:.2f} with {min(measured)} draw to {most.value:.2f} with"
        f" {max(measured)}; the closed form ends at {series[0].y[-1]:.2f} with {SHOWN_DRAWS[-1]}.",
        x_log=True,
    )


def parts_chart(own: Gradients, others: Mapping[Setting, Gradients]) -> Chart:
    """Parts of the gradient's power, of the purifier and of every configuration."""
    parts = {OWN: parts_of_power(own), **{str(k): parts_of_power(v) for k, v in others.items()}}
    shared = parts[OWN]
    return Chart(
        "bar",
        "What a single gradient is made of",
        "purifier",
        "share of the power of a gradient of length 1",
        [Series.of(name, list(parts), (of[name] for of in parts.values())) for name in PARTS],
        f"Of {OWN}, {shared[PARTS[0]].value:.0%} of a gradient is common to all draws,"
        + ",".join(f" {shared[name].value:.0%} is from {name}" for name in PARTS[1:])
        + ".",
    )


def prediction_chart(others: Mapping[Setting, Gradients], eot: int) -> Chart:
    """Hidden accuracy against the cosine that the white box's draws reach, by sampler."""
    groups = by_group(others)
    hidden = {k: float((v.white_box - v.dw_both).mean()) for k, v in others.items()}
    cosine = {k: float(v.draws().cosine(eot)) for k, v in others.items()}
    return Chart(
        "scatter",
        "Accuracy that noise hides from a white box",
        f"cosine of the mean of {eot} draws to the gradient under known noise, closed form",
        "robust accuracy, white box minus DW_Both",
        [Series(name, [cosine[k] for k in own], [hidden[k] for k in own]) for name, own in groups.items()],
        f"{len(others)} purifiers: cosines from {min(cosine.values()):.2f} to {max(cosine.values()):.2f},"
        f" hidden accuracy from {min(hidden.values()):.2f} to {max(hidden.values()):.2f}.",
    )


def own_sentences(found: Gradients) -> list[str]:
    """The answer, the draws that attackers need, and which noise it is."""
    own, common = found.draws(), mean(found.cosines())
    limit = math.sqrt(max(0.0, common.value))
    low, high = (math.sqrt(max(0.0, end)) for end in (common.drawn[1], common.drawn[2]))
    sentences = [
        f"Two draws of the attack gradient have a cosine of {common.value:.2f}, so the mean of endless draws"
        f" has a cosine of {limit:.2f} ({low:.2f} to {high:.2f}) to the gradient of an attacker who knows the"
        f" noise. For a cosine of one half {_draws_said(found)}."
    ]
    if len(found.sides) == 2:
        parts = power(found.gradient)
        forward, reverse, both = (float(parts[:, k].mean()) for k in (1, 2, 3))
        noise = forward + reverse + both
        sentences.append(
            f"Of the gradient's variance the forward noise alone makes {forward / noise:.0%}, the reverse"
            f" noise alone {reverse / noise:.0%}, the two together {both / noise:.0%}."
        )
    else:
        sentences.append(f"All of the gradient's variance is from the {found.sides[0]} noise, the only one.")
    even = float(own.spread)
    if even > 1:
        sentences.append(
            f"Draws differ in length, so that {max(found.cosine, default=8)} of them count for"
            f" {float(own.effective(max(found.cosine, default=8))):.1f} of equal length."
        )
    return sentences


def _draws_said(found: Gradients) -> str:
    """How many draws a cosine of one half takes an attacker who knows nothing, or a part of the noise."""
    said = []
    for shared in found.attackers:
        needs, who = needed_draws(found.cosines(shared), found.evenness(shared)), ATTACKERS[shared]
        low, high = (in_draws(n) for n in needs.drawn[1:])
        span = f" (95 % interval: {low} to {high})"
        if math.isinf(needs.drawn[2]):
            span = "" if math.isinf(needs.drawn[1]) else f" (95 % interval: from {low} up, without an end)"
        if math.isinf(needs.value):
            said.append(f"no number of draws is enough for one who knows {who}{span}")
        else:
            said.append(f"an attacker who knows {who} needs {in_draws(needs.value)} draws{span}")
    return "; ".join(said)


def prediction_sentence(numbers: Sequence[Number], others: Mapping[Setting, Gradients]) -> str:
    """What the cosine says of hidden accuracy over the purifiers."""
    found = [n for n in numbers if n.name.startswith("rank correlation over purifiers: cosine")]
    if not found or not math.isfinite(found[0].value):
        return f"{len(others)} purifiers are too few, or too alike, for a rank correlation."
    one = found[0]
    ends = f" ({one.low:+.2f} to {one.high:+.2f})" if one.low is not None and one.high is not None else ""
    verdict = {True: "predicts", False: "does not predict", None: "is not shown to predict"}[one.holds]
    return (
        f"Over {len(others)} purifiers the agreement of draws {verdict} how much more accuracy a white-box"
        f" attack leaves than one that knows the noise: rank correlation {one.value:+.2f}{ends}."
    )
