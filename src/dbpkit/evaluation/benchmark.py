"""`dbpkit.benchmark`: the robust accuracy of a model that is already made, in one call.

The thing people get wrong: a module that draws random numbers of its own (dropout, random resizing) is taken
for deterministic, and every attack on it is weaker than it looks. It is looked for first and named in flags.
"""

import contextlib
import hashlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dbpkit.attacks import make_attack
from dbpkit.data import Dataset, in_order, load_dataset
from dbpkit.data.given import as_dataset
from dbpkit.data.order import Order
from dbpkit.evaluation.computation import computation_sha256
from dbpkit.evaluation.identity import model_sha256
from dbpkit.evaluation.replay import GIVEN
from dbpkit.evaluation.run import Progress, evaluate
from dbpkit.experiment.build import Parts, attack_options, single_draw
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError, check_progress, shown
from dbpkit.foundation.frozen import Frozen, as_frozen, call_apart
from dbpkit.foundation.inputs import check_seed, whole
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import amount, spec_hash, validate
from dbpkit.models.sources import state_sha256
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.samplers import REVERSE_SITES
from dbpkit.results.flags import Flag
from dbpkit.results.summary import NO_DENOISER, Row, Summary
from dbpkit.statistics.estimates import Estimate
from dbpkit.threats.pixels import make_threat


class Benchmark(NamedTuple):
    """What a benchmark found.

    Attributes:
        clean: accuracy without an attack, by the protocol of the benchmark.
        robust: accuracy under the first attacker, by the same protocol.
        control: the unattacked accuracy at the same number of queries, for protocols that allow several.
        network_calls: forward calls of the network that the attack made per image.
        flags: what makes the numbers doubtful; with an error among them, do not believe them.
        run: run directory, with every record.
        summary: all rows.
    """

    clean: Estimate
    robust: Estimate
    control: Estimate | None
    network_calls: float | None
    flags: list[Flag]
    run: Path
    summary: Summary

    def __str__(self) -> str:
        flagged = ", ".join(dict.fromkeys(f"{f.severity} {f.name}" for f in self.flags)) or "none"
        cost = "not recorded" if self.network_calls is None else f"{self.network_calls:,.0f}"
        control = f"\nunattacked, same number of queries: {_text(self.control)}" if self.control else ""
        return (
            f"clean:  {_text(self.clean)}\nrobust: {_text(self.robust)}{control}\n"
            f"network calls per image: {cost}\nflags: {flagged}\nrun: {self.run}"
        )


def benchmark(
    model: nn.Module | Callable[..., Tensor],
    dataset: Any,
    threat: str = "linf",
    eps: str | float = "8/255",
    *,
    attacks: str | Sequence[str | dict[str, Any]] = "pgd",
    knowledge: Sequence[str | dict[str, Any]] | None = None,
    protocol: str = "one_shot",
    examples: int | None = None,
    order: Order = "balanced",
    draws: int = 10,
    seed: int = 0,
    out: str | Path | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
) -> Benchmark:
    """Measures clean and robust accuracy of a model that is already made.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, K): a plain classifier, a
            `PurifiedClassifier`, or any module that is called as ``model(x, noise=plan)`` and draws from the
            plan only; a plain function too. Frozen and in eval mode meanwhile; left as it was.
        dataset: name of a data set, a `Dataset`, images (N, C, H, W) in [0, 1] with labels (N,) as tensors or
            NumPy arrays, or a torch data set or DataLoader of such pairs, which is read in its own order.
        threat: registered threat model.
        eps: budget in [0, 1] pixel units.
        attacks: attacks as in a spec: a name, or a list of names and tables with ``name`` and ``options``.
        knowledge: attackers as in a spec; the first one's result is ``robust``. None takes the white box,
            and for a random model DW_Both too.
        protocol: registered protocol.
        examples: how many examples; None takes all. With ``out`` given, a larger number continues the run.
        order: in which they are chosen: ``"balanced"`` takes the classes in turn, ``"shuffled"`` is random,
            ``"file"`` takes the first ones.
        draws: report draws of a random model.
        seed: decides every random number.
        out: run directory; the same call continues it. None takes a folder in ``runs`` named by a hash of
            settings, weights, data and the model's code.
        execution: batch sizes; None takes the model's own device.
        progress: called whenever work is done.

    Returns:
        Accuracies with their intervals, cost, flags and run directory.

    Raises:
        UserError: if a name, an option or the model's output is wrong, or ``out`` is another model's.

    Example:
        >>> import tempfile
        >>> from dbpkit import benchmark, load_embedded
        >>> _, classifier = load_embedded()
        >>> pgd = {"name": "pgd", "options": {"iterations": 1}}
        >>> with tempfile.TemporaryDirectory() as out:
        ...     found = benchmark(classifier, "embedded", attacks=[pgd], examples=2, out=out)
        >>> found.robust.value <= found.clean.value
        True
    """
    function = None if isinstance(model, nn.Module) else model
    if not isinstance(model, nn.Module):
        model = as_frozen(model, "the model")
    for name, parts_given in {"attacks": attacks, "knowledge": knowledge or []}.items():
        if not isinstance(parts_given, str | list | tuple):
            raise UserError(f"{name} must be a name or a list of names and tables, not {shown(parts_given)}.")
    knowledge = [knowledge] if isinstance(knowledge, str) else knowledge
    whole(draws, "draws", 1)
    check_progress(progress, "benchmark")
    check_seed(seed)
    if examples is not None:
        whole(examples, "examples", 1)
    own = next((p.device for p in model.parameters()), torch.device("cpu"))
    execution = execution or Execution(own)
    purified = isinstance(model, PurifiedClassifier) and isinstance(model.purifier, Purifier)
    takes_noise = _takes_noise(function or model.forward)
    data = _data(dataset, examples, order, seed)
    spec = _spec(
        model,
        dataset,
        threat={"norm": threat, "eps": str(eps)},
        attacks=[attacks] if isinstance(attacks, str) else list(attacks),
        knowledge=list(knowledge or (["white_box", "dw_both"] if takes_noise else ["white_box"])),
        protocol=protocol,
        examples={"count": examples, "order": order},
        draws={"report": draws},
        seed=seed,
    )
    with _untouched(model):
        model.to(execution.device)
        parts = _parts(spec, model, data, purified, takes_noise)
        if function is not None:  # it has no weights to be told by
            parts.hashes["classifier_sha256"] = model_sha256(function)
        else:  # weights name no model: a head or a temperature around them makes another one
            code: Any = (model.classifier, parts.denoiser) if purified else model
            parts.hashes["model_sha256"] = computation_sha256(code)
        run = Path("runs") / f"benchmark-{_digest(spec, parts, model)}" if out is None else Path(out)
        summary = evaluate(spec, run, execution, progress, parts=parts)
        model.to(own)
    row: Row = summary.row(spec.knowledge[0].name)
    clean = summary.row("clean").headline
    return Benchmark(clean, row.headline, row.control, row.network_calls, summary.flags, run, summary)


