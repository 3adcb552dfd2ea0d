"""Weights files: safetensors with the network's own description inside.

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
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from dbpkit.foundation.arrays import read_tensors as read_tensors
from dbpkit.foundation.arrays import write_tensors as write_tensors
from dbpkit.foundation.errors import UserError, excerpt, shown
from dbpkit.foundation.files import sha256_of as sha256_of
from dbpkit.foundation.registry import call_with_options, is_trusting, names_of
from dbpkit.models.denoisers import denoiser_adapters
from dbpkit.models.filling import fill as fill
from dbpkit.models.filling import fill_empty, made_empty
from dbpkit.models.networks import networks

FORMAT = "dbpkit-weights-1"

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

    def build(self, empty: bool = False) -> nn.Module:
        """Makes the network, with its denoiser adapter if it has one.

        Args:
            empty: leaves out the first random weights, and mostly the memory for them (`made_empty`).

        Raises:
            UserError: if a name is not registered, or an option is wrong.
        """
        make = networks.get(self.network)
        adapt = denoiser_adapters.get(self.denoiser) if self.kind == "denoiser" else None
        what = f"network '{self.network}'"
        made = made_empty if empty else call_with_options
        network = made(make, self.options, what)
        if adapt is None:
            return network
        options = {"network": network, **self.denoiser_options}
        return call_with_options(adapt, options, f"denoiser adapter '{self.denoiser}'")


def save_weights(
    path: Path,
    model: nn.Module,
    architecture: Architecture,
    dtype: torch.dtype = torch.float32,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Writes a model's state, floating tensors rounded to ``dtype``; returns the file's sha256.

    Args:
        path: the file.
        model: what `Architecture.build` makes, filled.
        architecture: its description.
        dtype: of floating tensors.
        more: further words about it, which nothing reads.

    Raises:
        UserError: if a value is not finite or ``dtype`` cannot hold it, the disk is full or the folder cannot
            be written.
    """
    tensors = rounded(model.state_dict(), dtype)
    about = {**more, "format": FORMAT, "architecture": architecture.as_json()}
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
    path = plain_path(path)
    if sha256 and (found := sha256_of(path)) != sha256:
        raise UserError(
            f"weights file '{path}' has sha256 {found} where {sha256} was expected. It is damaged"
            " or another file."
        )
    tensors, metadata = read_tensors(path)
    architecture = _described(metadata, path)
    model = _built(architecture, tensors, path)
    fill_empty(model, _unwrapped(tensors), str(path))
    model.architecture = architecture  # type: ignore[assignment]  # training goes on from it
    model.trained_levels = architecture.trained_levels  # type: ignore[assignment]
    return model.requires_grad_(False).eval(), architecture


def plain_path(path: Any) -> Path:
    """Returns the path of a file that is there.

    Raises:
        UserError: if it is no path, or nothing lies there.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"a weights file is named by its path, not by {shown(path)}.")
    found = Path(os.fsdecode(path))
    if _is_folder(found):
        raise UserError(
            f"'{excerpt(found, 300)}' is a folder. Name the file in it; a diffusers directory is loaded by"
            " from_pretrained, and in a spec by its path."
        )
    if not is_file(found):
        raise UserError(
            f"weights file '{excerpt(found, 300)}' is missing. Check the path, or train one with 'dbpkit"
            " train'."
        )
    return found


def is_own_file(path: Path) -> bool:
    """Whether a file is of safetensors and has a description that dbpkit wrote, of whatever format."""
    try:
        with safe_open(path, framework="np") as file:
            return "dbpkit" in (file.metadata() or {})
    except Exception:  # the library passes on whatever a header's words make others raise
        return False


def _is_folder(path: Path) -> bool:
    """Whether a folder lies there; text that can be no path is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
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
                f" {about.format and excerpt(about.format, 60)}); open other files with open_model, in a spec"
                " by their path alone."
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
        with names_of(f"'{path}'", follows=is_trusting()):
            return architecture.build(empty=True)
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
