"""Which noise levels a denoiser is trained on, and how much each counts.

Everything is in the scale of ``x0 + sigma * z``, where a network's error in the noise is its error in x0
divided by sigma: weight ``1 / sigma**2`` is the noise-prediction loss of DDPM and VP-SDE. The thing people
get wrong: gamma_t = sqrt(alpha_bar_t / (1 - alpha_bar_t)) of the papers is 1 / sigma.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Protocol

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.options import Length
from dbpkit.foundation.registry import Registry
from dbpkit.models.schedule import TRAIN_STEPS, discrete_sigmas, vp_sigma

noise_levels: Registry[Any] = Registry("noise levels")


class NoiseLevels(Protocol):
    """A distribution of noise levels and the weight of each in the loss."""

    def sigma(self, u: Tensor) -> Tensor:
        """Maps uniforms on [0, 1) to noise levels > 0; same shape."""
        ...

    def weight(self, sigma: Tensor) -> Tensor:
        """Returns the weight of the mean squared error of x0 at noise levels ``sigma``; same shape."""
        ...


@noise_levels.register("ddpm")
@dataclass(frozen=True)
class DDPMTimes:
    """Discrete times 0, 1, ..., t_last of the linear DDPM schedule, all alike; noise-prediction loss.

    Attributes:
        t_last: largest time, at most 999.

    Source:
        Ho et al. 2020 (arXiv:2006.11239), eq. 14; Liu et al., ICLR 2025, fine-tuning of DDPM.
    """

    t_last: Annotated[int, Ge(0), Le(TRAIN_STEPS - 1)] = 999

    def sigma(self, u: Tensor) -> Tensor:
        """Noise levels of the times floor(u * (t_last + 1))."""
        t = (u.double() * (self.t_last + 1)).long()
        return _table(u.device)[t].to(u.dtype)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma**2: the mean squared error of the predicted noise."""
        return sigma**-2


@noise_levels.register("vpsde")
@dataclass(frozen=True)
class VPTimes:
    """Continuous times, uniform on [t_first, t_last], of the linear VP-SDE; noise-prediction loss.

    Attributes:
        t_first: smallest time.
        t_last: largest time, at most 1.

    Source:
        Song et al. 2021 (arXiv:2011.13456), appendix C; Liu et al., ICLR 2025, fine-tuning of VP-SDE.
    """

    t_first: Annotated[float, Ge(1e-6), Le(1)] = 1e-3
    t_last: Annotated[float, Ge(1e-6), Le(1)] = 1.0

    def __post_init__(self) -> None:
        if self.t_last < self.t_first:
            raise UserError(f"t_last {self.t_last:g} is below t_first {self.t_first:g}. Exchange them.")

    def sigma(self, u: Tensor) -> Tensor:
        """Noise levels of the times t_first + u * (t_last - t_first)."""
        return vp_sigma(self.t_first + u.double() * (self.t_last - self.t_first)).to(u.dtype)

    def weight(self, sigma: Tensor) -> Tensor:
        """1 / sigma**2: the mean squared error of the predicted noise."""
        return sigma**-2


@noise_levels.register("edm")
@dataclass(frozen=True)
class EDMLevels:
    """Log-normal noise levels with the EDM weight.

    Attributes:
        mean: of log sigma.
        std: of log sigma.
        sigma_data: deviation of the data in [-1, 1] units.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1.
    """

    mean: float = -1.2
    std: Length = 1.2
    sigma_data: Length = 0.5

    def sigma(self, u: Tensor) -> Tensor:
        """exp(mean + std * q), q the normal quantile of u; u = 0 counts as half its spacing."""
        quantile = torch.special.ndtri(u.double().clamp(min=2.0**-25))
        return (self.mean + self.std * quantile).exp().to(u.dtype)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma**2 + sigma_data**2) / (sigma * sigma_data)**2."""
        return _edm_weight(sigma, self.sigma_data)


@noise_levels.register("purification")
@dataclass(frozen=True)
class PurificationTimes:
    """Fractional DDPM times ``t_last * u**t_power`` with the EDM weight: the levels purification uses.

    Attributes:
        t_last: largest time, of 1000.
        t_power: 1 is uniform; more spends more on the small levels where a chain makes most of its calls.
        sigma_data: deviation of the data in [-1, 1] units.
    """

    t_last: Annotated[float, Ge(0), Le(TRAIN_STEPS - 1)] = 300.0
    t_power: Length = 1.0
    sigma_data: Length = 0.5

    def sigma(self, u: Tensor) -> Tensor:
        """Noise levels of the times, interpolated in log sigma."""
        return sigma_at(self.t_last * u**self.t_power)

    def weight(self, sigma: Tensor) -> Tensor:
        """(sigma**2 + sigma_data**2) / (sigma * sigma_data)**2, which is 1 / c_out**2."""
        return _edm_weight(sigma, self.sigma_data)


def sigma_at(t: Tensor) -> Tensor:
    """Noise levels of fractional DDPM times in [0, 999], interpolated in log sigma; same shape."""
    table = _log_table(t.device, t.dtype)
    low = t.floor().long().clamp(0, len(table) - 2)
    return torch.lerp(table[low], table[low + 1], t - low).exp()


@lru_cache(maxsize=8)
def _table(device: torch.device) -> Tensor:
    """The 1,000 levels of the linear DDPM schedule, float64, copied to a device once."""
    return discrete_sigmas().to(device)


@lru_cache(maxsize=8)
def _log_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Their logarithms, in a type of real numbers."""
    return discrete_sigmas().log().to(device, dtype)


def _edm_weight(sigma: Tensor, sigma_data: float) -> Tensor:
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
