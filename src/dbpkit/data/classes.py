"""Which class names there are, and in which order: label k is the k-th of them.

Whole numbers are ordered as numbers. In the order of text '10' stands before '2', which goes unnoticed up to
ten folders.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from dbpkit.foundation.errors import UserError, shown

_WHOLE = re.compile(r"[0-9]+")


def in_class_order(names: Iterable[str], where: str, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Returns class names in the order of their labels.

    Whole numbers are ordered as numbers, words as text. Numbers beside words are taken only where both orders
    agree.

    Args:
        names: the names found, each once.
        where: whose they are, for errors.
        classes: the order that the user gives; it must have exactly these names.

    Raises:
        UserError: if ``classes`` has other names, two names are the same number or differ in case alone, the
            order is not clear, or numbers from 0 on leave one out.
    """
    found = sorted(names)
    if classes is not None:
        return _given(found, classes, where)
    _refuse_twins(found, where)
    numbers = [int(name) for name in found if _is_number(name)]
    natural = sorted(found, key=lambda n: (0, int(n), n) if _is_number(n) else (1, 0, n))
    if len(numbers) < len(found):
        if numbers and natural != found:
            words = next(n for n in found if not _is_number(n))
            raise UserError(
                f"{where}: classes are numbers and words ('{numbers[0]}', '{words}'), whose order is not"
                " known. Give it as classes = [...]."
            )
        return tuple(found)
    missing = next((k for k in range(min(numbers), max(numbers)) if k not in numbers), None)
    if missing is not None:
        raise UserError(
            f"{where}: classes are numbers from {min(numbers)} to {max(numbers)} and {missing} is not among"
            f" them, so that later ones would get other labels. Add it, or give the order as classes = [...]."
        )
    return tuple(natural)


def _is_number(name: str) -> bool:
    return _WHOLE.fullmatch(name) is not None and len(name) < 20


def _given(found: Sequence[str], classes: Sequence[str], where: str) -> tuple[str, ...]:
    """The user's order; UserError unless it has exactly the names found."""
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: classes must be a list of names, not {shown(classes)}.")
    twice = next((n for k, n in enumerate(classes) if n in classes[:k]), None)
    if twice is not None:
        raise UserError(f"{where}: classes has '{twice}' twice.")
    for name in found:
        if name not in classes:
            raise UserError(f"{where}: class '{name}' is not among classes ({', '.join(classes[:20])}).")
    for name in classes:
        if name not in found:
            raise UserError(
                f"{where}: there is no class '{name}', which classes has; found: {', '.join(found[:20])}."
            )
    return tuple(classes)


def _refuse_twins(found: Sequence[str], where: str) -> None:
    """Refuses two names that are the same number, or the same word but for case or composed letters."""
    seen: dict[str | int, str] = {}
    for name in found:
        plain = unicodedata.normalize("NFC", name).casefold()
        key: str | int = int(name) if _is_number(name) else plain
        if key in seen:
            raise UserError(
                f"{where}: classes '{seen[key]}' and '{name}' are the same but for spelling. Rename or join"
                " them, or give the order as classes = [...]."
            )
        seen[key] = name
