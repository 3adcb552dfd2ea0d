"""From a table to settings: each cell's layers put together, at the published scale or at the mini scale.

The thing people get wrong: a table of options belongs to the part that is named beside it. So a layer that
names another part, or another sampler, begins with none of the options of the one before.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, Literal, NamedTuple

from dbpkit.analyses.analysis import analyses
from dbpkit.experiment.build import accepted_options
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import validate
from dbpkit.purification.purifier import DIFFUSION
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.protocols import DEFAULT, protocols
from dbpkit.tables.job import Job
from dbpkit.tables.table import Cell, Column, Layer, Mini, Models, Reads, Row, Table

Scale = Literal["mini", "paper"]

EMBEDDED = "embedded"

IMAGES = 16
"""Images at mini scale where a table says nothing; a verdict needs as many."""

_SAMPLERS_OWN = ("options", "grid", "clamp")
"""Keys of a purifier that belong to its sampler."""


class Placed(NamedTuple):
    """A cell of a table with its setting at one scale.

    Attributes:
        row: its row.
        column: its column.
        cell: what is published.
        models: the published models.
        reads: where its number is read.
        job: what is run for it; None where `skipped` says why nothing is.
        skipped: why it is not measured at this scale; empty if it is.
        stands_in: sentences about what the embedded models replace.
        notes: what a reader should know.
    """

    row: Row
    column: Column
    cell: Cell
    models: Models
    reads: Reads
    job: Job | None
    skipped: str
    stands_in: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What claims call it."""
        return f"{self.row.name}/{self.column.name}"


def resolve(table: Table, scale: Scale, paths: Mapping[str, Any] | None = None) -> list[Placed]:
    """Returns every cell of a table with its setting.

    Args:
        table: the table.
        scale: ``mini`` or ``paper``.
        paths: at paper scale what a spec names for a published model, by the model's name; a model that is
            not in it is named by itself.

    Raises:
        UserError: if a setting is no evaluation, or a cell reads what its run does not have.
    """
    return [
        _placed(table, (table, column, row, cell), scale, paths or {}) for row, column, cell in table.places()
    ]


def merged(base: Any, over: Any) -> Any:
    """Returns a table of a spec with a layer's changes; a part with another name begins anew.

    Example:
        >>> base = {"purifier": {"sampler": "ddpm", "options": {"variance": "large"}}}
        >>> merged(base, {"purifier": {"sampler": "ddim"}})
        {'purifier': {'sampler': 'ddim'}}
    """
    if not isinstance(over, Mapping):
        return over
    under = {"name": base} if isinstance(base, str) else dict(base) if isinstance(base, Mapping) else {}
    if over.get("name", under.get("name")) != under.get("name"):
        return dict(over)
    if "sampler" in over and over["sampler"] != under.get("sampler"):
        under = {key: value for key, value in under.items() if key not in _SAMPLERS_OWN}
    return {**under, **{key: merged(under.get(key), value) for key, value in over.items()}}


def _placed(
    table: Table, layers: tuple[Table, Column, Row, Cell], scale: Scale, paths: Mapping[str, Any]
) -> Placed:
    """One cell at one scale."""
    _, column, row, cell = layers
    models = Models(**{k: v for one in layers for k, v in one.models.model_dump(exclude_none=True).items()})
    reads = reduce(_reads, layers, Reads())
    skipped = _skipped(layers, scale)
    stands_in = tuple(dict.fromkeys(layer.stands_in for layer in layers[1:] if layer.stands_in))
    notes = tuple(dict.fromkeys(layer.note for layer in layers[1:] if layer.note))
    where = f"{table.name}: {row.name}/{column.name}"
    spec: dict[str, Any] = reduce(merged, (layer.spec for layer in layers), {})
    job = None
    if not skipped:
        mini = reduce(_mini, layers, Mini())
        spec = _mini_spec(spec, mini) if scale == "mini" else _paper_spec(spec, models, paths)
        job = _job(spec, reads, mini if scale == "mini" else Mini(), where)
    return Placed(row, column, cell, models, reads, job, skipped, stands_in, notes)


def _skipped(layers: Sequence[Layer], scale: Scale) -> str:
    """Why a cell is not measured at a scale; empty if it is."""
    reasons = [layer.unsupported for layer in reversed(layers)]
    if scale == "mini":
        reasons += [layer.no_mini for layer in reversed(layers)]
    return next((reason for reason in reasons if reason), "")


