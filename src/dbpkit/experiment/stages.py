"""What a spec says of the stages between images and networks: another size, a mean and a deviation."""

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import PartSpec, Strict
from dbpkit.models.stages import Interpolation, statistics_of


class ResizeSpec(Strict):
    """Another size of images, see `dbpkit.models.stages.Resize`; a number or [height, width] alone is one."""

    size: Annotated[int, Field(gt=0)] | Annotated[list[int], Field(min_length=2, max_length=2)]
    mode: Interpolation = "bilinear"
    antialias: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_size(cls, value: Any) -> Any:
        return value if isinstance(value, dict | cls) else {"size": value}


class NormaliseSpec(Strict):
    """Mean and deviation of each channel, of pixels in [0, 1]."""

    mean: list[float]
    std: list[float]


class ClassifierSpec(PartSpec):
    """A classifier, and the stages before it; see `dbpkit.models.stages.StagedClassifier`.

    Attributes:
        resize: size of the images that it sees, a number (the shorter side) or a table; unset keeps theirs.
        normalise: ``imagenet`` or another name, or mean and std; unset for one that normalises inside.
    """

    resize: ResizeSpec | None = None
    normalise: str | NormaliseSpec | None = None

    @field_validator("normalise")
    @classmethod
    def _sound(cls, value: Any) -> Any:
        try:
            statistics_of(value.model_dump() if isinstance(value, NormaliseSpec) else value or "half")
        except UserError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return value

    def stages(self) -> dict[str, Any]:
        """Returns the stages, as `dbpkit.models.sources.load_classifier` takes them."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k in ("resize", "normalise")}
