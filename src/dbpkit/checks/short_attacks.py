"""Short attacks that ought to agree with each other; where they do not, an accuracy proves nothing.

Most of them know the noise (DW_Both): the model is then a function, so that an attack that is stronger on
paper must be stronger on every image, up to luck. The thing people get wrong: a defence does not get better
because the attacker does more. If it seems to, the attack is broken.

Source:
    Athalye, Carlini & Wagner 2018 (arXiv:1802.00420), section 3.1; Carlini et al. 2019 (arXiv:1902.06705),
    section 3; Tramer et al. 2020 (arXiv:2002.08347).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from dbpkit.attacks import Target, attacks, make_attack
from dbpkit.attacks.target import margin
from dbpkit.checks.draws import gradient_noise, is_random
from dbpkit.checks.model import Check
from dbpkit.experiment.build import SINGLE_DRAW, accepted_options
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.samplers import REVERSE_SITES
from dbpkit.purification.views import gradients
from dbpkit.results.chance import Answer, labels_permuted, near_chance, one_class
from dbpkit.results.flags import Flag
from dbpkit.statistics.estimates import paired_difference
from dbpkit.statistics.intervals import wilson
from dbpkit.threats.pixels import Linf, ThreatModel

DEFENCE_SITES = frozenset({"forward", "reverse"}) | REVERSE_SITES
"""Where a defence may draw noise."""

FEW, MANY = 5, 20
"""Iterations of a short and of a long attack; 20 is the published number."""

QUERIES = 50
"""Queries of the black box. It cannot win with so few unless the white box is blind."""

LUCK = 1
"""Images by which an attack may be ahead of a stronger one by luck."""

UNBOUNDED = Linf(1.0)
UNBOUNDED_STEP = 0.05
"""Every image is allowed; 20 such steps cross the whole range."""

SMALL_STEP = 1 / 16
"""Share of the budget in which a loss must follow its gradient."""

ROWS = 8
"""Rows in one call of the model."""

WORST_OF = 8
"""N of the worst of N draws."""


_made: ContextVar[dict[Any, Any] | None] = ContextVar("attacks made", default=None)


@contextmanager
def shared_attacks() -> Iterator[None]:
    """Inside the block, an attack that several checks need is run once."""
    token = _made.set({})
    try:
        yield
    finally:
        _made.reset(token)


def more_iterations_help(
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    *,
    attack: str = "pgd",
    options: Mapping[str, Any] | None = None,
) -> list[Flag]:
    """Flags a defender who gains when the attack has more iterations.

    Args:
        model: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: their plan.
        threat: the budget.
        attack: registered name of an attack with ``iterations``.
        options: its other options.
    """
    few, many = (
        _attacked(model, x, y, noise, threat, attack, {**(options or {}), "iterations": i})
        for i in (FEW, MANY)
    )
    message = f"{attack} leaves {{weaker}} right after {FEW} iterations and {{stronger}} after {MANY}."
    return _ahead(
        "more_iterations_help", _right(model, few, y, noise), _right(model, many, y, noise), message
    )


def single_step_stronger(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags an iterated attack that loses to one step of full length (FGSM)."""
    one = _attacked(model, x, y, noise, threat, "pgd", {"iterations": 1, "step_size": threat.eps})
    message = f"One step leaves {{weaker}} right, PGD with {MANY} iterations {{stronger}}."
    return _against_white_box("single_step_stronger", one, model, x, y, noise, threat, message)


