"""Features of images, whose distributions are compared: those of Inception, or of a classifier.

Only Inception features make the distance an FID; that of other features has another name and scale.
"""

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.registry import Registry, call_with_options
from dbpkit.models.sources import load_classifier, state_sha256

feature_sources: Registry[Callable[..., "Features"]] = Registry("features")

INCEPTION_FEATURES = 2048
"""Width of the pooled Inception features that define the FID."""

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""Of inception-2015-12-05.pt, 95,607,719 bytes, as k-diffusion's evaluation.py checks it too."""

LARGEST_INCEPTION = 2**30
"""Bytes of the largest file that is taken for it."""


class Features(NamedTuple):
    """A function from images to features.

    Attributes:
        extract: maps images (B, C, H, W) in [0, 1] to features (B, F).
        metric: what the Frechet distance of these features is called.
        about: where they come from, ready for JSON.
    """

    extract: Callable[[Tensor], Tensor]
    metric: str
    about: dict[str, Any]


def make_features(name: str, options: Mapping[str, Any]) -> Features:
    """Makes features, whose Frechet distance is then measured.

    Args:
        name: ``"inception"``, for the FID, ``"classifier"``, or an import path.
        options: its keyword arguments.

    Returns:
        A function from images to features, and what its distance is called.

    Raises:
        UserError: if the name, an option or a file is wrong.

    Example:
        >>> make_features("classifier", {"classifier": "embedded"}).metric
        'Frechet distance of embedded classifier features'
    """
    return call_with_options(feature_sources.resolve(name), options, f"features '{name}'")


@feature_sources.register("inception")
def inception(path: str, trust: bool = False) -> Features:
    """Inception features from the TorchScript file that published FIDs use; the distance is the FID.

    Pixels are rounded to 8 bits and grey images repeated to three channels; the network resizes them itself.

    Args:
        path: ``inception-2015-12-05.pt``, a network that takes uint8 images (B, 3, H, W) and returns
            (B, 2048) features when it is called with ``return_features=True``.
        trust: run another file too. TorchScript is a program: it can read and write files.

    Raises:
        UserError: if the file is missing, unreadable, another network, or not the published one without
            ``trust``.

    Source:
        Heusel et al. 2017 (arXiv:1706.08500); Karras et al. 2020 (arXiv:2006.06676), metrics of their code.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(
            f"Inception file '{path}' is missing. Download inception-2015-12-05.pt from the metrics of"
            " NVIDIA's stylegan2-ada-pytorch, and give its path."
        )
    content, sha256 = _inception_file(file, trust)
    try:
        network = torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(
            f"'{path}' is not a TorchScript file ({' '.join(str(error).split())[:200]}). Download"
            " inception-2015-12-05.pt again."
        ) from error
    if "return_features" not in {argument.name for argument in network.forward.schema.arguments}:
        raise UserError(f"'{path}' does not take return_features. Give inception-2015-12-05.pt.")

    @torch.no_grad()
    def extract(x: Tensor) -> Tensor:
        if x.shape[1] not in (1, 3):
            raise UserError(f"Inception features need images of 1 or 3 channels, not {x.shape[1]}.")
        pixels = (255 * x).round().to(torch.uint8).expand(-1, 3, -1, -1)
        made = network.to(x.device)(pixels, return_features=True)
        if made.shape != (len(x), INCEPTION_FEATURES):
            raise UserError(
                f"'{path}' returns features {tuple(made.shape)} where {(len(x), INCEPTION_FEATURES)} were"
                " expected. Give inception-2015-12-05.pt; with another network it would not be an FID."
            )
        return made

    metric = "FID" if sha256 == INCEPTION_SHA256 else f"Frechet distance of the features of {file.name}"
    return Features(extract, metric, {"name": "inception", "sha256": sha256})


def _inception_file(file: Path, trust: bool) -> tuple[bytes, str]:
    """The bytes of a TorchScript file and their sha256, checked before anything in it can run."""
    size = file.stat().st_size
    if size > LARGEST_INCEPTION:
        raise UserError(f"'{file}' has {size} bytes, and inception-2015-12-05.pt has 95607719.")
    content = file.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != INCEPTION_SHA256 and not trust:
        raise UserError(
            f"'{file}' is not the published inception-2015-12-05.pt: its sha256 is {sha256} where"
            f" {INCEPTION_SHA256} was expected. TorchScript can run code: download it again, or give --trust"
            " if you trust this file."
        )
    return content, sha256


@feature_sources.register("classifier")
def from_classifier(classifier: str = "embedded", options: Mapping[str, Any] | None = None) -> Features:
    """Penultimate features of a classifier; the distance is not an FID.

    Args:
        classifier: registered classifier or import path.
        options: its keyword arguments. The embedded one's features are those of the image alone unless
            ``mirror`` is set: then of the image and its mirror image, added.
    """
    options = dict(options or {})
    if classifier == "embedded":
        options.setdefault("mirror", False)
    made = classifier_features(load_classifier(classifier, options), classifier)
    return made._replace(about={**made.about, "options": options})


def classifier_features(model: nn.Module, name: str) -> Features:
    """What the last ``nn.Linear`` of a classifier is given, as features.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits; put in eval mode.
        name: what to call it in results.

    Raises:
        UserError: if the model has no ``nn.Linear``.
    """
    linears = [module for module in model.eval().modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(
            f"classifier '{name}' has no nn.Linear to take features from. Use another classifier."
        )

    @torch.no_grad()
    def extract(x: Tensor) -> Tensor:
        model.to(x.device)
        given: list[Tensor] = []  # in order of use, which need not be that of the modules
        hooks = [m.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for m in linears]
        try:
            model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if not given:
            raise UserError(
                f"classifier '{name}' uses none of its nn.Linear layers, so they are given no features. Use"
                " another classifier."
            )
        return given[-1].flatten(1)

    about = {"name": "classifier", "classifier": name, "sha256": state_sha256(model)}
    return Features(extract, f"Frechet distance of {name} classifier features", about)
