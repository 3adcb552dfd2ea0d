"""Denoisers under their usual import path: the adapters, and diffusers' networks in one call.

An adapter turns one kind of diffusion network into `Denoiser(x, sigma) -> x0`; `dbpkit.models.adapters` has
one file for each.
"""

import logging
import warnings
from typing import Any, cast

from dbpkit.foundation.options import call_with_options
from dbpkit.models.adapters import Adapter, denoiser_adapters, reinterpreted
from dbpkit.models.adapters.blind import BlindDenoiser
from dbpkit.models.adapters.consistency import ConsistencyDenoiser
from dbpkit.models.adapters.edm import EDMDenoiser
from dbpkit.models.adapters.flow import FlowDenoiser
from dbpkit.models.adapters.iddpm import IDDPMDenoiser
from dbpkit.models.adapters.meanflow import MeanFlowDenoiser
from dbpkit.models.adapters.ve import VEDenoiser
from dbpkit.models.adapters.ve_precond import VEPrecondDenoiser
from dbpkit.models.adapters.vp import ALIASES, AnyPrediction, Prediction, VPDenoiser, prediction_of
from dbpkit.models.adapters.vp_precond import VPPrecondDenoiser

__all__ = [
    "ALIASES",
    "Adapter",
    "AnyPrediction",
    "BlindDenoiser",
    "ConsistencyDenoiser",
    "EDMDenoiser",
    "FlowDenoiser",
    "IDDPMDenoiser",
    "MeanFlowDenoiser",
    "Prediction",
    "VEDenoiser",
    "VEPrecondDenoiser",
    "VPDenoiser",
    "VPPrecondDenoiser",
    "denoiser_adapters",
    "from_pretrained",
    "prediction_of",
    "reinterpreted",
]

log = logging.getLogger(__name__)


def from_pretrained(
    path: str, subfolder: str | None = None, prediction: AnyPrediction | None = None, **options: Any
) -> Adapter:
    """Loads any diffusers ``UNet2DModel`` directory or Hub id.

    Its scheduler's configuration says which adapter fits, with which schedule.

    Args:
        path: a local directory or a Hub id.
        subfolder: where the network lies inside it; ``"unet"`` is tried too if not given.
        prediction: what the network predicts; read from the scheduler's configuration beside it when
            it has one, else ``noise``; our words or diffusers'.
        options: further arguments of the adapter, such as ``label`` or ``time_index``, over what the
            configuration says.

    Raises:
        UserError: if nothing loadable is there, its scheduler is not known, or an option is wrong.
    """
    from dbpkit.models.diffusers import load_unet

    found = load_unet(path, subfolder)
    asked = {name: value for name, value in options.items() if value is not None}
    asked |= {} if prediction is None else {"prediction": prediction_of(prediction)}
    kept = {k: v for k, v in found.options.items() if k != "schedule" or "sigmas" not in asked}
    chosen = {**kept, **asked}
    adapter = denoiser_adapters.get(found.adapter)
    what = f"denoiser adapter '{found.adapter}'"
    denoiser: Any = call_with_options(adapter, {"network": found.network, **chosen}, what)
    denoiser.sample_size = found.sample_size
    denoiser.described = found.adapter, chosen
    if not found.has_scheduler and not {"schedule", "sigmas"} & asked.keys():
        type_ = "" if prediction is not None else " and the prediction 'noise'"
        denoiser.assumed = (
            f"No scheduler_config.json lies beside the network '{path}', so the linear DDPM schedule{type_}"
            " is taken for granted. Give the pipeline's directory, which has one."
        )
        log.warning("%s", denoiser.assumed)
    return cast(Adapter, denoiser)


def __getattr__(name: str) -> Any:
    """The registry under its name of 0.1.0, with a deprecation note."""
    if name != "denoisers":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    note = f"{__name__}.denoisers is denoiser_adapters now; the old name goes in 0.3."
    warnings.warn(note, DeprecationWarning, stacklevel=2)
    return denoiser_adapters
