"""What an evaluation is: everything that can change its result, and nothing else.

Device, batch sizes and the output directory do not belong to it, because they must not change a result.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, field_validator, model_validator

from dbpkit.attacks.designs import Design
from dbpkit.experiment.examples import ExamplesSpec
from dbpkit.experiment.knowledge import Knowledge, find_known, known
from dbpkit.experiment.stages import ClassifierSpec, Padding, ResizeSpec, Tile
from dbpkit.foundation.amounts import amount
from dbpkit.foundation.errors import UserError, unknown_name
from dbpkit.foundation.precision import EXACT, Precision
from dbpkit.foundation.spec import NAME_ALONE, Amount, PartSpec, Strict
from dbpkit.foundation.times import read_start
from dbpkit.purification.purifier import DIFFUSION
from dbpkit.results.kinds import BASELINE_ROWS, NO_DENOISER
from dbpkit.results.protocols import DEFAULT, protocols

_HEADLINE = ("white_box", "dw_fwd", "dw_rev", "dw_both", "fixed")
"""Settings a spec evaluates if it names none."""


class PurifierSpec(Strict):
    """What purifies images: a purifier by name with its options, or a diffusion chain with its own keys.

    Attributes:
        name: registered name or import path; ``diffusion`` is `dbpkit.purification.diffusion.Purifier`.
        sampler: of a diffusion: registered name or import path.
        t_star: of a diffusion: time where purification starts, in (0, 1), or the two ends of an interval from
            which each image and draw draws one.
        steps: of a diffusion: S of the sampler's published grid.
        options: keyword arguments of the purifier; of a diffusion those of the sampler.
        grid: of a diffusion: further keyword arguments of the sampler's grid.
        clamp: of a diffusion: whether its image is clipped to [0, 1]; unset does as published.
        resize: size of the images that it sees, a number (the shorter side) or a table; unset keeps theirs.
        pad: what their sides are padded to a multiple of, or ``auto``; unset pads nothing.
    """

    always: ClassVar[frozenset[str] | None] = frozenset(
        {"sampler", "t_star", "steps", "options", "grid", "clamp"}
    )
    shorter = NAME_ALONE

    name: str = DIFFUSION
    sampler: str = "ddpm"
    t_star: Annotated[float | list[float], PlainValidator(read_start)] = 0.1
    steps: int = Field(default=1000, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] = Field(default_factory=dict)
    clamp: bool | None = None
    resize: ResizeSpec | None = None
    pad: Padding = None

    @property
    def is_diffusion(self) -> bool:
        """Whether the keys of a diffusion chain apply."""
        return self.name == DIFFUSION

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of the purifier of this name; any other is fitted from outside."""
        chain = {key: getattr(self, key) for key in _CHAIN_KEYS}
        return {**chain, "options": self.options, **self.fit()} if self.is_diffusion else self.options

    def fit(self) -> dict[str, Any]:
        """Returns how images are fitted to its network, see `dbpkit.purification.fitting.Fit`."""
        resize = None if self.resize is None else self.resize.model_dump(mode="json")
        return {k: v for k, v in (("resize", resize), ("pad", self.pad)) if v is not None}

    def left_out(self) -> set[str]:
        """Returns the keys that the table does not have: of another purifier all but name and options."""
        return super().left_out() | (set() if self.is_diffusion else set(_CHAIN_KEYS))

    @model_validator(mode="before")
    @classmethod
    def _keys_of_its_kind(cls, value: Any) -> Any:
        table = {"name": value} if isinstance(value, str) else value
        name = table.get("name", DIFFUSION) if isinstance(table, dict) else DIFFUSION
        own = ("name", "options", "resize", "pad")
        for key in sorted(table.keys() - set(own), key=str) if name != DIFFUSION else ():
            if key in _CHAIN_KEYS:
                raise ValueError(
                    f"'{key}' is a key of a diffusion chain, and purifier '{name}' has name, options, resize"
                    " and pad only. Leave it out; to replace a whole table, --set"
                    f" 'purifier={{name=\"{name}\"}}'"
                )
            raise ValueError(str(unknown_name(f"key of purifier '{name}'", key, own)).rstrip("."))
        return table


_CHAIN_KEYS = ("sampler", "t_star", "steps", "grid", "clamp")
"""Keys that only a diffusion chain has."""


class PurifySpec(Strict):
    """What purifies image files: a purifier, and the denoiser that a diffusion chain needs.

    Attributes:
        denoiser: the network of a diffusion chain.
        purifier: what purifies them.
        precision: what networks compute in.
        tile: side of the tiles of large images; ``auto`` by the network's size, ``whole`` for none.
        overlap: least number of pixels that tiles share; unset is a quarter of their side, at most 32.
    """

    denoiser: PartSpec = PartSpec(name="embedded")
    purifier: PurifierSpec = PurifierSpec()
    precision: Precision = EXACT
    tile: Tile = "auto"
    overlap: Annotated[int, Field(ge=0)] | None = None


