"""Adapters that turn every kind of diffusion network into `Denoiser(x, sigma) -> x0`, one file each.

The thing people get wrong: the scale of the network's input. Variance-preserving networks expect
``x / sqrt(1 + sigma**2)`` and a time; EDM networks expect their own preconditioning; here ``x`` is always
``x0 + sigma * z`` with x0 in [-1, 1].
"""

from dbpkit.foundation.registry import import_siblings
from dbpkit.models.adapters.base import Adapter, reinterpreted
from dbpkit.models.adapters.registry import denoiser_adapters

import_siblings(__name__, __path__)

__all__ = ["Adapter", "denoiser_adapters", "reinterpreted"]
