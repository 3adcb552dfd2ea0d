"""Noise schedules: from diffusion times to noise levels sigma and back.

Everything below works with sigma, the noise level of ``x0 + sigma * z`` in [-1, 1] units. A
variance-preserving state ``sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) z`` divided by ``sqrt(alpha_bar)``
has sigma = sqrt((1 - alpha_bar) / alpha_bar). The discrete time t = 100 of 1000 is t* = 0.1.
"""

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError

BETA_MIN, BETA_MAX = 0.1, 20.0
"""Ends of the continuous linear VP schedule, Song et al. 2021 (arXiv:2011.13456), appendix C."""

TRAIN_STEPS = 1000
"""Steps T of the discrete DDPM schedule."""


def discrete_alpha_bar(
    train_steps: int = TRAIN_STEPS, beta_first: float = 1e-4, beta_last: float = 2e-2
) -> Tensor:
    """Cumulative signal power of the linear DDPM schedule, (T,) float64.

    Source:
        Ho et al. 2020 (arXiv:2006.11239), section 4.
    """
    betas = torch.linspace(beta_first, beta_last, train_steps, dtype=torch.float64)
    return torch.cumprod(1 - betas, dim=0)


def discrete_sigmas() -> Tensor:
    """Noise level of every discrete time t = 0..999, (T,) float64, increasing from 0.01 to 157."""
    alpha_bar = discrete_alpha_bar()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def discrete_times(t_star: float, steps: int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """Discrete times that a strided DDPM or DDIM chain visits from t* down to 0.

    ``steps`` counts steps of the *whole* chain (S = 1000 is stride 1), as in the papers. The chain keeps
    ``round(t* S) + 1`` of them: S = 50, 100, 200, 500, 1000 at t* = 0.1 make 6, 11, 21, 51, 101 calls.

    Args:
        t_star: fraction of the chain where purification starts, in (0, 1).
        steps: S, a divisor of T.
        train_steps: T, how many times the network knows; t* = 0.1 is t = T / 10.

    Returns:
        Times in decreasing order, the last one 0.

    Raises:
        UserError: if the arguments are out of range or the chain would have no step.

    Source:
        Liu et al., ICLR 2025, evaluation code: "leading" spacing, kept from index round((1 - t*) S) - 1.
    """
    if not 0 < t_star < 1:
        raise UserError(f"t_star {t_star} is outside (0, 1). The papers use 0.1, which is t = 100 of 1000.")
    if steps < 1 or train_steps % steps:
        few = [50, 100, 200, 500, 1000] if train_steps == TRAIN_STEPS else _divisors(train_steps)[-5:]
        raise UserError(
            f"steps {steps} does not divide {train_steps}. Choose one of {', '.join(map(str, few))}."
        )
    stride = train_steps // steps
    times = [stride * i for i in reversed(range(steps))]
    kept = times[max(round((1 - t_star) * steps) - 1, 0) :]
    if kept[0] == 0:
        raise UserError(
            f"t_star {t_star} with {steps} steps starts at t = 0: no noise. Use more steps or a"
            " larger t_star."
        )
    return kept


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def discrete_levels(t_star: float, steps: int, table: Tensor | None = None) -> Tensor:
    """Noise levels of `discrete_times`, then 0; (calls + 1,) float64.

    Args:
        t_star: fraction of the chain where purification starts, in (0, 1).
        steps: S, a divisor of the number of times T.
        table: noise levels of the denoiser's own times, (T,) increasing; unset is the linear DDPM schedule.

    Raises:
        UserError: if the arguments are out of range, or no image is left at the first level.
    """
    table = discrete_sigmas() if table is None else table
    times = discrete_times(t_star, steps, len(table))
    sigmas = table[times]
    if bool(sigmas[0].isinf()):
        raise UserError(
            f"t_star {t_star} starts at t = {times[0]}, where this schedule leaves nothing of the image."
            " Lower t_star."
        )
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def vp_log_signal(t: Tensor, beta_min: float = BETA_MIN, beta_max: float = BETA_MAX) -> Tensor:
    """Integral B(t) of beta from 0 to t, so that alpha_bar(t) = exp(-B(t)); same shape as ``t``."""
    return beta_min * t + (beta_max - beta_min) * t**2 / 2


def vp_sigma(t: Tensor, beta_min: float = BETA_MIN, beta_max: float = BETA_MAX) -> Tensor:
    """Noise level of continuous VP time t in (0, 1]; same shape as ``t``."""
    return torch.expm1(vp_log_signal(t, beta_min, beta_max)).sqrt()


def vp_time(sigma: Tensor, beta_min: float = BETA_MIN, beta_max: float = BETA_MAX) -> Tensor:
    """Continuous VP time of a noise level, the inverse of `vp_sigma`; same shape as ``sigma``."""
    log_signal = torch.log1p(sigma**2)
    slope = beta_max - beta_min
    return 2 * log_signal / (beta_min + (beta_min**2 + 2 * slope * log_signal).sqrt())


def continuous_levels(t_star: float, steps: int, t_last: float = 1e-3) -> Tensor:
    """Noise levels of the Euler-Maruyama grid from t* down to ``t_last``, then 0.

    With S = 1000 and t* = 0.1 the grid is t = 0.101, 0.100, ..., 0.001: 101 points.

    Args:
        t_star: where purification starts, in (0, 1).
        steps: S, steps of the whole grid ``linspace(1, t_last, S)``.
        t_last: last time of the grid.

    Returns:
        (calls + 1,) float64 levels.

    Raises:
        UserError: if ``t_star`` is out of range or fewer than 2 steps are asked for.

    Source:
        Liu et al., ICLR 2025, VP-SDE evaluation grid: kept from index round((1 - t*) S) - 1.
    """
    if not 0 < t_star < 1:
        raise UserError(f"t_star {t_star} is outside (0, 1). The papers use 0.1.")
    if steps < 2:
        raise UserError(
            f"steps {steps} is too few for a continuous grid. Use at least 2; the papers use 1000."
        )
    times = torch.linspace(1, t_last, steps, dtype=torch.float64)[max(round((1 - t_star) * steps) - 1, 0) :]
    return torch.cat([vp_sigma(times), times.new_zeros(1)])


def karras_levels(sigma_max: float, steps: int, sigma_min: float = 0.002, rho: float = 7.0) -> Tensor:
    """Noise levels of the EDM grid, ``steps`` of them and then 0; (steps + 1,) float64.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), eq. 5.

    Raises:
        UserError: unless 0 < sigma_min < sigma_max and steps >= 1.
    """
    if not 0 < sigma_min < sigma_max or steps < 1:
        raise UserError(
            f"the EDM grid needs 0 < sigma_min < sigma_max and steps >= 1, not {sigma_min},"
            f" {sigma_max}, {steps}."
        )
    ramp = (
        torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    )
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])
