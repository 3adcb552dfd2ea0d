"""What an analysis is: units of work that are measured and recorded, and a conclusion drawn from the records.

One analysis is one file and one registration. The thing people get wrong: measuring and concluding in one go.
A conclusion is a pure function of the records, so that it can be drawn again without the models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dbpkit.attacks import AttackOutcome, Target, make_attack
from dbpkit.experiment.build import Parts
from dbpkit.experiment.knowledge import Knowledge
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import checked_options
from dbpkit.foundation.registry import Registry
from dbpkit.purification.classifier import Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.results.analysis import AnalysisResult

analyses: Registry[Callable[..., "Analysis"]] = Registry("analysis")


class Subject(NamedTuple):
    """What is analysed: the parts of an evaluation spec.

    Attributes:
        spec: the evaluation spec.
        parts: data, models, threat.
        micro_batch: most rows in one call of a model.
        done: what earlier units measured, as recorded, for units that depend on them.
    """

    spec: EvaluationSpec
    parts: Parts
    micro_batch: int = 32
    done: Mapping[str, Any] = {}

    @property
    def alone(self) -> Undefended:
        """The classifier without its purifier."""
        return self.parts.undefended or Undefended(self.parts.model.classifier)

    def examples(self, index: slice) -> tuple[Tensor, Tensor, NoisePlan]:
        """Returns images (B, C, H, W) in [0, 1], labels (B,) and the examples' noise (stream ``report``)."""
        data = self.parts.data.select(index)
        device = own_device(self.alone)
        return data.x().to(device), data.labels.to(device), NoisePlan.of(self.spec.seed, data.ids)

    def purify(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Purifies images (B, C, H, W) without a graph, in micro-batches."""
        return self._in_parts(lambda a, n: self.parts.model.purifier(a, noise=n), x, noise)

    def logits(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """Logits (B, K) of the purified classifier, without a graph, in micro-batches."""
        return self._in_parts(lambda a, n: self.parts.model(a, noise=n), x, noise)

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the classifier alone, without a graph, in micro-batches."""
        with torch.no_grad():
            return torch.cat([self.parts.model.classifier(part) for part in x.split(self.micro_batch)])

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
        target = target or Target(self.parts.model, self.micro_batch)
        plan = knowledge.apply(noise.on("attack"), tape).in_lane(lane)
        outcome = make_attack(name, options)(target, x, y, threat=self.parts.threat, noise=plan)
        return outcome._replace(x_adv=self.parts.threat.project(x, outcome.x_adv.detach()))

    def _in_parts(
        self, function: Callable[[Tensor, NoisePlan], Tensor], x: Tensor, noise: NoisePlan
    ) -> Tensor:
        with torch.no_grad():
            pieces = torch.arange(len(x)).split(self.micro_batch)
            return torch.cat([function(x[rows.to(x.device)], noise.rows(rows)) for rows in pieces])


class Analysis(Protocol):
    """One question about a purified classifier. Options are the fields of the class that is registered."""

    title: str

    def units(self, subject: Subject) -> Sequence[str]:
        """Returns the names of the pieces of work, all of about the same cost."""
        ...

    def measure(self, subject: Subject, unit: str) -> Any:
        """Does one piece of work; returns what was measured, ready for JSON."""
        ...

    def conclude(self, measured: Mapping[str, Any]) -> AnalysisResult:
        """Draws the conclusion from what all units measured; a pure function."""
        ...


def check_options(analysis: Any) -> None:
    """Makes every field of an analysis what its annotation says; UserError if it cannot be."""
    what = f"analysis '{type(analysis).__name__.lower()}'"
    for name, value in checked_options(type(analysis), vars(analysis), what).items():
        object.__setattr__(analysis, name, value)  # it is frozen


def batches(subject: Subject, images: int, size: int = 8) -> list[str]:
    """Units that are ranges of example positions, ``"0-7"``, ``"8-15"``, ...

    Raises:
        UserError: if the data have fewer examples.
    """
    if images > len(subject.parts.data):
        raise UserError(
            f"an analysis of {images} images was asked for, but the spec has {len(subject.parts.data)}"
            " examples. Raise examples.count or lower its option 'images'."
        )
    return [f"{i}-{min(i + size, images) - 1}" for i in range(0, images, size)]


def needs_diffusion(analysis: str, subject: Subject) -> Purifier:
    """Returns the purifier; UserError unless it is a diffusion chain, with a t* and levels of noise."""
    purifier = getattr(subject.parts.model, "purifier", None)
    if not isinstance(purifier, Purifier):
        raise UserError(
            f"analysis '{analysis}' needs a diffusion purifier, and '{subject.spec.purifier.name}' has no"
            ' levels of noise. Name other analyses, or purifier.name = "diffusion".'
        )
    return purifier


def needs_budget(analysis: str, subject: Subject) -> None:
    """Raises UserError if the threat allows no perturbation at all."""
    if not subject.parts.threat.eps > 0:
        raise UserError(
            f"analysis '{analysis}' varies images within the budget, and threat.eps is 0. Raise it."
        )


def positions(unit: str) -> slice:
    """The example positions of a unit made by `batches`."""
    first, last = unit.split("-")
    return slice(int(first), int(last) + 1)


def rows(measured: Mapping[str, Any]) -> Iterator[Any]:
    """All per-example records of units that recorded a list of them, in the units' order."""
    for unit in sorted(measured, key=lambda u: positions(u).start):
        yield from measured[unit]
