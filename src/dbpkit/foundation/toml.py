"""TOML: text to tables and back, whatever the text is.

The thing people get wrong: a parser that is right about TOML still hangs, recurses or reads numbers that
nothing else can hold. Size, depth and whole numbers are bounded here, once for files and for ``--set``.
"""

import json
import math
import re
import tomllib
from pathlib import Path
from typing import Any

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
        raise UserError(f"spec '{path}' is longer than {MOST_BYTES:,} bytes, so it is no spec.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"spec '{path}' is no valid TOML: {error}. Save it as UTF-8.") from error
    try:
        return parsed(text)
    except ValueError as error:
        raise UserError(f"spec '{path}' is no valid TOML: {error}.{_hint(text)}") from error


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


def check_values(tree: Any) -> None:
    """Raises ValueError if a tree nests too deep or holds a number that is not finite or beyond 64 bits."""
    level, left = 0, [tree]
    while left:
        if level > DEEPEST:
            raise ValueError(f"it nests deeper than {DEEPEST} levels")
        if any(isinstance(v, int) and not -(2**63) <= v < 2**63 for v in left):
            raise ValueError("a whole number is beyond 64 bits")
        if any(isinstance(v, float) and not math.isfinite(v) for v in left):
            raise ValueError("a number is infinite or nan")
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
            raise ValueError(f"it is no valid TOML: {error}") from error
        return text


def as_toml(table: dict[str, Any], prefix: str = "") -> str:
    """Returns a resolved spec as TOML text; keys whose value is None are left out, as TOML has no null."""
    plain, nested = [], []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            nested.append(f"\n[{prefix}{_toml_key(key)}]\n{as_toml(value, f'{prefix}{_toml_key(key)}.')}")
        elif isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            nested += [
                f"\n[[{prefix}{_toml_key(key)}]]\n{as_toml(v, f'{prefix}{_toml_key(key)}.')}" for v in value
            ]
        elif value is not None:
            plain.append(f"{_toml_key(key)} = {_toml_value(value)}\n")
    return "".join(plain + nested)


def _toml_value(value: Any) -> str:
    """A value in TOML's inline form; JSON agrees with it on strings, numbers, booleans and lists."""
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
            if value
            else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _toml_key(key: str) -> str:
    """A key, quoted unless it is bare."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _hint(text: str) -> str:
    """What to do about a Python word in a TOML text that cannot be read."""
    found = _PYTHON_WORD.search(text)
    return f" {_word_hint(found[1]).capitalize()}." if found else ""


def _word_hint(word: str) -> str:
    if word.lower() in ("true", "false"):
        return f"write {word.lower()} in small letters"
    return f"there is no {word} in TOML: leave the key out"
