"""What a spec can name, and what each part takes: the text of ``dbpkit list`` and ``dbpkit show``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch

from dbpkit.analyses.analysis import analyses
from dbpkit.attacks import RESERVED, attacks, losses
from dbpkit.checks import checks
from dbpkit.data import datasets
from dbpkit.experiment.build import gets_denoiser
from dbpkit.experiment.knowledge import known
from dbpkit.experiment.spec import EvaluationSpec, PurifierSpec, ThreatSpec
from dbpkit.foundation.errors import UserError, nearest, shown
from dbpkit.foundation.options import Option, check_needed, checked_options, options_of
from dbpkit.foundation.packaged import specs, title
from dbpkit.foundation.plugins import load_plugins
from dbpkit.foundation.registry import names_of
from dbpkit.foundation.spec import PartSpec, Strict
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.layouts import layouts
from dbpkit.models.networks import networks
from dbpkit.models.schedule import TRAIN_STEPS
from dbpkit.models.sources import classifier_sources, denoiser_sources, source
from dbpkit.purification.purifier import GIVEN, purifiers
from dbpkit.purification.samplers import make_sampler, sampler_options, samplers
from dbpkit.purification.views import gradients
from dbpkit.results.kinds import NO_DENOISER
from dbpkit.results.protocols import protocols
from dbpkit.threats.pixels import make_threat, threats
from dbpkit.training.adversarial import adversaries
from dbpkit.training.levels import noise_levels
from dbpkit.training.objectives import objectives
from dbpkit.training.perturb import perturbations
from dbpkit.training.spec import TrainingSpec

MOST_STEPS = 100_000
"""Steps of the longest grid that is made only to look at it."""


def _own(part: Any, given: Sequence[str]) -> dict[str, Option]:
    """The options of a function or class; what is made already has none."""
    return options_of(part, given) if callable(part) else {}


class Kind(NamedTuple):
    """Parts of one kind, and what of them a spec sets.

    Attributes:
        parts: the registry.
        given: parameters that are not options, because dbpkit gives them.
        options: finds the options of a part; None where it has none.
    """

    parts: Any
    given: Sequence[str] = ()
    options: Callable[[Any, Sequence[str]], dict[str, Option]] | None = _own


def _with_grid(sampler: Any, _given: Sequence[str]) -> dict[str, Option]:
    """The options of a sampler; those of its grid are called ``grid.NAME``."""
    own, grid = sampler_options(sampler)
    return own | {f"grid.{name}": option for name, option in grid.items()}


PARTS: dict[str, Kind] = {
    "adversaries": Kind(adversaries),
    "analyses": Kind(analyses),
    "attacks": Kind(attacks, RESERVED),
    "checks": Kind(checks, options=None),
    "classifiers": Kind(classifier_sources),
    "data": Kind(datasets),
    "denoiser-adapters": Kind(denoiser_adapters, ("network",)),
    "denoisers": Kind(denoiser_sources),
    "gradients": Kind(gradients, ("model",)),
    "layouts": Kind(layouts, options=None),
    "losses": Kind(losses, ("logits", "y")),
    "networks": Kind(networks),
    "noise-levels": Kind(noise_levels),
    "objectives": Kind(objectives),
    "perturbations": Kind(perturbations),
    "protocols": Kind(protocols, options=None),
    "purifiers": Kind(purifiers, GIVEN),
    "samplers": Kind(samplers, options=_with_grid),
    "threats": Kind(threats, ("eps",)),
}
"""Kinds of registered parts; a new one is one line here and one in `dbpkit.foundation.registry.KINDS`."""

REGISTRIES: dict[str, Any] = {name: kind.parts for name, kind in PARTS.items()}

OTHERS: dict[str, Callable[[], dict[str, str]]] = {
    "knowledge": lambda: {
        name: ", ".join(sorted(k.shared_sites)) or f"gradient {k.gradient}" for name, k in known.items()
    },
    "specs": lambda: {name: title(path) for name, path in specs().items()},
    "plugins": lambda: {name: str(plugin) for name, plugin in load_plugins().items()},
}
"""What else a spec can name, and where parts may come from, with descriptions by name."""


def described(what: str = "") -> dict[str, dict[str, str]]:
    """Returns kind to name to description: of one kind, of the parts of one name, or of all.

    Raises:
        UserError: if there is no such kind and no such part; the nearest is suggested.
    """
    listed: dict[str, dict[str, str]] = {kind: registry.describe() for kind, registry in REGISTRIES.items()}
    listed |= {kind: described() for kind, described in OTHERS.items()}
    if not what:
        return listed
    if what in listed:
        return {what: listed[what]}
    found = {kind: {what: parts[what]} for kind, parts in listed.items() if what in parts}
    if not found:
        near = nearest(what, {*listed, *(name for parts in listed.values() for name in parts)})
        raise UserError(f"unknown kind or part '{what}'.{near} Available kinds: {', '.join(sorted(listed))}.")
    return found


def options(kind: str, name: str) -> dict[str, Option]:
    """Returns the options of a registered part, by name."""
    if kind not in PARTS:
        return {}
    parts, given, find = PARTS[kind]
    return {} if find is None else find(parts.get(name), given)


def default(option: Option) -> str:
    """Returns an option's default as a spec has it; ``needed`` if there is none, ``unset`` for None."""
    if option.needed:
        return "needed"
    value = list(option.default) if isinstance(option.default, tuple) else option.default
    if isinstance(value, float) and (written := in_255ths(value)):
        return written
    return "unset" if value is None else shown(value, 40).replace("'", '"')


