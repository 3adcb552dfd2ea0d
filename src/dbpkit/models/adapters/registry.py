"""The registry of denoiser adapters, apart from them, so that each file can add its own."""

from collections.abc import Callable

from torch import nn

from dbpkit.foundation.registry import Registry

denoiser_adapters: Registry[Callable[..., nn.Module]] = Registry("denoiser adapter")
"""What turns a network into a denoiser; where finished denoisers come from is `dbpkit.models.sources`."""
