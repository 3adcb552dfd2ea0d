"""Numbers that are written as text, such as ``"8/255"``.

The form is checked before the text is evaluated, so that none can take long or mean something else:
``"1e99999999"`` would be a number of a hundred million digits.
"""

import re
from fractions import Fraction

_NUMBER = r"[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?"
_FORM = re.compile(rf"\s*({_NUMBER})\s*(?:/\s*({_NUMBER})\s*)?", re.ASCII)


def amount(text: str) -> float:
    """Returns the value of a non-negative number or a fraction of two numbers.

    Raises:
        ValueError: if it is none, is negative, or is too large or too small for a float.

    Example:
        >>> amount("8/255") == 8 / 255
        True
    """
    form = _FORM.fullmatch(text)
    try:
        if form is None:
            raise ValueError
        exact = Fraction(form[1]) / Fraction(form[2] or "1")
        value = float(exact)
        if exact and not value:
            raise ValueError
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"'{text[:60]}' is not a number; write \"8/255\" or 0.5") from error
    if value < 0:
        raise ValueError(f"'{text}' is negative")
    return value


def is_amount(text: str) -> bool:
    """Whether a text is a number or a fraction that `amount` reads."""
    try:
        amount(text)
    except ValueError:
        return False
    return True
