"""What a layout is: the marks of one published way of storing a network, and how it is read.

The thing people get wrong: what shapes do not settle (the side of the images, the number of heads, the order
of qkv rows, the preconditioning around bare weights). A reading says each such guess, and takes it as an
option.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

from dbpkit.foundation.checkpoints import Stored
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.registry import Registry
from dbpkit.models.layouts.contents import Weights
from dbpkit.models.weights import Architecture

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by name."""


class Reading(NamedTuple):
    """What a layout makes of a network's weights.

    Attributes:
        architecture: describes the network, with the adapter and its conventions around it.
        tensors: by the network's own names.
        title: the network in the field's words, such as ``Score-SDE DDPM++ (deep), VP``.
        conventions: what is done with it, such as ``noise at 999 t``.
        assumed: guesses that the file does not settle, each with the option that says otherwise.
    """

    architecture: Architecture
    tensors: Mapping[str, Stored]
    title: str
    conventions: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


class Asked:
    """Options that the user gave for a file, each used once.

    Args:
        options: by name; those that are None count as not given.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = {name: value for name, value in options.items() if value is not None}
        self.used: set[str] = set()
        self.guesses: list[str] = []
        self.left_out: list[str] = []  # places of averaged weights that are of no layout

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an option, or what it is if not given."""
        self.used.add(name)
        return self.options.get(name, default)

    def guess(self, name: str, value: Any, words: str) -> Any:
        """Returns an option; where it is not given a value that the file does not settle, which is then said.

        Args:
            name: of the option.
            value: what is taken.
            words: of the guess, such as ``images of 32 x 32``.
        """
        if name not in self.options:
            self.guesses.append(f"{words} ({name})")
        return self.get(name, value)

    def refuse_unused(self, layout: str) -> None:
        """Raises UserError for an option that the layout has no use for."""
        if unused := sorted(self.options.keys() - self.used):
            raise UserError(
                f"a {layout} file has no use for the option {unused[0]} = {shown(self.options[unused[0]])}."
                f" It takes: {', '.join(sorted(self.used)) or 'none'}."
            )


class Layout:
    """One published way of storing a network. A subclass is one file and one registration.

    Attributes:
        title: for people.
        kind: ``denoiser`` or ``classifier``.
        marks: names of tensors, with ``*`` for any text; a file is of the layout if each fits one of its
            names.
        refusal: why such a file is not opened and what to do, in one sentence; empty if it is.
        untrained: regular expression of names that lists of averaged weights leave out, besides buffers.
    """

    title: ClassVar[str] = ""
    kind: ClassVar[str] = "denoiser"
    marks: ClassVar[tuple[str, ...]] = ()
    refusal: ClassVar[str] = ""
    untrained: ClassVar[str] = ""

    def missing(self, names: Iterable[str]) -> list[str]:
        """Returns the marks that no name fits."""
        names = list(names)
        return [mark for mark in self.marks if not any(fnmatchcase(name, mark) for name in names)]

    def accepts(self, weights: Weights, content: Any) -> bool:
        """Whether weights with all marks are of this layout and not of one that shares them."""
        del weights, content
        return True

    def trained(self, weights: Weights) -> list[str]:
        """Returns the names of a network's trained parameters, in their order."""
        skipped = re.compile(self.untrained or r"(?!)")
        return [name for name in weights.tensors if not skipped.fullmatch(name)]

    def named(self, nameless: Weights) -> Weights | None:
        """Returns weights that are a list without names under the names of a published network; or None."""
        del nameless
        return None

    def read(self, weights: Weights, asked: Asked) -> Reading:
        """Returns the network that weights are of.

        Raises:
            UserError: if they are not, or an option does not fit.
        """
        raise NotImplementedError


def discrete_schedule(asked: Asked, usual: str = "linear", usual_steps: int = 1000) -> dict[str, Any]:
    """Returns the option ``schedule`` of a ``vp`` adapter, which no file says; none for the linear DDPM one.

    Args:
        asked: may have ``schedule``, a name or a table, and ``steps``, T.
        usual: the layout's own.
        usual_steps: its number of times.
    """
    schedule = asked.guess("schedule", usual, f"{usual} schedule")
    if not isinstance(schedule, str):
        return {"schedule": schedule}
    steps = asked.guess("steps", usual_steps, f"{usual_steps} steps")
    if (schedule, steps) == ("linear", 1000):
        return {}
    if schedule != "linear":
        return {"schedule": {"beta_schedule": schedule, "num_train_timesteps": steps}}
    scale = 1000 / steps  # the ends of evenly spaced betas shrink with their number
    return {"schedule": {"num_train_timesteps": steps, "beta_start": scale * 1e-4, "beta_end": scale * 0.02}}


layouts: Registry[Callable[[], Layout]] = Registry("layout")
"""Published ways of storing a network, by name."""