class _Randomised(Frozen):
    """A module that is called with a plan, and what it draws from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.classifier = as_frozen(model, "the model")
        self.sites = frozenset(getattr(model, "sites", REVERSE_SITES | {"forward"}))

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.settle()
        return call_apart(self.classifier, x, noise=noise)


def _data(dataset: Any, examples: int | None, order: str, seed: int) -> Dataset:
    """The examples to be attacked."""
    data = load_dataset(dataset) if isinstance(dataset, str) else as_dataset(dataset)
    if examples is not None and examples > len(data):
        raise UserError(f"{examples} examples were asked for, but the data has {len(data)}.")
    return data.select(in_order(data, order, seed)[:examples])


def _spec(model: nn.Module, dataset: Any, **settings: Any) -> EvaluationSpec:
    """The spec under which the run is recorded; objects are named by their type."""
    network: Any = getattr(model, "classifier", model) if isinstance(model, PurifiedClassifier) else model
    table: dict[str, Any] = {
        "name": f"benchmark of {type(model).__name__}",
        "data": dataset if isinstance(dataset, str) else {"name": GIVEN},
        "classifier": {"name": GIVEN, "options": {"type": type(network).__qualname__}},
        "denoiser": NO_DENOISER,
        **settings,
    }
    purifier = getattr(model, "purifier", None)
    if isinstance(model, PurifiedClassifier) and isinstance(purifier, Purifier):
        table["denoiser"] = {"name": GIVEN, "options": {"type": type(purifier.denoiser).__qualname__}}
        options = {k: v for k, v in purifier.settings.items() if v is not None}
        table["purifier"] = {**options, "clamp": purifier.clamp}
    return validate(table, EvaluationSpec, "benchmark")


def _parts(spec: EvaluationSpec, model: nn.Module, data: Dataset, purified: bool, takes_noise: bool) -> Parts:
    """What the evaluation runs with: there is nothing undefended but behind a purifier."""
    wrapped: Any = model
    if purified:
        wrapped.settle()
    else:
        wrapped = _Randomised(model) if takes_noise else Undefended(model)
    network: Any = model.classifier if purified else model
    denoiser: Any = model.purifier.denoiser if purified else None  # type: ignore[union-attr]
    undefended: Any = Undefended(network) if purified else None
    hashes = {
        "classifier_sha256": state_sha256(network),
        "denoiser_sha256": state_sha256(denoiser),
        "data_sha256": data.sha256,
    }
    threat = make_threat(spec.threat.norm, amount(spec.threat.eps))
    full = [(a.name, make_attack(a.name, attack_options(a))) for a in spec.attacks]
    single = [(a.name, make_attack(a.name, single_draw(a))) for a in spec.attacks]
    return Parts(data, denoiser, wrapped, undefended, threat, full, single, hashes)


def _takes_noise(call: Callable[..., Any]) -> bool:
    """Whether a model is called with a plan."""
    try:
        return "noise" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # written in C, and silent about itself
        return False


def _digest(spec: EvaluationSpec, parts: Parts, model: nn.Module) -> str:
    """A short name for settings, weights, data and the model's own code together."""
    told = {k: v for k, v in parts.hashes.items() if k != "model_sha256"}  # the one below says more
    content = [spec_hash(spec), *told.values(), model_sha256(model)]
    return hashlib.sha256("".join(content).encode()).hexdigest()[:12]


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts modes and gradients of a model back as they were."""
    modes = [(m, m.training) for m in model.modules()]
    learned = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in learned:
            parameter.requires_grad_(requires_grad)


def _text(estimate: Estimate) -> str:
    return (
        f"{estimate.value:.1%} (95 % interval {estimate.low:.1%} to {estimate.high:.1%},"
        f" {estimate.estimand}, n = {estimate.examples})"
    )
