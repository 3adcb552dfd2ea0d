"""Whether a model fits the data better under another convention than its own.

Shapes do not tell pixels in [0, 1] from [-1, 1], sine from cosine, or noise from velocity; errors do. Every
neighbouring convention is tried on the same images under the same noise. The thing people get wrong: the
least of twenty errors is lower than the own one by chance. So differences are taken image by image, and the
level of the test is divided by the number of neighbours.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special
from torch import Tensor

from dbpkit.checks.check import Note, Probe, checks
from dbpkit.checks.culprits import Plain
from dbpkit.checks.proof import (
    Proof,
    classified,
    denoising_errors,
    linear_errors,
    proof_of,
    proof_of_classifier,
)
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import Denoiser
from dbpkit.models.neighbours import Neighbour, classifier_neighbours, neighbours
from dbpkit.results.flags import Flag
from dbpkit.statistics.binomial import at_most

ALPHA = 0.01
"""How often a sound model is flagged, over all of its neighbours, if gains are normal;
docs/reference/flags.md says how often it was measured to be."""

SMALLER, CLEARLY_SMALLER = 0.985, 0.8
"""Share of the own error below which another convention's is told of, and below which it is an error."""

REACHED = 1.0
"""Share of the best linear estimate's error that a better reading stays below: one that learned does."""

SETTLED = 0.75
"""Share of the best linear estimate's error below which a denoiser needs no trial before a run."""

EQUAL = 1.01
"""Ratio of two errors up to which both readings are named: an index and 999 t are nearly one."""

SCREENED = 4
"""Images on which all neighbours are tried, at one level."""

DROPPED = 0.02
"""Mean logarithm by which a neighbour is worse there that is not tried any further."""

SHARES_OF_START = (0.25, 0.5, 1.0)
"""Noise levels of a trial, as shares of that where purification starts: levels that the sampler asks for."""


class Fit(NamedTuple):
    """How well a neighbour fits, compared with the convention that is set.

    Attributes:
        neighbour: what is done otherwise.
        ratio: its error divided by the own one, geometric mean over images and levels.
        p: one-sided p-value that it is no better on other such images, times the number of neighbours.
        errors: its mean errors, one for each level.
        equal: other neighbours that fit as well, up to `EQUAL`.
    """

    neighbour: Neighbour
    ratio: float
    p: float
    errors: tuple[float, ...]
    equal: tuple[Neighbour, ...] = ()


class Trial(NamedTuple):
    """What became of a denoiser's neighbours.

    Attributes:
        own: the denoiser's errors under its own convention, beside the bounds.
        tried: how many neighbours there are.
        fits: those that the first few images did not rule out, the best first.
    """

    own: Proof
    tried: int
    fits: tuple[Fit, ...]

    @property
    def better(self) -> Fit | None:
        """The neighbour that fits clearly better, if one does: significant, and not by a trifle.

        It must reach the best linear estimate too. One that does not is no denoiser of these images either,
        and the network one of others.
        """
        for fit in self.fits:
            linear = np.array([level.gaussian for level in self.own.levels])
            reaches = (np.log(fit.errors) - np.log(linear)).mean() < math.log(REACHED)
            if fit.p <= ALPHA and fit.ratio <= SMALLER and reaches:
                rest = [f.neighbour for f in self.fits if f is not fit and f.ratio <= EQUAL * fit.ratio]
                return fit._replace(equal=tuple(rest))
        return None


