"""Many purifiers around one denoiser: how they are named, screened by forward passes, and attacked exactly.

An image that falls within a small budget has fallen within every larger one, so only what still stands is
attacked again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dbpkit.analyses.analysis import Subject
from dbpkit.analyses.tools.boundary import finite, margins
from dbpkit.analyses.tools.directions import TINY, budget_length, compression_rate, lengths
from dbpkit.experiment.build import make_purifier
from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import amount, validate
from dbpkit.foundation.times import start_words
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.replay import DEFAULT_MEMORY
from dbpkit.threats.pixels import make_threat

_SMALL = {"variance": "small"}

CONFIGURATIONS: tuple[Mapping[str, Any], ...] = tuple(
    {"sampler": sampler, "t_star": t_star, "steps": 20, "options": options}
    for sampler, options in {"ddpm": _SMALL, "ddim": {}, "one_step": {}, "reverse_only": _SMALL}.items()
    for t_star in (0.05, 0.1, 0.15, 0.2)
)
"""Sixteen purifiers of 1 to 5 network calls: the samplers of the papers at four noise levels."""

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
"""Budgets that are looked at by default, as shares of the spec's."""


@dataclass(frozen=True)
class Setting:
    """A purifier's setting; equal where the names are.

    Attributes:
        name: such as ``ddpm t*=0.1 S=20 variance=small``.
        purifier: what it stands for.
        group: what settings that differ in noise level and grid have in common: the sampler, of which run.
    """

    name: str
    purifier: PurifierSpec = field(compare=False)
    group: str = field(compare=False)

    def __str__(self) -> str:
        return self.name

    def of(self, run: str) -> "Setting":
        """Returns the same setting as one of several runs'."""
        return Setting(f"{run}: {self.name}", self.purifier, f"{run}: {self.group}")


def by_group(found: Iterable[Setting]) -> dict[str, list[Setting]]:
    """The settings of each group, in order."""
    groups: dict[str, list[Setting]] = {}
    for setting in found:
        groups.setdefault(setting.group, []).append(setting)
    return groups


