"""Classifiers of ``torchvision``."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dbpkit.foundation.errors import UserError, excerpt, nearest, unknown_name
from dbpkit.foundation.options import Count
from dbpkit.models.libraries.library import (
    Preprocessing,
    Resizing,
    as_classifier,
    built,
    filled,
    imported,
    weights_of,
)
from dbpkit.models.sources import classifier_sources

INSTALL = "install the torchvision made for your torch"

_AS_TRAINED = {
    "inception_v3": {"transform_input": True, "aux_logits": True},
    "googlenet": {"transform_input": True, "aux_logits": True},
}
"""Arguments that the published weights need and that ``weights=None`` leaves out."""

_PARTIAL = re.compile(r"-([a-f0-9]{8,})\.")
"""The first digits of a file's sha256, in its name."""


@classifier_sources.register("torchvision")
def torchvision(
    model: str,
    variant: str = "DEFAULT",
    pretrained: bool = True,
    weights: str | None = None,
    classes: Count | None = None,
    download: bool = False,
    resize: Resizing = "library",
    antialias: bool = True,
) -> nn.Module:
    """A network of torchvision, with mean, deviation and input size of its weights' own transforms.

    Args:
        model: its name in torchvision, such as ``resnet50``.
        variant: which published weights, such as ``IMAGENET1K_V1``; mean and size are theirs in any case.
        pretrained: whether it has them, from torch's cache; without and without ``weights`` they are random.
        weights: a file with weights instead (.safetensors, .pth, .pt).
        classes: how many it tells apart, if not 1,000; of ``weights`` only.
        download: whether weights that are not in the cache may be fetched.
        resize: ``library`` resizes images of another size than the weights' as they say, ``bilinear`` and
            ``bicubic`` as named; ``off`` leaves them.
        antialias: whether making them smaller averages over all pixels, as Pillow does.

    Raises:
        UserError: if torchvision is missing, has no such model, or the weights are missing or do not fit.
    """
    library = imported("torchvision.models", "torchvision", INSTALL)
    if model not in (known := library.list_models(module=library)):
        raise UserError(
            f"classifier 'torchvision': there is no model '{model}' in torchvision.{nearest(model, known)}"
        )
    if classes is not None and weights is None and pretrained:
        raise UserError(
            f"classifier 'torchvision': the weights of '{model}' tell their own classes apart. Leave classes"
            " out, or set weights to a file of that many."
        )
    entry = _entry(library, model, variant)
    where = f"classifier 'torchvision': model '{model}'"
    more: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    more |= _AS_TRAINED.get(model, {}) if pretrained and weights is None else {}
    network = built(lambda: library.get_model(model, weights=None, **more), where)
    if weights is not None or pretrained:
        path = Path(weights) if weights is not None else _cached(entry, model, download)
        filled(network, weights_of(path), where, path)
    names = tuple(entry.meta.get("categories", ())) if classes is None else ()
    return as_classifier(network, _seen(entry.transforms()), resize, antialias, names)


def _entry(library: Any, model: str, variant: str) -> Any:
    """The published weights of this name."""
    every = library.get_model_weights(model)
    names = [*every.__members__]
    if variant not in names and variant != "DEFAULT":
        raise unknown_name(f"variant of torchvision's '{model}'", variant, names)
    return every[variant] if variant in names else every.DEFAULT


def _cached(entry: Any, model: str, download: bool) -> Path:
    """The file of published weights in torch's cache, fetched if that is asked for."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / entry.url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    if not download:
        raise UserError(
            f"classifier 'torchvision': the weights of '{model}' are not in torch's cache ('{path}'), and"
            f" nothing is fetched unasked. Set download = true in its options, put {entry.url} there, or set"
            " weights to a file."
        )
    digits = _PARTIAL.search(path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(path), digits[1] if digits else None)
    except Exception as error:  # network, disk and a wrong hash
        raise UserError(
            f"cannot fetch '{entry.url}' ({excerpt(error)}). Fetch it by hand to '{path}'."
        ) from error
    return path


def _seen(preset: Any) -> Preprocessing:
    """What torchvision's own transforms of an image end in."""
    height, width = (*preset.crop_size, preset.crop_size[0])[:2]
    mode = getattr(preset.interpolation, "value", preset.interpolation)
    return Preprocessing(tuple(preset.mean), tuple(preset.std), (height, width), str(mode))
