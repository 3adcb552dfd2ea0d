"""What an evaluation is: everything that can change its result, and nothing else.

Device, batch sizes and the output directory are no part of it, because they must not change a result.
"""

from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from dbpkit.data.order import Order
from dbpkit.experiment.knowledge import Knowledge, find_known, known
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.spec import Amount, PartSpec, Strict
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.protocols import DEFAULT, protocols

_HEADLINE = ("white_box", "dw_fwd", "dw_rev", "dw_both", "fixed")
"""Settings a spec evaluates if it names none."""


class PurifierSpec(Strict):
    """How images are purified; see `dbpkit.purification.diffusion.Purifier`.

    Attributes:
        sampler: registered name or import path.
        t_star: diffusion time where purification starts, in (0, 1).
        steps: S of the sampler's published grid.
        options: keyword arguments of the sampler.
        grid: further keyword arguments of its grid.
        clamp: whether the purified image is clipped to [0, 1]; unset does as published.
    """

    sampler: str = "ddpm"
    t_star: float = Field(default=0.1, gt=0, lt=1)
    steps: int = Field(default=1000, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    clamp: bool | None = None


class PurifySpec(Strict):
    """What purifies image files: a denoiser, and how it is used."""

    denoiser: PartSpec = PartSpec(name="embedded")
    purifier: PurifierSpec = PurifierSpec()


class ThreatSpec(Strict):
    """The budget: ``norm`` of the perturbation at most ``eps``, in [0, 1] pixel units.

    Attributes:
        norm: registered name or import path of the threat model.
        eps: budget; for ``perceptual`` in units of its distance.
        options: keyword arguments of the threat model.
    """

    norm: str = "linf"
    eps: Amount = "8/255"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_empty_options(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves empty options out, so that specs made before there were options keep their hash."""
        table: dict[str, Any] = handler(self)
        if not table.get("options"):
            table.pop("options", None)
        return table


class ExamplesSpec(Strict):
    """Which examples of the data are evaluated: ``count`` of them from position ``first`` of an order on.

    Attributes:
        count: how many; unset takes all. No part of what a run is: the same run can go on with more.
        first: how many are passed over.
        order: ``balanced`` takes the classes in turn, ``shuffled`` is random, ``file`` is that of the data.
    """

    count: int | None = Field(default=None, gt=0)
    first: int = Field(default=0, ge=0)
    order: Order = "balanced"


class DrawsSpec(Strict):
    """Independent purifications per image: for the published score, and for choosing among attacks."""

    report: int = Field(default=10, gt=0)
    select: int = Field(default=10, gt=0)


class KnowledgeSpec(Strict):
    """What the attacker knows, in full; see `Knowledge`. A name alone takes the registered setting."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=64)
    gradient: str = "exact"
    gradient_options: dict[str, Any] = Field(default_factory=dict)
    shared_sites: list[str] = Field(default_factory=list)
    tapes: int = Field(default=1, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, (str, dict)):
            raise ValueError("must be the name of a setting or a table")
        table = {"name": value} if isinstance(value, str) else dict(value)
        if not isinstance(table.get("name"), str):
            return table  # missing or no text, as the field says
        preset = find_known(table["name"])
        if preset is None and table.keys() <= {"name", "tapes"}:
            raise ValueError(str(unknown_name("knowledge", table["name"], known)).rstrip("."))
        if preset is not None:
            defaults = preset._asdict() | {"shared_sites": sorted(preset.shared_sites)}
            table = {**defaults, **table}
        return table

    def resolve(self) -> Knowledge:
        """Returns the value the runner works with."""
        return Knowledge(
            self.name,
            self.gradient,
            self.gradient_options,
            frozenset(self.shared_sites),
            self.tapes,
        )


class EvaluationSpec(Strict):
    """One evaluation of one purified classifier.

    Attributes:
        name: title of the report.
        data: examples.
        classifier: maps pixels in [0, 1] to logits.
        denoiser: the diffusion model.
        purifier: how it is used.
        threat: the budget.
        attacks: the worst of them is published, chosen per example on select draws.
        knowledge: what the attacker knows; one row of the table each.
        examples: which examples.
        draws: how many purifications per image.
        protocol: registered name or import path of the protocol whose estimate is the headline.
        seed: decides every random number.
        analyses: options by name of analysis, for ``dbpkit analyse``; no part of the evaluation or its hash.
    """

    name: str = "evaluation"
    data: PartSpec = PartSpec(name="embedded")
    classifier: PartSpec = PartSpec(name="embedded")
    denoiser: PartSpec = PartSpec(name="embedded")
    purifier: PurifierSpec = PurifierSpec()
    threat: ThreatSpec = ThreatSpec()
    attacks: list[PartSpec] = Field(default=[PartSpec(name="pgd")], min_length=1)
    knowledge: list[KnowledgeSpec] = Field(
        default_factory=lambda: [KnowledgeSpec.model_validate(name) for name in known if name in _HEADLINE],
        min_length=1,
    )
    examples: ExamplesSpec = ExamplesSpec()
    draws: DrawsSpec = DrawsSpec()
    protocol: str = DEFAULT
    seed: int = Field(default=0, ge=0, lt=2**32)
    analyses: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        if ":" not in name:  # import paths are followed when a spec is run, never when it is read
            try:
                protocols.get(name)
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from error
        return name

    @model_serializer(mode="wrap")
    def _without_default_protocol(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves the default protocol out, so that specs made before there were protocols keep their hash."""
        table: dict[str, Any] = handler(self)
        if table.get("protocol") == DEFAULT:
            del table["protocol"]
        return table

    def identity(self) -> dict[str, Any]:
        """Everything but how many examples there are, because a run can grow."""
        table = self.model_dump(mode="json")
        del table["examples"]["count"]
        return table

    @model_validator(mode="after")
    def _unique_names(self) -> "EvaluationSpec":
        for what, names in (
            ("attacks", [a.name for a in self.attacks]),
            ("knowledge", [k.name for k in self.knowledge]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{what} are named {', '.join(names)}: every name may occur once")
        if taken := [k.name for k in self.knowledge if k.name in BASELINE_ROWS]:
            raise ValueError(f"knowledge may not be named '{taken[0]}': every run has a row of that name")
        return self