def settings(configurations: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """Purifier settings, each with its name.

    Args:
        configurations: tables with the keys of a spec's ``[purifier]``.

    Raises:
        UserError: if a key or a value is wrong, or two configurations are the same.
    """
    found: list[Setting] = []
    for number, table in enumerate(configurations):
        if not isinstance(table, Mapping):
            raise UserError(f"configurations[{number}] must be a table with sampler, t_star and steps.")
        chosen = validate(dict(table), PurifierSpec, f"configurations[{number}]")
        extra = {**chosen.options, **chosen.grid, **({} if chosen.clamp is None else {"clamp": chosen.clamp})}
        chain = f"{chosen.sampler} t*={start_words(chosen.t_star)} S={chosen.steps}"
        name = " ".join(
            [
                chain if chosen.is_diffusion else chosen.name,
                *(f"{k}={v}" for k, v in extra.items()),
            ]
        )
        setting = Setting(name, chosen, chosen.sampler if chosen.is_diffusion else chosen.name)
        if setting in found:
            raise UserError(f"configurations: '{name}' is listed twice. Delete one.")
        found.append(setting)
    return found


def with_purifier(subject: Subject, setting: Setting) -> Subject:
    """Returns the subject with another purifier around the same denoiser and classifier."""
    model = subject.parts.model
    memory_bytes = getattr(model.purifier, "memory_bytes", DEFAULT_MEMORY)
    purifier = make_purifier(setting.purifier, subject.parts.denoiser, memory_bytes)
    changed = PurifiedClassifier(purifier, model.classifier, seed=model.seed)
    return subject._replace(parts=subject.parts._replace(model=changed))


def with_eps(subject: Subject, eps: float) -> Subject:
    """Returns the subject with another budget in the spec's norm, in pixel units."""
    threat = make_threat(subject.spec.threat.norm, eps, subject.spec.threat.options)
    return subject._replace(parts=subject.parts._replace(threat=threat))


def budgets(subject: Subject, texts: Sequence[str | float]) -> list[float]:
    """Budgets in pixel units, increasing; without texts, `SHARES` of the spec's."""
    return sorted(pixels(text) for text in texts) or [share * subject.parts.threat.eps for share in SHARES]


def budget_lengths(subject: Subject, eps: Sequence[float], x: Tensor) -> list[Any]:
    """Typical lengths of perturbations of each budget, ready for JSON.

    Returns:
        For each budget a number if all images have the same, else B numbers.
    """
    found = [budget_length(with_eps(subject, e), x).tolist() for e in eps]
    return [own[0] if len(set(own)) == 1 else own for own in found]


def per_image(found: Mapping[str, Any], images: int) -> np.ndarray:
    """What `budget_lengths` gave, read from a record of ``images`` examples, (images, E)."""
    return np.stack([np.broadcast_to(np.asarray(own), images) for own in found["lengths"]], axis=1)


def pixels(text: str | float) -> float:
    """Value of a budget such as ``"0.5/255"`` or ``"0.03"``; UserError unless it is a positive number."""
    try:
        value = amount(str(text))
    except ValueError:
        value = 0.0
    if not value > 0:
        raise UserError(f'eps \'{text}\' is not a positive number of pixel units. Write "8/255" or "0.03".')
    return value


def eps_name(eps: float) -> str:
    """A budget as text, in 255ths where that is short: ``"2/255"``."""
    of_255 = round(eps * 255, 6)
    return f"{of_255:g}/255" if of_255 * 8 % 1 == 0 and of_255 <= 64 else f"{eps:.3g}"


def screen(
    subject: Subject, x: Tensor, y: Tensor, anchor: Tensor, noise: NoisePlan, directions: int
) -> dict[str, list[Any]]:
    """What is known of a purifier without a gradient through it.

    Args:
        subject: the purifier; the spec's budget gives the length of the random perturbations.
        x: images (B, C, H, W).
        y: labels (B,).
        anchor: the purified images under the same noise.
        noise: the tape of the B examples.
        directions: random directions per example.

    Returns:
        Lists of B: ``right`` at the anchor, compression ``rate``, and ``margin`` of the classifier alone at
        the anchor (Euclidean, None if none was found); only the margin needs a gradient, the classifier's.
    """
    size = budget_length(subject, x)
    return {
        "right": (subject.classify(anchor).argmax(1) == y).tolist(),
        "rate": compression_rate(subject, x, anchor, noise, "gaussian", size, directions).tolist(),
        "margin": finite(margins(subject, anchor, y)),
    }


def survival(
    subject: Subject,
    x: Tensor,
    y: Tensor,
    anchor: Tensor,
    noise: NoisePlan,
    tape: int,
    eps: Sequence[float],
    iterations: int,
) -> dict[str, list[list[Any]]]:
    """Attacks at every budget with the noise known and the exact gradient: PGD against a fixed function.

    Args:
        subject: the purifier.
        x: images (B, C, H, W).
        y: labels (B,).
        anchor: the images purified under report draw ``tape``.
        noise: the examples' noise.
        tape: which report draw is known to the attack and judges it.
        eps: budgets in pixel units, increasing.
        iterations: steps of each attack.

    Returns:
        Per image a list over budgets: ``survived``; Euclidean ``length`` of the perturbation found and its
        compression ``attack_rate``, None for images that had fallen before and are not attacked again.

    Source:
        Liu & Wei 2025 (arXiv:2505.22839), fixed randomness.
    """
    plan = noise.at(tape)
    standing = subject.classify(anchor).argmax(1) == y
    survived, length, rate = ([[None] * len(eps) for _ in x] for _ in range(3))
    for e, budget in enumerate(eps):
        index = standing.nonzero().flatten()
        if len(index):
            at_budget, some = with_eps(subject, budget), noise.rows(index)
            delta = at_budget.attack(
                x[index], y[index], some, known["dw_both"], tape, iterations=iterations, eot=1
            ).x_adv - x[index]  # fmt: skip
            x_pure = subject.purify(x[index] + delta, plan.rows(index))
            standing[index] = subject.classify(x_pure).argmax(1) == y[index]
            size = lengths(delta)
            rates = lengths(x_pure - anchor[index]) / size.clamp_min(TINY)
            for b, one, other in zip(index.tolist(), size.tolist(), rates.tolist(), strict=True):
                length[b][e], rate[b][e] = one, other
        for b, stands in enumerate(standing.tolist()):
            survived[b][e] = stands
    return {"survived": survived, "length": length, "attack_rate": rate}


def predicted(
    right: Sequence[bool], margin: Sequence[float | None], rate: float, length: Sequence[float]
) -> list[bool]:
    """The formula, per image: right at the anchor, and margin > rate * length of the perturbation.

    Args:
        right: per image, whether the anchor is classified correctly.
        margin: Euclidean margin of the classifier at the anchor; None for none found.
        rate: compression rate of the purifier.
        length: per image, Euclidean length of the perturbation, pixel units.

    Source:
        Reconstruction from Liu & Wei 2025: RA = P(M(f(x)) = y and gamma(f(x)) > CR ||delta||).
    """
    one_by_one = zip(right, margin, length, strict=True)
    return [bool(r and (m is None or m > rate * size)) for r, m, size in one_by_one]
