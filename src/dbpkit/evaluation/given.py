"""A model that was handed over as an object: how it is called, what it runs with, and what tells it by.

The thing people get wrong: a module that draws random numbers of its own (dropout, random resizing) is taken
for deterministic, and every attack on it is weaker than it looks. One that takes ``noise`` is called with a
plan; what another draws is looked for before the run and named in flags.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.data import Dataset
from dbpkit.evaluation.computation import computation_sha256
from dbpkit.evaluation.identity import model_sha256
from dbpkit.evaluation.replay import GIVEN
from dbpkit.experiment.build import Parts, check_designs, made_attacks
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.frozen import Frozen, as_frozen, call_apart, own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import spec_hash, validate
from dbpkit.models.sources import state_sha256
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.fitting import FittedPurifier
from dbpkit.purification.purifier import ModulePurifier, takes_noise
from dbpkit.purification.samplers import FORWARD_SITES, REVERSE_SITES
from dbpkit.results.kinds import NO_DENOISER
from dbpkit.threats.pixels import make_threat


class Given(NamedTuple):
    """A caller's model.

    Attributes:
        model: as a module.
        function: what was handed over, if it is not a module; it has no weights to be told by.
        takes_noise: whether it is called with a plan.
    """

    model: nn.Module
    function: Callable[..., Any] | None
    takes_noise: bool

    @classmethod
    def of(cls, model: nn.Module | Callable[..., Tensor]) -> "Given":
        """Wraps a function in a module and looks how the model is called."""
        if isinstance(model, nn.Module):
            return cls(model, None, takes_noise(model))
        return cls(as_frozen(model, "the model"), model, takes_noise(model))

    @property
    def is_purified(self) -> bool:
        """Whether it is a classifier behind a purifier."""
        return isinstance(self.model, PurifiedClassifier)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return own_device(self.model)

    def spec(self, data: Any, settings: dict[str, Any]) -> EvaluationSpec:
        """Returns the spec under which the run is recorded; objects are named by their type."""
        model: Any = self.model
        network: Any = getattr(model, "classifier", model) if isinstance(model, PurifiedClassifier) else model
        table: dict[str, Any] = {
            "name": f"benchmark of {type(model).__name__}",
            "data": data if isinstance(data, str) else {"name": GIVEN},
            "classifier": {"name": GIVEN, "options": {"type": type(network).__qualname__}},
            "denoiser": NO_DENOISER,
            **settings,
        }
        purifier = model.purifier if self.is_purified else None
        if isinstance(purifier, Purifier):
            table["denoiser"] = {"name": GIVEN, "options": {"type": type(purifier.denoiser).__qualname__}}
            options = {k: v for k, v in purifier.settings.items() if v is not None}
            table["purifier"] = {**options, "clamp": purifier.clamp}
        elif purifier is not None:
            fit = purifier.fit.table() if isinstance(purifier, FittedPurifier) else {}
            inner: Any = purifier.purifier if isinstance(purifier, FittedPurifier) else purifier
            inner = inner.module if isinstance(inner, ModulePurifier) else inner
            table["purifier"] = {"name": GIVEN, "options": {"type": type(inner).__qualname__}, **fit}
        return validate(table, EvaluationSpec, "benchmark")

    def parts(self, spec: EvaluationSpec, data: Dataset) -> Parts:
        """Returns what the evaluation runs with: there is nothing undefended but behind a purifier."""
        model: Any = self.model
        if self.is_purified:
            model.settle()
            network, denoiser = model.classifier, getattr(model.purifier, "denoiser", None)
            wrapped = model
        else:
            network, denoiser = model, None
            wrapped = _Randomised(model) if self.takes_noise else Undefended(model)
        undefended: Any = Undefended(network) if self.is_purified else None
        hashes = {
            "classifier_sha256": state_sha256(network),
            "denoiser_sha256": state_sha256(denoiser),
            "data_sha256": data.sha256,
            **self._identity(denoiser),
        }
        threat = make_threat(spec.threat.norm, spec.threat.budget)
        full, single = made_attacks(spec)
        check_designs(spec, wrapped)
        return Parts(data, denoiser, wrapped, undefended, threat, full, single, hashes)

    def _identity(self, denoiser: Any) -> dict[str, str]:
        """What tells it from a model of the same weights: a head or a temperature makes another one."""
        if self.function is not None:
            return {"classifier_sha256": model_sha256(self.function)}
        model: Any = self.model
        code = (model.classifier, denoiser or model.purifier) if self.is_purified else model
        return {"model_sha256": computation_sha256(code)}

    def digest(self, spec: EvaluationSpec, parts: Parts) -> str:
        """Returns a short name for settings, weights, data and the model's own code together."""
        told = {k: v for k, v in parts.hashes.items() if k != "model_sha256"}  # the one below says more
        content = [spec_hash(spec), *told.values(), model_sha256(self.model)]
        return hashlib.sha256("".join(content).encode()).hexdigest()[:12]

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts modes, gradients and layout of the model's weights back as they were."""
        modes = [(m, m.training) for m in self.model.modules()]
        learned = [(p, p.requires_grad, p.is_contiguous()) for p in self.model.parameters()]
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, requires_grad, contiguous in learned:
                parameter.requires_grad_(requires_grad)
                if contiguous and not parameter.is_contiguous():
                    parameter.data = parameter.data.contiguous()


class _Randomised(Frozen):
    """A module that is called with a plan, and what it draws from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.classifier = as_frozen(model, "the model")
        self.sites = frozenset(getattr(model, "sites", FORWARD_SITES | REVERSE_SITES))

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.settle()
        return call_apart(self.classifier, x, noise=noise)
