"""Tapes: robust accuracy draw by draw of the noise, against an attacker who knows the draw.

A tape is one draw of all the noise of one purification. The thing people get wrong: calling a tape good
because it is the best of 16. Some tape always is; it is good if it is on other images too, so it is chosen on
half of the images and judged on the rest. With a tape of its own for every image, tape 3 of one image has
nothing in common with tape 3 of another; an effect of the tape can exist where all images share it.

Source:
    Liu & Wei 2025: fixed randomness, and the outlook on stable robustness across random configurations;
    Liu et al., ICLR 2025, section 3, DW_Both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dbpkit.analyses.analysis import OfImages, Subject, Unit, analyses, columns, needs_noise, records
from dbpkit.analyses.tapes.numbers import conclusion
from dbpkit.analyses.tools.configurations import with_eps
from dbpkit.attacks import ExpectedGradient, Target
from dbpkit.attacks.loss import LossName
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.options import Count, Several
from dbpkit.foundation.spec import amount
from dbpkit.models.sources import load_classifier, source
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.results.analysis import Conclusion
from dbpkit.threats.pixels import make_threat

SHARED_ID = 0
"""Example whose noise all images are given where they share their tapes."""


class OnTape(Target):
    """A target under one known tape a row, which leaves a row alone once it is misclassified.

    Such a row's gradient is 0, so that an attack along the gradient stays where it has won.

    Args:
        subject: gives the model and how many rows go through it at once.
        tapes: noise of every row, whatever the attack's.

    Attributes:
        unbroken: rows that were right wherever a gradient was asked for, (B,) bool.
        first: which of them were right at the first gradient, at the image itself; None before.
    """

    def __init__(self, subject: Subject, tapes: NoisePlan) -> None:
        super().__init__(subject.parts.model, subject.limit)
        self.tapes = tapes
        self.unbroken = torch.ones(len(tapes), dtype=torch.bool)
        self.first: Tensor | None = None

    def gradient(self, x: Tensor, y: Tensor, **options: Any) -> ExpectedGradient:
        """Differentiates the rows that are left, see `Target.gradient`; ``noise`` and ``eot`` are ignored."""
        grad, loss, right = torch.zeros_like(x), x.new_zeros(len(x)), x.new_zeros(len(x))
        left = self.unbroken.nonzero()[:, 0]
        if len(left):
            some = left.to(x.device)
            options = {**options, "noise": self.tapes.rows(left), "eot": 1}
            found = super().gradient(x[some], y[some], **options)
            for whole, part in zip((grad, loss, right), found, strict=True):
                whole[some] = part.to(whole.dtype)
            self.unbroken[left] = (found.right > 0).cpu()
            grad[~self.unbroken.to(x.device)] = 0
        self.first = self.unbroken.clone() if self.first is None else self.first
        return ExpectedGradient(grad, loss, right)

    def survived(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether rows are still right, (B,) bool; only those that are left are looked at."""
        left = self.unbroken.nonzero()[:, 0]
        if len(left):
            some = left.to(x.device)
            self.unbroken[left] = (self(x[some], noise=self.tapes.rows(left)).argmax(dim=1) == y[some]).cpu()
        return self.unbroken


