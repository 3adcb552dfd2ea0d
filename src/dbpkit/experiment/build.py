"""From a spec to the parts that run: data, models, attacks, threat."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch

import dbpkit.attacks.libraries  # noqa: F401 - registers other libraries' attacks
from dbpkit.attacks import (
    Attack,
    Target,
    accepted_options,
    attacks,
    checked_attack_options,
    designed,
    make_attack,
)
from dbpkit.data import Dataset, in_order, load_dataset
from dbpkit.experiment.coverage import tell_first
from dbpkit.experiment.execution import AUTO, checked_device
from dbpkit.experiment.spec import AttackSpec, EvaluationSpec, PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import call_with_options
from dbpkit.foundation.spec import PartSpec
from dbpkit.foundation.types import Denoiser
from dbpkit.models.networks.layers import placed
from dbpkit.models.sources import load_classifier, load_denoiser, state_sha256
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.fitting import FittedPurifier, fitted
from dbpkit.purification.purifier import ModulePurifier, PurifiesImages, takes_denoiser
from dbpkit.purification.purifier import make_purifier as purifier_of
from dbpkit.purification.replay import DEFAULT_MEMORY
from dbpkit.purification.views import gradients
from dbpkit.results.kinds import NO_DENOISER
from dbpkit.threats.perceptual import Perceptual
from dbpkit.threats.pixels import ThreatModel, make_threat


class Parts(NamedTuple):
    """Everything an evaluation runs with, on its device.

    Attributes:
        data: the chosen examples.
        denoiser: the network of its purifier, if that has one.
        model: the purified classifier.
        undefended: the classifier alone; None where there is no purifier in front of it.
        threat: the budget.
        attacks: name and attack, in the spec's order.
        single_draw_attacks: the same for a deterministic model, where averaging over draws is a waste.
        hashes: sha256 of data, classifier and denoiser, or purifier without one, and of the classifier of a
            perceptual threat.
    """

    data: Dataset
    denoiser: Denoiser | None
    model: PurifiedClassifier
    undefended: Undefended | None
    threat: ThreatModel
    attacks: list[tuple[str, Attack]]
    single_draw_attacks: list[tuple[str, Attack]]
    hashes: dict[str, str]


def build(
    spec: EvaluationSpec, device: str | torch.device = AUTO, memory_bytes: int = DEFAULT_MEMORY
) -> Parts:
    """Makes the parts of a spec and checks that they fit each other.

    Raises:
        UserError: if a name, an option, a file, or the fit of two parts is wrong.
    """
    where = checked_device(device)
    data = chosen_examples(spec)
    tell_first(data)
    chosen = spec.classifier
    classifier = placed(load_classifier(chosen.name, chosen.options, **chosen.stages()), where)
    denoiser = needed_denoiser(spec.purifier, spec.denoiser, where)
    purifier = make_purifier(spec.purifier, denoiser, memory_bytes)
    placed(purifier, where)
    model = PurifiedClassifier(purifier, classifier, seed=spec.seed)
    threat = make_threat(spec.threat.norm, spec.threat.budget, spec.threat.options)
    inner = purifier.purifier if isinstance(purifier, FittedPurifier) else purifier
    own = inner.module if isinstance(inner, ModulePurifier) else inner  # that of the user
    network = {"purifier_sha256": own} if denoiser is None else {"denoiser_sha256": denoiser}
    weights = {"classifier_sha256": classifier, **network}
    hashes = {**{k: state_sha256(v) for k, v in weights.items()}, "data_sha256": data.sha256}
    if isinstance(threat, Perceptual):
        hashes["features_sha256"] = state_sha256(threat.features.classifier)
    full, single = made_attacks(spec)
    check_designs(spec, model)
    return Parts(data, denoiser, model, Undefended(classifier), threat, full, single, hashes)


def made_attacks(spec: EvaluationSpec) -> tuple[list[tuple[str, Attack]], list[tuple[str, Attack]]]:
    """Returns names and attacks of a spec, with their designs; and the same for a deterministic model."""
    full = [(a.name, attack_of(a)) for a in spec.attacks]
    return full, [(a.name, make_attack(a.name, single_draw(a))) for a in spec.attacks]


def attack_of(attack: AttackSpec, options: Mapping[str, Any] | None = None) -> Attack:
    """Returns an attack with the design of its spec, and with other options where they are given."""
    made = make_attack(attack.name, attack_options(attack) if options is None else options)
    return designed(made, attack.design.resolve())


def check_designs(spec: EvaluationSpec, model: Any) -> None:
    """Raises UserError if a control variate is asked for and the model has no surrogate with fewer calls."""
    for attack in spec.attacks:
        steps = attack.design.control
        if steps is not None and Target(model).coarser(steps) is None:
            raise UserError(
                f"attack '{attack.name}': design.control = {steps} needs a diffusion purifier that makes"
                " fewer calls with so many steps. Lower it, or leave it out."
            )


def needed_denoiser(purifier: PurifierSpec, spec: PartSpec, device: torch.device) -> Denoiser | None:
    """Loads the denoiser of a purifier that is built around one; None for any other.

    Raises:
        UserError: if it cannot be loaded, or one is named that the purifier does not take.
    """
    if not gets_denoiser(purifier, spec):
        return None
    denoiser: Denoiser = placed(load_denoiser(spec.name, spec.options), device)
    return denoiser


def gets_denoiser(purifier: PurifierSpec, spec: PartSpec) -> bool:
    """Whether a purifier is built around the spec's denoiser.

    Raises:
        UserError: if one is named that the purifier does not take, or none for one that needs it.
    """
    wanted, named = takes_denoiser(purifier.name), spec.name != NO_DENOISER or purifier.is_diffusion
    if wanted and not named:
        raise UserError(
            f"purifier '{purifier.name}' needs a denoiser, and none is named. Add denoiser = \"embedded\" or"
            " another."
        )
    if named and not wanted:
        raise UserError(
            f"purifier '{purifier.name}' takes no denoiser, and the spec names '{spec.name}'. Leave"
            " 'denoiser' out."
        )
    return wanted


def make_purifier(
    spec: PurifierSpec, denoiser: Denoiser | None, memory_bytes: int = DEFAULT_MEMORY
) -> PurifiesImages:
    """Builds the purifier a spec describes, around a denoiser if it has one."""
    made = purifier_of(spec.name, spec.arguments(), denoiser=denoiser, memory_bytes=memory_bytes)
    return made if spec.is_diffusion else fitted(made, **spec.fit())


def chosen_examples(spec: EvaluationSpec) -> Dataset:
    """Loads the spec's data and takes its examples in their order; UserError if there are not enough."""
    data = load_dataset(spec.data.name, spec.data.options)
    first, count = spec.examples.first, spec.examples.count
    if first >= len(data) or (count is not None and first + count > len(data)):
        raise UserError(
            f"examples {first} to {first + (count or 1) - 1} were asked for, but data"
            f" '{spec.data.name}' has {len(data)}. Lower examples.count (--limit) or examples.first."
        )
    order = in_order(data, spec.examples.order, spec.seed)
    return data.select(order[first : None if count is None else first + count])


