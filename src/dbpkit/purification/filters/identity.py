"""No purification at all: what the classifier does by itself."""

from torch import Tensor

from dbpkit.purification.filters.filter import Filter
from dbpkit.purification.purifier import purifiers


@purifiers.register("identity")
class Identity(Filter):
    """Leaves images as they are: the lowest rung. With ``noise_only`` it tells what noise alone does."""

    def __init__(self) -> None:
        super().__init__()

    def filtered(self, x: Tensor) -> Tensor:
        """Returns the images themselves."""
        return x
