"""The median of a neighbourhood."""

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import pad

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count
from dbpkit.purification.filters.filter import Filter, Noising
from dbpkit.purification.purifier import purifiers


@purifiers.register("median")
class Median(Filter):
    """Replaces every pixel by the median of a square around it, channel by channel; borders are repeated.

    The gradient is exact: that of the pixel that is the median. Where several pixels are equal it is a
    subgradient.

    Args:
        size: side of the square, odd.
        t_star: diffusion time of noise that is added first; 0 adds none.
        steps: S of the published grid that the time is looked up in.

    Source:
        Xu, Evans & Qi 2018 (arXiv:1704.01155), section 3.3.
    """

    def __init__(
        self, size: Annotated[int, Ge(1), Le(15)] = 3, t_star: Noising = 0.0, steps: Count = 1000
    ) -> None:
        super().__init__(t_star, steps)
        if size % 2 == 0:
            raise UserError(f"median: size {size} is even and has no middle. Use {size - 1} or {size + 1}.")
        self.size = size

    def filtered(self, x: Tensor) -> Tensor:
        """Returns the medians."""
        half = self.size // 2
        around = pad(x, (half,) * 4, mode="replicate")
        windows = around.unfold(2, self.size, 1).unfold(3, self.size, 1)  # (B, C, H, W, size, size)
        medians: Tensor = windows.flatten(4).median(dim=4).values
        return medians