@analyses.register("tapes")
@dataclass(frozen=True)
class Tapes(OfImages):
    """Robust accuracy under each of several known draws of the noise, and what is special to a draw.

    Attributes:
        images: examples.
        tapes: known draws, each attacked on its own.
        iterations: steps of every PGD.
        eot: draws averaged in each gradient of the stronger attacker who does not know the tape.
        shared: whether all images are purified with the same draws, or every image with draws of its own.
        other_loss: loss of a second attack, under the same tapes.
        other_norm: norm of its budget; empty takes the spec's.
        other_eps: its budget, such as ``0.5``; empty takes the spec's.
        classifier: a second classifier behind the same purifier, as after --classifier; empty for none.
    """

    images: Count = 16
    tapes: Several = 16
    iterations: Count = 5
    eot: Count = 5
    shared: bool = True
    other_loss: LossName = "margin"
    other_norm: str = ""
    other_eps: str = ""
    classifier: str = ""
    title = "Robustness draw by draw of the noise"
    follows_gradient = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.other_norm) and not self.other_eps:
            raise UserError("analysis 'tapes': other_norm needs a budget of its own. Give other_eps.")

    def units(self, subject: Subject) -> list[Unit]:
        """Batches of examples; the second attack and classifier are made once, so that errors come now."""
        needs_noise("tapes", subject)
        self._second_threat(subject)
        self._second_classifier(subject)
        return super().units(subject)

    def measure(self, subject: Subject, unit: Unit) -> list[dict[str, Any]]:
        """Whether every example of the unit is right under each tape: unattacked, and after each attack."""
        x, y, noise = subject.examples(unit.images)
        ids = torch.full_like(noise.example_ids, SHARED_ID) if self.shared else noise.example_ids
        tapes = NoisePlan.of(subject.spec.seed, ids).repeat(self.tapes)
        found: dict[str, Tensor] = {}
        found["clean"], found["known"] = self._known(subject, x, y, noise, tapes, "ce")
        second = self._second_threat(subject)
        _, found["other_attack"] = self._known(second, x, y, noise, tapes, self.other_loss)
        if self.classifier:
            behind = self._second_classifier(subject)
            found["other_clean"], found["other_classifier"] = self._known(behind, x, y, noise, tapes, "ce")
        for name, lane, eot in (("unknown_once", 2, 1), ("unknown", 3, self.eot)):
            options: dict[str, Any] = {"lane": lane, "iterations": self.iterations, "eot": eot}
            x_adv = subject.attack(x, y, noise, known["white_box"], **options).x_adv
            found[name] = self._right(subject, x_adv, y, tapes)
        return records(noise, **{name: right.int() for name, right in found.items()})

    def _known(
        self, subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, tapes: NoisePlan, loss: str
    ) -> tuple[Tensor, Tensor]:
        """Right without and with an attack that knows the tape, (B, T) bool each; wrong before is wrong."""
        image = torch.arange(len(x)).repeat_interleave(self.tapes)
        target, own = OnTape(subject, tapes), noise.rows(image)
        x_rows, y_rows = x[image], y[image]
        options: dict[str, Any] = {"iterations": self.iterations, "eot": 1, "loss": loss}
        x_adv = subject.attack(x_rows, y_rows, own, known["white_box"], target=target, **options).x_adv
        survived = target.survived(x_adv, y_rows)
        clean = survived if target.first is None else target.first
        shape = (len(x), self.tapes)
        return clean.unflatten(0, shape), survived.unflatten(0, shape)

    def _right(self, subject: Subject, x_adv: Tensor, y: Tensor, tapes: NoisePlan) -> Tensor:
        """Whether images are right under each tape, (B, T) bool."""
        image = torch.arange(len(y)).repeat_interleave(self.tapes)
        said = subject.logits(x_adv[image], tapes).argmax(dim=1)
        return (said == y[image]).unflatten(0, (len(y), self.tapes))

    def _second_threat(self, subject: Subject) -> Subject:
        """The subject under the second attack's budget."""
        if not self.other_eps:
            return subject
        try:
            eps = amount(self.other_eps)
        except ValueError as error:
            raise UserError(
                f"analysis 'tapes': other_eps must be an amount such as '0.5': {error}"
            ) from error
        if not self.other_norm:
            return with_eps(subject, eps)
        return subject._replace(parts=subject.parts._replace(threat=make_threat(self.other_norm, eps)))

    def _second_classifier(self, subject: Subject) -> Subject:
        """The subject with the second classifier behind its purifier."""
        if not self.classifier:
            return subject
        model = subject.parts.model
        classifier = load_classifier(*source(self.classifier)).to(next(model.classifier.parameters()).device)
        made = PurifiedClassifier(model.purifier, classifier, seed=model.seed)
        return subject._replace(parts=subject.parts._replace(model=made))

    def conclude(self, measured: Mapping[Unit, Any]) -> Conclusion:
        """Spread and shares of variance, chosen tapes on other images, and what knowing the tape gains."""
        found = columns(measured)
        tables = {name: table.astype(float) for name, table in found.items() if name != "id"}
        return conclusion(tables, shared=self.shared, eot=self.eot)
