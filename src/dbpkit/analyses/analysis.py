"""What an analysis is: units of work that are measured and recorded, and a conclusion drawn from the records.

One analysis is one file and one registration. A conclusion is a pure function of the records, so that it can
be drawn again without the models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from dbpkit.attacks import AttackOutcome, Target, make_attack
from dbpkit.experiment.build import Parts
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import call_apart, own_device
from dbpkit.foundation.inputs import pixels_anywhere
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import checked_options
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.rows import RowLimit
from dbpkit.purification.classifier import Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.analysis import Conclusion

T = TypeVar("T")

analyses: Registry[Callable[..., "Analysis"]] = Registry("analysis")


class PurifierError(UserError):
    """An analysis asks for what a spec's purifier does not have: levels of noise, a gradient, randomness."""


class ImagesError(UserError):
    """An analysis asks for more images than the spec has examples."""


@dataclass(frozen=True)
class Unit:
    """A piece of work: what is measured, on which examples.

    Attributes:
        images: positions of the examples.
        of: what is measured, where an analysis measures several things; ``str`` names it.

    Example:
        >>> str(Unit(range(8, 16))), str(Unit(range(0, 8), "classifier"))
        ('8-15', 'classifier 0-7')
    """

    images: range
    of: Any = None

    def __str__(self) -> str:
        """The label that is recorded and shown; nothing is read back from it."""
        where = f"{self.images.start}-{self.images.stop - 1}"
        return where if self.of is None else f"{self.of} {where}"


class Subject(NamedTuple):
    """What is analysed: the parts of an evaluation spec.

    Attributes:
        spec: the evaluation spec.
        parts: data, models, threat.
        limit: most rows in one call of a model; a `RowLimit` learns where memory runs out.
        done: what earlier units measured, as recorded, for those that depend on them.
    """

    spec: EvaluationSpec
    parts: Parts
    limit: int | RowLimit = 32
    done: Mapping[Unit, Any] = {}

    @property
    def micro_batch(self) -> int:
        """Most rows in one call of a model, as of now."""
        return RowLimit.of(self.limit).rows

    @property
    def alone(self) -> Undefended:
        """The classifier without its purifier."""
        return self.parts.undefended or Undefended(self.parts.model.classifier)

    def examples(self, positions: range) -> tuple[Tensor, Tensor, NoisePlan]:
        """Returns images (B, C, H, W) in [0, 1], labels (B,) and the examples' noise (stream ``report``)."""
        data = self.parts.data.select(slice(positions.start, positions.stop))
        device = own_device(self.alone)
        return data.x().to(device), data.labels.to(device), NoisePlan.of(self.spec.seed, data.ids)

    def purify(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) of any pixel values without a graph, in micro-batches."""
        return self._in_parts(lambda a, n: self.parts.model.purifier(a, noise=n), x, noise)

    def logits(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Logits (B, K) of the purified classifier for any pixel values, without a graph."""
        return self._in_parts(lambda a, n: self.parts.model(a, noise=n), x, noise)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the classifier alone, without a graph, in micro-batches."""
        classifier = self.parts.model.classifier
        with torch.no_grad():
            return torch.cat(self.over(len(x), lambda part: call_apart(classifier, x[part])))

    def over(self, count: int, work: Callable[[slice], T]) -> list[T]:
        """Does ``count`` rows of work in parts that fit into memory, see `RowLimit.over`."""
        return RowLimit.of(self.limit).over(count, work)

    def attack(
        self,
        x: Tensor,
        y: Tensor,
        noise: NoisePlan,
        knowledge: Knowledge,
        tape: int = 0,
        name: str = "pgd",
        lane: int = 1,
        target: Target | None = None,
        **options: Any,
    ) -> AttackOutcome:
        """Attacks the purified classifier and projects onto the spec's budget.

        Args:
            x: images (B, C, H, W).
            y: labels (B,).
            noise: the examples' noise; the attack draws on its ``attack`` stream.
            knowledge: what the attacker knows of the noise of report draw ``tape``.
            tape: which report draw.
            name: registered attack.
            lane: lane of the attack's own noise, another for every attack on the same images.
            target: what is attacked; None takes the purified classifier.
            options: of the attack.
        """
        target = target or Target(self.parts.model, self.limit)
        plan = knowledge.apply(noise.on("attack"), tape).in_lane(lane)
        outcome = make_attack(name, options)(target, x, y, threat=self.parts.threat, noise=plan)
        return outcome._replace(x_adv=self.parts.threat.project(x, outcome.x_adv.detach()))

    def _in_parts(
        self, function: Callable[[Tensor, NoisePlan], Tensor], x: Tensor, noise: NoisePlan
    ) -> Tensor:
        with torch.no_grad(), pixels_anywhere():
            return torch.cat(self.over(len(x), lambda part: function(x[part].clone(), noise.rows(part))))


class Analysis(Protocol):
    """One question about a purified classifier. Options are the fields of the class that is registered.

    Options named in a class variable ``grows`` only decide which units there are: records of the others stay
    valid when such an option changes. Where a class variable ``in_turn`` is true, units need what earlier
    ones measured (`Subject.done`), and one process does all of them; other units are shared by ranks.
    """

    title: str

    def units(self, subject: Subject) -> Sequence[Unit]:
        """Returns the pieces of work, all of about the same cost; UserError if it cannot be done at all."""
        ...

    def measure(self, subject: Subject, unit: Unit) -> Any:
        """Does one piece of work; returns what was measured, ready for JSON."""
        ...

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Draws the conclusion from what all units measured; a pure function."""
        ...


