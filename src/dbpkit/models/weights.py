"""Weights files: safetensors with the network's own description inside, never a pickle.

Weights that load may still not fit. Every tensor must be present with its shape, none may be left over, and
the recorded checksum must match.
"""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dbpkit.foundation.arrays import read_tensors as read_tensors
from dbpkit.foundation.arrays import write_tensors as write_tensors
from dbpkit.foundation.errors import UserError, excerpt, shown
from dbpkit.foundation.files import sha256_of as sha256_of
from dbpkit.foundation.registry import call_with_options, names_of
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.networks import networks

FORMAT = "dbpkit-weights-1"

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
"""Names of files that are never opened: they can run code."""

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of all tensors of a model."""

Side = Annotated[int, Field(ge=1, le=2**16)]
"""Channels, height or width of an image."""


Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A noise level."""


class Architecture(NamedTuple):
    """What a weights file says of its network.

    Attributes:
        kind: ``"denoiser"`` or ``"classifier"``.
        network: registered network name; an import path only if the user typed it.
        options: keyword arguments of the network.
        denoiser: registered denoiser adapter, for denoisers.
        denoiser_options: its keyword arguments.
        image_shape: (C, H, W) the network was made for.
        class_names: K names, for classifiers.
        trained_levels: smallest and largest sigma a denoiser was trained on; None if not known.
    """

    kind: str
    network: str
    options: Mapping[str, Any] = MappingProxyType({})
    denoiser: str = "edm"
    denoiser_options: Mapping[str, Any] = MappingProxyType({})
    image_shape: tuple[int, int, int] = (3, 32, 32)
    class_names: tuple[str, ...] = ()
    trained_levels: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists; what is not known is left out."""
        plain = {"options": dict(self.options), "denoiser_options": dict(self.denoiser_options)}
        table = {**self._asdict(), **plain}
        if self.trained_levels is None:
            del table["trained_levels"]
        return table

    def build(self) -> nn.Module:
        """Makes the network, with its denoiser adapter if it has one, in its first random state.

        Raises:
            UserError: if a name is not registered, or an option is wrong.
        """
        make = networks.get(self.network)
        adapt = denoiser_adapters.get(self.denoiser) if self.kind == "denoiser" else None
        network = call_with_options(make, self.options, f"network '{self.network}'")
        if adapt is None:
            return network
        options = {"network": network, **self.denoiser_options}
        return call_with_options(adapt, options, f"denoiser adapter '{self.denoiser}'")


def save_weights(
    path: Path, model: nn.Module, architecture: Architecture, dtype: torch.dtype = torch.float32
) -> str:
    """Writes a model's state, floating tensors rounded to ``dtype``; returns the file's sha256.

    Raises:
        UserError: if a value is not finite or ``dtype`` cannot hold it, the disk is full or the folder cannot
            be written.
    """
    tensors = rounded(model.state_dict(), dtype)
    about = {"format": FORMAT, "architecture": architecture.as_json()}
    return write_tensors(path, tensors, {"dbpkit": json.dumps(about, sort_keys=True)})


def rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns tensors as a file of ``dtype`` holds them; whole numbers stay as they are.

    Raises:
        UserError: if a value is not finite, or too large for ``dtype``.
    """
    kept = {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    for name, tensor in kept.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        if not bool(torch.isfinite(tensors[name]).all()):
            raise UserError(f"weights '{name}' are not finite. Train with a lower optimiser.lr or grad_clip.")
        short, largest = str(dtype).removeprefix("torch."), float(tensors[name].abs().max())
        raise UserError(
            f"weights '{name}' reach {largest:.6g}, more than the {torch.finfo(dtype).max:g} that {short} can"
            ' hold. Use store = "float32"; the same command with --set store=float32 trains nothing again.'
        )
    return kept


def load_weights(path: str | Path, sha256: str | None = None) -> tuple[nn.Module, Architecture]:
    """Builds the network a weights file describes and fills it, as float32, frozen and in eval mode.

    Args:
        path: a file written by `save_weights`.
        sha256: expected checksum, or None not to check.

    Raises:
        UserError: if the file is missing, damaged, of another kind, fails its checksum, or does not fit.
    """
    path = _file(path)
    if sha256 and (found := sha256_of(path)) != sha256:
        raise UserError(
            f"weights file '{path}' has sha256 {found} where {sha256} was expected. It is damaged"
            " or another file."
        )
    tensors, metadata = read_tensors(path)
    architecture = _described(metadata, path)
    model = _built(architecture, tensors, path)
    fill(model, _unwrapped(tensors), str(path))
    model.architecture = architecture  # type: ignore[assignment]  # training goes on from it
    model.trained_levels = architecture.trained_levels  # type: ignore[assignment]
    return model.requires_grad_(False).eval(), architecture


def _file(path: Any) -> Path:
    """The path of a file that may be opened; UserError otherwise, and for every pickle."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a weights file is named by its path, not by {shown(path)}.")
    found = Path(os.fsdecode(path))
    refuse_pickle(found)
    if not _is_file(found):
        raise UserError(
            f"weights file '{excerpt(found, 300)}' is missing. Check the path, or train one with 'dbpkit"
            " train'."
        )
    return found


def refuse_pickle(path: str | Path) -> None:
    """Raises UserError if a path has the name of a pickle, and says what to do instead."""
    if Path(path).suffix.lower() in PICKLES:
        raise UserError(
            f"'{excerpt(path, 300)}' is a pickle, which can run code when it is opened: dbpkit opens none."
            " Where you trust it, store its tensors with safetensors.torch.save_file, and load those in a"
            " function of your own module, named as module:function."
        )


def _is_file(path: Path) -> bool:
    """Whether a file lies there; text that can be no path (a zero byte, too long a name) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class _Description(BaseModel):
    """The fields of an `Architecture` as a file holds them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["denoiser", "classifier"]
    network: str
    options: dict[str, Any] = {}
    denoiser: str = "edm"
    denoiser_options: dict[str, Any] = {}
    image_shape: tuple[Side, Side, Side]
    class_names: tuple[str, ...]
    trained_levels: tuple[Sigma, Sigma] | None = None


class _About(BaseModel):
    """The metadata of a weights file."""

    model_config = ConfigDict(strict=True)

    format: str | None = None
    architecture: Any = None


def _described(metadata: Mapping[str, str], path: Path) -> Architecture:
    """The architecture that a weights file's metadata describe."""
    try:
        about = _About.model_validate_json(metadata.get("dbpkit", "{}"))
        if about.format != FORMAT:
            raise UserError(
                f"'{path}' is not a dbpkit weights file (format"
                f" {about.format and excerpt(about.format, 60)}); load foreign networks with from_pretrained"
                " or an import path."
            )
        found = _Description.model_validate_json(json.dumps(about.architecture))
    except (ValidationError, RecursionError) as error:
        said = "it is nested too deeply"
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            said = f"{'.'.join(map(str, first['loc'])) or 'architecture'}: {first['msg']}"
        raise UserError(
            f"the description in '{path}' is damaged ({excerpt(said)}). Get the file again."
        ) from error
    return Architecture(**dict(found))


def _built(architecture: Architecture, tensors: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The network that a file describes, which has no more weights than the file."""
    most, number = 2 * sum(t.numel() for t in tensors.values()) + 2**24, 2 * len(tensors) + 2**8
    thread = threading.get_ident()

    def count(_module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal most, number
        if parameter is not None and threading.get_ident() == thread:
            most, number = most - parameter.numel(), number - 1
            if most < 0 or number < 0:
                raise UserError(
                    f"the description in '{path}' is of a network with more weights than the file holds"
                    f" (at '{name}'). It is damaged; get the file again."
                )

    hook = register_module_parameter_registration_hook(count)
    try:
        with names_of(f"'{path}'"):
            return architecture.build()
    except UserError:
        raise
    except Exception as error:  # a constructor can raise anything at what a file asks of it
        said = excerpt(f"{type(error).__name__}: {error}")
        raise UserError(
            f"the description in '{path}' makes no network ({said}). Get the file again."
        ) from error
    finally:
        hook.remove()


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors without the prefix that DataParallel or torch.compile gave all of their names."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): t for name, t in tensors.items()})
    return tensors


def fill(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Copies tensors into a model's state.

    Raises:
        UserError: if names or shapes differ; the first difference of each sort is named.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    misfits = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing (first '{missing[0]}')")
    if unexpected:
        problems.append(f"{len(unexpected)} are unknown (first '{unexpected[0]}')")
    if misfits:
        name = sorted(misfits)[0]
        problems.append(
            f"'{name}' is {tuple(tensors[name].shape)} where {tuple(own[name].shape)} was expected"
        )
    if wrong := [n for n in own.keys() & tensors.keys() if not _same_kind(own[n], tensors[n])]:
        name = sorted(wrong)[0]
        problems.append(f"'{name}' is {tensors[name].dtype} where {own[name].dtype} was expected")
    if problems:
        raise UserError(
            f"weights '{where}' do not fit the network: {'; '.join(problems)}. Use the options it"
            " was trained with."
        )
    fitted = {n: t.to(own[n].dtype) for n, t in tensors.items()}
    for name, tensor in fitted.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"weights '{where}' are not finite: '{name}'. The file is damaged; get it again.")
    model.load_state_dict(fitted)


def _same_kind(own: Tensor, other: Tensor) -> bool:
    """Whether one tensor's type can stand for the other's: both of real numbers, or both the same."""
    return (own.is_floating_point() and other.is_floating_point()) or own.dtype == other.dtype