def black_box_stronger(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a gradient attack that loses to a few queries of a random search (Square)."""
    if "square" not in attacks:
        return []
    found = _attacked(model, x, y, noise, threat, "square", {"iterations": QUERIES})
    message = (
        f"{QUERIES} queries of Square, without gradients, leave {{weaker}} right, the white box {{stronger}}."
    )
    return _against_white_box("black_box_stronger", found, model, x, y, noise, threat, message)


def transfer_stronger(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a white box that loses to images made against the classifier alone."""
    if not isinstance(model, PurifiedClassifier):
        return []
    made = _attacked(Undefended(model.classifier), x, y, noise, threat, "pgd", {"iterations": MANY})
    message = "Images that fool the undefended classifier leave {weaker} right, the white box {stronger}."
    return _against_white_box("transfer_stronger", made, model, x, y, noise, threat, message)


def bpda_stronger(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags an exact gradient that loses to BPDA, which takes purification for the identity."""
    if not isinstance(model, PurifiedClassifier):
        return []
    made = _attacked(gradients.get("bpda")(model), x, y, noise, threat, "pgd", {"iterations": MANY})
    message = "BPDA leaves {weaker} right, the exact gradient {stronger}."
    return _against_white_box("bpda_stronger", made, model, x, y, noise, threat, message)


def no_better_than_noise(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a white box whose images are hardly closer to an error than randomly perturbed ones."""
    z = noise.on("control").normal("probe", 0, x)
    noisy = threat.project(x, x + threat.eps * threat.steepest(z))
    found = _white_box(model, x, y, noise, threat)
    better = _margin(model, found, y, noise) > _margin(model, noisy, y, noise)
    if int(better.sum()) * 2 > len(x):
        return []
    message = (
        f"PGD with {MANY} iterations is nearer to an error than random noise of the same size for only"
        f" {int(better.sum())} of {len(x)} images."
    )
    return [Flag("no_better_than_noise", "error", message)]


def loss_falls_along_gradient(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a loss that does not rise over a small step along its own gradient."""
    tape = _tape(noise)
    grad = Target(model, ROWS).gradient(x, y, noise=tape, loss="margin").grad
    moved = threat.project(x, x + SMALL_STEP * threat.eps * threat.steepest(grad))
    rises = _margin(model, moved, y, noise) > _margin(model, x, y, noise)
    if int(rises.sum()) * 4 >= 3 * len(x):
        return []
    message = (
        "A step of a sixteenth of the budget along the gradient raises the loss for only"
        f" {int(rises.sum())} of {len(x)} images."
    )
    return [Flag("loss_falls_along_gradient", "error", message)]


def unbounded_attack_fails(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model that is still right when every image is allowed; nothing can be."""
    del threat
    options = {"iterations": MANY, "step_size": UNBOUNDED_STEP}
    found = _attacked(model, x, y, noise, UNBOUNDED, "pgd", options)
    right = _right(model, found, y, noise)
    accuracy = float(right.float().mean())
    if int(right.sum()) <= LUCK or accuracy <= 1 / _classes(model, x, noise):
        return []
    severe = wilson(accuracy, len(x))[0] > 1 / _classes(model, x, noise)
    message = f"With an unbounded budget PGD still leaves {accuracy:.0%} right; a working attack leaves none."
    return [Flag("unbounded_attack_fails", "error" if severe else "warning", message)]


def worst_of_n_control(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a worst of N that an attack does not lower, where it lowers no mean over draws either.

    Where no draw changes whether a clean image is right, the worst of N is no matter of noise.

    Source:
        DiffBreak issue 1: with fresh noise at every query, unattacked images fail as well.
    """
    if not is_random(model, x, noise):
        return []
    target = Target(model, ROWS)
    attack = make_attack("pgd", {"iterations": FEW, "eot": 2})
    found = attack(target, x, y, threat=threat, noise=noise.on("attack")).x_adv
    clean, attacked = (
        target.draws(images, noise=noise, count=WORST_OF).argmax(-1) == y[:, None]  # (B, draws)
        for images in (x, threat.project(x, found))
    )
    control, worst = int(clean.all(dim=1).sum()), int(attacked.all(dim=1).sum())
    if not control or worst < control or int(attacked.sum()) < int(clean.sum()):
        return []
    if int(clean.sum()) == control * WORST_OF:
        return []
    message = (
        f"The worst of {WORST_OF} draws is right for {control} of {len(x)} images without any attack and for"
        f" {worst} under a short one, which does not lower the mean over draws either: it measures the"
        " defence's own noise."
    )
    return [Flag("worst_of_n_control", "warning", message)]


def better_than_chance(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> list[Flag]:
    """Flags a model that guesses on clean images, never changes its answer, or orders classes otherwise."""
    del threat
    said = Target(model, ROWS)(x, noise=_tape(noise)).argmax(dim=1)
    answers = [Answer(*pair) for pair in zip(y.tolist(), said.tolist(), strict=True)]
    return [*(labels_permuted(answers) or near_chance(answers)), *one_class(y.tolist(), set(said.tolist()))]


SANITY: tuple[Check, ...] = (
    better_than_chance,
    loss_falls_along_gradient,
    no_better_than_noise,
    more_iterations_help,
    single_step_stronger,
    black_box_stronger,
    transfer_stronger,
    bpda_stronger,
    unbounded_attack_fails,
    gradient_noise,
    worst_of_n_control,
)
"""What ``dbpkit check`` does after the checks of `dbpkit.checks.model`."""


def _against_white_box(
    name: str,
    found: Tensor,
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    message: str,
) -> list[Flag]:
    strong = _white_box(model, x, y, noise, threat)
    return _ahead(name, _right(model, found, y, noise), _right(model, strong, y, noise), message)


def _ahead(name: str, weaker: Tensor, stronger: Tensor, message: str) -> list[Flag]:
    """A flag if the attack that should be weaker leaves fewer images right, by more than luck."""
    if int(stronger.sum()) - int(weaker.sum()) <= LUCK:
        return []
    severe = paired_difference(stronger.double().tolist(), weaker.double().tolist()).low > 0
    shares = {
        "weaker": f"{float(weaker.double().mean()):.0%}",
        "stronger": f"{float(stronger.double().mean()):.0%}",
    }
    return [Flag(name, "error" if severe else "warning", message.format(**shares))]


def _white_box(
    model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel
) -> Tensor:
    return _attacked(model, x, y, noise, threat, "pgd", {"iterations": MANY})


def _attacked(
    model: RandomisedClassifier,
    x: Tensor,
    y: Tensor,
    noise: NoisePlan,
    threat: ThreatModel,
    name: str,
    options: Mapping[str, Any],
) -> Tensor:
    """Images (B, C, H, W) of an attack that knows the noise, so that it needs one draw."""
    made, parts = _made.get(), (model, x, y, noise, threat)
    key = (*map(id, parts), name, *sorted(options.items()))
    if made is not None and key in made:
        return made[key][0]
    single = {k: v for k, v in SINGLE_DRAW.items() if k in accepted_options(name)}
    attack = make_attack(name, {**options, **single})
    outcome = attack(Target(model, ROWS), x, y, threat=threat, noise=_tape(noise))
    x_adv = threat.project(x, outcome.x_adv.detach())
    if made is not None:
        made[key] = x_adv, parts  # kept with them, so that no id is given away
    return x_adv


def _tape(noise: NoisePlan) -> NoisePlan:
    """The attack's plan with the defence's noise taken from ``noise`` in every draw."""
    return noise.on("attack").sharing(DEFENCE_SITES, noise)


def _right(model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan) -> Tensor:
    return Target(model, ROWS)(x, noise=_tape(noise)).argmax(dim=1) == y


def _margin(model: RandomisedClassifier, x: Tensor, y: Tensor, noise: NoisePlan) -> Tensor:
    return margin(Target(model, ROWS)(x, noise=_tape(noise)), y)


@torch.no_grad()
def _classes(model: RandomisedClassifier, x: Tensor, noise: NoisePlan) -> int:
    return model(x[:1], noise=noise.rows([0])).shape[1]