def in_255ths(value: float) -> str:
    """Returns a number as the fraction of 255 that it is, as papers write budgets and steps; or nothing.

    Example:
        >>> in_255ths(2 / 255), in_255ths(0.5 / 255), in_255ths(0.2), in_255ths(2 / 3)
        ('2/255', '0.5/255', '', '')
    """
    halves = round(510 * value)
    exact = 0 < value < 1 and halves / 2 / 255 == value
    simpler = float(Fraction(value).limit_denominator(12)) == value  # 0.2 is 51/255 too
    return f"{halves / 2:g}/255" if exact and not simpler else ""


def as_data(kind: str, name: str) -> dict[str, dict[str, str]]:
    """Returns a part's options for programs."""
    return {
        n: {"takes": o.words, "default": default(o), "meaning": o.meaning}
        for n, o in options(kind, name).items()
    }


def part_defaults(spec: Strict) -> Iterator[str]:
    """Yields the options that a spec leaves at their defaults, by registered part; nothing is imported."""
    for where, kind, name, given in _parts(spec):
        if name not in REGISTRIES[kind]:
            continue
        left = {n: o for n, o in options(kind, name).items() if n not in given and not o.needed}
        if left:
            yield f"{where} '{name}': " + ", ".join(f"{n} = {default(o)}" for n, o in left.items())


def check_parts(spec: Strict) -> None:
    """Raises UserError for a part that no command would take: its name, an option, its budget or grid.

    No import path is followed: such a part is passed over, and so is an option that names one.
    """
    with names_of("a spec that is only shown"):
        for _, kind, name, given in _parts(spec):
            name, more = source(name) if kind in ("classifiers", "denoisers") else (name, {})
            if ":" not in name and kind != "samplers":
                _check_part(kind, name, {**more, **given})
        if isinstance(spec, EvaluationSpec):
            _check_purifier(spec.purifier, spec.denoiser)
            if ":" not in spec.purifier.name:
                gets_denoiser(spec.purifier, spec.denoiser)
            _check_budget(spec.threat)


def _check_part(kind: str, name: str, given: Mapping[str, Any]) -> None:
    """Raises UserError unless a part of this name takes these options, as far as its signature says."""
    registry = REGISTRIES[kind]
    part, what, known = registry.get(name), f"{registry.kind} '{name}'", options(kind, name)
    given = getattr(part, "spelled_out", dict)(given)  # a name or a file that stands for a value
    plain = {n: v for n, v in given.items() if n not in known or not _names_code(v)}
    if callable(part):
        checked_options(part, plain, what, PARTS[kind].given)
        check_needed(known, given, what)


def _check_purifier(spec: PurifierSpec, denoiser: PartSpec) -> None:
    """Raises UserError unless a registered sampler takes the purifier's options and grid."""
    if spec.is_diffusion and ":" not in spec.sampler:
        steps = min(spec.steps, MOST_STEPS)
        own = TRAIN_STEPS % steps > 0 and denoiser.name != "embedded"  # it may have as many times as that
        table = torch.arange(1.0, steps + 1) if own else None
        make_sampler(spec.sampler, spec.t_star, steps, spec.options, spec.grid, table)


def _check_budget(spec: ThreatSpec) -> None:
    """Raises UserError for a budget outside its threat's range, where that needs nothing but the number."""
    if ":" not in spec.norm and not options("threats", spec.norm):
        make_threat(spec.norm, spec.budget)


def _names_code(value: Any) -> bool:
    """Whether a text somewhere in a value may be an import path."""
    if isinstance(value, Mapping):
        return any(map(_names_code, value.values()))
    return (
        any(map(_names_code, value)) if isinstance(value, list) else isinstance(value, str) and ":" in value
    )


def _parts(spec: Strict) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Where, kind, name and options of the parts of a spec."""
    if isinstance(spec, EvaluationSpec):
        yield "data", "data", spec.data.name, spec.data.options
        yield "classifier", "classifiers", spec.classifier.name, spec.classifier.options
        if spec.purifier.is_diffusion:
            yield "denoiser", "denoisers", spec.denoiser.name, spec.denoiser.options
            grid = {f"grid.{n}": v for n, v in spec.purifier.grid.items()}
            yield "purifier", "samplers", spec.purifier.sampler, {**spec.purifier.options, **grid}
        else:
            if spec.denoiser.name != NO_DENOISER:
                yield "denoiser", "denoisers", spec.denoiser.name, spec.denoiser.options
            yield "purifier", "purifiers", spec.purifier.name, spec.purifier.options
        yield "threat", "threats", spec.threat.norm, spec.threat.options
        for number, attack in enumerate(spec.attacks):
            yield f"attacks.{number}", "attacks", attack.name, attack.options
        for setting in spec.knowledge:
            yield f"knowledge '{setting.name}'", "gradients", setting.gradient, setting.gradient_options
        for name, given in spec.analyses.items():
            yield "analyses", "analyses", name, given
    elif isinstance(spec, TrainingSpec):
        yield "objective", "objectives", spec.objective, spec.objective_options
        yield "data", "data", spec.data.name, spec.data.options
        yield "test_data", "data", spec.test_data.name, spec.test_data.options
        if spec.network is not None:
            yield "network", "networks", spec.network.name, spec.network.options