class OfImages(Analysis, Protocol):
    """An analysis of a number of images, cut into batches; `measure` returns a record an image.

    A subclass is a frozen dataclass with the option ``images`` and a ``title``, and writes `measure` and
    `conclude`: see `records` and `columns`.

    Attributes:
        images: examples.
    """

    images: int
    batch_size: ClassVar[int] = 8
    grows: ClassVar[frozenset[str]] = frozenset({"images"})
    follows_gradient: ClassVar[bool] = False
    """Whether it needs the exact gradient of the purified classifier."""

    def __post_init__(self) -> None:
        check_options(self)

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples."""
        if self.follows_gradient:
            needs_gradient(type(self).__name__.lower(), subject)
        return batches(subject, self.images, self.batch_size)


def records(noise: NoisePlan, **columns: Any) -> list[dict[str, Any]]:
    """Returns a record of each example, with its ``id`` and its row of every column.

    Args:
        noise: plan of the B examples.
        columns: tensors (B, ...) or lists of B values that are ready for JSON.
    """
    rows = {k: v.tolist() if isinstance(v, Tensor) else v for k, v in columns.items()}
    ids = noise.example_ids.tolist()
    return [dict(zip(("id", *rows), one, strict=True)) for one in zip(ids, *rows.values(), strict=True)]


def rows(measured: Mapping[Unit, Any]) -> list[Any]:
    """Returns the records of all examples of units that recorded a list of them, in the examples' order."""
    return [record for unit in sorted(measured, key=lambda u: u.images.start) for record in measured[unit]]


def columns(measured: Mapping[Unit, Any]) -> dict[str, np.ndarray]:
    """Returns what `records` made, as arrays (images, ...) by name."""
    found = rows(measured)
    return {name: np.array([record[name] for record in found]) for name in found[0]}


def check_options(analysis: Any) -> None:
    """Makes every field of an analysis what its annotation says; UserError if it cannot be."""
    what = f"analysis '{type(analysis).__name__.lower()}'"
    for name, value in checked_options(type(analysis), vars(analysis), what).items():
        object.__setattr__(analysis, name, value)  # it is frozen


def batches(subject: Subject, images: int, size: int = 8, of: Any = None) -> list[Unit]:
    """Units of ``size`` examples each.

    Raises:
        ImagesError: if the data have fewer examples.
    """
    if images > len(subject.parts.data):
        raise ImagesError(
            f"{images} images were asked for, but the spec has {len(subject.parts.data)} examples."
            " Raise examples.count or lower the option 'images'."
        )
    return cut(images, size, of)


def cut(images: int, size: int = 8, of: Any = None) -> list[Unit]:
    """Units of ``size`` of the first ``images`` examples each."""
    return [Unit(range(i, min(i + size, images)), of) for i in range(0, images, size)]


def needs_diffusion(analysis: str, subject: Subject) -> Purifier:
    """Returns the purifier; PurifierError unless it is a diffusion chain, with a t* and levels of noise."""
    purifier = getattr(subject.parts.model, "purifier", None)
    if not isinstance(purifier, Purifier):
        raise PurifierError(
            f"analysis '{analysis}' needs a diffusion purifier, and '{subject.spec.purifier.name}' has no"
            ' levels of noise. Name other analyses, or purifier.name = "diffusion".'
        )
    return purifier


def needs_gradient(analysis: str, subject: Subject) -> None:
    """Raises PurifierError if no gradient comes through the purifier: JPEG's rounding stops it."""
    if isinstance(getattr(subject.parts.model, "purifier", None), Purifier):
        return
    x, _, noise = subject.examples(range(1))
    if not subject.parts.model(x.requires_grad_(), noise=noise.on("attack")).requires_grad:
        raise PurifierError(
            f"analysis '{analysis}' follows the exact gradient, and none comes through purifier"
            f" '{subject.spec.purifier.name}': a path is detached. Let it through, or name other analyses."
        )


def needs_noise(analysis: str, subject: Subject) -> None:
    """Raises PurifierError if the purified classifier draws no noise."""
    if not subject.parts.model.sites:
        raise PurifierError(
            f"analysis '{analysis}' varies the purifier's noise, and '{subject.spec.purifier.name}' draws"
            " none. Name other analyses."
        )


def needs_budget(analysis: str, subject: Subject) -> None:
    """Raises UserError if the threat allows no perturbation at all."""
    if not subject.parts.threat.eps > 0:
        raise UserError(
            f"analysis '{analysis}' varies images within the budget, and threat.eps is 0. Raise it."
        )
