"""Variance-preserving networks: noise, v, x0 or score, discrete or continuous times, any schedule."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import real
from dbpkit.models.adapters.base import OUR_RANGE, Adapter, as_levels, column, one_of
from dbpkit.models.adapters.registry import denoiser_adapters
from dbpkit.models.discrete import Schedule, schedule_of
from dbpkit.models.schedule import vp_time

Prediction = Literal["noise", "v", "x0", "score"]

AnyPrediction = Literal["noise", "v", "x0", "score", "epsilon", "sample", "v_prediction"]
"""Predictions in our words and in diffusers'."""

ALIASES: dict[str, Prediction] = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
"""What diffusers calls predictions."""

Time = Literal["discrete", "rescaled", "continuous"]


def prediction_of(name: str) -> Prediction:
    """Returns a prediction by our name or diffusers' (``epsilon``, ``sample``, ``v_prediction``).

    Raises:
        UserError: if it is neither.
    """
    found = ALIASES.get(name, name) if isinstance(name, str) else name
    if found not in ("noise", "v", "x0", "score"):
        aliases = ", ".join(f"{alias} for {ours}" for alias, ours in ALIASES.items())
        raise UserError(
            f"prediction {name!r} is unknown. Available: noise, score, v, x0; diffusers' names also do:"
            f" {aliases}."
        )
    return cast(Prediction, found)


