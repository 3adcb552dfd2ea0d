"""What a check is, the registry of checks, and the probe that they look at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.registry import Registry
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.purifier import gradient_note
from dbpkit.results.flags import Flag
from dbpkit.threats.pixels import ThreatModel

Stage = Literal["model", "behaviour", "short attacks", "settings"]
"""When a check looks: at the model on a few images, before every run and first by ``dbpkit check``; at how
well it does on all images, and at what attacking it shows, by ``dbpkit check`` alone; at settings, where
there is a spec."""

Need = Literal["", "noise", "diffusion", "exact gradient", "gradient note"]
"""Without what a check has nothing to look at."""

STAGES: tuple[Stage, ...] = ("model", "behaviour", "short attacks", "settings")

Progress = Callable[[float, str], None]
"""Called before every check with the share of all that is done and the check's name."""


@dataclass(frozen=True)
class Planned:
    """What will be done with the model, as far as a check may want to know.

    Attributes:
        eot: draws per gradient.
        sees_noise: whether anything is random for an attacker.
        attack: registered name of an attack with ``iterations``.
        options: its other options.
        spec: the evaluation, where there is one.
    """

    eot: int = 10
    sees_noise: bool = True
    attack: str = "pgd"
    options: Mapping[str, Any] = field(default_factory=dict)
    spec: EvaluationSpec | None = None


@dataclass(frozen=True)
class Probe:
    """A model and the images on which a check looks at it.

    Attributes:
        model: the classifier.
        x: images (B, C, H, W) in [0, 1].
        y: labels (B,).
        noise: plan of the B images.
        threat: the budget.
        planned: what will be done with the model.
        more: the same model and more images, for a check that asks its denoiser alone; None if there are no
            more.
        made: what checks have made for one another with just this probe, see `dbpkit.checks.passes`.
    """

    model: RandomisedClassifier
    x: Tensor
    y: Tensor
    noise: NoisePlan
    threat: ThreatModel
    planned: Planned = Planned()
    more: "Probe | None" = field(default=None, repr=False, compare=False)
    made: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def diffusion(self) -> Purifier | None:
        """The diffusion chain that purifies for the model, if one does."""
        purifier = getattr(self.model, "purifier", None)
        return purifier if isinstance(purifier, Purifier) else None

    @property
    def gradient_note(self) -> str:
        """What the model's purifier says of its gradient where that is not exact; else empty."""
        return gradient_note(getattr(self.model, "purifier", None))

    def first(self, count: int) -> "Probe":
        """Returns the probe of the first images."""
        return self.rows(slice(0, count))

    def rows(self, few: slice) -> "Probe":
        """Returns the probe of some images."""
        return replace(self, x=self.x[few], y=self.y[few], noise=self.noise.rows(few))

    def under(self, threat: ThreatModel) -> "Probe":
        """Returns the probe with another budget."""
        return replace(self, threat=threat)

    def of(self, model: RandomisedClassifier) -> "Probe":
        """Returns the probe of another model."""
        return replace(self, model=model, more=None)

    def outputs(self, x: Tensor | None = None) -> Tensor:
        """Returns the outputs (B, K) of these images, or of others, under the probe's noise."""
        return self.model(self.x if x is None else x, noise=self.noise)

    def is_random(self) -> bool:
        """Whether the outputs depend on the draw."""
        if "is random" not in self.made:
            one = self.first(1)
            with torch.no_grad():
                fresh = one.model(one.x, noise=one.noise.at(1))
                self.made["is random"] = not torch.equal(one.outputs(), fresh)
        found: bool = self.made["is random"]
        return found


class Note(NamedTuple):
    """What a check tells of a model where nothing need be wrong, in a sentence."""

    text: str


Look = Callable[[Probe], Iterable[Flag | Note]]
"""Looks at a probe and returns what is suspicious, and what else is worth telling."""

L = TypeVar("L", bound=Look)


class Check(NamedTuple):
    """A check and its words.

    Attributes:
        name: what it is called.
        stage: when it looks.
        look: the function.
        expects: what holds where nothing is wrong, in a clause without a full stop.
        remedy: what to do where it does not hold, in a sentence.
        needs: without what it has nothing to look at: an attacker who meets noise, a diffusion chain, or a
            purifier that does not, or does, say that its gradient is another's.
        raises: names of its flags where they are not its own.
    """

    name: str
    stage: Stage
    look: Look
    expects: str
    remedy: str
    needs: Need = ""
    raises: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """Names of the flags that it may raise."""
        return self.raises or (self.name,)

    def has_something_to_look_at(self, probe: Probe) -> bool:
        """Whether what it needs is there."""
        there = {
            "": True,
            "noise": probe.planned.sees_noise,
            "diffusion": probe.diffusion is not None,
            "exact gradient": not probe.gradient_note,
            "gradient note": bool(probe.gradient_note),
        }
        return there[self.needs]


