"""The files of a run directory beside the records: one schema and one reader for each.

A file that was damaged or edited is one sentence with the file, the place in it, and the remedy. Unknown keys
are kept, so that newer runs can be read as far as they are understood. The thing people get wrong: a
file in a run directory was not necessarily written by this program.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import from_json
from torch import Tensor

from dbpkit.errors import UserError
from dbpkit.spec import amount
from dbpkit.weights import read_tensors

RESTORE = "Restore it or delete the directory."

T = TypeVar("T")


class Recorded(BaseModel):
    """Something that was read from a run directory."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it has characters that cannot be printed")
    return value


def _readable(value: str) -> str:
    amount(value)
    return value


Name = Annotated[str, Field(min_length=1, max_length=2000)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Hash = Annotated[str, Field(max_length=128)]


class RecordedPart(Recorded):
    """A part by name, with its options."""

    name: Name
    options: dict[str, Any] = {}


class RecordedPurifier(Recorded):
    """How images are purified."""

    sampler: Name
    t_star: float = Field(gt=0, lt=1)
    steps: Count
    options: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    clamp: bool | None = None


class RecordedThreat(Recorded):
    """The budget."""

    norm: Name
    eps: Annotated[str, Field(max_length=100), AfterValidator(_readable)]
    options: dict[str, Any] = {}


class RecordedKnowledge(Recorded):
    """What an attacker knows."""

    name: Word
    gradient: Name = "exact"
    gradient_options: dict[str, Any] = {}
    shared_sites: list[Name] = []
    tapes: Annotated[int, Field(gt=0, le=10_000)] = 1


class RecordedExamples(Recorded):
    """Which examples."""

    count: Count | None = None
    first: int = Field(default=0, ge=0)
    order: Word = "file"


class RecordedDraws(Recorded):
    """Purifications per image."""

    report: Count
    select: Count


class RecordedSpec(Recorded):
    """The spec of a run as far as results are read with it; the evaluation's own type says the rest."""

    name: Annotated[str, Field(max_length=2000)]
    data: RecordedPart
    classifier: RecordedPart
    denoiser: RecordedPart
    purifier: RecordedPurifier
    threat: RecordedThreat
    attacks: Annotated[list[RecordedPart], Field(min_length=1)]
    knowledge: list[RecordedKnowledge]
    examples: RecordedExamples
    draws: RecordedDraws
    protocol: Name = "one_shot"
    seed: int = Field(ge=0, lt=2**32)


class SpecFile(Recorded):
    """``spec.json``."""

    hash: Hash
    spec: RecordedSpec


class Session(Recorded):
    """One entry of ``env.json``."""

    classifier_sha256: Hash | None = None
    denoiser_sha256: Hash | None = None
    data_sha256: Hash | None = None
    features_sha256: Hash | None = None
    code_sha256: Hash | None = None
    examples: Count | None = None
    versions: dict[str, Annotated[str, Field(max_length=200)]] = {}
    machine: Annotated[str, Field(max_length=200)] = ""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    device: Annotated[str, Field(max_length=100)] = "cpu"
    batch_size: Count = 1
    micro_batch: Count = 32
    deterministic: bool = False
    memory_bytes: int = Field(default=0, ge=0)
    reverse: bool = False


class RecordedFlag(BaseModel):
    """One entry of ``checks.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Word
    severity: Literal["error", "warning"]
    message: Annotated[str, Field(max_length=20_000)]
    row: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""


class AnalysisSettings(Recorded):
    """``settings.json`` of an analysis."""

    options: dict[str, Any]
    hashes: dict[str, Hash]
    examples: Count | None = None


class How(Recorded):
    """How stored logits were computed."""

    micro_batch: Count
    deterministic: bool
    threads: Annotated[int, Field(gt=0, le=1024)]


class StripAbout(Recorded):
    """What belongs to the pictures of a run."""

    class_names: list[str]
    labels: list[Annotated[int, Field(ge=0, lt=2**31)]]
    predicted: dict[Word, list[Annotated[int, Field(ge=0, lt=2**31)]]]


Text = Annotated[str, Field(max_length=20_000)]
Free = Annotated[float, Field(allow_inf_nan=True)]


class RecordedNumber(Recorded):
    """A number of an analysis."""

    name: Text
    value: Free
    low: Free | None = None
    high: Free | None = None
    examples: Annotated[int, Field(ge=0, lt=2**31)] = 0
    method: Text = ""
    published: Free | None = None
    source: Text = ""
    claim: Text = ""
    least: float | None = None
    most: float | None = None
    needs: Annotated[int, Field(ge=0, lt=2**31)] = 0
    holds: bool | None = None


class RecordedSeries(Recorded):
    """A series of a chart."""

    name: Text
    x: list[Free | Text]
    y: list[Free]
    low: list[Free] = []
    high: list[Free] = []

    @model_validator(mode="after")
    def _even(self) -> "RecordedSeries":
        n = len(self.x)
        if len(self.y) != n or {len(self.low), len(self.high)} - {0, n} or len(self.low) != len(self.high):
            raise ValueError("x, y and the ends of intervals are not equally many")
        return self


class RecordedChart(Recorded):
    """A chart of an analysis."""

    kind: Literal["line", "bar", "scatter", "heat"]
    title: Text
    x_label: Text
    y_label: Text
    series: list[RecordedSeries]
    description: Text
    x_log: bool = False
    y_log: bool = False
    curves: list[Text] = []


class ResultFile(Recorded):
    """``result.json`` of an analysis."""

    name: Word
    title: Text
    sentences: list[Text]
    numbers: list[RecordedNumber]
    charts: list[RecordedChart]
    settings: dict[str, Any] = {}


SPEC, SESSIONS, CHECKS, SETTINGS, HOW, ABOUT, RESULT = (
    TypeAdapter[Any](kind)
    for kind in (
        SpecFile,
        Annotated[list[Session], Field(min_length=1)],
        list[RecordedFlag],
        AnalysisSettings,
        How,
        StripAbout,
        ResultFile,
    )
)


def checked(content: Any, schema: TypeAdapter[Any], where: str, remedy: str = RESTORE) -> Any:
    """Returns what was read if it fits its schema; UserError names the file and the first wrong place."""
    try:
        schema.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part)[:100] for part in first["loc"]) or "the whole"
        raise damaged(where, f"{place}: {first['msg']}", remedy) from error
    except RecursionError as error:
        raise damaged(where, "it is nested too deeply", remedy) from error
    return content


def parsed(text: str | bytes, where: str, remedy: str = RESTORE) -> Any:
    """Returns the content of a JSON text; UserError if it is none."""
    try:
        return from_json(text, allow_inf_nan=True)
    except ValueError as error:
        raise damaged(where, str(error), remedy) from error


def read_json(path: Path, remedy: str = RESTORE) -> Any:
    """Returns the content of a JSON file, or None if it does not exist; UserError if it cannot be read."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({error.strerror}). {remedy}") from error
    return parsed(content.removeprefix(b"\xef\xbb\xbf"), f"'{path}'", remedy)


