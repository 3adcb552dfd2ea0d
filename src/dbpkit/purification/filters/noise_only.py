"""The noise of a diffusion chain without its denoising."""

from typing import Annotated

from annotated_types import Gt, Lt
from torch import Tensor

from dbpkit.foundation.options import Count
from dbpkit.purification.filters.filter import Filter
from dbpkit.purification.purifier import purifiers


@purifiers.register("noise_only")
class NoiseOnly(Filter):
    """Adds the noise of t* and clips to [0, 1]: what a sampler denoises, given to the classifier as it is.

    The image keeps its scale: a state x0 + sigma z of [-1, 1] units is x + sigma z / 2 here. Sampler and
    filter draw the same z of the same plan.

    Args:
        t_star: diffusion time of the noise, in (0, 1).
        steps: S of the published grid that the time is looked up in.

    Source:
        Cohen et al. 2019 (arXiv:1902.02918): classification under Gaussian noise.
    """

    def __init__(self, t_star: Annotated[float, Gt(0), Lt(1)] = 0.1, steps: Count = 1000) -> None:
        super().__init__(t_star, steps)

    def filtered(self, x: Tensor) -> Tensor:
        """Returns the noisy images."""
        return x