class Checks(Registry[Check]):
    """The registered checks, which run in the order in which they are registered."""

    def add(
        self,
        name: str,
        *,
        stage: Stage,
        expects: str,
        remedy: str,
        needs: Need = "",
        raises: tuple[str, ...] = (),
    ) -> Callable[[L], L]:
        """Returns a decorator that files a function as a check; the function stays as it is.

        Args:
            name: of the check.
            stage: when it looks, one of `STAGES`.
            expects: what holds where nothing is wrong: "the classifier returns logits".
            remedy: what to do where it does not hold.
            needs: ``noise`` leaves it out where no attacker meets any, ``diffusion`` where no chain purifies,
                ``exact gradient`` where the purifier says that its gradient is not, ``gradient note`` where
                it says nothing.
            raises: names of its flags, where they are not its own.

        Raises:
            UserError: if the name is taken, or there is no such stage.
        """
        if stage not in STAGES:
            raise unknown_name("stage of a check", stage, STAGES)
        file = self.register(name)

        def add(look: L) -> L:
            file(Check(name, stage, look, expects, remedy, needs, raises))
            return look

        return add

    def of(self, stage: Stage, probe: Probe) -> list[Check]:
        """Returns the checks of a stage that have something to look at, in their order."""
        list(self)  # brings all that is not imported yet
        chosen = [c for c in self._parts.values() if c.stage == stage]
        return [c for c in chosen if c.has_something_to_look_at(probe)]

    def describe(self) -> dict[str, str]:
        """Returns every name with the check's stage and words."""
        found = {name: self.get(name) for name in self}
        return {name: f"{c.stage}: {c.expects}. Else: {c.remedy}" for name, c in found.items()}


checks = Checks("check")


class Checked(NamedTuple):
    """What checks found.

    Attributes:
        flags: every flag that came up.
        checks: names of the checks that ran, in their order.
        raised: those of them that raised a flag.
        notes: what else they tell, a sentence each.
    """

    flags: list[Flag]
    checks: tuple[str, ...]
    raised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What follows from the flags, in a sentence."""
        return verdict(self.flags)

    @property
    def trustworthy(self) -> bool:
        """Whether there is no error among the flags."""
        return not any(f.severity == "error" for f in self.flags)

    @property
    def words(self) -> dict[str, str]:
        """Name of a flag to what is expected where it is not raised, of the checks that ran.

        A check that raised another flag than it is known for is not listed: nothing says that it is in order.
        """
        ran = [checks.get(name) for name in self.checks if name in checks]
        found = {flag.name for flag in self.flags}
        words: dict[str, str] = {}
        for check in ran:
            for flag in check.flags:
                if check.name not in self.raised or flag in found:
                    words.setdefault(flag, check.expects)
        return words

    @property
    def remedies(self) -> dict[str, str]:
        """Flag to what to do; a check that raised others than it is known for stands under its own name."""
        found = {flag.name for flag in self.flags}
        ran = [checks.get(name) for name in self.raised if name in checks]
        return {flag: c.remedy for c in ran for flag in ([f for f in c.flags if f in found] or [c.name])}

    def once(self) -> "Checked":
        """Returns this with the first flag of each name and row."""
        first: dict[tuple[str, str], Flag] = {}
        for flag in self.flags:
            first.setdefault((flag.name, flag.row), flag)
        return self._replace(flags=list(first.values()))

    def then(self, told: Iterable[Flag | Note], *names: str) -> "Checked":
        """Returns this with more flags and notes, and the checks that they come from."""
        told = list(told)
        found = [flag for flag in told if isinstance(flag, Flag)]
        notes = (*self.notes, *(note.text for note in told if isinstance(note, Note)))
        raised = (*self.raised, *names) if found else self.raised
        return Checked([*self.flags, *found], (*self.checks, *names), raised, notes)


def run_check(check: Check, probe: Probe) -> list[Flag | Note]:
    """Returns what a check flags and notes; UserError if it returns anything else."""
    found = check.look(probe)
    if not isinstance(found, Iterable):
        raise UserError(f"check '{check.name}' must return a list of flags, not {type(found).__name__}.")
    flags = list(found)
    for flag in flags:
        if not isinstance(flag, Flag | Note):
            raise UserError(f"check '{check.name}' must return flags, not {type(flag).__name__}.")
    return flags


def verdict(flags: Sequence[Flag]) -> str:
    """Says in a sentence what follows from the flags."""
    errors = sorted({f.name for f in flags if f.severity == "error"})
    if errors:
        names = ", ".join(errors)
        return f"Do not trust a number from this set-up yet: fix {names} first (docs/reference/flags.md)."
    if flags:
        return "Nothing is broken; read the warnings before a long run (docs/reference/flags.md)."
    return "Trustworthy on these examples. Nothing suspicious was found."
