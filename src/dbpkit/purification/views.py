"""What an attacker differentiates: views of a purified classifier, exact and otherwise."""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Frozen
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone
from dbpkit.foundation.registry import Registry
from dbpkit.models.heads import Unsquashed
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.ensemble import Averaged, Ensemble
from dbpkit.purification.mixture import Mixture
from dbpkit.purification.purifier import PurifiesImages, row_calls
from dbpkit.purification.replay import straight_through

gradients: Registry[Callable[..., Any]] = Registry("gradient")
"""What an attacker differentiates: ``view(model, **options)`` returns the model as the attacker sees it."""


@gradients.register("exact")
def exact(model: PurifiedClassifier) -> nn.Module:
    """The model itself: the exact gradient of the function that classifies."""
    return model


@gradients.register("bpda")
def bpda(model: PurifiedClassifier) -> nn.Module:
    """Exact values, but purification is taken for the identity in the backward pass."""
    return model.with_purifier(StraightThrough(model.purifier))


@gradients.register("surrogate")
def surrogate(model: PurifiedClassifier, steps: Count = 50) -> nn.Module:
    """The attacker differentiates a purifier with fewer steps; the real one judges.

    Args:
        model: the purified classifier.
        steps: S of the surrogate's grid; with 1 it denoises once, where the grid has no such step.

    Source:
        Lee & Kim 2023 (arXiv:2303.09051), surrogate process.
    """
    if not isinstance(model.purifier, Purifier | Mixture):
        raise UserError(
            "gradient 'surrogate' needs a diffusion purifier. Use 'exact' or 'bpda' for other purifiers."
        )
    return model.with_purifier(model.purifier.coarser(steps))


@gradients.register("blind")
def blind(model: PurifiedClassifier) -> nn.Module:
    """The attacker does not know of the purifier and attacks the classifier alone."""
    return Undefended(model.classifier)


@gradients.register("mean_logits")
def mean_logits(model: PurifiedClassifier, members: Count = 10, average: Averaged = "logits") -> nn.Module:
    """The attacker differentiates the mean over several purifications, which then also judges known noise.

    Args:
        model: the purified classifier.
        members: purifications that are averaged, R; eot counts ensembles of so many.
        average: ``logits`` or ``softmax``.

    Source:
        Du, Hill & Cai 2026, MEFA (arXiv:2605.06357).
    """
    return Ensemble(model, members, average)


@gradients.register("unsquashed")
def unsquashed(model: nn.Module) -> nn.Module:
    """The attacker differentiates the values before a squashing head; the real model judges."""
    classifier = getattr(model, "classifier", None)
    if not isinstance(classifier, nn.Module):
        raise UserError("gradient 'unsquashed' needs a model with a classifier, an nn.Module.")
    view = copy.copy(model)
    view._modules = {**model._modules, "classifier": Unsquashed(classifier).eval()}
    return view


@gradients.register("other_tape")
def other_tape(model: PurifiedClassifier, tape: CountOrNone = 0) -> nn.Module:
    """The attacker knows one tape of noise by heart, but not the defender's; exact on that tape.

    The tape is draw number ``tape`` of lane 0 of the attack stream, which no attack and no score draws from.

    Args:
        model: the purified classifier.
        tape: number of the tape.
    """
    return Taped(model, tape)


class Taped(Frozen):
    """A purified classifier with the same noise at every call, one tape for each example.

    Args:
        model: the purified classifier.
        tape: number of the tape.
    """

    sites: frozenset[str] = frozenset()

    def __init__(self, model: PurifiedClassifier, tape: int = 0) -> None:
        super().__init__()
        self.model = model
        self.tape = tape

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1]; of ``noise`` only the examples count."""
        logits: Tensor = self.model(x, noise=self._own(noise))
        return logits

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and deviation (B,) on the tape, see `Purifier.traced`."""
        return self.model.traced(x, noise=self._own(noise))

    def coarser(self, steps: int) -> "Taped | None":
        """Returns the same view of the model on a grid of so many steps, see `PurifiedClassifier.coarser`."""
        model = self.model.coarser(steps)
        return None if model is None else Taped(model, self.tape)

    def _own(self, noise: NoisePlan) -> NoisePlan:
        return noise.tape(self.tape)


class StraightThrough(Frozen):
    """A purifier with the gradient of the identity; see `dbpkit.purification.replay.straight_through`."""

    def __init__(self, purifier: PurifiesImages) -> None:
        super().__init__()
        self.purifier = purifier
        self.sites, self.calls, self.row_calls = purifier.sites, purifier.calls, row_calls(purifier)

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) exactly."""
        return straight_through(lambda x: self.purifier(x, noise=noise), x)

    def coarser(self, steps: int) -> "StraightThrough | None":
        """Returns the same around a purifier of so many steps; None if there is none."""
        make = getattr(self.purifier, "coarser", None)
        purifier = make(steps) if make else None
        return None if purifier is None else StraightThrough(purifier)
