"""What all adapters share: image range, class label, and one call of the network in its own precision.

The thing people get wrong: units. A network that was trained on images in [0, 1] sees half the noise: its
state is ``u0 + sigma / 2 * z`` where ours is ``x0 + sigma * z``.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dbpkit.foundation.compiled import call
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.frozen import own_dtype
from dbpkit.foundation.inputs import real, whole
from dbpkit.foundation.precision import lowered

OUR_RANGE = (-1.0, 1.0)
"""The range of clean images in the `Denoiser` contract."""

D = TypeVar("D", bound="Adapter")


class Adapter(nn.Module, ABC):
    """A network under the contract ``denoiser(x, sigma) -> x0``; each parametrisation is a class of its own.

    All that an adapter does follows from plain attributes, named as its arguments are, and is read at every
    call; `reinterpreted` gives the same network other ones.

    Args:
        network: called as ``network(state, time)``, or ``network(state, time, label)`` with a label.
        image_range: smallest and largest pixel value of the images that the network was trained on.
        label: class that the network is told, of all images; unset leaves the argument out.
        signature: how the network is called, for errors.
    """

    def __init__(
        self,
        network: nn.Module,
        image_range: tuple[float, float] = OUR_RANGE,
        label: int | None = None,
        signature: str = "network(x, time)",
    ) -> None:
        super().__init__()
        if isinstance(network, type) or not callable(network):
            name = type(self).__name__
            raise UserError(f"{name}: the network must be callable as {signature}, not {shown(network)}.")
        self.network = network
        self.image_range = _range(image_range)
        self.label = None if label is None else whole(label, "label")

    @abstractmethod
    def estimate(self, x: Tensor, levels: Tensor) -> Tensor:
        """Estimates u0 from ``x = u0 + sigma * z``, both (B, C, H, W) in the network's own range.

        Args:
            x: noisy images.
            levels: sigma (B,) in the same units, in at least single precision.
        """

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Estimates x0 of shape (B, C, H, W); see `dbpkit.foundation.types.Denoiser`."""
        if self.image_range == OUR_RANGE:
            return self.estimate(x, as_levels(sigma, x))
        half, middle = self.half_range
        return (self.estimate(middle + half * x, as_levels(sigma, x, half)) - middle) / half

    @property
    def half_range(self) -> tuple[float, float]:
        """Half the width and the middle of the network's pixel values."""
        low, high = self.image_range
        return (high - low) / 2, (high + low) / 2

    def ask(self, state: Tensor, times: Any) -> Tensor:
        """Returns what the network says of a state (B, C, H, W) at ``times``, in the state's precision.

        The network gets a copy in its own precision; of times that are None it is not told. An output of
        another shape is an error.
        """
        out = self.answer(state, times)
        if out.shape != state.shape:
            raise UserError(
                f"the denoising network returned {tuple(out.shape)} for images {tuple(state.shape)}. "
                "Drop learned-variance channels, or wrap the network so that it returns one image."
            )
        return out

    def check_label(self) -> None:
        """Raises UserError if the network has to be told a class and there is none, or has no such class."""
        if self.label is None and needs_label(self.network):
            raise UserError(
                "the network is class-conditional and has no unconditional class. Choose one for all images:"
                " label = 0 among the denoiser's options."
            )
        count = None if self.label is None else classes_in(self.network)
        if self.label is not None and count is not None and self.label >= count:
            raise UserError(
                f"label = {self.label} is none of the {count} classes of the network. Give one from 0 to"
                f" {count - 1}."
            )

    def answer(self, state: Tensor, times: Any) -> Tensor:
        """Returns the same whatever its shape.

        Raises:
            UserError: if the network has to be told a class and there is none, or has no such class.
        """
        self.check_label()
        dtype = own_dtype(self.network) or state.dtype
        given = () if times is None else (_times(times, dtype),)
        label = () if self.label is None else (_filled(state, self.label),)
        with lowered(state.device.type):
            out = call(
                self.network, state.clone() if state.dtype == dtype else state.to(dtype), *given, *label
            )
        out = getattr(out, "sample", out)
        return out.to(state.dtype) if isinstance(out, Tensor) else out


