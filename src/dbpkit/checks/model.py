"""Preflight checks on the user's own models, before a long run; `docs/flags.md` explains each.

They look at a few images with fixed noise. The thing people get wrong: a gradient that exists is not a
gradient that is right, so the exact one is compared with a difference of two function values.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dbpkit.attacks.target import cross_entropy
from dbpkit.checks.culprits import coupling_module, detaching_module, flat_module, random_module
from dbpkit.checks.denoising import (
    denoiser_mismatch,
    denoiser_worse_than_nothing,
    purifier_destroys,
)
from dbpkit.checks.draws import EOT_DRAWS, gradient_noise
from dbpkit.checks.levels import (
    assumptions,
    outside_trained_levels,
    reach_of,
    suspicious_grid,
    suspicious_level,
)
from dbpkit.checks.outputs import LOST_SHARE, softmax_error, squashed_outputs, undone
from dbpkit.experiment.build import Parts, accepted_options, attack_options, make_view
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.inputs import check_outputs
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.replay import directional_derivatives
from dbpkit.results.flags import Flag
from dbpkit.threats.pixels import ThreatModel

Check = Callable[[RandomisedClassifier, Tensor, Tensor, NoisePlan, ThreatModel], list[Flag]]
"""``check(model, x, y, noise, threat)`` looks at images (B, C, H, W) in [0, 1] with labels (B,)."""

PROBE_EXAMPLES = 4
NOISE_EXAMPLES = 2
"""Images whose gradients are drawn again and again before a run."""

DIFFERENCE_STEPS = (0.1, 0.03, 0.01, 0.003)
"""Lengths of the numeric difference, in Euclidean pixel units; the best agreement counts."""

REPLAY_TOLERANCE = 1e-3
"""Largest relative difference between replayed and plain gradients; float32 rounding stays far below."""

DERIVATIVE_TOLERANCE = 0.1
"""Largest relative disagreement. Float32 rounding and the kinks of clips stay well below; a BPDA gradient
or a detached path disagrees by a factor."""

RUNS = 3
"""Equal calls that must agree; a module may be random only now and then."""

COUPLING_TOLERANCE = 0.02
"""Largest change of a logit with the rest of the batch, relative to the spread of all logits."""

DIRECTIONS = 4
"""Random directions in which the Jacobian is compared with differences."""

JACOBIAN_STEPS = (0.01, 0.003)
JACOBIAN_TOLERANCE = 0.25
"""As `DIFFERENCE_STEPS` and `DERIVATIVE_TOLERANCE`. A random direction crosses many kinks of ReLU and max
pooling for little slope; measured on sound models the disagreement is 0.01 to 0.12."""

MOVED_VALUES = 32
MOVE = 4e-6
"""How many pixel values are moved, and how far, to see whether the model is piecewise constant. Few values
and short moves seldom cross a step of a quantiser; float32 resolves the move."""

USEFUL_STEP = 0.5
"""Least share of the steepest rise that a step along the float32 gradient must reach."""


def preflight(
    parts: Parts, spec: EvaluationSpec, progress: Callable[[float, str], None] = lambda *_: None
) -> list[Flag]:
    """Runs every check on the first few examples, of a purified classifier or of any other model.

    Args:
        parts: models and data.
        spec: what will be evaluated with them.
        progress: called before every check with the share that is done, 0, and its name.

    Raises:
        UserError: if the parts do not fit each other at all.
    """
    data = parts.data.select(slice(0, PROBE_EXAMPLES))
    device = own_device(parts.model)
    x, y = data.x().to(device), data.labels.to(device)
    noise = NoisePlan.of(spec.seed, data.ids, "select")
    check_fit(parts, x, y)
    found: list[Flag] = []
    for check in CHECKS:
        progress(0.0, f"checks: {check.__name__.replace('_', ' ')}")
        found += check(parts.model, x, y, noise, parts.threat)
    if all(k.gradient == "unsquashed" for k in spec.knowledge):
        found = undone(found)
    if not any(f.severity == "error" for f in found) and (eot := planned_draws(parts, spec)):
        progress(0.0, "checks: gradient noise")
        few = slice(0, NOISE_EXAMPLES)
        found += gradient_noise(
            parts.model, x[few], y[few], noise.rows(few), parts.threat, eot=eot, draws=EOT_DRAWS // 2
        )
    return [*each_once(found), *purifier_flags(parts, spec)]


def planned_draws(parts: Parts, spec: EvaluationSpec) -> int:
    """The most draws per gradient of a spec's attacks; 0 if no attacker meets noise, or none averages."""
    options = [{**accepted_options(a.name), **attack_options(a)} for a in spec.attacks]
    most = max((int(o["eot"]) for o in options if "eot" in o), default=0)
    return most if sees_noise(parts, spec) else 0


