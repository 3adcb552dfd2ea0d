"""Noise levels of networks with discrete times: any betas, as diffusers' schedulers describe them.

The thing people get wrong: the same network is another denoiser under another table. An index means a noise
level only together with the table that the network was trained with.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from dbpkit.foundation.errors import UserError, nearest, shown
from dbpkit.foundation.inputs import real, whole
from dbpkit.models.schedule import TRAIN_STEPS, discrete_sigmas, vp_time

BETA_START, BETA_END = 1e-4, 2e-2
"""First and last beta of the linear DDPM schedule, Ho et al. 2020."""

LONGEST = 100_000
"""Most times that a table may have."""

SLACK = 1e-3
"""By how much of an index a time may lie below a whole number and still count as that number."""

SAME_LEVEL = 3e-7
"""Difference of the logarithms of two levels that are one, in single precision."""

NAMES = {"cosine": "squaredcos_cap_v2"}
"""Our words for diffusers' names of schedules."""

TABLES = ("trained_betas", "betas", "alphas_cumprod", "sigmas")
"""Options that give the table itself, each a list of T numbers."""

OPTIONS = (
    "beta_schedule",
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "rescale_betas_zero_snr",
    *TABLES,
)
"""Options of a schedule, named as in diffusers' ``scheduler_config.json``."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of T discrete times.

    Attributes:
        sigmas: T levels of ``u0 + sigma * z`` in the network's own units, increasing; the last may be
            infinite (zero terminal SNR).
        options: what `schedule_of` makes it from, as a spec or a file has it.
        ends: T times the first and last beta if the betas are evenly spaced, which is what a continuous time
            goes by; else None.
    """

    sigmas: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    ends: tuple[float, float] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Schedule":
        """Returns this: nothing of it can change, and a view of a table cannot be copied."""
        return self

    @property
    def steps(self) -> int:
        """T, how many times there are."""
        return len(self.sigmas)

    @property
    def is_default(self) -> bool:
        """Whether it is the linear DDPM schedule with 1,000 times from 1e-4 to 0.02."""
        return not self.options

    def levels(self, scale: float = 1.0) -> Tensor:
        """Returns all noise levels times ``scale``, (T,) float64."""
        return torch.tensor(self.sigmas, dtype=torch.float64) * scale

    def nearest(self, sigma: Tensor) -> Tensor:
        """Returns the index (B,) whose level is nearest in log sigma to each of ``sigma`` (B,)."""
        table = log_levels(self, sigma.device)
        return (sigma.to(table).log()[:, None] - table).abs().argmin(dim=1)

    def floor(self, sigma: Tensor) -> Tensor:
        """Returns the index (B,) that a pipeline with continuous times rounds down to for ``sigma`` (B,).

        With evenly spaced betas it is floor(T t), t in (0, 1] the continuous time of that level: t* = 0.15
        gives 150 of 1,000 although the level of index 149 is nearer. A time that lies less than a thousandth
        of an index below a whole number counts as that. A level of the table itself gives its own index.
        Other schedules have no continuous time here, and the largest index whose level is not above is taken.

        Source:
            Nie et al. 2022 (arXiv:2205.07460), as its pipeline calls networks of discrete times.
        """
        table = log_levels(self, sigma.device)
        sigma = sigma.to(table)
        if self.ends is None:
            index = torch.searchsorted(table, sigma.log().contiguous(), right=True) - 1
        else:
            index = (self.steps * vp_time(sigma, *self.ends) + SLACK).floor().long()
        near = self.nearest(sigma)
        own = (sigma.log() - table[near]).abs() < SAME_LEVEL
        return torch.where(own, near, index.clamp(0, self.steps - 1))


@lru_cache(maxsize=8)
def log_levels(schedule: Schedule, device: torch.device) -> Tensor:
    """Logarithms of a schedule's levels, (T,), double where the device has it, copied there once.

    Not a buffer of the module: that would become half with its weights, and the nearest level another.
    """
    table = discrete_sigmas() if schedule.is_default else schedule.levels()
    return table.log().to(device, torch.float32 if device.type == "mps" else torch.float64)


@lru_cache(maxsize=1)
def linear_schedule() -> Schedule:
    """The linear DDPM schedule: 1,000 betas from 1e-4 to 0.02."""
    return Schedule(tuple(discrete_sigmas().tolist()), ends=(1000 * BETA_START, 1000 * BETA_END))


def schedule_of(given: Any = None) -> Schedule:
    """Makes a schedule from its name or its options.

    Args:
        given: None for the linear DDPM schedule; a name (``linear``, ``cosine`` or ``squaredcos_cap_v2``,
            ``scaled_linear``, ``sigmoid``, ``laplace``); or a table of options as a diffusers
            ``scheduler_config.json`` has them: ``beta_schedule``, ``num_train_timesteps``, ``beta_start``,
            ``beta_end``, ``trained_betas``, ``rescale_betas_zero_snr``; or one of the lists ``betas``,
            ``alphas_cumprod`` and ``sigmas``. A `Schedule` is returned as it is.

    Raises:
        UserError: if an option is unknown, or the levels do not increase.

    Source:
        Ho et al. 2020 for linear; Nichol & Dhariwal 2021 (arXiv:2102.09672), eq. 17, for cosine; Rombach et
        al. 2022 for scaled_linear; Lin et al. 2024 (arXiv:2305.08891), algorithm 1, for zero terminal SNR.

    Example:
        >>> schedule_of({"beta_schedule": "cosine", "num_train_timesteps": 4000}).steps
        4000
    """
    if isinstance(given, Schedule):
        return given
    if given is None:
        return linear_schedule()
    options = {"beta_schedule": given} if isinstance(given, str) else given
    if not isinstance(options, Mapping):
        raise UserError(f"a schedule is a name or a table of options, not {shown(given)}.")
    for name in options:
        if name not in OPTIONS:
            raise UserError(
                f"a schedule has no option '{name}'.{nearest(str(name), OPTIONS)} Available:"
                f" {', '.join(OPTIONS)}."
            )
    options = {name: value for name, value in options.items() if value is not None}
    alpha_bar, ends = _alpha_bar(options)
    if ends == (BETA_START, BETA_END) and len(alpha_bar) == TRAIN_STEPS:
        return linear_schedule()
    sigmas = _own_sigmas(options) if "sigmas" in options else ((1 - alpha_bar) / alpha_bar).sqrt()
    scaled = None if ends is None else (len(alpha_bar) * ends[0], len(alpha_bar) * ends[1])
    return Schedule(_increasing(sigmas), MappingProxyType(_plain(options)), scaled)


