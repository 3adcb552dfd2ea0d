"""Rungs of a ladder of purifiers: what each is, and the subject with it in the place of its own purifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dbpkit.analyses.analysis import Subject
from dbpkit.analyses.tools.configurations import settings
from dbpkit.experiment.build import make_purifier
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.spec import PartSpec, Strict, validate
from dbpkit.models.networks.layers import placed
from dbpkit.models.sources import load_denoiser
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.purifier import gradient_note

NOTHING, NOISE, FILTER, OTHER, ONE, CHAIN = "nothing", "noise", "filter", "other", "one", "chain"
"""What a rung is: no purifier, noise alone, a filter, one call of another denoiser or the spec's, a chain."""

SAME_LEVEL = 0.02
"""Relative difference of two noise levels that rounding to a grid's times explains."""


@dataclass(frozen=True)
class Rung:
    """One purifier of the ladder; equal where the names are.

    Attributes:
        name: in tables.
        role: what it is, such as `NOISE`.
        purifier: its settings.
        denoiser: its own denoiser; None takes the spec's.
    """

    name: str
    role: str = field(compare=False)
    purifier: PurifierSpec = field(compare=False)
    denoiser: PartSpec | None = field(compare=False, default=None)

    def __str__(self) -> str:
        return self.name


class _Own(Strict):
    """The keys of a rung that are not its purifier's."""

    always: ClassVar[frozenset[str] | None] = frozenset({"denoiser", "label"})

    denoiser: PartSpec | None = None
    label: str | None = None


def ladder(subject: Subject, tables: Sequence[Any]) -> list[Rung]:
    """Rungs of tables, each made once so that what is wrong is found before any work.

    Args:
        subject: gives the classifier, and the denoiser of rungs without one of their own.
        tables: keys of ``[purifier]``, and ``denoiser`` and ``label`` if wanted; the lowest rung first.

    Raises:
        UserError: if a key or value is wrong, two rungs are the same, or they start from different noise.
    """
    found: list[Rung] = []
    levels: dict[str, float] = {}
    for number, table in enumerate(tables):
        rung = _rung(table, f"rungs[{number}]")
        purifier: Any = climbed(subject, rung).parts.model.purifier
        note = gradient_note(purifier).partition(":")[0]
        name = f"{rung} ({note})" if note else rung.name
        is_chain = isinstance(purifier, Purifier) and purifier.calls > 1
        rung = Rung(name, CHAIN if is_chain else rung.role, rung.purifier, rung.denoiser)
        if rung in found:
            raise UserError(f"rungs: '{rung}' is listed twice. Delete one, or give it a label.")
        found.append(rung)
        if level := _first_level(purifier):
            levels[name] = level
    _check_levels(levels)
    return found


def climbed(subject: Subject, rung: Rung) -> Subject:
    """Returns the subject with the purifier of a rung in its own's place."""
    model, denoiser = subject.parts.model, subject.parts.denoiser
    if rung.denoiser is not None:
        loaded = load_denoiser(rung.denoiser.name, rung.denoiser.options)
        denoiser = placed(loaded, own_device(subject.alone))
    memory = {k: v for k in ("memory_bytes",) if (v := getattr(model.purifier, k, None)) is not None}
    purifier = make_purifier(rung.purifier, denoiser, **memory)
    changed = PurifiedClassifier(purifier, model.classifier, seed=model.seed)
    return subject._replace(parts=subject.parts._replace(model=changed))


def _rung(table: Any, where: str) -> Rung:
    """A rung of a table."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table with the keys of [purifier].")
    mine = {k: v for k, v in table.items() if k in ("denoiser", "label")}
    own = validate(mine, _Own, where)
    (setting,) = settings([{k: v for k, v in table.items() if k not in mine}])
    of = f" of {own.denoiser.name}" if own.denoiser is not None else ""
    if setting.purifier.is_diffusion:
        role = OTHER if own.denoiser is not None else ONE
    else:
        role = {"identity": NOTHING, "noise_only": NOISE}.get(setting.purifier.name, FILTER)
    return Rung(own.label or f"{setting.name}{of}", role, setting.purifier, own.denoiser)


def _first_level(purifier: Any) -> float:
    """The noise level that a purifier starts from; 0 if it says none."""
    if isinstance(purifier, Purifier):
        return float(purifier.sampler.levels[0])
    return float(getattr(purifier, "sigma", 0.0))


def _check_levels(levels: Mapping[str, float]) -> None:
    """Raises UserError unless all rungs with noise start from the same."""
    if not levels:
        return
    low, high = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
    if levels[high] > levels[low] * (1 + SAME_LEVEL):
        raise UserError(
            f"ladder compares at equal noise, and '{low}' starts at level {levels[low]:.3g}, '{high}' at"
            f" {levels[high]:.3g}. Give them the same t_star and steps."
        )
