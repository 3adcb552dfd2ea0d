"""Where models come from: embedded, files of any known layout, diffusers, the user's own code.

The thing people get wrong: a classifier takes pixels in [0, 1] and normalises inside, and returns logits.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from dbpkit.foundation.errors import UserError, excerpt, shown, unknown_name
from dbpkit.foundation.packaged import asset as asset
from dbpkit.foundation.registry import Registry, call_with_options
from dbpkit.foundation.types import Denoiser
from dbpkit.models.denoisers import Adapter, from_pretrained, reinterpreted
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.models.stages import staged
from dbpkit.models.weights import Architecture, is_file, is_own_file, load_weights

classifier_sources: Registry[Callable[..., nn.Module]] = Registry(
    "classifier", ["dbpkit.models.file_sources"]
)
denoiser_sources: Registry[Callable[..., Any]] = Registry("denoiser", ["dbpkit.models.file_sources"])

EMBEDDED_CLASSIFIER = "cifar10-resnet9.safetensors"
EMBEDDED_DENOISERS = {"vanilla": "cifar10-unet.safetensors", "addt": "cifar10-unet-addt.safetensors"}

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle", ".t7", ".tar")
"""Ends of names that are those of files with weights."""

EMBEDDED_LAST = {"vanilla": 300, "addt": 120}
"""Largest of 1,000 times that they were trained on, see ``specs/train``; their files do not say."""


def load_embedded() -> tuple[nn.Module, nn.Module]:
    """Returns the package's own CIFAR-10 denoiser and classifier, frozen and in eval mode."""
    return embedded_denoiser(), embedded_classifier()


@classifier_sources.register("embedded")
def embedded_classifier(mirror: bool = True) -> nn.Module:
    """The CIFAR-10 classifier that the package carries.

    Args:
        mirror: whether logits are averaged over the image and its mirror image, at twice the cost.
    """
    model, _ = load_weights(asset(EMBEDDED_CLASSIFIER))
    model.mirror = mirror  # type: ignore[assignment]
    return model


@denoiser_sources.register("embedded")
def embedded_denoiser(variant: Literal["vanilla", "addt"] = "vanilla") -> nn.Module:
    """The CIFAR-10 denoiser that the package carries.

    Args:
        variant: ``vanilla``, or ``addt`` for the one fine-tuned from it by ADDT.
    """
    model, _ = load_weights(asset(EMBEDDED_DENOISERS[variant]))
    sigmas = discrete_sigmas()
    model.trained_levels = (float(sigmas[0]), float(sigmas[EMBEDDED_LAST[variant]]))  # type: ignore[assignment]
    return model


@classifier_sources.register("weights")
def classifier_from_weights(path: str, sha256: str | None = None) -> nn.Module:
    """A classifier trained with ``dbpkit train``.

    Args:
        path: the .safetensors file.
        sha256: digest that the file must have; unset takes any.
    """
    return _of_kind("classifier", path, sha256)


@denoiser_sources.register("weights")
def denoiser_from_weights(
    path: str,
    sha256: str | None = None,
    label: int | None = None,
    time_index: Literal["nearest", "floor"] | None = None,
    variance: Literal["drop", "learned"] | None = None,
) -> nn.Module:
    """A denoiser trained with ``dbpkit train`` or written by ``dbpkit convert``.

    Args:
        path: the .safetensors file.
        sha256: digest that the file must have; unset takes any.
        label: class that a conditional network is told, of all images; unset as the file says, like the rest.
        time_index: how a level becomes an index, see the adapter ``vp``.
        variance: of a network with twice the channels, ``drop`` or ``learned``.
    """
    model = _of_kind("denoiser", path, sha256)
    asked: dict[str, Any] = {"label": label, "time_index": time_index, "variance": variance}
    changes = {name: value for name, value in asked.items() if value is not None}
    if not changes:
        return model
    other: Any = reinterpreted(cast(Adapter, model), **changes)
    kept: Any = model.architecture
    other.architecture = kept._replace(denoiser_options={**kept.denoiser_options, **changes})
    return cast(nn.Module, other)


@denoiser_sources.register("diffusers")
def denoiser_from_diffusers(
    path: str,
    subfolder: str | None = None,
    prediction: Any = None,
    label: int | None = None,
    time_index: Literal["nearest", "floor"] | None = None,
    schedule: str | Mapping[str, Any] | None = None,
    image_range: tuple[float, float] | None = None,
    variance: Literal["drop", "learned"] | None = None,
) -> nn.Module:
    """Any diffusers UNet2DModel directory or Hub id.

    Args:
        path: the directory, or the Hub id.
        subfolder: part of it that holds the network, such as ``unet``.
        prediction: what the network predicts; unset reads it from the scheduler's configuration.
        label: class that a conditional network is told, of all images.
        time_index: how a level becomes an index, see the adapter ``vp``; unset is ``nearest``.
        schedule: a name or a table; unset reads it from the scheduler's configuration.
        image_range: of the images that the network was trained on; unset is [-1, 1].
        variance: of a network with twice the channels, ``drop`` or ``learned``; unset as the scheduler says.
    """
    model = from_pretrained(
        path,
        subfolder,
        prediction,
        label=label,
        time_index=time_index,
        schedule=schedule,
        image_range=image_range,
        variance=variance,
    )
    config = {k: v for k, v in getattr(model.network, "config", {}).items() if not k.startswith("_")}
    size = config.get("sample_size") or 32
    height, width = (size, size) if isinstance(size, int) else size
    described: tuple[str, dict[str, Any]] = model.described  # type: ignore[assignment]
    model.architecture = Architecture(  # type: ignore[assignment]  # training goes on from it
        "denoiser",
        "diffusers",
        {"config": config},
        *described,
        (config.get("in_channels", 3), height, width),
    )
    return model


