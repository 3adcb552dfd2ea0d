"""Gradient variance: how much of an attack gradient is signal, and which noise makes the rest.

An attacker who averages over n draws of the noise keeps the part that all draws share and divides the power
of the rest by n; one who knows the noise needs no average. The thing people get wrong: reading a small cosine
between the two as a lack of draws. With endless draws it stops at the square root of the common share.

Source:
    Liu et al., ICLR 2025, section 3 and appendix A: attacks on a stochastic defence are weak because of the
    variance of its gradients, which a defence could raise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dbpkit.analyses.analysis import (
    Subject,
    Unit,
    analyses,
    batches,
    check_options,
    needs_gradient,
    needs_noise,
    records,
)
from dbpkit.analyses.tools.configurations import Setting, settings, with_purifier
from dbpkit.analyses.tools.crossed_gradients import (
    Crossed,
    crossed_gradients,
    evenness,
    forward_sites,
    gradient_products,
    mean_cosine,
    per_image,
    tape_counts,
)
from dbpkit.analyses.tools.gradient_charts import (
    cosine_chart,
    own_sentences,
    parts_chart,
    prediction_chart,
    prediction_sentence,
)
from dbpkit.analyses.tools.gradient_numbers import (
    Gradients,
    own_numbers,
    prediction_numbers,
    setting_numbers,
)
from dbpkit.analyses.tools.targets import draw_gradients, misclassified
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Several
from dbpkit.results.analysis import Conclusion

BATCH = 16
"""Examples of a unit."""

WHITE_LANE, KNOWN_LANE = 1, 2
"""Lanes of the two attacks on a configuration."""


@analyses.register("gradient_variance")
@dataclass(frozen=True)
class GradientVariance:
    """Signal and noise of the attack gradient, by the noise that makes it, and what that predicts.

    Attributes:
        images: examples.
        forward: forward tapes of the design; each is crossed with every reverse tape.
        reverse: reverse tapes; a purifier with one kind of noise gets all of them there, uncrossed.
        fresh: draws that an attacker averages over, for the measured cosine.
        configurations: purifier settings, each a table with ``sampler``, ``t_star``, ``steps``, ``options``,
            that are attacked too, to see what the gradient's variance says of what noise hides.
        iterations: steps of PGD on each of them.
        eot: draws in each gradient of the white box.
        draws: report draws that judge the white box.
        tapes: noises that the attacker who knows them is told, one attack each.
    """

    images: Count = 16
    forward: Several = 4
    reverse: Several = 4
    fresh: Several = 8
    configurations: Sequence[Mapping[str, Any]] = ()
    iterations: Count = 4
    eot: Count = 4
    draws: Count = 6
    tapes: Count = 1
    title = "Variance of the attack gradient"
    grows = frozenset({"images"})

    def __post_init__(self) -> None:
        check_options(self)
        settings(self.configurations)

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of the purifier itself, then of every configuration, batch by batch."""
        needs_noise("gradient_variance", subject)
        needs_gradient("gradient_variance", subject)
        return self.of_each(batches(subject, self.images, BATCH))

    def of_each(self, parts: Sequence[Unit]) -> list[Unit]:
        """The purifier itself and every configuration on each batch."""
        kinds = [None, *settings(self.configurations)]
        return [Unit(part.images, kind) for part in parts for kind in kinds]

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """For every example of the unit: inner products of its gradients, and cosines or accuracies."""
        own = unit.of is None
        chosen = subject if own else with_purifier(subject, unit.of)
        x, y, noise = chosen.examples(unit.images)
        counts = tape_counts(chosen, self.forward, self.reverse)
        cells = crossed_gradients(chosen, x, y, noise, *counts)
        found = {
            "right": (cells.logits.argmax(dim=3) == y[:, None, None]).double().mean(dim=(1, 2)),
            "sides": [_sides(chosen)] * len(x),
            **per_image(gradient_products(cells.grad)),
        }
        if own:
            fresh = draw_gradients(chosen, x, y, noise.on("attack"), self.fresh)
            found |= {"cosine": self._cosines(fresh, cells), "evenness": evenness(fresh)}
        else:
            found |= self._attacked(chosen, x, y, noise)
        return records(noise, **found)

    def _cosines(self, fresh: Tensor, cells: Crossed) -> list[dict[str, float]]:
        """Cosine of means of fresh draws to gradients under independent tapes, by number of draws."""
        forward, reverse = cells.grad.shape[1:3]
        flat = cells.grad.flatten(1, 2)
        # of a crossed design the diagonal: its tapes share nothing
        alone = flat if 1 in (forward, reverse) else flat[:, :: reverse + 1][:, : min(forward, reverse)]
        counts = [2**k for k in range(self.fresh.bit_length())]
        columns = torch.stack([mean_cosine(fresh, alone, n) for n in counts], dim=1).tolist()
        return [dict(zip(map(str, counts), row, strict=True)) for row in columns]

    def _attacked(self, subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan) -> dict[str, Tensor]:
        """Share of report draws on which each example is right after a white box, and with known noise."""
        white = subject.attack(
            x, y, noise, known["white_box"], lane=WHITE_LANE, iterations=self.iterations, eot=self.eot
        ).x_adv
        stands = [self._stands(subject, x, y, noise, tape) for tape in range(self.tapes)]
        return {
            "white_box": 1 - misclassified(subject, white, y, noise, range(self.draws)).double().mean(dim=1),
            "dw_both": torch.stack(stands, dim=1).double().mean(dim=1),
        }

    def _stands(self, subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, tape: int) -> Tensor:
        """Whether examples are right (B,) under a tape, before and after an attack that knows it."""
        known_tape = range(tape, tape + 1)
        stands = ~misclassified(subject, x, y, noise, known_tape)[:, 0]
        index = stands.nonzero().flatten()
        if len(index):
            some, lane = noise.rows(index), KNOWN_LANE + tape
            options: dict[str, Any] = {"lane": lane, "iterations": self.iterations, "eot": 1}
            x_adv = subject.attack(x[index], y[index], some, known["dw_both"], tape, **options).x_adv
            stands[index] = ~misclassified(subject, x_adv, y[index], some, known_tape)[:, 0]
        return stands

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Shares of the gradient's power, draws that an attacker needs, and what both predict."""
        own, others = by_purifier(measured)
        numbers = [
            *own_numbers(own),
            *prediction_numbers(others, self.eot),
            *setting_numbers(others, self.eot),
        ]
        sentences = own_sentences(own)
        charts = [cosine_chart(own), parts_chart(own, others)]
        if others:
            sentences.append(prediction_sentence(numbers, others))
            charts.append(prediction_chart(others, self.eot))
        return Conclusion(sentences, numbers, charts)


def by_purifier(measured: Mapping[Unit, Any]) -> tuple[Gradients, dict[Setting, Gradients]]:
    """The purifier's own records, and those of each configuration, in the images' order."""
    found: dict[Any, list[Any]] = {}
    for unit in sorted(measured, key=lambda u: u.images.start):
        found.setdefault(unit.of, []).extend(measured[unit])
    own = Gradients.of(found.pop(None))
    return own, {setting: Gradients.of(rows) for setting, rows in found.items()}


def _sides(subject: Subject) -> list[str]:
    """Which kinds of noise the model draws: forward, reverse."""
    own = forward_sites(subject)
    rest = subject.parts.model.sites - own
    return [name for name, sites in (("forward", own), ("reverse", rest)) if sites]
