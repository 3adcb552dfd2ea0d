"""The purifier and the purified classifier: pixels in [0, 1] in, pixels or logits out.

Everything outside works in [0, 1]; only this file knows that diffusion models want [-1, 1]. The thing
people get wrong: a purified classifier is random. ``model(x, noise=plan)`` is a deterministic function of
its arguments; ``model(x)`` draws fresh noise at every call, for attack libraries that know no noise.

Everything here is `Frozen`: weights fixed, eval mode at every call, and no network sees the caller's memory.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Counter, Frozen, as_frozen, call_apart, uncompiled
from dbpkit.foundation.inputs import (
    check_images,
    check_length,
    check_outputs,
    check_seed,
    check_unit,
    real,
    whole,
)
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, CountOrNone
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.types import Denoiser, StepHook
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.models.heads import Unsquashed
from dbpkit.purification.replay import DEFAULT_MEMORY, Replay, straight_through
from dbpkit.purification.samplers import make_sampler
from dbpkit.purification.samplers.method import BoundSampler

gradients: Registry[Callable[..., Any]] = Registry("gradient")
"""What an attacker differentiates: ``view(model, **options)`` returns the model as the attacker sees it."""


class Purifier(Frozen):
    """Noises images to t* and denoises them.

    Weights are frozen and in eval mode at every call; gradients with respect to the image are exact, second
    ones too. A denoiser in another precision gets images in its own.

    Args:
        denoiser: any `Denoiser`.
        sampler: registered name or import path.
        t_star: diffusion time where purification starts, in (0, 1).
        steps: S of the sampler's published grid.
        options: keyword arguments of the sampler.
        grid: further keyword arguments of its grid.
        clamp: whether the purified image is clipped to [0, 1]; None does as published for the sampler.
        memory_bytes: budget for kept graphs, see `dbpkit.purification.replay.Replay`.

    Raises:
        UserError: if a name or an option is unknown or out of range.

    Example:
        >>> from dbpkit import NoisePlan, Purifier, load_embedded
        >>> denoiser, _ = load_embedded()
        >>> purifier = Purifier(denoiser, "ddim", steps=100)
        >>> purifier(torch.full((1, 3, 32, 32), 0.5), noise=NoisePlan.of(0, [0])).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: str = "ddpm",
        *,
        t_star: float = 0.1,
        steps: int = 1000,
        options: Mapping[str, Any] | None = None,
        grid: Mapping[str, Any] | None = None,
        clamp: bool | None = None,
        memory_bytes: int = DEFAULT_MEMORY,
    ) -> None:
        super().__init__()
        if isinstance(denoiser, nn.Module):
            denoiser.requires_grad_(False).eval()
        elif isinstance(denoiser, type) or not callable(denoiser):
            raise UserError(f"the denoiser must be callable as denoiser(x, sigma), not {denoiser!r:.60}.")
        if not isinstance(sampler, str):
            raise UserError(f"the sampler is given by name or import path, not as {type(sampler).__name__}.")
        if not 0 < real(t_star, "t_star") < 1:
            raise UserError(f"t_star must lie in (0, 1), not {t_star:g}.")
        self.denoiser = denoiser
        self.settings: dict[str, Any] = {
            "sampler": sampler,
            "t_star": t_star,
            "steps": whole(steps, "steps", 1),
            "options": options,
            "grid": grid,
        }
        self.sampler = make_sampler(sampler, t_star, steps, options, grid)
        self.clamp = self.sampler.clamps if clamp is None else bool(clamp)
        self.memory_bytes = whole(memory_bytes, "memory_bytes")
        self.verify_replay = False

    @property
    def calls(self) -> int:
        """Sampler steps of one purification, each one or two network calls."""
        return len(self.sampler.levels) - 1

    @uncompiled
    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images.

        Args:
            x: images (B, C, H, W), nominally in [0, 1].
            noise: plan of the same B examples.

        Returns:
            Purified images (B, C, H, W), in [0, 1] if ``clamp``.

        Raises:
            UserError: if ``x`` holds no such images, or the plan is one of another batch.
        """
        _check(x, noise, "Purifier")
        return self._purify(x, noise, self._hook())

    @uncompiled
    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Purifies images and tells how far the way back strays from the way there.

        Of every third state, counted from the purified image upwards, the deviation is the mean squared
        difference from the forward state at its level, on the same draw and in the sampler's own units.

        Args:
            x: images (B, C, H, W), nominally in [0, 1].
            noise: plan of the same B examples.

        Returns:
            Purified images (B, C, H, W) and deviations (B,), both differentiable in ``x``.

        Raises:
            UserError: if the sampler does not pass one state per level to its step hook.

        Source:
            Kang et al. 2023 (DiffAttack, NeurIPS), the deviated-reconstruction loss at a third of the steps,
            taken evenly and weighted equally.
        """
        _check(x, noise, "Purifier")
        hook = self._hook()
        states: list[Tensor] = []

        def kept(function: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
            states.append(hook(function, state))
            return states[-1]

        x_pure = self._purify(x, noise, kept)
        if len(states) != self.calls:
            raise UserError(
                f"sampler '{self.settings['sampler']}' made {len(states)} steps on a grid of {self.calls};"
                " its states cannot be compared with forward states. Use an attack without their deviation."
            )
        image, sampler = 2 * x - 1, self.sampler
        z = noise.normal("forward", 0, image) if "forward" in sampler.sites else torch.zeros_like(image)
        gaps = []
        for state, sigma in list(zip(states, sampler.levels[1:].tolist(), strict=True))[::-3]:
            forward = sampler.scale(sigma) * (image + sigma * z)
            gaps.append((state - forward).square().flatten(1).mean(dim=1))
        return x_pure, torch.stack(gaps, dim=1).mean(dim=1)

    def _hook(self) -> Replay:
        return Replay(self.calls, self.memory_bytes, verify=self.verify_replay, settle=self.settle)

    def _denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """One call of the denoiser, on a copy of the sampler's state in the denoiser's own precision."""
        if isinstance(self.denoiser, VPDenoiser | EDMDenoiser):  # they see to their network themselves
            return self.denoiser(x, sigma)
        x0 = call_apart(self.denoiser, x, sigma)
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            found = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise UserError(f"the denoiser must return clean images {tuple(x.shape)}, got {found}.")
        return x0

    def _purify(self, x: Tensor, noise: NoisePlan, step: StepHook) -> Tensor:
        self.settle()
        x0 = self.sampler.sample(self._denoise, 2 * x - 1, self.sampler.levels, noise=noise, step=step)
        x_pure = (x0 + 1) / 2
        return x_pure.clamp(0, 1) if self.clamp else x_pure

    def with_steps(self, steps: int) -> "Purifier":
        """Returns the same purifier on another step grid, sharing the weights."""
        return Purifier(
            self.denoiser,
            **{**self.settings, "steps": steps},
            clamp=self.clamp,
            memory_bytes=self.memory_bytes,
        )


class PurifiesImages(Protocol):
    """What `PurifiedClassifier` needs of a purifier; `Purifier` and the attackers' views of it have it."""

    sampler: BoundSampler

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) in [0, 1]."""
        ...


class PurifiedClassifier(Frozen):
    """Purify, then classify: one purification, one prediction.

    Args:
        purifier: gives images in [0, 1].
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

    def __init__(self, purifier: PurifiesImages, classifier: nn.Module, *, seed: int = 0) -> None:
        super().__init__()
        if not (callable(purifier) and hasattr(purifier, "sampler")):
            raise UserError(
                "the purifier must be a Purifier, or called as purifier(x, noise=plan) with a sampler, not"
                f" {type(purifier).__name__}. Write PurifiedClassifier(purifier, classifier)."
            )
        self.purifier = purifier
        self.classifier = as_frozen(classifier, "the classifier")
        self.seed = check_seed(seed)
        self._calls = Counter()

    @property
    def sites(self) -> frozenset[str]:
        """Noise sites the purifier draws from; all of its randomness is there."""
        return self.purifier.sampler.sites

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
        _check(x, noise, "PurifiedClassifier")
        self.settle()
        own = isinstance(self.purifier, Frozen)
        x_pure = self.purifier(x if own else x.clone(), noise=noise)
        return check_outputs(call_apart(self.classifier, x_pure), len(x))

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and the purifier's deviation (B,), see `Purifier.traced`.

        Raises:
            UserError: if the purifier does not tell its states.
        """
        if not isinstance(self.purifier, Purifier):
            raise UserError(
                "the deviation of purification states needs a dbpkit Purifier, which"
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
        _check(x, noise, "PurifiedClassifier.draws")
        plan = noise.repeat(count)
        logits = self(x.repeat_interleave(count, dim=0), noise=plan)
        return logits.unflatten(0, (len(x), count))

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
        return self.model(x, noise=self.noise)


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
        _check(x, noise, "Undefended")
        self.settle()
        return check_outputs(call_apart(self.classifier, x), len(x))

    def traced(self, x: Tensor, *, noise: NoisePlan | None = None) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and a deviation (B,) of 0: nothing is purified."""
        return self(x, noise=noise), torch.zeros_like(x[:, 0, 0, 0])