def reinterpreted(denoiser: D, prediction: str | None = None, **changes: Any) -> D:
    """Returns a denoiser of the same network, weights shared, with other values of its attributes.

    Args:
        denoiser: any adapter; it stays as it is.
        prediction: what the network's output is read as, for adapters that have it.
        changes: other arguments of the adapter, by name.

    Raises:
        UserError: if it is no adapter, the adapter has no such argument, or it refuses a value.
    """
    if prediction is not None:
        changes["prediction"] = prediction
    if not isinstance(denoiser, Adapter):
        raise UserError(
            f"{type(denoiser).__name__} is no adapter of dbpkit, so nothing of it can be changed."
        )
    kind = next(c for c in type(denoiser).__mro__ if c.__module__.startswith(f"{__package__}."))
    names = [n for n in inspect.signature(kind).parameters if n not in ("self", "network")]
    for name in changes:
        if name not in names:
            raise UserError(f"{kind.__name__} has no '{name}'. Available: {', '.join(names)}.")
    now = {name: getattr(denoiser, name) for name in names if hasattr(denoiser, name)}
    made = kind(denoiser.network, **{**now, **changes})
    other = copy.copy(denoiser)
    for name in names:
        if hasattr(made, name):
            setattr(other, name, getattr(made, name))
    return other


def as_levels(sigma: Any, x: Tensor, scale: float = 1.0) -> Tensor:
    """Noise levels times ``scale`` as (B,), in at least single precision, on the device of ``x``."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if isinstance(sigma, Tensor):
        sigma = sigma.to(x.device, exact)
    elif isinstance(sigma, int | float):  # filled there: a number would be copied
        sigma = torch.full((), sigma, dtype=exact, device=x.device)
    else:
        sigma = torch.as_tensor(sigma, dtype=exact, device=x.device)
    levels: Tensor = (sigma if scale == 1.0 else scale * sigma).expand(x.shape[0])
    return levels


def column(levels: Tensor, x: Tensor) -> Tensor:
    """Levels (B,) as (B, 1, 1, 1) in the type of ``x``."""
    return levels.to(x.dtype)[:, None, None, None]


def above_zero(value: Any, name: str) -> float:
    """Returns a finite number above 0; UserError for anything else."""
    number = real(value, name)
    if number <= 0:
        raise UserError(f"{name} must be above 0, not {number:g}.")
    return number


def one_of(value: Any, name: str, choices: Iterable[str | None]) -> Any:
    """Returns a value that is one of the choices; UserError otherwise."""
    available = list(choices)
    if value not in available:
        listed = ", ".join(sorted(str(c) for c in available if c is not None))
        raise UserError(f"{name} {shown(value)} is unknown. Available: {listed}.")
    return value


def needs_label(network: Any) -> bool:
    """Whether a network must be told a class, by its ``needs_label`` or diffusers' configuration."""
    said = getattr(network, "needs_label", None)
    if said is not None:
        return bool(said)
    config = getattr(network, "config", None)
    return bool(getattr(config, "num_class_embeds", None) or getattr(config, "class_embed_type", None))


def classes_in(network: Any) -> int | None:
    """How many classes a network's table of classes has; None where it shows none, or has no classes.

    It is asked of the layer, not of a setting: a table may have a last row for no class.
    """
    for name in ("label_emb", "map_label", "class_embedding"):
        layer = getattr(network, name, None)
        if isinstance(layer, nn.Embedding):
            return layer.num_embeddings
        if name == "map_label" and isinstance(layer, nn.Linear):
            return layer.in_features
    return None


def _range(given: Any) -> tuple[float, float]:
    if isinstance(given, str) or not hasattr(given, "__len__") or len(given) != 2:
        raise UserError(f"image_range must be two numbers such as [0, 1], not {shown(given)}.")
    low, high = (real(v, "image_range") for v in given)
    if not low < high:
        raise UserError(
            f"image_range must be two increasing numbers such as [0, 1], not {low:g} and {high:g}."
        )
    return low, high


def _times(times: Any, dtype: torch.dtype) -> Any:
    """A time, or a tuple of them, in a network's precision."""
    return tuple(_as(t, dtype) for t in times) if isinstance(times, tuple) else _as(times, dtype)


def _as(times: Tensor, dtype: torch.dtype) -> Tensor:
    return times.to(dtype) if times.is_floating_point() else times


def _filled(state: Tensor, label: int) -> Tensor:
    return torch.full((len(state),), label, dtype=torch.int64, device=state.device)
