"""What attacking the model shows: short attacks that ought to agree with each other.

Most of them know the noise (DW_Both): the model is then a function, so that an attack that is stronger on
paper must be stronger on every image, up to luck. The thing people get wrong: a defence does not get better
because the attacker does more. If it seems to, the attack is broken.

Source:
    Athalye, Carlini & Wagner 2018 (arXiv:1802.00420), section 3.1; Carlini et al. 2019 (arXiv:1902.06705),
    section 3; Tramer et al. 2020 (arXiv:2002.08347).
"""

import torch
from torch import Tensor

from dbpkit.attacks import attacks
from dbpkit.checks.attacking import attacked, classified, gradient, margins, right, shared_attacks, white_box
from dbpkit.checks.check import Probe, checks
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.views import gradients
from dbpkit.results.chance import Answer, labels_permuted, near_chance, one_class
from dbpkit.results.flags import Flag
from dbpkit.statistics.estimates import paired_difference
from dbpkit.statistics.intervals import wilson
from dbpkit.threats.pixels import Linf

__all__ = ["shared_attacks"]

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

WEAK = "Give the attack more iterations, draws or another loss, or look for a gradient that is not true."
"""What to do where an attack loses to one that should be weaker."""


@checks.add(
    "better_than_chance",
    stage="short attacks",
    expects="the model is right on clean images more often than a guess",
    remedy="Compare the order of classes, the pixel range and the normalisation with those of its training.",
)
def better_than_chance(probe: Probe) -> list[Flag]:
    """Flags a model that guesses on clean images, never changes its answer, or orders classes otherwise."""
    truth, said = probe.y.tolist(), classified(probe, probe.x).tolist()
    answers = [Answer(*pair) for pair in zip(truth, said, strict=True)]
    return [*(labels_permuted(answers) or near_chance(answers)), *one_class(truth, set(said))]


@checks.add(
    "loss_falls_along_gradient",
    stage="short attacks",
    expects="a small step along the gradient raises the loss",
    remedy="Compare the gradient with a numeric one: it is not that of the loss.",
)
def loss_falls_along_gradient(probe: Probe) -> list[Flag]:
    """Flags a loss that does not rise over a small step along its own gradient."""
    x, threat = probe.x, probe.threat
    grad = gradient(probe, loss="margin")
    moved = threat.project(x, x + SMALL_STEP * threat.eps * threat.steepest(grad))
    rises = margins(probe, moved) > margins(probe, x)
    if int(rises.sum()) * 4 >= 3 * len(x):
        return []
    message = (
        "A step of a sixteenth of the budget along the gradient raises the loss for only"
        f" {int(rises.sum())} of {len(x)} images."
    )
    return [Flag("loss_falls_along_gradient", "error", message)]


@checks.add(
    "no_better_than_noise",
    stage="short attacks",
    expects="an attack comes nearer to an error than random noise of the same size",
    remedy=WEAK,
)
def no_better_than_noise(probe: Probe) -> list[Flag]:
    """Flags a white box whose images are hardly closer to an error than randomly perturbed ones."""
    x, threat = probe.x, probe.threat
    z = probe.noise.on("control").normal("probe", 0, x)
    noisy = threat.project(x, x + threat.eps * threat.steepest(z))
    better = margins(probe, white_box(probe, MANY)) > margins(probe, noisy)
    if int(better.sum()) * 2 > len(x):
        return []
    message = (
        f"PGD with {MANY} iterations is nearer to an error than random noise of the same size for only"
        f" {int(better.sum())} of {len(x)} images."
    )
    return [Flag("no_better_than_noise", "error", message)]


@checks.add(
    "more_iterations_help",
    stage="short attacks",
    expects="an attack does not get weaker with more iterations",
    remedy="Lower its step size, keep the best iterate, or look for a gradient that is not true.",
)
def more_iterations_help(probe: Probe) -> list[Flag]:
    """Flags a defender who gains when the planned attack has more iterations."""
    attack, options = probe.planned.attack, probe.planned.options
    few, many = (attacked(probe, attack, {**options, "iterations": i}) for i in (FEW, MANY))
    message = f"{attack} leaves {{weaker}} right after {FEW} iterations and {{stronger}} after {MANY}."
    return _ahead("more_iterations_help", right(probe, few), right(probe, many), message)


