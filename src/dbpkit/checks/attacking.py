"""Short attacks on a probe, by an attacker who knows the noise, and what the model says of their images."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from dbpkit.attacks import Target, make_attack, margin
from dbpkit.checks.check import Probe
from dbpkit.experiment.build import SINGLE_DRAW, accepted_options
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.samplers import FORWARD_SITES, REVERSE_SITES

DEFENCE_SITES = FORWARD_SITES | REVERSE_SITES
"""Where a defence may draw noise."""

ROWS = 8
"""Rows in one call of the model."""

_made: ContextVar[dict[Any, Any] | None] = ContextVar("attacks made", default=None)


@contextmanager
def shared_attacks() -> Iterator[None]:
    """Inside the block, an attack that several checks need is run once."""
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def attacked(probe: Probe, name: str, options: Mapping[str, Any]) -> Tensor:
    """Returns images (B, C, H, W) of an attack that knows the noise, so that it needs one draw."""
    made, parts = _made.get(), (probe.model, probe.x, probe.y, probe.noise, probe.threat)
    key = (*map(id, parts), name, repr(sorted(options.items())))  # a spec may give lists
    if made is not None and key in made:
        found: Tensor = made[key][0]
        return found
    single = {k: v for k, v in SINGLE_DRAW.items() if k in accepted_options(name)}
    attack = make_attack(name, {**options, **single})
    target = Target(probe.model, ROWS)
    outcome = attack(target, probe.x, probe.y, threat=probe.threat, noise=tape(probe.noise))
    x_adv = probe.threat.project(probe.x, outcome.x_adv.detach())
    if made is not None:
        made[key] = x_adv, parts  # kept with them, so that no id is given away
    return x_adv


def white_box(probe: Probe, iterations: int) -> Tensor:
    """Returns images of PGD by an attacker who knows everything."""
    return attacked(probe, "pgd", {"iterations": iterations})


def tape(noise: NoisePlan) -> NoisePlan:
    """Returns the attack's plan with the defence's noise taken from ``noise`` in every draw."""
    return noise.on("attack").sharing(DEFENCE_SITES, noise)


def classified(probe: Probe, x: Tensor) -> Tensor:
    """Returns the class (B,) of images under the probe's noise."""
    return Target(probe.model, ROWS)(x, noise=tape(probe.noise)).argmax(dim=1)


def right(probe: Probe, x: Tensor) -> Tensor:
    """Returns where images are classified right, (B,)."""
    return classified(probe, x) == probe.y


def margins(probe: Probe, x: Tensor) -> Tensor:
    """Returns the largest other logit minus the label's, (B,)."""
    return margin(Target(probe.model, ROWS)(x, noise=tape(probe.noise)), probe.y)


def gradient(probe: Probe, loss: str) -> Tensor:
    """Returns the gradient (B, C, H, W) of a loss at the probe's images."""
    return Target(probe.model, ROWS).gradient(probe.x, probe.y, noise=tape(probe.noise), loss=loss).grad
