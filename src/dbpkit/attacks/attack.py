"""What an attack is, what it returns, and the registry that guards it.

Every registered attack is looked over before it starts: its images, labels, plan, budget and options. The
runner, not the attack, projects onto the budget and decides success.
"""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dbpkit.attacks.target import Target
from dbpkit.foundation.inputs import check_images, check_labels, check_length
from dbpkit.foundation.later import asked_at_the_end
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import checked_options, options_of
from dbpkit.foundation.registry import Registry
from dbpkit.threats.pixels import ThreatModel, check_threat

RESERVED = ("target", "x", "y", "threat", "noise")
"""Parameters of an attack that are not options."""


class AttackOutcome(NamedTuple):
    """What an attack returns.

    Attributes:
        x_adv: attacked images (B, C, H, W).
        loss: expected loss at every iterate, before its step, (B, iterations).
        grad_norm: Euclidean norm of the averaged gradient there, (B, iterations); (B, 0) without gradients.
        claimed: where another library says that it succeeded, (B,); None for attacks that claim nothing.
    """

    x_adv: Tensor
    loss: Tensor
    grad_norm: Tensor
    claimed: Tensor | None = None


class Attack(Protocol):
    """Searches near ``x`` for an image that is misclassified."""

    def __call__(
        self, target: Target, x: Tensor, y: Tensor, *, threat: ThreatModel, noise: NoisePlan
    ) -> AttackOutcome:
        """Attacks images (B, C, H, W) in [0, 1] with labels (B,), using only draws of ``noise``."""
        ...


class Attacks(Registry[Attack]):
    """The registered attacks. Whoever calls one, its arguments are looked at first, see `guarded`."""

    def register(self, name: str) -> Callable[[Attack], Attack]:
        """Returns a decorator that files an attack under ``name`` and guards it."""
        file = super().register(name)
        return lambda attack: file(guarded(attack, name))

    def get(self, name: str) -> Attack:
        """Returns the attack called ``name``, guarded; see `Registry.get`."""
        return guarded(super().get(name), name)

    def resolve(self, name: str) -> Attack:
        """Returns the attack called ``name`` or at an import path, guarded; see `Registry.resolve`."""
        return guarded(super().resolve(name), name)


attacks = Attacks("attack", ["dbpkit.attacks.libraries"])


def guarded(attack: Attack, name: str) -> Attack:
    """Returns an attack that looks at its arguments before it starts.

    Images, labels, plan, budget and options are checked; gradients are computed even inside
    ``torch.no_grad()`` and ``torch.inference_mode()``, and no graph leads back to the caller's images. What
    the model's values show to be wrong is an error at once on a CPU, and at the attack's end elsewhere.

    Args:
        attack: the attack; one that is guarded already is returned as it is.
        name: what errors call it.
    """
    if not callable(attack) or hasattr(attack, "guards"):
        return attack

    @wraps(attack)
    def checked(
        target: Any, x: Tensor, y: Tensor, *, threat: ThreatModel, noise: NoisePlan, **options: Any
    ) -> AttackOutcome:
        where = f"attack '{name}'"
        check_images(x, where)
        check_labels(y, len(x), where)
        check_length(noise, len(x), where)
        check_threat(threat, where)
        chosen = checked_options(attack, options, where, RESERVED)
        noise.placed(x.device)
        with asked_at_the_end(), torch.inference_mode(False), torch.enable_grad():
            x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
            return attack(Target.of(target), x, y, threat=threat, noise=noise, **chosen)

    checked.guards = attack  # type: ignore[attr-defined]
    return checked


class Path:
    """Loss and, with gradients, their norm at the iterates so far, for attacks that note every step."""

    def __init__(self) -> None:
        self.loss: list[Tensor] = []
        self.grad_norm: list[Tensor] = []

    def note(self, loss: Tensor, grad: Tensor | None = None) -> None:
        """Notes the expected loss (B,) of an iterate and its averaged gradient (B, ...), if any."""
        self.loss.append(loss)
        if grad is not None:
            self.grad_norm.append(grad.flatten(1).norm(dim=1))

    def outcome(self, x_adv: Tensor) -> AttackOutcome:
        """Returns the outcome with what was noted."""
        loss = torch.stack(self.loss, 1)
        return AttackOutcome(x_adv, loss, torch.stack(self.grad_norm, 1) if self.grad_norm else loss[:, :0])


def make_attack(name: str, options: Mapping[str, Any] | None = None) -> Attack:
    """Binds an attack to its options.

    Raises:
        UserError: if the name or an option is unknown, or a value is wrong.
    """
    return partial(attacks.resolve(name), **checked_attack_options(name, options or {}))


def checked_attack_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as an attack takes them, amounts such as ``"2/255"`` as numbers.

    Raises:
        UserError: if the attack's name, an option's name or a value is wrong.
    """
    return checked_options(attacks.resolve(name), options, f"attack '{name}'", RESERVED)


def accepted_options(name: str) -> dict[str, Any]:
    """Names and defaults of an attack's options."""
    return {o.name: o.default for o in options_of(attacks.resolve(name), RESERVED).values()}
