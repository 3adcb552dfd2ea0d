"""One example of a finished run, computed again and compared with what was recorded.

Kernels may add in another order for another batch shape, so the last digits of a logit depend on the rows
beside it. The images are judged here in the same micro-batches as in the run.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit.evaluation.reproduction import AttackAgain, Reproduction
from dbpkit.evaluation.rows import Batch, Rows, judged_images
from dbpkit.evaluation.session import refuse_other_parts
from dbpkit.experiment.build import Parts, build
from dbpkit.experiment.execution import DEFAULT_ROWS, Execution, kernels
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.registry import names_of
from dbpkit.foundation.spec import differences, validate
from dbpkit.results.run_directory import Key, Record, RunDirectory

GIVEN = "given"
"""Name of parts that were handed over as objects, which a spec cannot make again."""


def replay(
    run: str | Path,
    example: int,
    row: str = "white_box",
    tape: int = 0,
    *,
    attack: bool = True,
    device: str | None = None,
    parts: Parts | None = None,
    spec: EvaluationSpec | None = None,
    trust_run: bool = False,
) -> Reproduction:
    """Computes one example of a run again.

    Args:
        run: run directory.
        example: example id.
        row: row of the table.
        tape: tape of the row.
        attack: whether the attack is run again too, on this example alone.
        device: None takes that of the run's first session.
        parts: models and data, for a run that was made from objects; None builds those of the spec.
        spec: the spec that the run was made with; None takes the run's own, and then follows no import path.
        trust_run: follow the import paths of the run's own spec. They can run any code.

    Returns:
        What was computed, and how it compares with the record.

    Raises:
        UserError: if the run has no such row, tape or example, weights, data or spec are not those of the
            run, or its spec names an import path and neither ``spec`` nor ``trust_run`` is given.
    """
    directory = RunDirectory(run)
    recorded = validate(directory.spec()["spec"], EvaluationSpec, f"{directory.path}/spec.json")
    if spec is not None:
        _refuse_other_spec(directory, recorded, spec)
    typed = contextlib.nullcontext() if spec is not None or trust_run else _read_only(directory)
    with typed:
        return _replayed(directory, spec or recorded, (example, row, tape), attack, device, parts)


def _refuse_other_spec(directory: RunDirectory, recorded: EvaluationSpec, spec: EvaluationSpec) -> None:
    """Raises UserError unless the spec that was given is that of the run."""
    changed = differences(recorded.model_dump(mode="json"), spec.model_dump(mode="json"))
    if changed:
        raise UserError(
            f"'{directory.path}' was made with another spec: {', '.join(changed)}. Give the run's own spec."
        )


def _read_only(directory: RunDirectory) -> contextlib.AbstractContextManager[None]:
    """Inside, no import path of the run is followed."""
    remedy = "Give the spec of the run (--spec FILE), or --trust-run if you trust the directory."
    return names_of(f"'{directory.path / 'spec.json'}'", remedy)


def _replayed(
    directory: RunDirectory,
    spec: EvaluationSpec,
    key: tuple[int, str, int],
    attack: bool,
    device: str | None,
    parts: Parts | None,
) -> Reproduction:
    """Computes the example of a key (example, row, tape) again."""
    example, row, tape = key
    record = _record(directory, row, tape, example)
    if parts is None and GIVEN in (spec.classifier.name, spec.denoiser.name, spec.data.name):
        raise UserError(
            f"'{directory.path}' was made from objects in Python, which its spec cannot name. Call"
            " dbpkit.replay with the same parts."
        )
    session = (directory.sessions() or [{}])[0]
    stored = _stored(directory, record)
    how = stored.how if stored else session
    execution = Execution(
        device or session.get("device", "cpu"),
        micro_batch=how.get("micro_batch", DEFAULT_ROWS),
        deterministic=how.get("deterministic", False),
    )
    with kernels(execution.deterministic, spec.precision), _threads(how.get("threads")):
        parts = parts or build(spec, execution.device, execution.budget)
        refuse_other_parts(directory, parts, "Restore it to replay the run.")
        rows = Rows(spec, parts, execution, directory)
        ids = stored.ids if stored else torch.tensor([example])
        batch = rows.batch(_positions(parts, ids))
        b = ids.tolist().index(example)
        x = judged_images(rows, row, batch, partial(_kept, directory, tape=tape))
        logits, x_pure = _judged(rows, row, tape, batch, x, b)
        again = None
        if attack and "images" in record:
            again = _attacked(rows, row, tape, rows.batch(_positions(parts, ids[b : b + 1])), x[b])
    difference = float((logits.cpu() - stored.logits[b]).abs().max()) if stored else None
    return Reproduction(
        row,
        tape,
        example,
        record["label"],
        parts.data.class_names,
        batch.x[b].cpu(),
        x[b].cpu(),
        x_pure,
        logits.cpu(),
        record["predicted"],
        difference,
        again,
    )


class _Stored(NamedTuple):
    """Logits (B, R, K) of the batch in which an example was judged, its ids (B,), and the settings."""

    ids: Tensor
    logits: Tensor
    how: dict[str, Any]


def _record(directory: RunDirectory, row: str, tape: int, example: int) -> Record:
    """The record to be replayed; UserError says which there are."""
    columns = directory.columns()
    failed = {Key(r["row"], r["tape"], r["example"]): r["error"] for r in columns.failed}
    rows = list(dict.fromkeys([*columns.rows, *(key.row for key in failed)]))
    if row not in rows:
        raise unknown_name(f"row in '{directory.path}':", row, rows)
    keys = {key for key in columns.keys() | failed.keys() if key.row == row}
    tapes = sorted({key.tape for key in keys})
    if tape not in tapes:
        raise UserError(f"row '{row}' of '{directory.path}' has no tape {tape}; it has {_span(tapes)}.")
    if (row, tape, example) not in keys:
        ids = sorted({key.example for key in keys if key.tape == tape})
        raise UserError(
            f"row '{row}' of '{directory.path}' has no example {example}; it has ids {_span(ids)}."
        )
    if (error := failed.get(Key(row, tape, example))) is not None:
        raise UserError(f"example {example} of row '{row}' failed in the run: {error}.")
    return directory.some(row, tape, [example])[example]


def _stored(directory: RunDirectory, record: Record) -> _Stored | None:
    """The logits that belong to a record; None in a run that stored none."""
    key = record["row"], record["tape"], record["example"]
    batches = [_Stored(*batch) for batch in directory.read_logits(*key)]
    for batch in batches:  # judged more than once if it was judged again in another batch
        own = batch.logits[batch.ids.tolist().index(record["example"])]
        if own.argmax(dim=1).tolist() == record["predicted"]:
            return batch
    return batches[0] if batches else None


def _positions(parts: Parts, ids: Tensor) -> Tensor:
    """Places of examples in the data."""
    place = {example: k for k, example in enumerate(parts.data.ids.tolist())}
    return torch.tensor([place[i] for i in ids.tolist()])


def _kept(directory: RunDirectory, row: str, ids: list[int], tape: int) -> dict[int, Tensor]:
    """The images that a run keeps of examples of a row, by id."""
    newest = directory.some(row, tape, ids)
    files = {i: newest[i]["images"] for i in ids if "images" in newest.get(i, {})}
    shards = {file: directory.read_images(file) for file in set(files.values())}
    return {i: shards[file][i] for i, file in files.items()}


@torch.no_grad()
def _judged(rows: Rows, row: str, tape: int, batch: Batch, x: Tensor, b: int) -> tuple[Tensor, Tensor | None]:
    """Logits (R, K) and purified images of row ``b`` of a batch, in the micro-batches of the run."""
    judge = rows.judge(row, tape, batch.noise)
    plan, image = judge.noise.repeat(judge.draws), x.repeat_interleave(judge.draws, dim=0)
    first, last, size = b * judge.draws, (b + 1) * judge.draws, rows.execution.limit.rows
    start, end = first - first % size, min(len(plan), -(-last // size) * size)
    logits = rows.target(judge.model)(image[start:end], noise=plan.rows(slice(start, end)))
    own = slice(first, last)
    purifier = getattr(judge.model, "purifier", None)
    x_pure = None if purifier is None else purifier(image[own], noise=plan.rows(own)).cpu()
    return logits[first - start : last - start], x_pure


def _attacked(rows: Rows, row: str, tape: int, batch: Batch, stored: Tensor) -> AttackAgain:
    """Runs the attack on a batch of one and compares the image."""
    x_adv, _ = rows.attack(row, tape, batch)
    gap = (x_adv[0] - stored).abs()
    return AttackAgain(float(gap.max()), float((gap == 0).float().mean()))


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """As many CPU threads as the run had, because sums are cut by them."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def _span(values: list[int]) -> str:
    """``"0, 1, 2"``, or ``"0 to 1023"`` where there are many."""
    shown = ", ".join(map(str, values))
    return shown if len(values) <= 8 else f"{values[0]} to {values[-1]} ({len(values)} of them)"
