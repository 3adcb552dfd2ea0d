"""Whether model, denoiser and data fit each other at all: what no check could look at is refused here."""

import torch
from torch import Tensor

from dbpkit.experiment.build import Parts
from dbpkit.foundation.errors import OutputError, UserError
from dbpkit.foundation.inputs import check_outputs
from dbpkit.foundation.noise import NoisePlan


@torch.no_grad()
def check_fit(parts: Parts, x: Tensor, y: Tensor) -> None:
    """Raises UserError unless classifier, purifier and data agree in channels, size and classes."""
    shape = tuple(x.shape[1:])
    if parts.undefended is None:
        noise = NoisePlan.of(0, range(len(x)), "select")
        check_logits(parts.model(x, noise=noise), x, y)
        check_outputs(parts.model(x[:1], noise=noise.rows([0])), 1)
        return
    try:
        logits, alone = parts.model.classifier(x), parts.model.classifier(x[:1])
    except (RuntimeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(
            f"the classifier does not accept images of shape {shape}: {first_line(error)}. Use"
            " data of its size and channels, or say classifier.resize."
        ) from error
    check_logits(logits, x, y)
    check_outputs(alone, 1)
    if logits.shape[1] < len(parts.data.class_names):
        raise UserError(
            f"the classifier has {logits.shape[1]} classes, but the data has"
            f" {len(parts.data.class_names)}. Use a classifier trained on this data."
        )
    check_images_out(parts, x)


def check_images_out(parts: Parts, x: Tensor) -> None:
    """Raises UserError unless the denoiser, or a purifier without one, returns images as it is given."""
    what = "purifier" if parts.denoiser is None else "denoiser"
    try:
        if parts.denoiser is None:
            found = parts.model.purifier(x, noise=NoisePlan.of(0, range(len(x)), "select"))
        else:
            x = getattr(parts.model.purifier, "fitted", _as_it_is)(x)
            found = parts.denoiser(2 * x - 1, torch.ones((), device=x.device))
    except OutputError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"the {what} does not accept images of shape {tuple(x.shape[1:])}: {first_line(error)}. Use data"
            " of its size and channels, or say purifier.resize or purifier.pad."
        ) from error
    if not isinstance(found, Tensor) or found.shape != x.shape:
        raise UserError(f"the {what} must return clean images {tuple(x.shape)}, got {_shape(found)}.")
    if not _has_finite_row(found):
        raise UserError(f"the {what} returns nothing but values that are not finite. Repair it first.")


def check_logits(output: object, x: Tensor, y: Tensor) -> None:
    """Raises UserError unless a classifier's output is (B, K) with a logit for every label."""
    logits = check_outputs(output, len(x))
    if not _has_finite_row(logits):
        raise UserError(
            f"the classifier returns logits that are not finite for each of {len(x)} images. Look for a"
            " division by zero, the logarithm of zero, or half precision that overflows."
        )
    if int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"the classifier has {logits.shape[1]} classes, but the labels go up to {int(y.max())}. Use"
            " a classifier trained on this data."
        )


def _as_it_is(x: Tensor) -> Tensor:
    """What a purifier of another kind hands to its denoiser, as far as anybody knows."""
    return x


def _has_finite_row(x: Tensor) -> bool:
    """Whether any image of a batch (B, ...) has only finite values."""
    return bool(x.isfinite().flatten(1).all(dim=1).any())


def first_line(error: Exception) -> str:
    """The first line of an error's message, without a full stop."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
