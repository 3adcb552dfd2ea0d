"""Checks before the first update that classifier, denoiser and training data fit each other.

The thing people get wrong: ranges. A classifier takes pixels in [0, 1], a denoiser images in [-1, 1]; a part
that expects something else runs without an error and guides nowhere.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.schedule import discrete_sigmas

PROBED = 64
"""Training images looked at."""

TUNED = {"cuda"}
"""Devices where channels come last and the optimiser's step is fused; others keep every last digit."""

PROBE_TIME = 100
"""Time of 1000 at which a trained denoiser must remove noise."""


@torch.no_grad()
def check_classifier(classifier: nn.Module, data: Dataset, what: str, trained: bool) -> None:
    """Checks a classifier against the data.

    Args:
        classifier: maps pixels in [0, 1] to logits.
        data: training examples.
        what: how to name it in an error.
        trained: whether it must classify better than chance.

    Raises:
        UserError: if it does not take the images, has other classes, or is not better than chance.
    """
    index, x = _probe(classifier, data)
    try:
        logits = classifier(x)
    except (RuntimeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(
            f"{what} does not accept images of shape {data.shape}: {_first_line(error)}. Use data of its size"
            " and channels."
        ) from error
    classes = len(data.class_names)
    if logits.shape != (len(x), classes):
        raise UserError(
            f"{what} returns {tuple(logits.shape)} for {len(x)} images, but '{data.name}' has {classes}"
            " classes. Use one trained on these classes."
        )
    right = int((logits.argmax(1).cpu() == data.labels[index]).sum())
    if trained and right <= 2 * len(x) / classes and classes > 2:
        raise UserError(
            f"{what} is right on {right} of {len(x)} training images, near chance for {classes} classes."
            " It must take pixels in [0, 1], normalise inside, and number the classes as the data does."
        )


@torch.no_grad()
def check_denoiser(denoiser: nn.Module, data: Dataset, trained: bool) -> None:
    """Checks a denoiser against the data.

    Args:
        denoiser: see `dbpkit.foundation.types.Denoiser`.
        data: training examples.
        trained: whether it must already remove noise.

    Raises:
        UserError: if it does not take the images, changes their shape, or a trained one adds error.
    """
    index, x = _probe(denoiser, data)
    sigma = discrete_sigmas()[PROBE_TIME].to(x)
    x0 = 2 * x - 1
    z = NoisePlan.of(0, data.ids[index], "control").normal("forward", 0, x0)
    try:
        estimate = denoiser(x0 + sigma * z, sigma)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the denoiser does not accept images of shape {data.shape}: {_first_line(error)}. Use data of"
            " its size and channels."
        ) from error
    if estimate.shape != x0.shape:
        raise UserError(
            f"the denoiser returns {tuple(estimate.shape)} for images {tuple(x0.shape)}. It must return the"
            " clean image."
        )
    error_size = float((estimate - x0).square().mean().sqrt())
    if trained and not error_size < float(sigma):
        raise UserError(
            f"the denoiser's error at t = {PROBE_TIME} is {error_size:.3g}, where the noise is only"
            f" {float(sigma):.3g}: it does not remove noise. It must take images in [-1, 1] and know the"
            " level of their noise; start from another 'init', or from a 'network' with random weights."
        )


def laid_out(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns a network on its device: on a GPU with the channels last, as its convolutions want them."""
    solid = any(t.ndim == 5 for t in (*model.parameters(), *model.buffers()))  # of volumes, in another order
    if device.type not in TUNED or solid:
        return model.to(device)
    last: dict[str, Any] = {"memory_format": torch.channels_last}  # no annotation of torch's has it
    return model.to(device, **last)


def _probe(model: nn.Module, data: Dataset) -> tuple[slice, Tensor]:
    """The first images on the model's device."""
    index = slice(0, PROBED)
    return index, data.x(index).to(own_device(model))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
