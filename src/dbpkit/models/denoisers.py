"""Adapters that turn every kind of diffusion network into `Denoiser(x, sigma) -> x0`.

The thing people get wrong: the scale of the network's input. Variance-preserving networks expect
``x / sqrt(1 + sigma**2)`` and a time; EDM networks expect their own preconditioning; here ``x`` is always
``x0 + sigma * z`` with x0 in [-1, 1].
"""

import copy
import logging
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from dbpkit.foundation.compiled import call
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.frozen import own_dtype
from dbpkit.foundation.inputs import real
from dbpkit.foundation.precision import lowered
from dbpkit.foundation.registry import Registry
from dbpkit.models.schedule import discrete_sigmas, vp_time

denoiser_adapters: Registry[Callable[..., nn.Module]] = Registry("denoiser adapter")
"""What turns a network into a denoiser; where finished denoisers come from is `dbpkit.models.sources`."""

log = logging.getLogger(__name__)

Prediction = Literal["noise", "v", "x0", "score"]

AnyPrediction = Literal["noise", "v", "x0", "score", "epsilon", "sample", "v_prediction"]
"""Predictions in our words and in diffusers'."""

ALIASES: dict[str, Prediction] = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
"""What diffusers calls predictions."""


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


class EDMDenoiser(nn.Module):
    """A raw network ``network(x, noise_label)`` with EDM preconditioning.

    Args:
        network: predicts the preconditioned target from scaled images and log(sigma) / 4.
        sigma_data: deviation of the data in [-1, 1] units.

    Source:
        Karras et al. 2022 (arXiv:2206.00364), table 1 and eq. 7.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.network = _checked(network, "EDMDenoiser", "network(x, noise_label)")
        self.sigma_data = real(sigma_data, "sigma_data")

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimates x0 of shape (B, C, H, W); see `dbpkit.foundation.types.Denoiser`."""
        label, sigma = _columns(sigma, x)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        skip = (self.sigma_data / total) ** 2
        out = sigma * self.sigma_data / total
        return skip * x + out * _predict(self.network, x / total, label.log() / 4)


class VPDenoiser(nn.Module):
    """A variance-preserving network ``network(x, time)`` that predicts noise, v, x0 or the score.

    Args:
        network: takes ``x / sqrt(1 + sigma**2)`` (B, C, H, W) and times (B,).
        prediction: what it returns, in our words or diffusers': ``noise`` z; ``v`` = sqrt(alpha_bar) z -
            sqrt(1 - alpha_bar) x0; ``x0``; or the ``score`` of the variance-preserving state,
            -z / sqrt(1 - alpha_bar).
        time: ``"discrete"`` gives the nearest index t in 0..999 of the linear DDPM schedule;
            ``"continuous"`` gives ``time_scale`` times the VP time in (0, 1].
        time_scale: factor of continuous times; 999 for the published DDPM++ networks.

    Source:
        Ho et al. 2020; Song et al. 2021; Salimans & Ho 2022 (arXiv:2202.00512), section 4, for v.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction: AnyPrediction = "noise",
        time: Literal["discrete", "continuous"] = "discrete",
        time_scale: float = 999.0,
    ) -> None:
        super().__init__()
        if time not in ("discrete", "continuous"):
            raise UserError(f"time '{time}' is unknown. Available: continuous, discrete.")
        self.network = _checked(network, "VPDenoiser", "network(x, time)")
        self.prediction = prediction_of(prediction)
        self.time = time
        self.time_scale = real(time_scale, "time_scale")

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimates x0 of shape (B, C, H, W); see `dbpkit.foundation.types.Denoiser`."""
        label, sigma = _columns(sigma, x)
        signal = (1 + sigma**2).rsqrt()  # sqrt(alpha_bar)
        state = signal * x
        out = _predict(self.network, state, self._times(label))
        if out.shape != x.shape:
            raise UserError(
                f"the denoising network returned {tuple(out.shape)} for images {tuple(x.shape)}. "
                "Drop learned-variance channels, or wrap the network so that it returns one image."
            )
        if self.prediction == "noise":
            return x - sigma * out
        if self.prediction == "x0":
            return out
        if self.prediction == "v":
            return signal * state - signal * sigma * out
        return (
            x + signal * sigma**2 * out
        )  # z = -sqrt(1 - alpha_bar) score, sqrt(1 - alpha_bar) = signal sigma

    def _times(self, sigma: Tensor) -> Tensor:
        """(B,) times of noise levels in the network's own unit."""
        if self.time == "continuous":
            return self.time_scale * vp_time(sigma)
        table = _log_sigmas(sigma.device)
        one = bool(len(sigma)) and sigma.stride(0) == 0  # a level that was expanded is looked up once
        index = ((sigma[:1] if one else sigma).to(table).log()[:, None] - table).abs().argmin(dim=1)
        return index.repeat(len(sigma)) if one else index


