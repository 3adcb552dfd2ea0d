"""Which examples are evaluated, in full or by the name of a subset that papers use."""

from typing import Any, ClassVar

from pydantic import Field, model_validator

from dbpkit.data.order import Order, subset
from dbpkit.foundation.spec import NAME_ALONE, Strict


class ExamplesSpec(Strict):
    """Which examples of the data are evaluated: ``count`` of them from position ``first`` of an order on.

    A subset by name is a short form: ``"first-1000"`` for the first 1,000 in the order of the files,
    ``"robustbench"`` for all in that order.

    Attributes:
        count: how many; unset takes all. No part of what a run is: the same run can go on with more.
        first: how many are passed over.
        order: ``balanced`` takes the classes in turn, ``shuffled`` is random, ``file`` is that of the data.
    """

    always: ClassVar[frozenset[str] | None] = frozenset({"count", "first", "order"})
    shorter = NAME_ALONE

    count: int | None = Field(default=None, gt=0)
    first: int = Field(default=0, ge=0)
    order: Order = "balanced"

    @classmethod
    def of_name(cls, name: str) -> dict[str, Any]:
        """Returns the table that a subset's name stands for; ValueError if there is no such subset."""
        return subset(name)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return cls.of_name(value) if isinstance(value, str) else value
