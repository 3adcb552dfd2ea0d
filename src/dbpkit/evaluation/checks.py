"""Preflight checks on the user's own models, before a long run; `docs/flags.md` explains each.

They look at a few images with fixed noise. The thing people get wrong: a gradient that exists is not a
gradient that is right, so the exact one is compared with a difference of two function values.
"""

import torch
from torch import Tensor

from dbpkit.attacks.target import cross_entropy
from dbpkit.errors import UserError
from dbpkit.evaluation.build import Parts
from dbpkit.evaluation.spec import EvaluationSpec
from dbpkit.gradients import directional_derivatives
from dbpkit.noise import NoisePlan
from dbpkit.purify import PurifiedClassifier, Purifier
from dbpkit.results.flags import Flag

PROBE_EXAMPLES = 4
DIFFERENCE_STEPS = (0.1, 0.03, 0.01, 0.003)
"""Lengths of the numeric difference, in Euclidean pixel units; the best agreement counts."""

REPLAY_TOLERANCE = 1e-3
"""Largest relative difference between replayed and plain gradients; float32 rounding stays far below."""

DERIVATIVE_TOLERANCE = 0.1
"""Largest relative disagreement. Float32 rounding and the kinks of clips stay well below; a BPDA gradient
or a detached path disagrees by a factor."""


def preflight(parts: Parts, spec: EvaluationSpec) -> list[Flag]:
    """Runs every check on the first few examples.

    Raises:
        UserError: if the parts do not fit each other at all.
    """
    data = parts.data.select(slice(0, PROBE_EXAMPLES))
    device = next((p.device for p in parts.model.classifier.parameters()), torch.device("cpu"))
    x, y = data.x().to(device), data.labels.to(device)
    noise = NoisePlan.of(spec.seed, data.ids, "select")
    check_fit(parts, x, y)
    return [
        *probabilities(parts.model.classifier(x)),
        *untracked_randomness(parts.model, x, noise),
        *suspicious_level(parts, spec),
        *derivative(parts.model, x, y, noise),
        *replay(parts.model, x, y, noise),
    ]