def _alpha_bar(options: Mapping[str, Any]) -> tuple[Tensor, tuple[float, float] | None]:
    """Signal powers (T,) float64 of a table of options, and the ends of its betas if evenly spaced."""
    named = [name for name in TABLES if name in options]
    if len(named) > 1:
        raise UserError(f"a schedule is given twice, by {named[0]} and {named[1]}. Leave one out.")
    if named and named[0] == "sigmas":
        return 1 / (1 + _own_sigmas(options) ** 2), None
    if named and named[0] == "alphas_cumprod":
        return _numbers(options, "alphas_cumprod", 0, 1), None
    betas, ends = _betas(options) if not named else (_numbers(options, named[0], 0, 1), None)
    alpha_bar = torch.cumprod(1 - betas, dim=0)
    if options.get("rescale_betas_zero_snr"):
        return _without_last_signal(alpha_bar), None
    return alpha_bar, ends


def _betas(options: Mapping[str, Any]) -> tuple[Tensor, tuple[float, float] | None]:
    """Betas (T,) of a named schedule, and their ends if they are evenly spaced."""
    steps = whole(options.get("num_train_timesteps", TRAIN_STEPS), "num_train_timesteps", 2, LONGEST + 1)
    first = real(options.get("beta_start", BETA_START), "beta_start")
    last = real(options.get("beta_end", BETA_END), "beta_end")
    name = options.get("beta_schedule", "linear")
    name = NAMES.get(name, name) if isinstance(name, str) else name
    if name == "linear":
        return _spaced(first, last, steps), (first, last)
    if name == "scaled_linear":
        if min(first, last) < 0:
            raise UserError(f"betas lie in (0, 1); beta_start {first:g} and beta_end {last:g} do not.")
        return _spaced(first**0.5, last**0.5, steps) ** 2, None
    if name == "sigmoid":
        return torch.sigmoid(_spaced(-6.0, 6.0, steps)) * (last - first) + first, None
    powers: dict[Any, Callable[[float], float]] = {"squaredcos_cap_v2": _cosine, "laplace": _laplace}
    if name not in powers:
        raise UserError(
            f"beta_schedule {shown(name)} is unknown. Available: linear, cosine (squaredcos_cap_v2),"
            " scaled_linear, sigmoid, laplace; or give the betas as a list."
        )
    power = powers[name]
    betas = [min(1 - power((i + 1) / steps) / power(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64), None


def _spaced(first: float, last: float, steps: int) -> Tensor:
    """Evenly spaced numbers, (T,) float64."""
    return torch.linspace(first, last, steps, dtype=torch.float64)


def _cosine(t: float) -> float:
    """Signal power of the cosine schedule, up to a factor."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _laplace(t: float) -> float:
    """Signal amplitude that diffusers takes for the power of its Laplace schedule."""
    log = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
    return math.sqrt(math.exp(log) / (1 + math.exp(log)))


def _without_last_signal(alpha_bar: Tensor) -> Tensor:
    """Signal powers moved and scaled so that nothing of the image is left at the last time."""
    signal = alpha_bar.sqrt()
    rest: Tensor = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    return rest**2


def _own_sigmas(options: Mapping[str, Any]) -> Tensor:
    return _numbers(options, "sigmas", 0, math.inf)


def _numbers(options: Mapping[str, Any], name: str, low: float, high: float) -> Tensor:
    """A list of an option as (T,) float64; UserError unless its numbers lie between two bounds."""
    value = options[name]
    value = value.tolist() if hasattr(value, "tolist") else value
    is_list = isinstance(value, Sequence) and not isinstance(value, str | bytes)
    if not is_list or not 2 <= len(value) <= LONGEST:
        raise UserError(f"{name} must be a list of 2 to {LONGEST} numbers, not {shown(value)}.")
    if not all(isinstance(v, int | float) and low <= v <= high for v in value):
        raise UserError(f"{name} must be numbers between {low:g} and {high:g}, not {shown(value)}.")
    return torch.tensor(value, dtype=torch.float64)


def _increasing(sigmas: Tensor) -> tuple[float, ...]:
    """Levels as numbers; UserError unless they increase from above 0 and only the last may be infinite."""
    if not bool((sigmas[1:] > sigmas[:-1]).all()) or not bool(sigmas[0] > 0):
        raise UserError(
            "the noise levels of a schedule must increase from above 0, in the order of the network's times;"
            f" these go from {float(sigmas[0]):g} to {float(sigmas[-1]):g}. Betas lie in (0, 1)."
        )
    return tuple(sigmas.tolist())


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a JSON file has them."""
    return {k: v.tolist() if hasattr(v, "tolist") else v for k, v in options.items()}
