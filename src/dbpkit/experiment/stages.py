"""What a spec says of the stages between images and networks: size, margins, mean and deviation."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import PartSpec, Strict
from dbpkit.models.stages import Interpolation, Resize, statistics_of
from dbpkit.purification.fitting import Fit
from dbpkit.purification.tiles import checked_tiling


def _sentence(check: Callable[[Any], Any]) -> BeforeValidator:
    """A validator whose error is the sentence that a check raises."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from error

    return BeforeValidator(checked)


def _size(value: Any) -> Any:
    made = Resize(tuple(value) if isinstance(value, list) else value)
    return made.table()["size"]


def _statistics(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        statistics_of(value or "half")
        return value
    mean, std = statistics_of(value)
    return {"mean": list(mean), "std": list(std)}


Padding = Annotated[Any, _sentence(lambda value: Fit(pad=value).pad)]
"""What sides are padded to a multiple of: a number, ``auto`` or None."""

Tile = Annotated[Any, _sentence(checked_tiling)]
"""Side of the tiles of large images, ``auto`` or ``whole``."""

Normalisation = Annotated[Any, _sentence(_statistics)]
"""A name, a table of mean and std, or None."""


class ResizeSpec(Strict):
    """Another size of images, see `dbpkit.models.stages.Resize`; a number or [height, width] alone is one.

    Attributes:
        size: of the shorter side, or [height, width].
        mode: interpolation.
        antialias: whether a smaller image is smoothed first.
    """

    shorter = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}  # noqa: RUF012

    size: Annotated[Any, _sentence(_size)]
    mode: Interpolation = "bilinear"
    antialias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_size(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"size": value}


class ClassifierSpec(PartSpec):
    """A classifier, and the stages before it; see `dbpkit.models.stages.StagedClassifier`.

    Attributes:
        resize: size of the images that it sees, a number (the shorter side) or a table; unset keeps theirs.
        normalise: ``imagenet`` or another name, or mean and std; unset for one that normalises inside.
    """

    resize: ResizeSpec | None = None
    normalise: Normalisation = None

    def stages(self) -> dict[str, Any]:
        """Returns the stages, as `dbpkit.models.sources.load_classifier` takes them."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k in ("resize", "normalise")}
