"""Options of parts: every value is checked against the part's signature before the part is made.

A part says what it takes in its annotations: ``iterations: Count``, ``clip: bool``, ``start: Literal[...]``.
The same annotations are what `dbpkit list NAME --options` prints; `dbpkit.foundation.annotations` reads them.
"""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from dbpkit.foundation.annotations import (
    MOST,
    Checked,
    Count,
    CountOrNone,
    Counts,
    Length,
    Named,
    NonNegative,
    Several,
    Share,
    read_value,
    words,
)
from dbpkit.foundation.errors import UserError, shown

__all__ = [
    "MOST",
    "Checked",
    "Count",
    "CountOrNone",
    "Counts",
    "Length",
    "Named",
    "NonNegative",
    "Option",
    "Several",
    "Share",
    "call_with_options",
    "check_needed",
    "checked_options",
    "meanings",
    "options_of",
    "words",
]

_ANY = inspect.Parameter.empty


class Option(NamedTuple):
    """One option of a part.

    Attributes:
        name: keyword.
        annotation: what it takes.
        default: value if it is not given; ``inspect.Parameter.empty`` if it must be given.
        meaning: from the part's docstring.
    """

    name: str
    annotation: Any
    default: Any
    meaning: str = ""

    @property
    def needed(self) -> bool:
        """Whether it must be given."""
        return self.default is _ANY

    @property
    def words(self) -> str:
        """What it takes, in words."""
        return words(self.annotation)

    def read(self, value: Any) -> Any:
        """Returns the value as the part takes it; ValueError if it is none of those."""
        is_default = type(value) is type(self.default) and value == self.default
        if is_default or (value is None and self.default is None):
            return value
        infinite = isinstance(self.default, float) and math.isinf(self.default)
        return read_value(value, self.annotation, infinite)


def options_of(part: Callable[..., Any], reserved: Iterable[str] = ()) -> dict[str, Option]:
    """Returns the options of a part by name, in the order of its signature; reserved ones are left out."""
    said = meanings(part)
    return {
        p.name: Option(p.name, p.annotation, p.default, said.get(p.name, ""))
        for p in _parameters(part)
        if p.name not in reserved and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def checked_options(
    part: Callable[..., Any], options: Mapping[str, Any], what: str, reserved: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns the options as the part takes them: fractions as numbers, lists as tuples where it has tuples.

    Args:
        part: function or class.
        options: as a spec has them.
        what: the part's name for errors, such as ``"attack 'pgd'"``.
        reserved: parameters that are not options.

    Raises:
        UserError: if the part has no such option, or a value is not what its annotation says.
    """
    if not callable(part):
        raise UserError(f"{what} must be a function or class, not {shown(part)}.")
    if not isinstance(options, Mapping):
        raise UserError(f"{what}: options must be a table of names and values, not {shown(options)}.")
    known = options_of(part, reserved)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in _parameters(part))
    found = {}
    for name, value in options.items():
        if name not in known and (not open_ended or name in set(reserved)):
            raise _unknown_option(what, str(name), known)
        found[name] = _checked(what, known[name], value) if name in known else value
    return found


def call_with_options(part: Callable[..., Any], options: Mapping[str, Any], what: str) -> Any:
    """Calls a part with a spec's options.

    Raises:
        UserError: if it does not accept them; errors inside the part pass through.
    """
    chosen = checked_options(part, options, what)
    check_needed(options_of(part), options, what)
    return part(**chosen)


def check_needed(known: Mapping[str, Option], given: Iterable[str], what: str) -> None:
    """Raises UserError if an option that must be given is not among the names of those that are."""
    if missing := [o.name for o in known.values() if o.needed and o.name not in set(given)]:
        raise UserError(f"{what} needs the option '{missing[0]}'. Give it in options.")


def _checked(what: str, option: Option, value: Any) -> Any:
    """A value as the part takes it, or the error with part, option, and what was expected."""
    try:
        return option.read(value)
    except UserError as error:
        raise UserError(f"{what}: {option.name}: {error}") from error
    except ValueError as error:
        said = str(error) or f"must be {option.words}, not {shown(value)}"
        raise UserError(f"{what}: {option.name} {said}.") from error


def _unknown_option(what: str, name: str, known: Mapping[str, Option]) -> UserError:
    return UserError(f"{what} has no option '{name}'. Available: {', '.join(known) or 'none'}.")


def _parameters(part: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a part, with annotations evaluated where they can be."""
    try:
        signature = inspect.signature(part, eval_str=True)
    except Exception:  # an annotation that names what exists for type checkers only
        try:
            signature = inspect.signature(part)
        except (TypeError, ValueError):  # written in C, and silent about itself
            return []
    return [
        p.replace(annotation=_ANY) if isinstance(p.annotation, str) else p
        for p in signature.parameters.values()
    ]


def meanings(part: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument, in its section Args or Attributes; of a class, bases' too."""
    while isinstance(part, partial):
        part = part.func
    found: dict[str, str] = {}
    for base in reversed(part.__mro__[1:]) if isinstance(part, type) else ():
        found |= _section(base.__doc__)
    return found | _section(part.__doc__)


def _section(text: str | None) -> dict[str, str]:
    """The entries of a docstring's section Args or Attributes."""
    found: dict[str, str] = {}
    doc = inspect.cleandoc(text or "")
    section = re.search(r"\n\s*(?:Args|Attributes):\n(.*?)(?:\n\s*\n|\Z)", doc, re.S)
    for line in section[1].split("\n") if section else ():
        entry = re.fullmatch(r" {4}(\w+): (.*)", line)
        if entry:
            found[entry[1]] = entry[2]
        elif found and line.startswith(" " * 8):
            found[next(reversed(found))] += " " + line.strip()
    return found


def __getattr__(name: str) -> Any:
    """What 0.1.0 called a number of at least 0, with a deprecation note."""
    if name != "Positive":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    note = f"{__name__}.Positive is NonNegative now, as it takes 0; the old name goes in 0.3."
    warnings.warn(note, DeprecationWarning, stacklevel=2)
    return NonNegative
