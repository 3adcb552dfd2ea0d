"""The exception a user's mistake raises; the command line prints it and exits with 2."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can put right: says what was expected, what came, and what to do.

    It is one sentence on one line, whatever names and values it repeats.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(one_line(sentence))


class OutputError(UserError):
    """A model returned something other than logits: whatever asked it, such as an attack, is not to blame.

    An evaluation notes it for the example and goes on.
    """


class NonFiniteError(OutputError, FloatingPointError):
    """What a model or an attack returned is not finite."""


def unknown_name(kind: str, name: str, available: Iterable[str]) -> UserError:
    """Builds the error for a name that is not in a list of valid ones, naming the nearest.

    Args:
        kind: what the name stands for, such as ``"sampler"``.
        name: what the user wrote.
        available: every valid name.

    Returns:
        The error to raise.
    """
    names = sorted(available)
    return UserError(f"unknown {kind} '{name}'.{nearest(name, names)} Available: {', '.join(names)}.")


def nearest(name: str, available: Iterable[str]) -> str:
    """Returns the question whether the nearest of the valid names was meant, after a blank; or nothing."""
    near = difflib.get_close_matches(name, sorted(available), n=3, cutoff=0.5)
    exchanged = [n for n in near if sorted(n) == sorted(name)]  # two letters in the wrong order are likeliest
    return f" Did you mean '{[*exchanged, *near][0]}'?" if near else ""


def one_line(text: str) -> str:
    r"""Returns a text on one line, with every character escaped that steers a terminal or is none.

    Example:
        >>> one_line("a\nb \x1b[31m")
        'a b \\x1b[31m'
    """
    text = " ".join(text.split()) if any(c.isspace() and c != " " for c in text) else text
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(value: Any, most: int = 60) -> str:
    """Returns a value as an error message shows it: short, on one line, with nothing that steers a terminal.

    Numbers and truth values look as in TOML.
    """
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes out
        text = "a whole number of thousands of digits"
    except Exception:
        text = f"a {type(value).__name__}"
    return excerpt(text, most)


def excerpt(text: object, most: int = 200) -> str:
    """Returns a text, such as another library's message, as part of a sentence: on one line, and cut."""
    words = one_line(str(text))
    return words if len(words) <= most else f"{words[: most - 4]} ..."


def check_progress(value: Any, where: str) -> None:
    """Raises UserError unless ``value`` is a function that may be told of progress."""
    if not callable(value):
        raise UserError(
            f"{where}: progress must be a function that is told what is done, not {shown(value)}."
        )


def check_kind(value: Any, kind: type, name: str, hint: str) -> None:
    """Raises UserError unless ``value`` is of a kind; ``hint`` is a sentence that says how to come by one."""
    if not isinstance(value, kind):
        given = "None" if value is None else type(value).__name__
        raise UserError(f"{name} must be of type {kind.__name__}, not {given}. {hint}")