def load_classifier(
    name: str, options: Mapping[str, Any] | None = None, *, resize: Any = None, normalise: Any = None
) -> nn.Module:
    """Loads a classifier by registered name or import path, behind its stages if it has any.

    Args:
        name: what loads it.
        options: keyword arguments of that.
        resize: see `dbpkit.models.stages.StagedClassifier`.
        normalise: the same.

    Raises:
        UserError: if it cannot be made, is not an ``nn.Module``, or a stage is wrong.
    """
    made = _make(classifier_sources, name, options)
    if not isinstance(made, nn.Module):
        raise UserError(f"classifier '{name}' must be a torch.nn.Module, not {type(made).__name__}.")
    return staged(made, resize, normalise).requires_grad_(False).eval()


def load_denoiser(name: str, options: Mapping[str, Any] | None = None) -> Denoiser:
    """Loads a denoiser by registered name or import path.

    Raises:
        UserError: if it cannot be made, or cannot be called.
    """
    made = _make(denoiser_sources, name, options)
    if not callable(made):
        raise UserError(
            f"denoiser '{name}' must be callable as denoiser(x, sigma), not {type(made).__name__}."
        )
    return made.requires_grad_(False).eval() if isinstance(made, nn.Module) else made


def source(text: str) -> tuple[str, dict[str, Any]]:
    """Returns the source and its options for a text: weights file, name or import path.

    Raises:
        UserError: if it is not text.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(
            f"a model is named by a registered name, an import path or a file, not by {shown(text)}."
        )
    text = os.fsdecode(text)
    path = Path(text)
    if text.endswith(".safetensors") and (not is_file(path) or is_own_file(path)):
        return "weights", {"path": text}
    if path.suffix.lower() in SUFFIXES or (("/" in text or path.suffix) and is_file(path)):
        return "file", {"path": text}
    return text, {}


def state_sha256(model: Any) -> str:
    """Returns the sha256 of a model's tensors, names included; of its name where it has none."""
    digest = hashlib.sha256(type(model).__qualname__.encode())
    if isinstance(model, nn.Module):
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _make(registry: Registry, name: str, options: Mapping[str, Any] | None) -> Any:
    """A part built by its source; an nn.Module instance at an import path is taken as it is."""
    if isinstance(name, str) and (code := re.fullmatch(r"(?:.*/)?(\w+)\.py(?::(\w*))?", name)):
        raise UserError(
            f"{registry.kind} '{name}': code is named by its module and function, without '.py', such as"
            f" {code[1]}:{code[2] or 'make'}."
        )
    name, more = source(name)
    if options is not None and not isinstance(options, Mapping):
        raise UserError(f"options of {registry.kind} '{name}' must be a table by name, not {shown(options)}.")
    if ":" not in name and name not in registry and os.path.isdir(name):  # noqa: PTH112 - of any text
        if registry.kind != "denoiser" or not _is_diffusers(Path(name)):
            raise _folder_refused(registry.kind, Path(name))
        name, more = "diffusers", {"path": name}
    if ":" not in name and name not in registry:
        raise UserError(
            f"{unknown_name(registry.kind, excerpt(name, 100), registry)} No file or folder of this name is"
            " here either; your own code is named as module:function."
        )
    made_by = registry.resolve(name)
    if isinstance(made_by, nn.Module):
        if options:
            raise UserError(f"{registry.kind} '{name}' is a finished module and takes no options.")
        return made_by
    return call_with_options(made_by, {**more, **(options or {})}, f"{registry.kind} '{name}'")


def _is_diffusers(folder: Path) -> bool:
    """Whether a folder is a network that diffusers saved, or a pipeline with one."""
    places = [folder, folder / "unet"]
    return any((p / "config.json").is_file() and any(p.glob("diffusion_pytorch_model*")) for p in places)


def _folder_refused(kind: str, folder: Path) -> UserError:
    """The error for a folder in place of a model's name, with what to write for what lies in it."""
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    return UserError(
        f"{kind} '{folder}' is a folder. Name the weights file{f' in it: {files[0]}' if files else ''}."
    )


def _of_kind(kind: str, path: str, sha256: str | None) -> nn.Module:
    model, architecture = load_weights(path, sha256)
    if architecture.kind != kind:
        raise UserError(f"weights '{path}' hold a {architecture.kind}; a {kind} was expected.")
    return model