@denoiser_adapters.register("edm")
def edm(network: nn.Module, sigma_data: float = 0.5) -> EDMDenoiser:
    """EDM preconditioning around a raw network.

    Args:
        network: takes the scaled image and a function of the noise level.
        sigma_data: standard deviation of the data in [-1, 1].
    """
    return EDMDenoiser(network, sigma_data)


@denoiser_adapters.register("vp")
def vp(
    network: nn.Module,
    prediction: AnyPrediction = "noise",
    time: Literal["discrete", "continuous"] = "discrete",
    time_scale: float = 999.0,
) -> VPDenoiser:
    """A variance-preserving network that predicts noise, v, x0 or score.

    Args:
        network: takes the image of a variance-preserving chain and its time.
        prediction: what the network predicts.
        time: whether it takes indices 0 to 999 or continuous times.
        time_scale: what a continuous time in [0, 1] is multiplied by.
    """
    return VPDenoiser(network, prediction, time, time_scale)


def from_pretrained(
    path: str, subfolder: str | None = None, prediction: AnyPrediction | None = None
) -> VPDenoiser:
    """Loads any diffusers ``UNet2DModel`` directory or Hub id (safetensors only).

    Args:
        path: a local directory or a Hub id.
        subfolder: where the network lies inside it; ``"unet"`` is tried too if not given.
        prediction: what the network predicts; read from the scheduler's configuration beside it when
            it has one, else ``noise``; our words or diffusers'.

    Raises:
        UserError: if nothing loadable is there, or the schedule is not the linear DDPM one.
    """
    from dbpkit.models.diffusers import load_unet

    network, found, has_scheduler, size = load_unet(path, subfolder)
    denoiser: Any = VPDenoiser(network, found if prediction is None else prediction)
    denoiser.sample_size = size
    if not has_scheduler:
        type_ = "" if prediction is not None else " and the prediction 'noise'"
        denoiser.assumed = (
            f"No scheduler_config.json lies beside the network '{path}', so the linear DDPM schedule{type_}"
            " is taken for granted. Give the pipeline's directory, which has one."
        )
        log.warning("%s", denoiser.assumed)
    return cast(VPDenoiser, denoiser)


def reinterpreted(denoiser: VPDenoiser, prediction: Prediction) -> VPDenoiser:
    """Returns a denoiser of the same network whose output is read as another prediction."""
    other = copy.copy(denoiser)
    other.prediction = prediction_of(prediction)
    return other


def _checked(network: Any, what: str, call: str) -> Any:
    """Returns a network; UserError for what cannot be called."""
    if isinstance(network, type) or not callable(network):
        raise UserError(f"{what}: the network must be callable as {call}, not {shown(network)}.")
    return network


def _columns(sigma: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels as (B,) in at least single precision, and as (B, 1, 1, 1) in the type of ``x``."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(x.device, exact)
    elif isinstance(sigma, int | float):  # filled there: a number would be copied
        sigma = torch.full((), sigma, dtype=exact, device=x.device)
    else:
        sigma = torch.as_tensor(sigma, dtype=exact, device=x.device)
    label = sigma.expand(x.shape[0])
    return label, label.to(x.dtype)[:, None, None, None]


@lru_cache(maxsize=8)
def _log_sigmas(device: torch.device) -> Tensor:
    """Logarithms of the 1,000 levels of the linear DDPM schedule, double where the device has it.

    Not a buffer of the module: that would become half with its weights, and the nearest level another.
    """
    return discrete_sigmas().log().to(device, torch.float32 if device.type == "mps" else torch.float64)


def _predict(network: Callable[..., Any], state: Tensor, times: Tensor) -> Tensor:
    """What a network says of a state, in the state's precision; the network gets a copy in its own."""
    dtype = own_dtype(network) or state.dtype
    times = times.to(dtype) if times.is_floating_point() else times
    with lowered(state.device.type):
        out = call(network, state.clone() if state.dtype == dtype else state.to(dtype), times)
    out = getattr(out, "sample", out)
    return out.to(state.dtype) if isinstance(out, Tensor) else out


def __getattr__(name: str) -> Any:
    """The registry under its name of 0.1.0, with a deprecation note."""
    if name != "denoisers":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    note = f"{__name__}.denoisers is denoiser_adapters now; the old name goes in 0.3."
    warnings.warn(note, DeprecationWarning, stacklevel=2)
    return denoiser_adapters
