"""Fewer bits per pixel."""

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from dbpkit.foundation.options import Count
from dbpkit.purification.filters.filter import BPDA_LIKE, Filter, Noising, valued
from dbpkit.purification.purifier import purifiers


@purifiers.register("bit_depth")
class BitDepth(Filter):
    """Rounds pixels to 2**bits values from 0 to 1. Its gradient is that of the identity, and labelled so.

    Args:
        bits: bits per channel, 1 to 16.
        t_star: diffusion time of noise that is added first; 0 adds none.
        steps: S of the published grid that the time is looked up in.

    Source:
        Xu, Evans & Qi 2018 (arXiv:1704.01155), section 3.2; Athalye et al. 2018 (arXiv:1802.00420), BPDA.
    """

    gradient_note = f"{BPDA_LIKE}: rounding is taken for the identity"

    def __init__(
        self, bits: Annotated[int, Ge(1), Le(16)] = 3, t_star: Noising = 0.0, steps: Count = 1000
    ) -> None:
        super().__init__(t_star, steps)
        self.most = 2**bits - 1

    def filtered(self, x: Tensor) -> Tensor:
        """Returns round(x (2**bits - 1)) / (2**bits - 1)."""
        return valued((x * self.most).round() / self.most, x)
