"""What other precisions do to the user's own network: to logits, gradients and verdicts, and to the time.

The thing people get wrong: judging a precision by its logits. What counts is whether verdicts change more
than they do from one draw to the next, which the estimate averages over anyway.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dbpkit.attacks import Target
from dbpkit.checks.attacking import ROWS, gradient, white_box
from dbpkit.checks.check import Note, Probe, checks
from dbpkit.checks.short_attacks import MANY
from dbpkit.foundation.frozen import call_apart
from dbpkit.foundation.precision import EXACT, PRECISIONS, Precision, current_precision, precise
from dbpkit.results.flags import Flag
from dbpkit.statistics.binomial import exceeds

DRAWS = 2
"""Draws of each image in each precision, and as many fresh ones in float32."""

LEVEL = 0.05
"""How often fresh draws alone may raise the flag, at most: it is an exact test. Whole counts of 8 images do
not use it up: 1 % was simulated, where 4 times as many changes as by fresh draws were found in 64 %."""

PAIRS = 6
"""Pairs of timed calls: the least and the largest ratio enclose the median in 97 % of cases, 1 - 2 / 2**6."""


class Effect(NamedTuple):
    """What a precision does.

    Attributes:
        logits: largest difference of a logit, as a share of the largest one of its image.
        cosines: of each image's gradient with that in float32, least and median; None where all are zero.
        changed: verdicts of each image that change, with the noise as it was.
        fresh: verdicts of each image that another draw changes in float32; empty if nothing is random.
        judged: verdicts in all.
        time: of a call as a share of that in float32: least, median and largest of `PAIRS`.
    """

    logits: float
    cosines: tuple[float, float] | None
    changed: list[int]
    fresh: list[int]
    judged: int
    time: tuple[float, float, float]

    @property
    def p_value(self) -> float:
        """Of as many changes by fresh draws alone; 0 for any change where nothing is random."""
        if self.fresh:
            return exceeds(self.changed, self.fresh)
        return 0.0 if any(self.changed) else 1.0

    def note(self, name: Precision) -> Note:
        """Says it all in a sentence."""
        least, median, largest = self.time
        speed = f"{median:.2f} ({least:.2f} to {largest:.2f})"
        speed += " (undecided)" if least <= 1 <= largest else ""
        by_draws = f", {sum(self.fresh)} by a fresh draw" if self.fresh else ""
        cosines = ""
        if self.cosines is not None:
            low, middle = self.cosines
            cosines = f", gradients have cosine {middle:.4f} (median; least {low:.4f}) with those of float32"
        return Note(
            f"In {name}: logits differ by up to {self.logits:.2%}{cosines}, {sum(self.changed)} of"
            f" {self.judged} verdicts change{by_draws}, a network call takes {speed} of its time in float32."
        )


@checks.add(
    "precision",
    stage="short attacks",
    expects="the precision that is chosen changes no more verdicts than fresh draws do",
    remedy="Leave precision out, or measure a few hundred images in both and compare the runs.",
    raises=("precision_changes_verdicts",),
)
def precision(probe: Probe) -> list[Flag | Note]:
    """Tells what each precision does to the model; flags the chosen one if too many verdicts change."""
    chosen, told = current_precision(), list[Flag | Note]()
    others = [name for name in PRECISIONS if name != EXACT and _matters(name, probe.x)]
    with precise(EXACT):
        images = torch.cat([probe.x, white_box(probe, MANY)])  # verdicts change near the boundary
        effects = {name: _effect(probe, images, name) for name in others}
    for name, effect in effects.items():
        told.append(effect.note(name))
        if name == chosen and effect.p_value <= LEVEL:
            told.append(_flag(name, effect))
    if chosen == "tf32" and chosen not in others:
        told.append(Note("In tf32: a CPU has none, so everything is computed in float32."))
    return told


def _matters(name: Precision, x: Tensor) -> bool:
    """Whether a device has a precision of this name."""
    return name != "tf32" or x.device.type == "cuda"


def _flag(name: Precision, effect: Effect) -> Flag:
    by_draws = "; nothing else is random in this model."
    if effect.fresh:
        by_draws = f", another draw {sum(effect.fresh)} (p = {effect.p_value:.2g})."
    message = f"{name} changes {sum(effect.changed)} of {effect.judged} verdicts of float32{by_draws}"
    return Flag("precision_changes_verdicts", "warning", message)


def _effect(probe: Probe, images: Tensor, name: Precision) -> Effect:
    """Looks at images (2B, C, H, W), the probe's own and attacked ones, in float32 and in another one."""
    random = probe.is_random()
    draws = range(DRAWS if random else 1)
    exact = torch.stack([_logits(probe, images, r) for r in draws])  # (R, 2B, K)
    fresh = torch.stack([_logits(probe, images, r + DRAWS) for r in draws]) if random else None
    grad = gradient(probe, loss="ce")
    with precise(name):
        low = torch.stack([_logits(probe, images, r) for r in draws])
        low_grad = gradient(probe, loss="ce")
    gap = (low - exact).abs().amax(dim=2) / exact.abs().amax(dim=2).clamp_min(1e-30)
    return Effect(
        float(gap.max()),
        _cosines(grad, low_grad),
        _changed(exact, low),
        [] if fresh is None else _changed(exact, fresh),
        exact.shape[0] * exact.shape[1],
        _ratios(lambda: _one_call(probe), name, probe.x.device),
    )


@torch.no_grad()
def _logits(probe: Probe, images: Tensor, draw: int) -> Tensor:
    """Logits (2B, K) of images and attacked images, both under the same noise."""
    noise = probe.noise.at(draw)
    return torch.cat([Target(probe.model, ROWS)(half, noise=noise) for half in images.chunk(2)])


def _changed(a: Tensor, b: Tensor) -> list[int]:
    """How many verdicts of each of B images differ, of (R, 2B, K) logits."""
    differ = (a.argmax(dim=2) != b.argmax(dim=2)).sum(dim=0)
    own, attacked = differ.chunk(2)
    counts: list[int] = (own + attacked).tolist()
    return counts


def _cosines(grad: Tensor, low: Tensor) -> tuple[float, float] | None:
    """Least and median cosine of the gradients (B, C, H, W) that are not zero in float32."""
    there = grad.flatten(1).norm(dim=1) > 0
    if not bool(there.any()):
        return None
    found = cosine_similarity(grad[there].flatten(1).double(), low[there].flatten(1).double(), dim=1)
    return float(found.min()), float(found.median())


@torch.no_grad()
def _one_call(probe: Probe) -> None:
    """One call of the network that takes nearly all of the time: the denoiser's if there is one."""
    if probe.diffusion is None:
        probe.model(probe.x, noise=probe.noise)
    else:
        call_apart(probe.diffusion.denoiser, 2 * probe.x - 1, torch.ones((), device=probe.x.device))


def _ratios(call: Callable[[], None], name: Precision, device: torch.device) -> tuple[float, float, float]:
    """Least, median and largest ratio of the times of a call in a precision and in float32, in pairs."""

    def seconds(which: Precision) -> float:
        with precise(which):
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - started

    order: tuple[Precision, Precision] = (name, EXACT)
    for which in order:  # the first call of each may compile kernels
        seconds(which)
    found = []
    for k in range(PAIRS):
        times = {which: seconds(which) for which in (order if k % 2 else order[::-1])}
        found.append(times[name] / max(times[EXACT], 1e-9))
    ranked = sorted(found)
    return ranked[0], (ranked[PAIRS // 2 - 1] + ranked[PAIRS // 2]) / 2, ranked[-1]