def sees_noise(parts: Parts, spec: EvaluationSpec) -> bool:
    """Whether anything is random for one of a spec's attackers."""
    settings = [k.resolve() for k in spec.knowledge]
    views = [make_view(parts.model, k.gradient, k.gradient_options) for k in settings]
    return not all(k.leaves_nothing_random(v.sites) for k, v in zip(settings, views, strict=True))


def each_once(flags: list[Flag]) -> list[Flag]:
    """Returns the first flag of each name and row."""
    return list({(f.name, f.row): f for f in reversed(flags)}.values())[::-1]


@torch.no_grad()
def check_fit(parts: Parts, x: Tensor, y: Tensor) -> None:
    """Raises UserError unless classifier, denoiser and data agree in channels, size and classes."""
    shape = tuple(x.shape[1:])
    if parts.denoiser is None:
        noise = NoisePlan.of(0, range(len(x)), "select")
        check_logits(parts.model(x, noise=noise), x, y)
        check_outputs(parts.model(x[:1], noise=noise.rows([0])), 1)
        return
    try:
        logits, alone = parts.model.classifier(x), parts.model.classifier(x[:1])
    except (RuntimeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(
            f"the classifier does not accept images of shape {shape}: {_first_line(error)}. Use"
            " data of its size and channels."
        ) from error
    check_logits(logits, x, y)
    check_outputs(alone, 1)
    if logits.shape[1] < len(parts.data.class_names):
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
    if not _has_finite_row(x0):
        raise UserError("the denoiser returns nothing but values that are not finite. Mend it first.")


def check_logits(output: object, x: Tensor, y: Tensor) -> None:
    """Raises UserError unless a classifier's output is (B, K) with a logit for every label."""
    logits = check_outputs(output, len(x))
    if not _has_finite_row(logits):
        raise UserError(
            f"the classifier returns logits that are not finite for each of {len(x)} images. Look for a"
            " division by zero, the logarithm of zero, or half precision that overflows."
        )
    if int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"the classifier has {logits.shape[1]} classes, but the labels go up to {int(y.max())}. Use"
            " a classifier trained on this data."
        )


def _has_finite_row(x: Tensor) -> bool:
    """Whether any image of a batch (B, ...) has only finite values."""
    return bool(x.isfinite().flatten(1).all(dim=1).any())


@torch.no_grad()
def probabilities(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model whose outputs are probabilities, which flattens the loss of every attack."""
    del y, threat
    logits = model(x, noise=noise)
    if bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4):
        return [
            Flag(
                "probabilities",
                "error",
                "The classifier returns probabilities (rows sum to 1); return logits before the softmax.",
            )
        ]
    return []


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference of two results; values that are the same, such as NaN twice, differ by 0."""
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().masked_fill(same, 0).nan_to_num(torch.inf).max())