@checks.add(
    "single_step_stronger",
    stage="short attacks",
    expects="an iterated attack beats a single step of full length",
    remedy=WEAK,
)
def single_step_stronger(probe: Probe) -> list[Flag]:
    """Flags an iterated attack that loses to one step of full length (FGSM)."""
    one = attacked(probe, "pgd", {"iterations": 1, "step_size": probe.threat.eps})
    message = f"One step leaves {{weaker}} right, PGD with {MANY} iterations {{stronger}}."
    return _against_white_box("single_step_stronger", one, probe, message)


@checks.add(
    "black_box_stronger",
    stage="short attacks",
    expects="a gradient attack beats a few queries of a random search",
    remedy=WEAK,
)
def black_box_stronger(probe: Probe) -> list[Flag]:
    """Flags a gradient attack that loses to a few queries of a random search (Square)."""
    if "square" not in attacks:
        return []
    found = attacked(probe, "square", {"iterations": QUERIES})
    message = (
        f"{QUERIES} queries of Square, without gradients, leave {{weaker}} right, the white box {{stronger}}."
    )
    return _against_white_box("black_box_stronger", found, probe, message)


@checks.add(
    "transfer_stronger",
    stage="short attacks",
    expects="the white box beats images made against the classifier alone",
    remedy=WEAK,
)
def transfer_stronger(probe: Probe) -> list[Flag]:
    """Flags a white box that loses to images made against the classifier alone."""
    if not isinstance(probe.model, PurifiedClassifier):
        return []
    made = white_box(probe.of(Undefended(probe.model.classifier)), MANY)
    message = "Images that fool the undefended classifier leave {weaker} right, the white box {stronger}."
    return _against_white_box("transfer_stronger", made, probe, message)


@checks.add(
    "bpda_stronger",
    stage="short attacks",
    expects="the exact gradient beats one that takes purification for the identity",
    remedy=WEAK,
)
def bpda_stronger(probe: Probe) -> list[Flag]:
    """Flags an exact gradient that loses to BPDA, which takes purification for the identity."""
    if not isinstance(probe.model, PurifiedClassifier):
        return []
    made = white_box(probe.of(gradients.get("bpda")(probe.model)), MANY)
    message = "BPDA leaves {weaker} right, the exact gradient {stronger}."
    return _against_white_box("bpda_stronger", made, probe, message)


@checks.add(
    "unbounded_attack_fails",
    stage="short attacks",
    expects="an attack without a bound leaves nothing right",
    remedy="Look for a gradient that is not true: nothing can withstand every image.",
)
def unbounded_attack_fails(probe: Probe) -> list[Flag]:
    """Flags a model that is still right when every image is allowed; nothing can be."""
    options = {"iterations": MANY, "step_size": UNBOUNDED_STEP}
    stands = right(probe, attacked(probe.under(UNBOUNDED), "pgd", options))
    accuracy = float(stands.float().mean())
    if int(stands.sum()) <= LUCK or accuracy <= 1 / _classes(probe):
        return []
    severe = wilson(accuracy, len(probe))[0] > 1 / _classes(probe)
    message = f"With an unbounded budget PGD still leaves {accuracy:.0%} right; a working attack leaves none."
    return [Flag("unbounded_attack_fails", "error" if severe else "warning", message)]


def _against_white_box(name: str, found: Tensor, probe: Probe, message: str) -> list[Flag]:
    strong = white_box(probe, MANY)
    return _ahead(name, right(probe, found), right(probe, strong), message)


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


@torch.no_grad()
def _classes(probe: Probe) -> int:
    return probe.first(1).outputs().shape[1]