def trial(
    denoiser: Denoiser,
    x: Tensor,
    noise: NoisePlan | None = None,
    levels: Sequence[float] = (0.085, 0.17, 0.34),
    *,
    coarse: bool = False,
) -> Trial:
    """Tries a denoiser's neighbouring conventions on images.

    All neighbours are tried on `SCREENED` images at the largest level, those that are not worse there on all
    images at all levels.

    Args:
        denoiser: of this package or any other.
        x: images (B, C, H, W) in [0, 1]; with fewer than 8 only gross mistakes are found.
        noise: plan of the B images; ids 0 to B - 1 and seed 0 if not given.
        levels: noise levels in [-1, 1] units.
        coarse: only the common mistakes.
    """
    noise = NoisePlan.of(0, range(len(x)), "select") if noise is None else noise
    clean, levels = 2 * x - 1, sorted(levels)
    own = denoising_errors(denoiser, clean, noise, levels)
    candidates = [n for n in neighbours(denoiser) if n.coarse or not coarse]
    few, last = slice(0, SCREENED), len(levels) - 1
    fits = []
    for candidate in candidates:
        seen = _errors(candidate, clean[few], noise.rows(few), levels[-1:], last)
        if seen is None or _gain(own[-1:, few], seen).mean() < -DROPPED:
            continue
        seen = _errors(candidate, clean, noise, levels, 0)
        if seen is None:
            continue
        gain = _gain(own, seen)
        p = min(1.0, len(candidates) * _no_better(gain))
        fits.append(Fit(candidate, math.exp(-float(gain.mean())), p, tuple(seen.mean(axis=1).tolist())))
    fits.sort(key=lambda fit: fit.ratio)
    own_proof = proof_of(levels, own, linear_errors(clean, levels).mean(axis=1))
    return Trial(own_proof, len(candidates), tuple(fits))


@checks.add(
    "denoiser_mismatch",
    stage="model",
    expects="no other noise level, prediction type or pixel range suits the denoiser better",
    remedy="Give the prediction type, schedule or range that the message names.",
    needs="diffusion",
)
def denoiser_mismatch(probe: Probe) -> list[Flag]:
    """Flags a denoiser that estimates better under a common other convention, at the level of the start.

    One that is far better than the best linear estimate is settled: `dbpkit check` tries all neighbours of
    any.
    """
    purifier, wide = probe.diffusion, probe.more or probe
    if purifier is None:
        return []
    sigma, x = purifier.sampler.levels[0], purifier.fitted(wide.x)
    clean = 2 * x - 1
    own = denoising_errors(purifier.denoiser, clean, wide.noise, [sigma]).mean()
    if own < SETTLED * linear_errors(clean, [sigma]).mean():
        return []
    return _told(trial(purifier.denoiser, x, wide.noise, [sigma], coarse=True))


@checks.add(
    "neighbouring_conventions",
    stage="behaviour",
    expects="no neighbouring convention suits the denoiser better",
    remedy="Give the convention that the message names.",
    needs="diffusion",
    raises=("denoiser_mismatch",),
)
def neighbouring_conventions(probe: Probe) -> Iterable[Flag | Note]:
    """Tells how well the denoiser denoises, and flags one that a neighbouring convention suits better."""
    purifier = probe.diffusion
    if purifier is None:
        return []
    start = purifier.sampler.levels[0]
    levels = [share * start for share in SHARES_OF_START]
    found = trial(purifier.denoiser, purifier.fitted(probe.x), probe.noise, levels)
    return [Note(found.own.line), *_told(found)]


@checks.add(
    "classifier_mismatch",
    stage="behaviour",
    expects="no other preparation of its pixels suits the classifier better",
    remedy="Prepare pixels as the message says: a classifier is given them in [0, 1] and normalises inside.",
)
def classifier_mismatch(probe: Probe) -> Iterable[Flag | Note]:
    """Tells how often the classifier itself is right, and flags one that other pixels suit better.

    An image counts if one preparation is right and the other wrong; without a difference each is a fair coin.
    A preparation must be right more often than the one answer that most of these labels have: far too large
    or small pixels always give the same answer, which is right on images that are all of one class.
    """
    classifier = _classifier(probe.model)
    return [] if classifier is None else _prepared_otherwise(classifier, probe.x, probe.y)


