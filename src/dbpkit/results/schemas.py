"""What the files of a run directory hold: one schema for each.

Unknown keys are kept, so that newer runs can be read as far as they are understood. Names and numbers are
bounded, because a file may hold any size and any character.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    model_validator,
)

from dbpkit.foundation.amounts import amount
from dbpkit.foundation.times import read_start


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


class RecordedAttack(RecordedPart):
    """An attack, and how the draws of its gradients depend on each other; empty where they do not."""

    design: dict[str, Any] = {}


class RecordedResize(Recorded):
    """Another size of images, of the shorter side or of height and width."""

    size: Count | list[Count]


class RecordedPurifier(Recorded):
    """What purifies images; a diffusion has the keys of its chain."""

    name: Name = "diffusion"
    sampler: Name | None = None
    t_star: Annotated[float | list[float], PlainValidator(read_start)] | None = None
    steps: Count | None = None
    options: dict[str, Any] = {}
    grid: dict[str, Any] = {}
    clamp: bool | None = None
    resize: RecordedResize | None = None

    @model_validator(mode="after")
    def _whole_chain(self) -> "RecordedPurifier":
        if self.name == "diffusion" and None in (self.sampler, self.t_star, self.steps):
            raise ValueError("a diffusion chain has a sampler, t_star and steps")
        return self


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
    attacks: Annotated[list[RecordedAttack], Field(min_length=1)]
    knowledge: list[RecordedKnowledge]
    examples: RecordedExamples
    draws: RecordedDraws
    protocol: Name = "one_shot"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    seed: int = Field(ge=0, lt=2**32)


class SpecFile(Recorded):
    """``spec.json``."""

    hash: Hash
    spec: RecordedSpec


class Session(Recorded):
    """One entry of ``env.json``."""

    classifier_sha256: Hash | None = None
    denoiser_sha256: Hash | None = None
    purifier_sha256: Hash | None = None
    model_sha256: Hash | None = None
    data_sha256: Hash | None = None
    features_sha256: Hash | None = None
    code_sha256: Hash | None = None
    examples: Count | None = None
    versions: dict[str, Annotated[str, Field(max_length=200)]] = {}
    machine: Annotated[str, Field(max_length=200)] = ""
    threads: Annotated[int, Field(gt=0, le=1024)] = 1
    device: Annotated[str, Field(max_length=100)] = "cpu"
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    batch_size: Count = 1
    micro_batch: Count = 32
    deterministic: bool = False
    memory_bytes: int = Field(default=0, ge=0)
    reverse: bool = False
    shard: Annotated[str, Field(max_length=100), AfterValidator(_printable)] = "1/1"
    compile: bool = False


class RecordedFlag(BaseModel):
    """One flag in ``checks.json``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Word
    severity: Literal["error", "warning"]
    message: Annotated[str, Field(max_length=20_000)]
    row: Annotated[str, Field(max_length=200), AfterValidator(_printable)] = ""


class ChecksContent(Recorded):
    """``checks.json``."""

    version: Literal[2]
    flags: list[RecordedFlag]
    ran: dict[Word, Annotated[str, Field(max_length=2000)]] | None = None


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


SPEC = TypeAdapter(SpecFile)
SESSIONS = TypeAdapter(Annotated[list[Session], Field(min_length=1)])
FLAGS = TypeAdapter(list[RecordedFlag])
CHECKS = TypeAdapter(ChecksContent)
SETTINGS = TypeAdapter(AnalysisSettings)
HOW = TypeAdapter(How)
ABOUT = TypeAdapter(StripAbout)
RESULT = TypeAdapter(ResultFile)
IDS = TypeAdapter(list[Annotated[int, Field(strict=True, ge=0, lt=2**63)]])