def _reads(before: Reads, layer: Layer) -> Reads:
    """A layer that reads a run's row forgets the analysis of the layers before, and the other way round."""
    own = layer.reads.model_dump(exclude_unset=True)
    kept = before.model_dump(exclude_unset=True)
    if own.get("row") and before.analysis:
        kept = {}
    if own.get("analysis") and own["analysis"] != before.analysis:
        kept = {}
    options = {**kept.get("options", {}), **own.get("options", {})}
    return Reads(**{**kept, **own, "options": options})


def _mini(before: Mini, layer: Layer) -> Mini:
    """Every key that a layer sets replaces that of the layers before; tables are merged."""
    own, kept = (one.model_dump(exclude_unset=True) for one in (layer.mini, before))
    spec = merged(before.spec, layer.mini.spec)
    options = {**before.options, **layer.mini.options}
    return Mini(**{**kept, **own, "spec": spec, "options": options})


def _paper_spec(spec: dict[str, Any], models: Models, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The published setting with the published models."""
    found = models.model_dump(exclude_none=True)
    return {**spec, **{part: paths.get(name, _as_name(name)) for part, name in found.items()}}


def _as_name(model: str) -> str:
    """What stands in a spec for a model that is not here."""
    return "unpublished" if " " in model else model


def _mini_spec(spec: dict[str, Any], mini: Mini) -> dict[str, Any]:
    """The setting with the embedded models and data, fewer images and shorter attacks."""
    examples = spec.get("examples", {})
    order = examples.get("order", "file") if isinstance(examples, dict) else "file"
    spec = {**spec, "classifier": EMBEDDED, "data": EMBEDDED, "denoiser": EMBEDDED}
    spec["examples"] = {"count": mini.images or IMAGES, "order": order}
    spec = merged(spec, mini.spec)
    purifier = spec.get("purifier", {})
    if (purifier if isinstance(purifier, str) else purifier.get("name", DIFFUSION)) != DIFFUSION:
        del spec["denoiser"]
    caps = {"iterations": mini.iterations, "eot": mini.eot}
    spec["attacks"] = [_capped(attack, caps) for attack in spec.get("attacks", ["pgd"])]
    if mini.draws is not None:
        spec["draws"] = {**spec.get("draws", {}), "report": mini.draws}
    return spec


def _capped(attack: Any, caps: Mapping[str, int | None]) -> dict[str, Any]:
    """An attack with options lowered to the caps, where it has them."""
    attack = {"name": attack} if isinstance(attack, str) else attack
    known, options = accepted_options(attack["name"]), dict(attack.get("options", {}))
    for name, cap in caps.items():
        if cap is not None and name in known:
            usual = options.get(name, known[name])
            options[name] = cap if type(usual) is not int else min(usual, cap)
    return {**attack, "options": options}


def _options(spec: EvaluationSpec, reads: Reads, mini: Mini) -> dict[str, Any]:
    """The options of an analysis, with the spec's number of images unless a layer says another."""
    options = {**reads.options, **mini.options}
    if "images" in getattr(analyses.get(str(reads.analysis)), "__dataclass_fields__", {}):
        options.setdefault("images", spec.examples.count or IMAGES)
    return options


def _job(spec: dict[str, Any], reads: Reads, mini: Mini, where: str) -> Job:
    """What is run for a cell, once its setting is known to be one."""
    protocol = protocols.get(reads.protocol or DEFAULT)
    if protocol.judges_iterates or protocol.averages:  # these must be watched for while the attack runs
        spec = {**spec, "protocol": reads.protocol}
    made = validate({**spec, "name": Job.title_of(spec)}, EvaluationSpec, where)
    if reads.analysis:
        if not reads.number:
            raise UserError(
                f"table {where} reads analysis '{reads.analysis}' and no number of it. Add reads.number."
            )
        return Job(made, reads.analysis, _options(made, reads, mini))
    rows = {*BASELINE_ROWS, *(k.name for k in made.knowledge)}
    if reads.row not in rows:
        raise UserError(
            f"table {where} reads row '{reads.row}', and its run has {', '.join(sorted(rows))}. Add it to"
            " spec.knowledge or read another."
        )
    return Job(made, None, {})
