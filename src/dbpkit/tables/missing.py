"""What a published setting would need that is not on this machine, and what it would cost.

The speed of a model that is not here cannot be measured. Its calls can be counted, and what as many calls of
the embedded model take on this machine is a number to compare with, not a forecast.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from dbpkit.data import load_dataset
from dbpkit.evaluation.estimate import duration, estimate
from dbpkit.evaluation.timing import Timings
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.models.zoo import Found, look, zoo
from dbpkit.tables.job import Job
from dbpkit.tables.layers import EMBEDDED, Placed, resolve
from dbpkit.tables.table import Table

TIMED, ALL = 16, 10_000
"""Images that an estimate is made for, of which the rest is a multiple; and those of a whole test set."""


class Cost(NamedTuple):
    """What a run takes.

    Attributes:
        calls: network calls of the denoiser in all.
        hours: of this machine; of the embedded model where `measured` is false.
        measured: whether the model that was timed is the published one.
    """

    calls: int
    hours: float
    measured: bool

    @property
    def sentence(self) -> str:
        """The same in words."""
        if self.measured:
            return f"{self.calls:,} network calls, about {duration(self.hours)} on this machine."
        return (
            f"{self.calls:,} network calls; as many of the embedded, much smaller model would take about"
            f" {duration(self.hours)} on this machine."
        )


class Lack(NamedTuple):
    """What a cell of a published setting needs and this machine lacks.

    Attributes:
        missing: a clause for each thing; empty if all is here.
        cost: None where it cannot be told.
        gpu: whether a GPU is here.
    """

    missing: tuple[str, ...]
    cost: Cost | None
    gpu: bool

    @property
    def hours(self) -> float | None:
        """Hours of this machine, see `Cost`."""
        return self.cost.hours if self.cost else None

    @property
    def sentence(self) -> str:
        """What is missing, in a sentence; empty if all is here."""
        return f"Missing: {'; '.join(self.missing)}." if self.missing else ""


class Looked(NamedTuple):
    """What was looked for on this machine.

    Attributes:
        paths: what a spec names for each published model that is here.
        cells: what each cell lacks and costs, by the cell's name.
    """

    paths: dict[str, Any]
    cells: dict[str, Lack]


def lacks(
    table: Table, costs: dict[str, Cost | None] | None = None, timings: Timings | None = None
) -> Looked:
    """Looks for the models and data of every cell of a table, and counts what its run would take.

    Args:
        table: the table.
        costs: what was counted before, of other tables.
        timings: of networks, from other tables.
    """
    found = {one.model.name: one for one in look(zoo())}
    paths = {name: named_by(one) for name, one in found.items() if one.path is not None}
    seen: dict[str, str] = {}
    costs, cells = {} if costs is None else costs, {}
    timings = {} if timings is None else timings
    for one in resolve(table, "paper", paths):
        if one.job is None:
            continue
        missing = tuple(_models(one, found)) + tuple(_data(one, seen))
        cost = _cost(one.job, costs, timings, here=not missing)
        cells[one.name] = Lack(missing, cost, torch.cuda.is_available())
    return Looked(paths, cells)


def named_by(found: Found) -> Any:
    """Returns what a spec names for a model that is here: its file, or its folder and what reads it."""
    path = found.path
    if path is None or not path.is_dir():
        return str(path)
    options: dict[str, Any] = {"path": str(path)}
    if (path / "unet").is_dir():
        options["subfolder"] = "unet"
    return {"name": "diffusers", "options": options}


def _models(placed: Placed, found: Mapping[str, Found]) -> list[str]:
    """A clause for every model that is not here."""
    said = []
    for part, name in placed.models.model_dump(exclude_none=True).items():
        if name not in found:
            said.append(name)
        elif found[name].path is None:
            said.append(f"{part} {name} ('dbpkit models {name}' says where it is)")
    return said


def _data(placed: Placed, seen: dict[str, str]) -> list[str]:
    """A clause if the data are not here."""
    if placed.job is None:
        return []
    data = placed.job.spec.data
    key = json.dumps([data.name, data.options], sort_keys=True)
    if key not in seen:
        try:
            load_dataset(data.name, data.options)
            seen[key] = ""
        except UserError as error:
            seen[key] = str(error).rstrip(".")
    return [seen[key]] if seen[key] else []


def _cost(job: Job, costs: dict[str, Cost | None], timings: Timings, *, here: bool) -> Cost | None:
    """What an evaluation would take; None of an analysis, and where its parts cannot be made."""
    if job.analysis:
        return None
    table = _timed(job.spec, embedded=not here)
    key = json.dumps({k: v for k, v in table.items() if k not in ("name", "threat", "seed")}, sort_keys=True)
    if key not in costs:
        try:
            found = estimate(EvaluationSpec.model_validate(table), Execution(), timings=timings)
            costs[key] = Cost(round(found.network_calls / found.examples), found.hours / found.examples, here)
        except UserError:
            costs[key] = None
    one, images = costs[key], job.images or ALL
    return None if one is None else Cost(one.calls * images, one.hours * images, one.measured)


def _timed(spec: EvaluationSpec, *, embedded: bool) -> dict[str, Any]:
    """The spec for a few images, with the embedded models in the place of those that are not here."""
    table = spec.model_dump(mode="json")
    count = min(TIMED, spec.examples.count or TIMED)
    if not embedded:
        return {**table, "examples": {**table["examples"], "count": count}}
    table |= {"data": EMBEDDED, "classifier": EMBEDDED, "examples": {"count": count}}
    if spec.purifier.is_diffusion:
        table["denoiser"] = EMBEDDED
    table["purifier"] = {k: v for k, v in table["purifier"].items() if k not in ("resize", "pad")}
    return table