class ThreatSpec(Strict):
    """The budget: ``norm`` of the perturbation at most ``eps``, in [0, 1] pixel units.

    Attributes:
        norm: registered name or import path of the threat model.
        eps: budget; for ``perceptual`` in units of its distance.
        options: keyword arguments of the threat model.
    """

    always: ClassVar[frozenset[str] | None] = frozenset({"norm", "eps"})

    norm: str = "linf"
    eps: Amount = "8/255"
    options: dict[str, Any] = Field(default_factory=dict)

    @property
    def budget(self) -> float:
        """``eps`` as a number."""
        return amount(self.eps)


class DrawsSpec(Strict):
    """Independent purifications per image.

    Attributes:
        report: draws that the published score is counted on.
        select: draws that choose the worst attack of each image.
    """

    always: ClassVar[frozenset[str] | None] = frozenset({"report", "select"})

    report: int = Field(default=10, gt=0)
    select: int = Field(default=10, gt=0)


class DesignSpec(Strict):
    """How the draws of an attack's gradients are made, see `dbpkit.attacks.designs.Design`.

    Attributes:
        antithetic: draws in mirrored pairs.
        orthogonal: draws at right angles.
        common: the same draws at every iteration.
        control: steps of the surrogate that is the control variate; unset for none.
        control_draws: further draws of the surrogate.
    """

    always: ClassVar[frozenset[str] | None] = frozenset()

    antithetic: bool = False
    orthogonal: bool = False
    common: bool = False
    control: int | None = Field(default=None, gt=0)
    control_draws: int = Field(default=20, gt=0)

    def resolve(self) -> Design:
        """Returns the value attacks work with."""
        return Design(**{name: getattr(self, name) for name in type(self).model_fields})


class AttackSpec(PartSpec):
    """An attack by registered name or import path, with its options and the design of its gradients.

    Attributes:
        design: how the draws of its gradients are made; independent unless told otherwise.
    """

    design: DesignSpec = DesignSpec()

    @model_validator(mode="before")
    @classmethod
    def _from_part(cls, value: Any) -> Any:
        return {"name": value.name, "options": value.options} if type(value) is PartSpec else value


class KnowledgeSpec(Strict):
    """What the attacker knows, in full; see `Knowledge`. A name alone takes the registered setting.

    Attributes:
        name: registered setting, or the name of a row of your own.
        gradient: registered gradient that the attack follows.
        gradient_options: its keyword arguments.
        shared_sites: noise that the attacker knows: ``forward``, ``reverse`` or single sites.
        tapes: independent repetitions of the whole attack, each against another tape.
    """

    always: ClassVar[frozenset[str] | None] = frozenset(
        {"name", "gradient", "gradient_options", "shared_sites", "tapes"}
    )
    shorter = NAME_ALONE

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
        denoiser: the network of a purifier that has one; ``none`` for any other, and its default there.
        purifier: what purifies images.
        threat: the budget.
        attacks: the worst of them is published, chosen per example on select draws.
        knowledge: what the attacker knows; one row of the table each.
        examples: which examples.
        draws: how many purifications per image.
        protocol: registered name or import path of the protocol whose estimate is the headline.
        precision: what networks compute in: ``float32``, exact; ``tf32`` or ``bfloat16``, faster on a GPU.
        seed: decides every random number.
        analyses: options by name of analysis, for ``dbpkit analyse``; no part of the evaluation or its hash.
    """

    always: ClassVar[frozenset[str] | None] = frozenset(
        {"name", "data", "classifier", "denoiser", "purifier", "threat", "attacks", "knowledge"}
        | {"examples", "draws", "seed"}
    )

    name: str = "evaluation"
    data: PartSpec = PartSpec(name="embedded")
    classifier: ClassifierSpec = ClassifierSpec(name="embedded")
    denoiser: PartSpec = PartSpec(name="embedded")
    purifier: PurifierSpec = PurifierSpec()
    threat: ThreatSpec = ThreatSpec()
    attacks: list[AttackSpec] = Field(default=[AttackSpec(name="pgd")], min_length=1)
    knowledge: list[KnowledgeSpec] = Field(
        default_factory=lambda: [KnowledgeSpec.model_validate(name) for name in known if name in _HEADLINE],
        min_length=1,
    )
    examples: ExamplesSpec = ExamplesSpec()
    draws: DrawsSpec = DrawsSpec()
    protocol: str = DEFAULT
    precision: Precision = EXACT
    seed: int = Field(default=0, ge=0, lt=2**32)
    analyses: dict[str, dict[str, Any]] = Field(default_factory=dict, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_denoiser_unless_named(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "denoiser" in value:
            return value
        purifier = value.get("purifier", {})
        name = purifier.get("name", DIFFUSION) if isinstance(purifier, dict) else purifier
        named = name.name if isinstance(name, PurifierSpec) else name
        return value if named == DIFFUSION else {**value, "denoiser": NO_DENOISER}

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        if ":" not in name:  # import paths are followed when a spec is run, never when it is read
            try:
                protocols.get(name)
            except UserError as error:
                raise ValueError(str(error).rstrip(".")) from error
        return name

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
