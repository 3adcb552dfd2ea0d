"""The one exception a user's mistake raises; the command line prints it and exits with 2."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can mend: says what was expected, what came, and what to do."""


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
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown {kind} '{name}'.{hint} Available: {', '.join(names)}.")


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
    text = text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 4]} ..."