@gradients.register("exact")
def exact(model: PurifiedClassifier) -> nn.Module:
    """The model itself: the exact gradient of the function that classifies."""
    return model


@gradients.register("bpda")
def bpda(model: PurifiedClassifier) -> nn.Module:
    """Exact values, but purification is taken for the identity in the backward pass."""
    return _replaced(model, StraightThrough(model.purifier))


@gradients.register("surrogate")
def surrogate(model: PurifiedClassifier, steps: Count = 50) -> nn.Module:
    """The attacker differentiates a purifier with fewer steps; the real one judges.

    Args:
        model: the purified classifier.
        steps: S of the surrogate's grid.

    Source:
        Lee & Kim 2023 (arXiv:2303.09051), surrogate process.
    """
    if not isinstance(model.purifier, Purifier):
        raise UserError(
            "gradient 'surrogate' needs a dbpkit Purifier. Use 'exact' or 'bpda' for other purifiers."
        )
    return _replaced(model, model.purifier.with_steps(steps))


@gradients.register("blind")
def blind(model: PurifiedClassifier) -> nn.Module:
    """The attacker does not know of the purifier and attacks the classifier alone."""
    return Undefended(model.classifier)


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
        return self.model(x, noise=self._own(noise))

    def traced(self, x: Tensor, *, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Returns logits (B, K) and deviation (B,) on the tape, see `Purifier.traced`."""
        return self.model.traced(x, noise=self._own(noise))

    def _own(self, noise: NoisePlan) -> NoisePlan:
        return NoisePlan.of(noise.seed, noise.example_ids, "attack", draw=self.tape)


class StraightThrough(Frozen):
    """A purifier with the gradient of the identity; see `dbpkit.purification.replay.straight_through`."""

    def __init__(self, purifier: PurifiesImages) -> None:
        super().__init__()
        self.purifier = purifier
        self.sampler = purifier.sampler

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) exactly."""
        return straight_through(lambda x: self.purifier(x, noise=noise), x)


@uncompiled
def _check(x: Tensor, noise: NoisePlan | None, where: str) -> None:
    """Raises UserError unless images and plan are what a call of a model needs."""
    check_images(x, where, pixels=False)
    check_unit(x, where)
    if noise is not None:
        check_length(noise, len(x), where)


def _replaced(model: PurifiedClassifier, purifier: PurifiesImages) -> PurifiedClassifier:
    """A copy of the model with another purifier and the same classifier."""
    view = copy.copy(model)
    view._modules = dict(model._modules)
    view.purifier = purifier
    return view
