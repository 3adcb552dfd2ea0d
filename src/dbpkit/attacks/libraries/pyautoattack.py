"""AutoAttack as packaged in pyautoattack, as one registered attack.

The thing people get wrong: AutoAttack drops every example that one draw got wrong, from all attacks that
follow. Against a random defence that is luck, and rows that move lose their noise. Here each example is
attacked alone, and the runner judges on draws of its own.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dbpkit.attacks.attack import AttackOutcome, attacks
from dbpkit.attacks.libraries.alignment import (
    AlignedView,
    Alignment,
    Draws,
    Queries,
    Returned,
    Routine,
    attack_aligned,
)
from dbpkit.attacks.libraries.library import class_count, import_library, norm_of, refuse_constant
from dbpkit.attacks.target import Target
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count
from dbpkit.threats.pixels import ThreatModel

PARTS = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
"""Versions and what they run. Source: Croce & Hein 2020 (arXiv:2003.01690)."""

CLASSES_NEEDED = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes that the losses look at."""


@attacks.register("pyautoattack")
def pyautoattack(
    target: Target,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel,
    noise: NoisePlan,
    version: Literal["standard", "plus", "rand"] = "rand",
    parts: Sequence[str] = (),
    iterations: Count | None = None,
    queries: Count | None = None,
    restarts: Count | None = None,
    eot: Count = 20,
    draws: Draws = "fresh",
    alignment: Alignment = "single",
) -> AttackOutcome:
    """AutoAttack of pyautoattack, one example at a time.

    Args:
        target: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        threat: ``Linf`` or ``L2``.
        noise: draws of the attack; query q uses draws q * eot to q * eot + eot - 1.
        version: which published ensemble.
        parts: which of its attacks, in order, in place of the version's.
        iterations: of APGD and FAB; None leaves the published 100.
        queries: of Square; None leaves the published 5000.
        restarts: of APGD, FAB and Square; None leaves the version's.
        eot: draws averaged in every query, in place of the library's own loop over gradients.
        draws: ``fresh`` ones at every query, or the same ``fixed`` ones.
        alignment: only ``single``: the library drops rows.

    Returns:
        The library's images, the clean one where it found nothing, and its claim per example. The library
        computes in float32.

    Raises:
        UserError: if the library is missing, an option is wrong, or a loss needs more classes.

    Source:
        Croce & Hein 2020 (arXiv:2003.01690); called, not copied.
    """
    library = import_library("pyautoattack", "pyautoattack")
    refuse_constant(
        alignment, "pyautoattack drops the rows that one draw got wrong, at every attack and restart"
    )
    norm = "Linf" if norm_of(threat, "pyautoattack") == float("inf") else "L2"
    lengths, queried = _Lengths(iterations, queries, restarts), Queries(eot, draws, alignment)
    chosen, classes = _chosen(version, parts), class_count(target, x, noise)
    _check_classes(chosen, classes)
    make = partial(library.AutoAttack, norm=norm, eps=threat.eps, version=version)
    routine = _routine(make, chosen, lengths, classes)
    return attack_aligned(routine, target, x, y, threat=threat, noise=noise, queries=queried)


class _Lengths(NamedTuple):
    """How long its attacks run; None leaves the library's number."""

    iterations: int | None
    queries: int | None
    restarts: int | None


def _chosen(version: str, parts: Sequence[str]) -> list[str]:
    """The attacks that run; UserError for an unknown name."""
    if version not in PARTS:
        raise unknown_name("version of pyautoattack", version, PARTS)
    chosen = list(parts or PARTS[version])
    for part in chosen:
        if part not in PARTS["plus"]:
            raise unknown_name("part of pyautoattack", part, PARTS["plus"])
    return chosen


def _check_classes(parts: Sequence[str], classes: int) -> None:
    """Raises UserError if a loss looks at more classes than the model has."""
    for part in parts:
        if classes < CLASSES_NEEDED.get(part, 2):
            raise UserError(
                f"'{part}' needs at least {CLASSES_NEEDED[part]} classes, the model has {classes}. Leave it"
                " out of parts."
            )


def _routine(make: Callable[..., Any], parts: list[str], lengths: _Lengths, classes: int) -> Routine:
    """How the library is called; ``make`` has its norm, budget and version."""

    def routine(view: AlignedView, x: Tensor, y: Tensor) -> Returned:
        evaluation = make(view, seed=torch.initial_seed(), device=x.device)
        _configure(evaluation, parts, min(9, classes - 1), lengths)
        with _quiet():
            x_adv, y_pred = evaluation.run_standard_evaluation(x.float(), y, batch_size=len(x))
        return Returned(x_adv, y_pred != y)

    return routine


def _configure(evaluation: Any, parts: list[str], targets: int, lengths: _Lengths) -> None:
    """Sets what differs from the version."""
    evaluation.attacks_to_run = parts
    evaluation.apgd.eot_iter = 1  # the view averages
    evaluation.apgd_targeted.n_target_classes = evaluation.fab.n_target_classes = targets
    iterations, queries, restarts = lengths
    if iterations is not None:
        evaluation.fab.n_iter = iterations
        for apgd in (evaluation.apgd, evaluation.apgd_targeted):
            apgd.n_iter = apgd.n_iter_orig = iterations
            apgd.n_iter_2 = max(int(0.22 * iterations), 1)  # checkpoints: section 3.2 of the paper
            apgd.n_iter_min = max(int(0.06 * iterations), 1)
            apgd.size_decr = max(int(0.03 * iterations), 1)
    if queries is not None:
        evaluation.square.n_queries = queries
    if restarts is not None:
        for attack in (evaluation.apgd, evaluation.apgd_targeted, evaluation.fab, evaluation.square):
            attack.n_restarts = restarts


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences advice that the library logs for every example, and restores the tracer that it removes."""
    logger, tracer = logging.getLogger("auto-attack"), sys.gettrace()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        sys.settrace(tracer)