def _prepared_otherwise(classifier: Any, x: Tensor, labels: Tensor) -> list[Flag | Note]:
    """The classifier's accuracy, and a flag if other pixels suit it better."""
    shown = proof_of_classifier(classifier, x, labels)
    y = labels.cpu()
    own = classified(classifier, x).argmax(dim=1).cpu() == y
    candidates = classifier_neighbours(classifier, x.shape[1])
    most = int(y.unique(return_counts=True)[1].max())
    gains = []
    for reading, candidate in candidates:
        try:
            right = classified(candidate, x).argmax(dim=1).cpu() == y
        except (RuntimeError, ValueError, TypeError):  # it may refuse such pixels
            continue
        if int(right.sum()) <= most:
            continue
        won, lost = int((right & ~own).sum()), int((own & ~right).sum())
        gains.append((len(candidates) * at_most(lost, won + lost, 0.5), -won, int(right.sum()), reading))
    p, _, count, reading = min(gains, default=(1.0, 0, 0, ""))
    if p > ALPHA:
        return [Note(shown.line)]
    message = f"The classifier is right on {int(own.sum())} of {len(y)} images, but on {count} if {reading}."
    return [Note(shown.line), Flag("classifier_mismatch", "error", message)]


def behaviour(model: Any, x: Tensor, y: Tensor) -> list[str]:
    """Says in sentences how well a model does on labelled images, and which other convention fits better.

    Args:
        model: a classifier, if its ``architecture`` says so; else a denoiser.
        x: images (B, C, H, W) in [0, 1]; 32 are enough.
        y: labels (B,), which a denoiser needs not.
    """
    if getattr(getattr(model, "architecture", None), "kind", "") == "classifier":
        told = _prepared_otherwise(model, x, y)
        return [t.text if isinstance(t, Note) else t.message for t in told]
    found = trial(model, x)
    return [found.own.line, *(flag.message for flag in _told(found))]


def _classifier(model: Any) -> Any:
    """The classifier of a model without what purifies for it; None where that is not known."""
    if isinstance(model, Plain):
        return model.module
    return getattr(model, "classifier", None)


def _told(found: Trial) -> list[Flag]:
    """The flag of a trial: an error where the other convention has clearly less error, else a warning."""
    better = found.better
    if better is None:
        return []
    severity = "error" if better.ratio <= CLEARLY_SMALLER else "warning"
    own = found.own.levels
    at = f"level{'s' * (len(own) > 1)} {_numbers([level.sigma for level in own])}"
    error = _numbers([level.error.value for level in own])
    others = "".join(f"; as good if {n.reading}" for n in better.equal)
    message = (
        f"At noise {at} the denoiser's mean squared error is {error} in [-1, 1] units, but"
        f" {_numbers(better.errors)} if {better.neighbour.reading}{others}."
    )
    return [Flag("denoiser_mismatch", severity, message)]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _errors(
    candidate: Neighbour, clean: Tensor, noise: NoisePlan, levels: Sequence[float], first: int
) -> np.ndarray | None:
    """Errors (levels, B) under a neighbour; None where it cannot be asked or returns no numbers."""
    try:
        found = denoising_errors(candidate.denoiser, clean, noise, levels, first=first)
    except (RuntimeError, ValueError, TypeError, IndexError):  # a network need not take other times
        return None
    return found if np.isfinite(found).all() else None


def _gain(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Logarithm of own by other error, mean over levels, (B,)."""
    tiny = np.finfo(float).tiny
    gain: np.ndarray = (np.log(own + tiny) - np.log(other + tiny)).mean(axis=0)
    return gain


def _no_better(gain: np.ndarray) -> float:
    """One-sided p-value of Student's t that gains, one per image, have mean 0 or less."""
    count = len(gain)
    spread = gain.std(ddof=1) / math.sqrt(count) if count > 1 else 0.0
    if spread <= 1e-9:  # the same function, or one image
        return 1.0
    return float(special.stdtr(count - 1, -gain.mean() / spread))
