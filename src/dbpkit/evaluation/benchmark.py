"""`dbpkit.benchmark`: the robust accuracy of a model that is already made, in one call.

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

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dbpkit.data import Dataset, in_order, load_dataset
from dbpkit.data.given import as_dataset
from dbpkit.data.order import Order
from dbpkit.evaluation.given import Given
from dbpkit.evaluation.run import Progress, evaluate
from dbpkit.experiment.execution import Execution, check_execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation import display
from dbpkit.foundation.errors import UserError, check_progress, shown
from dbpkit.foundation.inputs import check_seed, whole
from dbpkit.foundation.precision import EXACT, Precision
from dbpkit.models.networks.layers import placed
from dbpkit.results.flags import Flag
from dbpkit.results.summary import Row, Summary
from dbpkit.statistics.estimates import Estimate


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

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return display.html(self)

    def to_frame(self) -> Any:
        """Returns a ``pandas.DataFrame``: one line for every estimate, as of `Summary`.

        Raises:
            UserError: if pandas is not installed.
        """
        return display.frame(self)

    def plot(self) -> Any:
        """Returns the accuracy per draw of every row as a ``matplotlib.figure.Figure``."""
        return display.plot(self)


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
    precision: Precision = EXACT,
    out: str | Path | None = None,
    execution: Execution | None = None,
    progress: Progress = lambda *_: None,
) -> Benchmark:
    """Measures clean and robust accuracy of a model that is already made; see the example above.

    Args:
        model: maps images (B, C, H, W) in [0, 1] to logits (B, K): a module or a plain function; called as
            ``model(x, noise=plan)`` if it takes that, and then draws from the plan only. Left as it was.
        dataset: a name, a `Dataset`, images (N, C, H, W) in [0, 1] with labels (N,), or a torch data set or
            DataLoader of such pairs, read in its own order.
        threat: registered threat model.
        eps: budget in [0, 1] pixel units.
        attacks: a name, or names and tables with ``name`` and ``options``, as in a spec.
        knowledge: attackers, the first is ``robust``; None: white box, and DW_Both of a random model.
        protocol: registered protocol.
        examples: how many; None takes all. With ``out`` given, a larger number continues the run.
        order: ``"balanced"`` takes the classes in turn, ``"shuffled"`` is random, ``"file"`` the first ones.
        draws: report draws of a random model.
        seed: decides every random number.
        precision: what networks compute in: ``"float32"``, ``"tf32"`` or ``"bfloat16"``.
        out: run directory; the same call continues it. None: in ``runs``, named by a hash of the inputs.
        execution: device and batch sizes; the model's own device if it names none.
        progress: called whenever work is done.

    Raises:
        UserError: if a name, an option or the model's output is wrong, or ``out`` is another model's.
    """
    given = Given.of(model)
    attacks, knowledge = _names(attacks, "attacks"), _names(knowledge or [], "knowledge")
    _check_numbers(draws, examples, seed, progress)
    settings = {
        "threat": {"norm": threat, "eps": str(eps)},
        "attacks": attacks,
        "knowledge": knowledge or (["white_box", "dw_both"] if given.takes_noise else ["white_box"]),
        "protocol": protocol,
        "examples": {"count": examples, "order": order},
        "draws": {"report": draws},
        "precision": precision,
        "seed": seed,
    }
    data = _data(dataset, examples, order, seed)
    return _evaluated(given, data, given.spec(dataset, settings), out, execution, progress)


def _names(names: Any, what: str) -> list[Any]:
    """Names and tables as a list."""
    if not isinstance(names, str | list | tuple):
        raise UserError(f"{what} must be a name or a list of names and tables, not {shown(names)}.")
    return [names] if isinstance(names, str) else list(names)


def _check_numbers(draws: int, examples: int | None, seed: int, progress: Progress) -> None:
    """Raises UserError unless counts are counts and the callback can be called."""
    whole(draws, "draws", 1)
    check_progress(progress, "benchmark")
    check_seed(seed)
    if examples is not None:
        whole(examples, "examples", 1)


def _data(dataset: Any, examples: int | None, order: str, seed: int) -> Dataset:
    """The examples to be attacked."""
    data = load_dataset(dataset) if isinstance(dataset, str) else as_dataset(dataset)
    if examples is not None and examples > len(data):
        raise UserError(f"{examples} examples were asked for, but the data has {len(data)}.")
    return data.select(in_order(data, order, seed)[:examples])


def _evaluated(
    given: Given,
    data: Dataset,
    spec: EvaluationSpec,
    out: str | Path | None,
    execution: Execution | None,
    progress: Progress,
) -> Benchmark:
    """Evaluates the model where it is to run, and brings it back."""
    own = given.device
    execution = execution or Execution(own)
    check_execution(execution)
    execution = replace(execution, device=own) if execution.device_is_auto else execution
    with given.untouched():
        placed(given.model, execution.device)
        parts = given.parts(spec, data)
        run = Path("runs") / f"benchmark-{given.digest(spec, parts)}" if out is None else Path(out)
        summary = evaluate(spec, run, execution, progress, parts=parts)
        given.model.to(own)
    row: Row = summary.row(spec.knowledge[0].name)
    clean = summary.row("clean").headline
    return Benchmark(clean, row.headline, row.control, row.network_calls, summary.flags, run, summary)


def _text(estimate: Estimate) -> str:
    return (
        f"{estimate.value:.1%} (95 % interval {estimate.low:.1%} to {estimate.high:.1%},"
        f" {estimate.estimand}, n = {estimate.examples})"
    )
