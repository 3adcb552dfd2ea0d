"""What decides where a purified image lands: the input within the budget, or the purifier's random numbers.

Two purifications "with the same randomness" share every draw, image by image: those of the example's report
tape 0, applied as an attacker's knowledge is.

Source:
    Liu & Wei 2025 (arXiv:2505.22839), "internal randomness"; figures 2a, 2b and 2f of its submissions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, needs_budget, needs_noise, rows
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Several
from dbpkit.purification.samplers import REVERSE_SITES
from dbpkit.results.analysis import Chart, Claim, Conclusion, Number, Series
from dbpkit.statistics.intervals import mean

VARIED = {
    "input": "input varied, randomness fixed",
    "randomness": "randomness varied, input fixed",
    "both": "both varied",
    "forward": "forward noise varied alone",
    "reverse": "reverse noise varied alone",
    "budget": "the varied inputs themselves",
}
"""What differs between the purifications of one image."""

PUBLISHED = {"input": 0.9954, "randomness": 0.2368}
SOURCE = "Liu & Wei 2025: CIFAR-10, DDPM, t* = 0.1, Linf 8/255, 100 draws"

PICTURED = 32
"""Rows of a correlation matrix that is drawn."""


@analyses.register("randomness")
@dataclass(frozen=True)
class Randomness(OfImages):
    """Correlation and variance of purified images with the input varied, the randomness varied, or both.

    Attributes:
        images: examples.
        draws: purifications per example and setting; 100 in the paper.
    """

    images: Count = 16
    draws: Several = 32
    title = "What decides where a purified image lands"

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples."""
        needs_noise("randomness", subject)
        needs_budget("randomness", subject)
        return super().units(subject)

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Mean correlation and total variance of every example, per setting; matrices of the first one."""
        x, _, noise = subject.examples(unit.images)
        records: list[dict[str, Any]] = [
            {"id": int(i), "correlation": {}, "variance": {}} for i in noise.example_ids
        ]
        if unit.images.start == 0:
            records[0]["matrices"] = {}
        for name, (inputs, plan) in self._settings(subject, x, noise).items():
            pure = inputs if plan is None else subject.purify(inputs, plan)
            moved = (pure.unflatten(0, (len(x), self.draws)) - x[:, None]).flatten(2).double().cpu().numpy()
            for record, one in zip(records, moved, strict=True):
                record["variance"][name] = float(one.var(axis=0, ddof=1).sum())
                if name in PUBLISHED:
                    matrix = np.corrcoef(one)
                    record["correlation"][name] = off_diagonal_mean(matrix)
                    if "matrices" in record:
                        record["matrices"][name] = matrix[:PICTURED, :PICTURED].round(6).tolist()
        return records

    def _settings(
        self, subject: Subject, x: Tensor, noise: NoisePlan
    ) -> dict[str, tuple[Tensor, NoisePlan | None]]:
        """Inputs (B * draws, C, H, W) and noise of every setting; no noise stands for no purification."""
        varied = noise.repeat(self.draws)
        same = x.repeat_interleave(self.draws, dim=0)
        ball = subject.parts.threat.random_start(same, varied.on("control"))
        settings: dict[str, tuple[Tensor, NoisePlan | None]] = {
            "input": (ball, known["dw_both"].apply(varied, 0)),
            "randomness": (same, varied),
            "both": (ball, varied),
            "budget": (ball, None),
        }
        sites = subject.parts.model.sites
        if "forward" in sites and sites & REVERSE_SITES:
            settings["forward"] = (same, known["dw_rev"].apply(varied, 0))
            settings["reverse"] = (same, known["dw_fwd"].apply(varied, 0))
        return settings

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Means over images; what the input decides, as a share of all variance."""
        records = rows(measured)
        correlation = {k: np.array([r["correlation"][k] for r in records]) for k in PUBLISHED}
        variance = {
            k: np.array([r["variance"][k] for r in records]) for k in VARIED if k in records[0]["variance"]
        }
        share = variance["input"] / variance["both"]
        alike = {
            k: Number.of(f"correlation, {VARIED[k]}", mean(values), published=PUBLISHED[k], source=SOURCE)
            for k, values in correlation.items()
        }
        numbers = list(alike.values())
        apart = correlation["input"] - correlation["randomness"]
        numbers.append(
            Number.of(
                "difference of the two correlations",
                mean(apart),
                claim=Claim("above 0: randomness, not the input, decides the direction", least=0),
            )
        )
        decided = Number.of(
            "variance with randomness fixed, share of the variance with both varied",
            mean(share),
            claim=Claim("below 10 %: the input hardly matters", most=0.1),
        )
        numbers.append(decided)
        for k in ("forward", "reverse"):
            if k in variance:
                name = f"{VARIED[k]}, share of the variance with randomness varied"
                numbers.append(Number.of(name, mean(variance[k] / variance["randomness"])))
        numbers += [Number.of(f"total variance, {VARIED[k]}", mean(values)) for k, values in variance.items()]
        same, other = alike["input"].value, alike["randomness"].value
        sentences = _sentences(same, other, decided.value, variance)
        return Conclusion(sentences, numbers, [_bars(variance), *_heat_maps(records[0])])


def off_diagonal_mean(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal."""
    count = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))


def _bars(variance: Mapping[str, np.ndarray]) -> Chart:
    names = [VARIED[k] for k in variance]
    means = {k: float(v.mean()) for k, v in variance.items()}
    return Chart(
        "bar",
        "Variance of purified images by what is varied",
        "what differs between purifications of one image",
        "total variance (sum over pixels, [0, 1] units squared)",
        [Series.of("total variance", names, map(mean, variance.values()))],
        f"Total variance is {means['input']:.3g} with the input varied, {means['randomness']:.3g} with the"
        f" randomness varied and {means['both']:.3g} with both.",
    )


def _heat_maps(record: Mapping[str, Any]) -> list[Chart]:
    """The two correlation matrices of one example."""
    charts = []
    for name, matrix in record["matrices"].items():
        labels = [str(i + 1) for i in range(len(matrix))]
        charts.append(
            Chart(
                "heat",
                f"Correlation of what purification changes: {VARIED[name]}",
                "purification",
                "purification",
                [Series(label, labels, values) for label, values in zip(labels, matrix, strict=True)],
                f"Correlation matrix of example {record['id']}, {VARIED[name]}: off the diagonal it is"
                f" {record['correlation'][name]:.2f} on average.",
            )
        )
    return charts


def _sentences(same: float, other: float, share: float, variance: Mapping[str, np.ndarray]) -> list[str]:
    if same > other:
        answer = (
            "The purifier's random numbers, not the input, decide how it changes an image: with the same"
            f" numbers, all inputs of the budget are changed alike (correlation {same:.2f}); with other"
            f" numbers, the same image is changed differently ({other:.2f})."
        )
    else:
        answer = (
            "The input, not the purifier's random numbers, decides how an image is changed: the correlation"
            f" is {other:.2f} for one image with other numbers, {same:.2f} for other inputs with the same."
        )
    split = ""
    if "forward" in variance:
        noising, denoising = (
            float((variance[k] / variance["randomness"]).mean()) for k in ("forward", "reverse")
        )
        split = f"; noising alone makes {noising:.0%} of what is random, denoising alone {denoising:.0%}"
    return [
        answer,
        f"Fixing the random numbers leaves {share:.1%} of the variance of purified images{split}.",
    ]
