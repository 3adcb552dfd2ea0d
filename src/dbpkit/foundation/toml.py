"""TOML: text to tables and back, whatever the text is.

A parser that is right about TOML still hangs, recurses or reads numbers that nothing else can hold. Size,
depth and whole numbers are bounded here, once for files and for ``--set``.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from dbpkit.foundation.errors import UserError

MOST_BYTES = 200_000
"""No spec is longer."""

DEEPEST = 32
"""No spec nests deeper."""

_PYTHON_WORD = re.compile(r"(?:^|=)\s*(True|TRUE|False|FALSE|None|null|nil)\s*(?:$|#|,|\})", re.M)


def read_table(path: Path) -> dict[str, Any]:
    """Reads a TOML file, with or without a byte order mark.

    Raises:
        UserError: if it is too long, no UTF-8, no TOML, or holds what no spec may hold.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"spec '{path}' is longer than {MOST_BYTES:,} bytes, so it is not a spec.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"spec '{path}' is not valid TOML: {error}. Save it as UTF-8.") from error
    try:
        return parsed(text)
    except ValueError as error:
        raise UserError(f"spec '{path}' is not valid TOML: {error}.{_hint(text)}") from error


def parsed(text: str) -> dict[str, Any]:
    """Returns the table of a TOML text; ValueError says why there is none."""
    try:
        if any(line.count(".") > 1000 for line in text.splitlines()):
            raise ValueError("a line holds more than 1,000 dots")
        table = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {DEEPEST} levels") from error
    except tomllib.TOMLDecodeError:
        raise
    except ValueError as error:
        reason = str(error)
        if "integer string conversion" in reason:
            reason = "a whole number has thousands of digits"
        raise ValueError(reason) from error
    check_values(table)
    return table


_SURROGATE = re.compile("[\ud800-\udfff]")
"""Stands for a byte that is not UTF-8."""


def check_values(tree: Any) -> None:
    """Raises ValueError if a tree nests too deep or has a number or text that no file of ours can hold."""
    level, left = 0, [tree]
    while left:
        if level > DEEPEST:
            raise ValueError(f"it nests deeper than {DEEPEST} levels")
        if any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in left):
            raise ValueError("a whole number is beyond 64 bits")
        if any(isinstance(v, float) and not math.isfinite(v) for v in left):
            raise ValueError("a number is infinite or nan")
        if any(isinstance(v, str) and _SURROGATE.search(v) for v in left):
            raise ValueError("a text is not UTF-8")
        inner = [v.values() if isinstance(v, dict) else v for v in left if isinstance(v, dict | list | tuple)]
        level, left = level + 1, [value for values in inner for value in values]


def parsed_value(text: str) -> Any:
    """Returns the value that a text is in TOML, or the text itself if it is none.

    Raises:
        ValueError: if it is neither: a table or list with a mistake, or Python's word for a truth value.
    """
    text = text.strip()
    if word := re.fullmatch(r"True|TRUE|False|FALSE|None|null|nil", text):
        raise ValueError(_word_hint(word[0]))
    try:
        return parsed(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text[:1] in tuple("[{\"'"):
            raise ValueError(f"it is not valid TOML: {error}") from error
        return text


def as_toml(table: Mapping[str, Any]) -> str:
    """Returns a resolved spec as TOML text; keys whose value is None are left out, as TOML has no null."""
    return tomli_w.dumps(_without_none(table))


def _without_none(value: Any) -> Any:
    """A tree without the keys whose value is None."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in value]
    return value


def _hint(text: str) -> str:
    """What to do about a Python word in a TOML text that cannot be read."""
    found = _PYTHON_WORD.search(text)
    return f" {_word_hint(found[1]).capitalize()}." if found else ""


def _word_hint(word: str) -> str:
    if word.lower() in ("true", "false"):
        return f"write {word.lower()} in small letters"
    return f"there is no {word} in TOML: leave the key out"
