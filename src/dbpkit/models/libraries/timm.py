"""Classifiers of ``timm``."""

from typing import Any

from torch import nn

from dbpkit.foundation.errors import UserError, nearest
from dbpkit.foundation.options import Count
from dbpkit.models.libraries.library import (
    Preprocessing,
    Resizing,
    as_classifier,
    built,
    hub_file,
    imported,
    weights_of,
)
from dbpkit.models.sources import classifier_sources

INSTALL = "pip install timm, with the torchvision made for your torch"


@classifier_sources.register("timm")
def timm(
    model: str,
    pretrained: bool = True,
    weights: str | None = None,
    classes: Count | None = None,
    download: bool = False,
    resize: Resizing = "library",
    antialias: bool = True,
) -> nn.Module:
    """A network of timm, with mean, deviation and input size of its configuration.

    Args:
        model: its name in timm, such as ``resnet50`` or ``vit_base_patch16_224.augreg_in1k``.
        pretrained: whether it has the weights of its name, from the Hub's cache; without them and without
            ``weights`` they are random.
        weights: a file with weights instead (.safetensors, .pth, .pt).
        classes: how many it tells apart, if not as many as in its configuration; of ``weights`` only.
        download: whether weights that are not in the cache may be fetched from the Hub.
        resize: ``library`` resizes images of another size than the configuration's as it says, ``bilinear``
            and ``bicubic`` as named; ``off`` leaves them.
        antialias: whether making them smaller averages over all pixels, as Pillow does.

    Raises:
        UserError: if timm is missing, has no such model, or the weights are missing or do not fit.
    """
    library = imported("timm", "timm", INSTALL)
    if ":" in model or not library.is_model(model):
        hint = nearest(model, library.list_models()) or " Its function list_models() names them."
        raise UserError(f"classifier 'timm': there is no model '{model}' in timm.{hint}")
    if classes is not None and weights is None and pretrained:
        raise UserError(
            f"classifier 'timm': the weights of '{model}' tell their own classes apart. Leave classes out, or"
            " set weights to a file of that many."
        )
    where = f"classifier 'timm': model '{model}'"
    state = _state(library, model, pretrained, weights, download)
    overlay: dict[str, Any] = {} if state is None else {"state_dict": state}
    more = {} if classes is None else {"num_classes": classes}
    network = built(
        lambda: library.create_model(
            model, pretrained=state is not None, pretrained_cfg_overlay={**overlay, **more}, **more
        ),
        where,
    )
    config = {k: v for k, v in network.pretrained_cfg.items() if k != "state_dict"}  # type: ignore[union-attr,operator]
    network.pretrained_cfg = network.default_cfg = config  # type: ignore[assignment]
    return as_classifier(network, _seen(config), resize, antialias, tuple(config.get("label_names") or ()))


def _state(library: Any, model: str, pretrained: bool, weights: str | None, download: bool) -> Any:
    """The weights asked for; None for random ones."""
    if weights is not None:
        return weights_of(weights)
    if not pretrained:
        return None
    config = library.get_pretrained_cfg(model)
    if config is None or not config.hf_hub_id:
        raise UserError(
            f"classifier 'timm': timm has no weights of '{model}' on the Hub. Set weights to a file, or"
            " pretrained = false for random ones."
        )
    return weights_of(hub_file(config.hf_hub_id, "model.safetensors", download, "timm"))


def _seen(config: dict[str, Any]) -> Preprocessing:
    _, height, width = config["input_size"]
    return Preprocessing(
        tuple(config["mean"]), tuple(config["std"]), (height, width), config.get("interpolation", "bicubic")
    )