@denoiser_adapters.register("vp")
class VPDenoiser(Adapter):
    """A variance-preserving network that predicts noise, v, x0 or score.

    With alpha_bar = 1 / (1 + sigma**2) the network gets ``sqrt(alpha_bar) * x`` and a time, and returns one
    image, or two with a learned variance.

    Args:
        network: called as ``network(x, time)``, or ``network(x, time, label)`` with a label.
        prediction: what it returns, in our words or diffusers': ``noise`` z; ``v`` = sqrt(alpha_bar) z -
            sqrt(1 - alpha_bar) x0; ``x0``; or the ``score`` of the variance-preserving state,
            -z / sqrt(1 - alpha_bar).
        time: ``discrete`` gives the index t in 0..T - 1 of the schedule; ``rescaled`` gives 1000 t / T as a
            number that need not be whole; ``continuous`` gives ``time_scale`` times the VP time in (0, 1].
        time_scale: factor of continuous times; 999 for the published DDPM++ networks.
        time_index: ``nearest`` takes the index of the nearest level; ``floor`` rounds the continuous time
            down as DiffPure does with such networks, 150 of 1,000 at t* = 0.15.
        schedule: a name (``linear``, ``cosine``, ...) or a table of options as a diffusers scheduler has
            them; unset is the linear DDPM schedule. See `dbpkit.models.discrete.schedule_of`.
        sigmas: the noise levels of the network's times, increasing, in place of a schedule; in units of its
            own images.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        variance: for networks with 2 C output channels: ``drop`` the second half, or ``learned`` to let
            ``ddpm`` use it as its variance.
        label: class that a conditional network is told, of all images.
        time_shift: added to the index, or to the time that the network gets; to try a neighbour.

    Source:
        Ho et al. 2020; Song et al. 2021; Salimans & Ho 2022 (arXiv:2202.00512), section 4, for v; Nichol &
        Dhariwal 2021 (arXiv:2102.09672), eq. 15, for learned variances.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: AnyPrediction = "noise",
        time: Time = "discrete",
        time_scale: float = 999.0,
        *,
        time_index: Literal["nearest", "floor"] = "nearest",
        schedule: str | Mapping[str, Any] | None = None,
        sigmas: Sequence[float] | None = None,
        image_range: tuple[float, float] = OUR_RANGE,
        variance: Literal["drop", "learned"] | None = None,
        label: int | None = None,
        time_shift: float = 0.0,
    ) -> None:
        if time not in ("discrete", "rescaled", "continuous"):
            raise UserError(f"time '{time}' is unknown. Available: continuous, discrete, rescaled.")
        super().__init__(network, image_range, label)
        self.prediction = prediction_of(prediction)
        self.time = time
        self.time_scale = real(time_scale, "time_scale")
        self.time_index = one_of(time_index, "time_index", ("nearest", "floor"))
        self.schedule = _schedule(schedule, sigmas)
        self.variance = one_of(variance, "variance", ("drop", "learned", None))
        self.time_shift = real(time_shift, "time_shift")
        if time == "continuous" and self.schedule.ends is None:
            raise UserError(
                'continuous times need a schedule of evenly spaced betas. Use time = "discrete" or'
                ' "rescaled" with this one.'
            )

    @property
    def discrete_levels(self) -> Tensor | None:
        """Noise levels (T,) that a sampler of discrete times visits, in [-1, 1] units.

        None if they are those of the linear DDPM schedule, which samplers take of themselves.
        """
        if self.time == "continuous" or (self.schedule.is_default and self.image_range == OUR_RANGE):
            return None
        return self.schedule.levels(1 / self.half_range[0])

    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``u0 + sigma * z`` in the network's own range."""
        return self._read(x, levels)[0]

    def with_variance(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Estimates x0, and where the log variance of a step lies between the small and the large one.

        Args:
            x: noisy images ``x0 + sigma * z``, (B, C, H, W).
            sigma: noise levels (B,) or a scalar.

        Returns:
            x0 and the share (B, C, H, W) of the large variance's logarithm, 0 to 1 as far as it was trained.

        Raises:
            UserError: unless ``variance`` is ``"learned"``.
        """
        if self.variance != "learned":
            raise UserError('this denoiser has no learned variance. Give it variance = "learned".')
        half, middle = self.half_range
        state = x if self.image_range == OUR_RANGE else middle + half * x
        x0, rest = self._read(state, as_levels(sigma, x, half))
        x0 = x0 if self.image_range == OUR_RANGE else (x0 - middle) / half
        return x0, (cast(Tensor, rest) + 1) / 2

    def _read(self, x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor | None]:
        """The clean estimate, and the second half of the network's output if it has one."""
        sigma = column(levels, x)
        signal = (1 + sigma**2).rsqrt()  # sqrt(alpha_bar)
        state = signal * x
        rest: Tensor | None = None
        if self.variance is None:
            out = self.ask(state, self._times(levels))
        else:
            out, rest = self._halves(self.answer(state, self._times(levels)), x.shape)
        if self.prediction == "noise":
            return x - sigma * out, rest
        if self.prediction == "x0":
            return out, rest
        if self.prediction == "v":
            return signal * state - signal * sigma * out, rest
        # z = -sqrt(1 - alpha_bar) score, sqrt(1 - alpha_bar) = signal sigma
        return x + signal * sigma**2 * out, rest

    def _halves(self, out: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """The prediction and the variance's half of an output with twice as many channels."""
        channels = shape[1]
        if out.shape != (shape[0], 2 * channels, *shape[2:]):
            raise UserError(
                f"the denoising network returned {tuple(out.shape)} for images {tuple(shape)}, not an"
                " image and its variance. Leave variance out."
            )
        return out[:, :channels], out[:, channels:]

    def _times(self, sigma: Tensor) -> Tensor:
        """(B,) times of noise levels in the network's own unit."""
        if self.time == "continuous":
            times = self.time_scale * self._continuous(sigma)
            return times + self.time_shift if self.time_shift else times
        one = bool(len(sigma)) and sigma.stride(0) == 0  # a level that was expanded is looked up once
        find = self.schedule.nearest if self.time_index == "nearest" else self.schedule.floor
        index = find(sigma[:1] if one else sigma)
        if self.time_shift:
            index = (index + round(self.time_shift)).clamp(0, self.schedule.steps - 1)
        index = index.repeat(len(sigma)) if one else index
        return index if self.time == "discrete" else index.to(sigma.dtype) * (1000 / self.schedule.steps)

    def _continuous(self, sigma: Tensor) -> Tensor:
        """(B,) VP times in (0, 1]."""
        ends = self.schedule.ends
        return vp_time(sigma) if self.schedule.is_default or ends is None else vp_time(sigma, *ends)


def _schedule(schedule: Any, sigmas: Any) -> Schedule:
    if sigmas is None:
        return schedule_of(schedule)
    if schedule is not None and not (isinstance(schedule, Schedule) and schedule.is_default):
        raise UserError("a denoiser takes a schedule or sigmas, not both. Leave one out.")
    return schedule_of({"sigmas": sigmas})
