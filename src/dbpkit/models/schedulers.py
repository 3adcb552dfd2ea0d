"""What a diffusers scheduler's configuration says of the network beside it: an adapter and its options.

The same weights are another denoiser under another scheduler. Only what the network was trained with counts
here; what a scheduler says of its own steps (spacing, clipping, order) is a sampler's affair.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dbpkit.foundation.errors import UserError, shown
from dbpkit.models.discrete import OPTIONS, schedule_of

_PREDICTIONS = {"epsilon": "noise", "sample": "x0", "v_prediction": "v"}
_SCHEDULED = tuple(name for name in OPTIONS if name not in ("betas", "alphas_cumprod", "sigmas"))
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_EXPLODING = "ScoreSdeVeScheduler"
_CONSISTENCY = "CMStochasticIterativeScheduler"


class Described(NamedTuple):
    """What a network is, by its scheduler.

    Attributes:
        adapter: registered denoiser adapter.
        options: its keyword arguments, as a JSON file has them.
    """

    adapter: str
    options: dict[str, Any]


def described(config: Mapping[str, Any], file: object) -> Described:
    """Reads a ``scheduler_config.json``.

    Args:
        config: its content.
        file: where it lies, for errors.

    Raises:
        UserError: if the scheduler is not known, or its betas or its prediction are none.
    """
    kind = config.get("_class_name")
    if kind in _FLOW:
        return Described("flow", {"time_scale": float(config.get("num_train_timesteps", 1000))})
    if kind == _EXPLODING:
        return Described("ve", {})
    if kind == _CONSISTENCY:
        names = ("sigma_data", "sigma_min")
        return Described("consistency", {name: config[name] for name in names if name in config})
    if kind in _EDM and config.get("prediction_type", "epsilon") == "epsilon":
        return Described("edm", {"sigma_data": config.get("sigma_data", 0.5)})
    if config.get("beta_schedule") is None and config.get("trained_betas") is None:
        raise UserError(
            f"'{file}' describes a noise schedule that is not known ({shown(kind)}, without betas). Known are"
            f" schedulers with a beta_schedule or trained_betas, {_EXPLODING}, {_CONSISTENCY},"
            f" {', '.join((*_EDM, *_FLOW))}."
        )
    options: dict[str, Any] = {"prediction": _prediction(config, file)}
    table = {name: config[name] for name in _SCHEDULED if config.get(name) is not None}
    if table.get("trained_betas") is not None:
        table = {k: v for k, v in table.items() if k in ("trained_betas", "rescale_betas_zero_snr")}
    try:
        schedule = schedule_of(table)
    except UserError as error:
        raise UserError(f"'{file}' describes no noise schedule: {error}") from error
    if not schedule.is_default:
        options["schedule"] = dict(schedule.options)
    return Described("vp", options)


def learned_variance(config: Mapping[str, Any]) -> str:
    """What to do with a second half of channels: ``learned`` if the scheduler uses it so, or ``drop``."""
    return "learned" if config.get("variance_type") == "learned_range" else "drop"


def _prediction(config: Mapping[str, Any], file: object) -> str:
    kind = config.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise UserError(
            f"'{file}' has prediction_type '{kind}'. Available: {', '.join(sorted(_PREDICTIONS))}."
        )
    return _PREDICTIONS[kind]
