"""Denoising by total variation, of scikit-image."""

from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Count, Length
from dbpkit.purification.filters.filter import BPDA_LIKE, Filter, Noising, valued
from dbpkit.purification.purifier import purifiers


@purifiers.register("total_variation")
class TotalVariation(Filter):
    """Chambolle's total variation denoising of scikit-image. Its gradient is the identity's, and labelled so.

    Args:
        weight: how much smoothness counts against closeness to the image; more removes more.
        t_star: diffusion time of noise that is added first; 0 adds none.
        steps: S of the published grid that the time is looked up in.

    Raises:
        UserError: if scikit-image is not installed.

    Source:
        Chambolle 2004 (doi:10.1023/B:JMIV.0000011325.36760.1e), as ``denoise_tv_chambolle``; Guo et al. 2018
        (arXiv:1711.00117), as a defence; Athalye et al. 2018 (arXiv:1802.00420), BPDA.
    """

    gradient_note = f"{BPDA_LIKE}: the optimisation is taken for the identity"

    def __init__(self, weight: Length = 0.1, t_star: Noising = 0.0, steps: Count = 1000) -> None:
        super().__init__(t_star, steps)
        self.weight = weight
        _denoiser()

    def filtered(self, x: Tensor) -> Tensor:
        """Returns the denoised images, each by itself, limited to [0, 1]."""
        denoise = _denoiser()
        images = x.detach().cpu().double().numpy()
        found = [torch.from_numpy(denoise(image, weight=self.weight, channel_axis=0)) for image in images]
        return valued(torch.stack(found).to(x).clamp(0, 1), x)


def _denoiser() -> Any:
    """The library's function; imported when it is needed, which takes a while."""
    try:
        from skimage.restoration import denoise_tv_chambolle
    except ImportError as error:
        raise UserError(
            "purifier 'total_variation' needs scikit-image. Install it: pip install 'dbpkit[filters]'."
        ) from error
    return denoise_tv_chambolle