def damaged(where: str, why: str, remedy: str = RESTORE) -> UserError:
    """The error of a file that is not as it was written."""
    said = "".join(c if c.isprintable() else " " for c in why)
    return UserError(f"{where} is damaged ({' '.join(said.split())[:300]}). {remedy}")


def canonical_hash(content: Any) -> str:
    """Returns the sha256 of the canonical JSON (keys sorted) of a value, hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_shard(path: Path, name: str, dimensions: int, remedy: str) -> tuple[Tensor, Tensor, dict[str, str]]:
    """Returns the ids (B,), the tensor called ``name`` (B, ...) as float32, and the metadata of a file.

    Args:
        path: a safetensors file.
        name: ``x_adv`` or ``logits``.
        dimensions: how many the tensor has.
        remedy: what to do if the file is missing or damaged.

    Raises:
        UserError: if it cannot be read, or ids and tensor are not of the right type and shape.
    """
    tensors, metadata = tensors_of(path, remedy)
    ids, values = tensors.get("ids"), tensors.get(name)
    if ids is None or values is None or ids.dtype != torch.int64 or ids.ndim != 1 or not len(ids):
        raise damaged(f"'{path}'", f"it has no ids or no {name}", remedy)
    if values.dtype != torch.float32 or values.ndim != dimensions or len(values) != len(ids):
        raise damaged(f"'{path}'", f"{name} is {values.dtype} {tuple(values.shape)}", remedy)
    if len(ids.unique()) != len(ids) or values.numel() == 0 or not bool(torch.isfinite(values).all()):
        raise damaged(f"'{path}'", f"ids are not unique or {name} is not finite", remedy)
    return ids, values, metadata


def tensors_of(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and metadata of a file that is no link; UserError with the remedy."""
    if path.is_symlink() or not path.is_file():
        raise UserError(f"'{path}' is missing or no plain file. {remedy}")
    try:
        return read_tensors(path)
    except (UserError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise damaged(f"'{path}'", str(error), remedy) from error


def strip_fault(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Returns what is wrong with the pictures of a run, or nothing."""
    ids, clean = tensors.get("ids"), tensors.get("clean")
    if ids is None or clean is None or ids.dtype != torch.int64 or ids.ndim != 1 or clean.ndim != 4:
        return "it has no ids or no clean images"
    images = {k: v for k, v in tensors.items() if k != "ids"}
    if any(v.dtype != torch.float32 or v.shape != clean.shape or not v.numel() for v in images.values()):
        return "its images are not of one type and shape"
    if not all(bool(torch.isfinite(v).all()) for v in images.values()):
        return "its images are none"
    if not len(ids) == len(clean) == len(about["labels"]):
        return "its labels are not those of its images"
    for row, predicted in about["predicted"].items():
        if len(predicted) != len(ids) or (row != "clean" and f"{row}.x_adv" not in tensors):
            return f"its predictions or images of row '{row}' are missing"
    return ""