@torch.no_grad()
def check_fit(parts: Parts, x: Tensor, y: Tensor) -> None:
    """Raises UserError unless classifier, denoiser and data agree in channels, size and classes."""
    shape = tuple(x.shape[1:])
    try:
        logits = parts.model.classifier(x)
    except (RuntimeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(
            f"the classifier does not accept images of shape {shape}: {_first_line(error)}. Use"
            " data of its size and channels."
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        raise UserError(
            f"the classifier must return logits ({len(x)}, K) for {len(x)} images, got {_shape(logits)}."
        )
    if int(y.max()) >= logits.shape[1] or logits.shape[1] < len(parts.data.class_names):
        raise UserError(
            f"the classifier has {logits.shape[1]} classes, but the data has"
            f" {len(parts.data.class_names)}. Use a classifier trained on this data."
        )
    try:
        sigma = torch.ones((), device=x.device)
        x0 = parts.denoiser(2 * x - 1, sigma)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"the denoiser does not accept images of shape {shape}: {_first_line(error)}. Use data"
            " of its size and channels."
        ) from error
    if not isinstance(x0, Tensor) or x0.shape != x.shape:
        raise UserError(f"the denoiser must return clean images {tuple(x.shape)}, got {_shape(x0)}.")


@torch.no_grad()
def probabilities(logits: Tensor) -> list[Flag]:
    """Flags a classifier whose outputs are probabilities, which flattens the loss of every attack."""
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        return [
            Flag(
                "probabilities",
                "error",
                "The classifier returns probabilities (rows sum to 1); return logits before the softmax.",
            )
        ]
    return []


@torch.no_grad()
def untracked_randomness(model: PurifiedClassifier, x: Tensor, noise: NoisePlan) -> list[Flag]:
    """Flags a model that gives two results for the same image and the same noise."""
    gap = float((model(x, noise=noise) - model(x, noise=noise)).abs().max())
    if gap > 0:
        return [
            Flag(
                "untracked_randomness",
                "error",
                f"Two calls with the same noise differ by {gap:.3g} in a logit: something draws"
                " noise of its own (dropout, train mode, random augmentation), and no attacker can"
                " be told it.",
            )
        ]
    return []


def suspicious_level(parts: Parts, spec: EvaluationSpec) -> list[Flag]:
    """Flags a start of purification that is hardly noisier than the attack, or a grid of very few steps."""
    sampler = parts.model.purifier.sampler
    sigma, calls = float(sampler.levels[0]), len(sampler.levels) - 1
    reach = (
        2 * parts.threat.eps
        if spec.threat.norm == "linf"
        else 2 * parts.threat.eps / parts.data.images[0].numel() ** 0.5
    )
    flags = []
    if sigma < max(2 * reach, 0.1):
        flags.append(
            Flag(
                "suspicious_level",
                "warning",
                f"Purification starts at noise level {sigma:.3f} (in [-1, 1] units; t* ="
                f" {spec.purifier.t_star}); the papers use 0.34 (t* = 0.1, t = 100 of 1000). t = 10"
                " where 100 was meant gives 0.047.",
            )
        )
    if sigma > 1.5:
        flags.append(
            Flag(
                "suspicious_level",
                "warning",
                f"Purification starts at noise level {sigma:.2f}: more noise than image. t* is a"
                " fraction of 1, not a percentage.",
            )
        )
    if calls < 5 and spec.purifier.sampler not in ("one_step", "ddim", "heun"):
        flags.append(
            Flag(
                "suspicious_grid",
                "warning",
                f"The chain has only {calls} steps from t*; `steps` counts the whole chain of 1000,"
                " the papers use 50 to 1000.",
            )
        )
    return flags


def derivative(model: PurifiedClassifier, x: Tensor, y: Tensor, noise: NoisePlan) -> list[Flag]:
    """Flags a gradient that disagrees with the numeric derivative along itself."""
    leaf = x.detach().requires_grad_()
    value = cross_entropy(model(leaf, noise=noise), y)
    if not value.requires_grad:
        return [
            Flag(
                "gradient_mismatch",
                "error",
                "The output does not depend on the input for autograd: a path is detached.",
            )
        ]
    (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if grad is None or not bool(torch.isfinite(grad).all()):
        return [
            Flag(
                "non_finite_gradient",
                "error",
                "The gradient of the loss is missing or not finite at a clean image.",
            )
        ]
    norm = grad.flatten(1).norm(dim=1)
    if bool((norm == 0).all()):
        return [
            Flag(
                "zero_gradient",
                "error",
                "The gradient of the loss is exactly zero at every probed image: a detached path or"
                " saturated logits.",
            )
        ]
    direction = grad / norm.clamp_min(1e-30)[:, None, None, None]
    gaps = []
    for step in DIFFERENCE_STEPS:
        exact, numeric = directional_derivatives(
            lambda z: cross_entropy(model(z, noise=noise), y), x, direction, step
        )
        gaps.append(((exact - numeric).abs() / (numeric.abs() + 1e-3 * norm.mean() + 1e-12)).median())
    gap = float(min(gaps))
    if gap > DERIVATIVE_TOLERANCE:
        return [
            Flag(
                "gradient_mismatch",
                "error",
                f"The exact and the numeric directional derivative disagree by {gap:.0%} (median of"
                f" {len(x)} images): the gradient is not that of the function, so attacks with it"
                " prove nothing.",
            )
        ]
    return []


def replay(model: PurifiedClassifier, x: Tensor, y: Tensor, noise: NoisePlan) -> list[Flag]:
    """Flags a purification whose replayed steps differ from the first run, in value or in gradient."""
    purifier = model.purifier
    if not isinstance(purifier, Purifier):
        return []
    before = purifier.memory_bytes, purifier.verify_replay
    grads: list[Tensor] = []
    try:
        for memory_bytes in (0, 1 << 60):  # every step but the last replayed; none replayed
            purifier.memory_bytes, purifier.verify_replay = memory_bytes, memory_bytes == 0
            leaf = x.detach().requires_grad_()
            loss = cross_entropy(model(leaf, noise=noise), y).sum()
            grads += torch.autograd.grad(loss, leaf, materialize_grads=True)
    except UserError as error:
        return [Flag("replay_differs", "error", f"{error}")]
    except RuntimeError as error:
        message = f"The purification cannot be differentiated: {_first_line(error)}."
        return [Flag("gradient_mismatch", "error", message)]
    finally:
        purifier.memory_bytes, purifier.verify_replay = before
    gap = float((grads[0] - grads[1]).norm() / grads[1].norm().clamp_min(1e-30))
    if gap > REPLAY_TOLERANCE:
        message = (
            f"The gradient differs by {gap:.1%} when steps are replayed: a sampler step uses a tensor that"
            " depends on the image but is not its argument. Pass everything through the step's argument."
        )
        return [Flag("replay_differs", "error", message)]
    return []


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
