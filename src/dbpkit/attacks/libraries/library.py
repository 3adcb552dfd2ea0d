"""What every adapter asks of a library: its module, its attack, its settings, and its randomness seeded."""

import contextlib
import importlib
import inspect
import random  # noqa: TID251 - seeded for libraries that draw from it
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dbpkit.attacks.target import Target
from dbpkit.foundation.amounts import amount
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.noise import NoisePlan, seeded_generator
from dbpkit.foundation.types import RandomisedClassifier
from dbpkit.threats.pixels import L2, Linf, ThreatModel


@contextlib.contextmanager
def seeded_libraries(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seeds the global generators of torch, NumPy and Python inside the block; their state is restored.

    Args:
        seed: 0 <= seed < 2**32.
        device: an accelerator whose generator is seeded too.
    """
    numpy_state = np.random.get_state()  # noqa: TID251, NPY002 - libraries draw from it
    python_state = random.getstate()
    try:
        with seeded_generator(seed, device):
            np.random.seed(seed)  # noqa: TID251, NPY002
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: TID251, NPY002
        random.setstate(python_state)


def import_library(module: str, package: str) -> ModuleType:
    """Imports a library when it is first needed; UserError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{package} is not installed ({error}). Install it with: pip install 'dbpkit[adapters]'."
        ) from error


def find_attack(library: str, module: ModuleType, name: str, base: type) -> Callable[..., Any]:
    """Returns an attack class of a library by its name; UserError with the nearest if there is none."""
    classes = {
        n: c for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base) and c is not base
    }
    if name not in classes:
        raise unknown_name(f"{library} attack", name, classes)
    return classes[name]


def checked_settings(
    library: str, attack: Callable[..., Any], settings: Mapping[str, Any] | None, taken: Iterable[str]
) -> dict[str, Any]:
    """Returns keyword arguments of a library's attack, with amounts such as ``"2/255"`` as numbers.

    Raises:
        UserError: if the attack does not know one, or it is one of ``taken``, which the adapter fills.
    """
    known = [p for p in inspect.signature(attack).parameters if p not in taken]
    for name in settings or {}:
        if name in taken:
            raise UserError(
                f"{library}: '{name}' comes from the threat model or the adapter. Take it out of settings."
            )
        if name not in known:
            raise UserError(
                f"{library} attack '{attack.__name__}' has no setting '{name}'. Available:"
                f" {', '.join(known) or 'none'}."
            )
    fraction = re.compile(r"\s*[\d.]+\s*/\s*[\d.]+\s*")
    return {
        k: amount(v) if isinstance(v, str) and fraction.fullmatch(v) else v
        for k, v in (settings or {}).items()
    }


def make_attack(library: str, name: str, cls: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """Returns a library's attack with its settings; UserError with the library's words if it refuses them."""
    try:
        return cls(*args, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        said = str(error) or "a setting is out of range"
        raise UserError(f"{library} attack '{name}' cannot be made: {said}.") from error


def norm_of(threat: ThreatModel, library: str) -> float:
    """Returns p of the threat's Lp norm, infinity or 2; UserError for any other threat."""
    if isinstance(threat, Linf):
        return float("inf")
    if isinstance(threat, L2):
        return 2.0
    raise UserError(f"{library} attacks know the threats 'linf' and 'l2', not {type(threat).__name__}.")


def class_count(target: Target | RandomisedClassifier, x: Tensor, noise: NoisePlan) -> int:
    """Returns K, from one uncounted pass of the first image."""
    counted = Target.of(target)
    probe = Target(counted.model, counted.limit, fixed_shape=counted.fixed_shape)
    return probe(x[:1], noise=noise.rows([0])).shape[1]


def refuse_constant(alignment: str, reason: str) -> None:
    """Raises UserError if a batch must stay whole and the attack cannot do that."""
    if alignment == "constant":
        raise UserError(f"alignment 'constant' is refused: {reason}. Use alignment = 'single'.")