def attack_options(attack: PartSpec) -> dict[str, Any]:
    """An attack's options as it takes them, with amounts such as ``step_size = "2/255"`` as numbers."""
    return checked_attack_options(attack.name, attack.options)


def of_attacks(**values: Any) -> dict[str, Any]:
    """Returns values by name of option; an option that no attack has is a mistake in this package.

    Raises:
        RuntimeError: if no registered attack has one of them, at import of the module that names it.
    """
    known = {option for name in attacks for option in accepted_options(name)}
    if unknown := values.keys() - known:
        raise RuntimeError(f"no attack has the option {', '.join(sorted(unknown))}")
    return values


SINGLE_DRAW = of_attacks(eot=1, keep_draws=1, judge_draws=1, reevaluate=False)
"""What attack options become where the model is deterministic for the attacker: more draws tell nothing."""


def single_draw(attack: PartSpec) -> dict[str, Any]:
    """An attack's options for a deterministic model: one draw, if it knows of draws at all."""
    known = accepted_options(attack.name)
    return {**attack_options(attack), **{k: v for k, v in SINGLE_DRAW.items() if k in known}}


def make_view(model: PurifiedClassifier, gradient: str, options: Mapping[str, Any]) -> Any:
    """Returns a model as an attacker with this gradient differentiates it.

    Raises:
        UserError: if the gradient's name, an option or a value is wrong.
    """
    return call_with_options(partial(gradients.resolve(gradient), model), options, f"gradient '{gradient}'")
