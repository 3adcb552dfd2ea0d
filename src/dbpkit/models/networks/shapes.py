"""Options of a network from the shapes of a file's tensors: what they have in common."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dbpkit.foundation.errors import UserError, excerpt

Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors without wrapper prefixes, and their shapes."""

Reader = Callable[..., dict[str, Any]]
"""Takes shapes, and what they do not show."""


def reads_shapes(network: str) -> Callable[[Reader], Reader]:
    """Makes what goes wrong in a reader of shapes a UserError that says which network they are not of."""

    def wrapped(reader: Reader) -> Reader:
        @functools.wraps(reader)
        def read(shapes: Shapes, *hidden: Any, **named: Any) -> dict[str, Any]:
            try:
                return reader(shapes, *hidden, **named)
            except UserError:
                raise
            except KeyError as error:
                why = f"'{excerpt(error.args[0], 80)}' is missing"
            except (IndexError, TypeError, ValueError, ZeroDivisionError):
                why = "their shapes do not fit together"
            raise alien(network, why)

        return read

    return wrapped


def alien(network: str, why: str) -> UserError:
    """The error for tensors that are not a network's."""
    return UserError(f"these tensors are not of the network '{network}': {why}. Name the network it is.")


def times(width: int, unit: int) -> int:
    """How many times a unit a width is; ValueError if it is no whole number of times."""
    count, rest = divmod(width, unit)
    if rest or not count:
        raise ValueError
    return count


def counted(shapes: Iterable[str], pattern: str) -> int:
    """How many names there are of a pattern with ``{}``, counted from 0 without a gap."""
    names, count = set(shapes), 0
    while pattern.format(count) in names:
        count += 1
    return count