@torch.no_grad()
def untracked_randomness(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model that gives two results for the same image and the same noise, and names the submodule."""
    del y, threat
    first = model(x, noise=noise)
    gap = max(_gap(first, model(x, noise=noise)) for _ in range(RUNS - 1))
    if gap == 0:
        return []
    culprit = next((c for _ in range(RUNS) if (c := random_module(model, x, noise))), "")
    where = f" It comes from {culprit}." if culprit else ""
    message = (
        f"Two calls with the same image and noise differ by {gap:.3g} in a logit: something draws noise of"
        f" its own (dropout, train mode, random augmentation), and no attacker can be told it.{where}"
    )
    return [Flag("untracked_randomness", "error", message)]


@torch.no_grad()
def batch_dependence(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model whose logits depend on the other images of the batch or on the place in it."""
    del y, threat
    if len(x) < 2:
        return []
    order = torch.arange(len(x)).flip(0)
    logits = model(x, noise=noise)
    if not torch.equal(logits, model(x, noise=noise)):
        return []  # `untracked_randomness` says so
    turned = model(x[order], noise=noise.rows(order))[order]
    alone = model(x[:1], noise=noise.rows([0]))
    gap = max(float((logits - turned).abs().max()), float((logits[:1] - alone).abs().max()))
    if gap <= COUPLING_TOLERANCE * float(logits.std()):
        return []
    culprit = coupling_module(model, x, noise)
    where = f" It begins in {culprit}." if culprit else ""
    message = (
        f"The logits of an image change by {gap:.3g} with the other images of the batch or its place among"
        f" them (batch norm in train mode, noise by position): no two runs attack the same model.{where}"
    )
    return [Flag("batch_dependence", "error", message)]


@torch.no_grad()
def piecewise_constant(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model whose logits do not move at all with the pixels (quantisation, rounded outputs).

    Source:
        Athalye, Carlini & Wagner 2018 (arXiv:1802.00420), section 3: shattered gradients.
    """
    del y, threat
    probe = noise.on("control")
    inside = (x + (2 * probe.uniform("probe", 0, x) - 1) / 255).clamp(0.01, 0.99)  # off the 8-bit grid
    order = probe.uniform("probe", 1, x.flatten(1)).argsort(dim=1)
    few = torch.zeros_like(x).flatten(1).scatter(1, order[:, :MOVED_VALUES], 1).view_as(x)
    moved = inside + MOVE * few
    stuck = (model(inside, noise=noise) == model(moved, noise=noise)).all(dim=1)
    if int(stuck.sum()) * 2 <= len(x):
        return []
    culprit = flat_module(model, inside[stuck], moved[stuck], noise.rows(stuck.nonzero()[:, 0].cpu()))
    where = f" It happens in {culprit}." if culprit else ""
    message = (
        f"For {int(stuck.sum())} of {len(x)} images no logit changes in a single bit when {MOVED_VALUES}"
        f" pixel values move by {MOVE:g}: the model is piecewise constant, its true gradient is zero.{where}"
    )
    return [Flag("piecewise_constant", "error", message)]


def saturated_loss(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags logits so large that the gradient of the cross-entropy is lost in rounding.

    A step along the gradient as an attack gets it is compared with a step along J^T (p - e_y), where the
    softmax p is computed in float64 and the difference scaled to length 1 before the backward pass, so that
    nothing underflows. What counts is the rise of the loss to first order.

    Source:
        Carlini & Wagner 2017 (arXiv:1608.04644), section V: why defensive distillation seems to work.
    """
    leaf = x.detach().requires_grad_()
    logits = model(leaf, noise=noise)
    if not logits.requires_grad:
        return []
    (grad,) = torch.autograd.grad(
        cross_entropy(logits, y).sum(), leaf, retain_graph=True, materialize_grads=True
    )
    (exact,) = torch.autograd.grad(logits, leaf, softmax_error(logits.detach(), y), materialize_grads=True)
    best = (threat.steepest(exact) * exact).flatten(1).sum(1)
    rise = (threat.steepest(grad) * exact).flatten(1).sum(1)
    judged = (logits.argmax(1) == y) & (best > 0)
    lost = judged & ~(rise >= USEFUL_STEP * best)
    if not bool(lost.any()):
        return []
    count, of = int(lost.sum()), int(judged.sum())
    margins = logits.detach().sort(dim=1).values[lost][:, -2:].diff(dim=1)
    message = (
        f"For {count} of {of} images the gradient of the cross-entropy is lost in rounding: the label's logit"
        f' leads by up to {float(margins.max()):.3g}. Use a loss of the logits (options = {{ loss = "margin"'
        " }) or divide the logits."
    )
    return [Flag("saturated_loss", "error" if count > LOST_SHARE * of else "warning", message)]


def derivative(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a gradient that disagrees with the numeric derivative along itself."""
    del threat
    leaf = x.detach().requires_grad_()
    value = cross_entropy(model(leaf, noise=noise), y)
    if not value.requires_grad:
        culprit = detaching_module(model, x, noise)
        where = f" in {culprit}" if culprit else ""
        return [
            Flag(
                "gradient_mismatch",
                "error",
                f"The output does not depend on the input for autograd: a path is detached{where}.",
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
                "The gradient of the loss is exactly zero at every probed image: a detached path,"
                " rounding, or saturated logits.",
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
    return _mismatch(model, x, noise, gap, "the gradient", DERIVATIVE_TOLERANCE)


def jacobian(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags derivatives of the logits that disagree with numeric ones in random directions.

    A path that is hidden from autograd need not show along the gradient of the rest, and a saturated loss
    can hide what the logits do. So a random sum of the logits is compared in random directions.
    """
    del y, threat
    probe = noise.on("control")
    leaf = x.detach().requires_grad_()
    logits = model(leaf, noise=noise)
    if not logits.requires_grad:
        return []  # `derivative` says so
    weights = probe.normal("probe", 2, logits.detach())
    (grad,) = torch.autograd.grad((weights * logits).sum(), leaf, materialize_grads=True)
    directions = [
        normalize(probe.at(r).normal("probe", 3, x).flatten(1), dim=1).view_as(x) for r in range(DIRECTIONS)
    ]
    exact = torch.stack([(grad * d).flatten(1).sum(1) for d in directions])  # (directions, B)
    gaps = []
    with torch.no_grad():
        for step in JACOBIAN_STEPS:
            ends = [[model(x + h * d, noise=noise) for h in (step, -step)] for d in directions]
            numeric = torch.stack([(weights * (a - b)).sum(1) / (2 * step) for a, b in ends])
            gap = (exact - numeric).norm(dim=0) / numeric.norm(dim=0).clamp_min(1e-12)
            gaps.append(float(gap.median()))
    return _mismatch(model, x, noise, min(gaps), "random directions", JACOBIAN_TOLERANCE)


def _mismatch(
    model: RandomisedClassifier, x: Tensor, noise: NoisePlan, gap: float, where: str, tolerance: float
) -> list[Flag]:
    if gap <= tolerance:
        return []
    culprit = detaching_module(model, x, noise)
    by = f"{gap:.0%}" if gap < 10 else "more than 1000%"
    message = (
        f"The exact and the numeric derivative disagree by {by} along {where} (median of {len(x)}"
        " images): the gradient is not that of the function, so attacks with it prove nothing."
    )
    said = f" No gradient leaves {culprit}." if culprit else ""
    return [Flag("gradient_mismatch", "error", message + said)]


def replay(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a purification whose replayed steps differ from the first run, in value or in gradient."""
    del threat
    purifier = getattr(model, "purifier", None)
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


CHECKS: tuple[Check, ...] = (
    probabilities,
    untracked_randomness,
    batch_dependence,
    piecewise_constant,
    saturated_loss,
    squashed_outputs,
    denoiser_worse_than_nothing,
    denoiser_mismatch,
    purifier_destroys,
    derivative,
    jacobian,
    replay,
)
"""What is looked at before every run, and first by ``dbpkit check``."""


def purifier_flags(parts: Parts, spec: EvaluationSpec) -> list[Flag]:
    """Flags of where purification starts, in how many steps, and of what is assumed of its network."""
    purifier = getattr(parts.model, "purifier", None)
    if not isinstance(purifier, Purifier):  # a filter starts at no level
        return []
    sampler, norm = purifier.sampler, spec.threat.norm
    levels = sampler.levels
    reach = reach_of(norm, parts.threat.eps, parts.data.images[0].numel())
    settings = spec.purifier
    start = f"t* = {settings.t_star:g}" if settings.sampler != "heun" else f"grid of {settings.sampler}"
    return [
        *suspicious_level(levels[0], norm, str(spec.threat.eps), reach, start),
        *outside_trained_levels(purifier.denoiser, levels),
        *suspicious_grid(settings.sampler, sampler.steps),
        *assumptions(purifier.denoiser, tuple(parts.data.images.shape[-2:])),
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
