"""The purified classifier, and a classifier alone under the same protocol.

A purified classifier is random. ``model(x, noise=plan)`` is a deterministic function of its arguments;
``model(x)`` draws fresh noise at every call, for attack libraries that know no noise.

Everything here is `Frozen`: weights fixed, eval mode at every call, and no network sees the caller's memory.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Counter, Frozen, as_frozen, call_apart, uncompiled
from dbpkit.foundation.inputs import (
    check_images,
    check_length,
    check_outputs,
    check_seed,
    whole,
)
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.precision import current_precision, lowered
from dbpkit.foundation.rows import RowLimit
from dbpkit.foundation.types import Traced
from dbpkit.purification.purifier import PurifiesImages, as_purifier, check_call


class PurifiedClassifier(Frozen):
    """Purify, then classify: one purification, one prediction.

    Args:
        purifier: gives images in [0, 1]: a `Purifier`, or any module or function from images to images, see
            `dbpkit.purification.purifier.as_purifier`.
        classifier: maps images (B, C, H, W) in [0, 1] to logits (B, K); a plain function will do.
        seed: seed of the noise of calls without a plan.

    Raises:
        UserError: if a part is of another kind, or the seed out of range.

    Example:
        >>> from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_embedded
        >>> denoiser, classifier = load_embedded()
        >>> model = PurifiedClassifier(Purifier(denoiser, "ddim", steps=100), classifier)
        >>> model(torch.full((2, 3, 32, 32), 0.5), noise=NoisePlan.of(0, [4, 9])).shape
        torch.Size([2, 10])
    """

    purifier: PurifiesImages
    classifier: nn.Module

    def __init__(
        self,
        purifier: PurifiesImages | Callable[..., Tensor],
        classifier: nn.Module | Callable[..., Tensor],
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if hasattr(classifier, "sites") and hasattr(classifier, "calls"):
            raise UserError(
                f"the classifier is a purifier, {type(classifier).__name__}. Write"
                " PurifiedClassifier(purifier, classifier)."
            )
        self.purifier = as_purifier(purifier)
        self.classifier = as_frozen(classifier, "the classifier")
        self.seed = check_seed(seed)
        self._calls = Counter()

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites the purifier draws from; all of its randomness is there."""
        return self.purifier.sites

    @property
    def calls_without_plan(self) -> int:
        """How often the model has drawn noise of its own; the next such call draws number this."""
        return self._calls.value

    def forward(self, x: Tensor, *, noise: NoisePlan | None = None) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1].

        Args:
            x: images.
            noise: plan of the same B examples. Without one, noise is drawn afresh at every call from the
                model's seed and a count of such calls; rows are then positions, not examples.

        Raises:
            UserError: if ``x`` holds no such images, or the plan is one of another batch.
        """
        check_images(x, "PurifiedClassifier", pixels=False)
        noise = self._fresh(len(x)) if noise is None else noise
        check_call(x, noise, "PurifiedClassifier")
        self.settle()
        x_pure = self._purified(x, noise)
        return check_outputs(call_apart(self.classifier, x_pure), len(x))

    def _purified(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """The purified images; what is no purifier of this package is called as networks are."""
        if isinstance(self.purifier, Frozen):
            return self.purifier(x, noise=noise)
        with lowered(x.device.type):
            x_pure = self.purifier(x.clone(), noise=noise)
        return x_pure.to(x.dtype) if current_precision() == "bfloat16" else x_pure

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and the purifier's deviation (B,), see `Purifier.traced`.

        Raises:
            UserError: if the purifier does not tell its states.
        """
        if not isinstance(self.purifier, Traced):
            raise UserError(
                "the deviation of purification states needs a diffusion purifier, which"
                f" {type(self.purifier).__name__} is not. Use the gradient 'exact' or 'surrogate', or an"
                " attack without it."
            )
        self.settle()
        x_pure, deviation = self.purifier.traced(x, noise=noise)
        return check_outputs(call_apart(self.classifier, x_pure), len(x)), deviation

    @torch.no_grad()
    def draws(self, x: Tensor, *, noise: NoisePlan, count: int) -> Tensor:
        """Returns logits (B, R, K) of ``count`` = R independent purifications of each image."""
        whole(count, "count of draws", 1)
        check_call(x, noise, "PurifiedClassifier.draws")
        plan = noise.repeat(count)
        rows = x.repeat_interleave(count, dim=0)
        parts = RowLimit(len(rows)).over(len(rows), lambda part: self(rows[part], noise=plan.rows(part)))
        logits = torch.cat(parts)
        per_draw: Tensor = logits.unflatten(0, (len(x), count))
        return per_draw

    def with_purifier(self, purifier: PurifiesImages) -> "PurifiedClassifier":
        """Returns a copy of the model with another purifier and the same classifier."""
        view = copy.copy(self)
        view._modules = dict(self._modules)
        view.purifier = purifier
        return view

    def coarser(self, steps: int) -> "PurifiedClassifier | None":
        """Returns the model with ``steps`` steps, see `Purifier.coarser`; None if it has no grid."""
        make = getattr(self.purifier, "coarser", None)
        purifier = make(steps) if make else None
        return None if purifier is None else self.with_purifier(purifier)

    def bind(self, noise: NoisePlan) -> "BoundClassifier":
        """Returns a plain ``model(x) -> logits`` with the noise of a plan, for one batch of examples."""
        return BoundClassifier(self, noise)

    @uncompiled
    def _fresh(self, count: int) -> NoisePlan:
        return NoisePlan.of(self.seed, range(count), "attack", draw=self._calls.take())


class BoundClassifier(Frozen):
    """A deterministic view of a randomised classifier: one plan, one batch of examples.

    Args:
        model: the randomised classifier.
        noise: plan of the batch; a batch of another length is refused.
    """

    def __init__(self, model: nn.Module, noise: NoisePlan) -> None:
        super().__init__()
        check_length(noise, len(noise) if hasattr(noise, "example_ids") else 0, "bind")
        self.model = model
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, K); UserError unless ``x`` has the plan's B rows."""
        logits: Tensor = self.model(x, noise=self.noise)
        return logits


class Undefended(Frozen):
    """A classifier alone, under the same protocol; the noise is ignored.

    Args:
        classifier: maps images in [0, 1] to logits; a plain function will do.

    Raises:
        UserError: if it is neither.
    """

    sites: frozenset[str] = frozenset()

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = as_frozen(classifier, "the classifier")

    def forward(self, x: Tensor, *, noise: NoisePlan | None = None) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) in [0, 1]."""
        check_call(x, noise, "Undefended")
        self.settle()
        return check_outputs(call_apart(self.classifier, x), len(x))

    def traced(self, x: Tensor, *, noise: NoisePlan | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and a deviation (B,) of 0: nothing is purified."""
        return self(x, noise=noise), torch.zeros_like(x[:, 0, 0, 0])
