"""Where purification starts: one diffusion time t*, or an interval that each purification draws from."""

import math
from collections.abc import Sequence
from typing import Any

StartTime = float | Sequence[float]
"""A time in (0, 1), or the two ends of an interval in it."""


def read_start(value: Any) -> float | list[float]:
    """Returns a start time as a spec has it: a number, or a list of the two ends of an interval.

    Raises:
        ValueError: unless it is a number in (0, 1) or two increasing ones.

    Example:
        >>> read_start(0.1), read_start((0.05, 0.15))
        (0.1, [0.05, 0.15])
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return _time(value)
    if len(value) != 2:
        raise ValueError("an interval has two ends, such as [0.05, 0.15]")
    low, high = map(_time, value)
    if not low < high:
        raise ValueError("the ends of an interval increase, as in [0.05, 0.15]")
    return [low, high]


def middle(t_star: StartTime) -> float:
    """Returns the time itself, or the middle of an interval.

    Example:
        >>> middle(0.1), middle([0.25, 0.75])
        (0.1, 0.5)
    """
    return (t_star[0] + t_star[1]) / 2 if isinstance(t_star, Sequence) else t_star


def start_words(t_star: StartTime) -> str:
    """Says a start time, as tables and names have it.

    Example:
        >>> start_words(0.1), start_words([0.05, 0.15])
        ('0.1', '0.05 to 0.15')
    """
    return " to ".join(f"{t:g}" for t in t_star) if isinstance(t_star, Sequence) else f"{t_star:g}"


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ValueError("Input should be a valid number")
    if value <= 0:
        raise ValueError("Input should be greater than 0")
    if value >= 1:
        raise ValueError("Input should be less than 1")
    return float(value)
