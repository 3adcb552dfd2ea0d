"""A training run, described by one TOML file."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from dbpkit.foundation.precision import Precision
from dbpkit.foundation.spec import PartSpec, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]
"""A decay rate in [0, 1)."""


class OptimiserSpec(Strict):
    """How the weights are updated.

    Attributes:
        updates: number of optimiser steps.
        batch_size: examples per update.
        method: ``"adamw"`` or ``"sgd"`` (Nesterov momentum 0.9).
        lr: peak learning rate; it rises linearly for ``warmup`` of the updates.
        schedule: ``"cosine"``: it then falls to 0 as half a cosine; ``"constant"``: it stays.
        betas: decay rates of adamw's moments.
        warmup: fraction of the updates, in [0, 1].
        weight_decay: decoupled for adamw, L2 for sgd.
        ema_decay: decay of the averaged weights, which are the ones saved and evaluated.
        grad_clip: largest gradient norm, or 0 for none.
        precision: ``"float32"``, which leaves torch's own settings as they are; ``"tf32"``, which switches
            TF32 on; or ``"bfloat16"`` for autocast of the network's forward pass.
    """

    always: ClassVar[frozenset[str] | None] = frozenset(
        {"updates", "batch_size", "method", "lr", "schedule", "betas", "warmup", "weight_decay", "ema_decay"}
        | {"grad_clip", "precision"}
    )

    updates: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    method: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(gt=0, allow_inf_nan=False)
    schedule: Literal["cosine", "constant"] = "cosine"
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.99), strict=False)
    warmup: float = Field(default=0.05, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    precision: Precision = "float32"


class TrainingSpec(Strict):
    """Everything that decides the weights a training run ends with.

    Attributes:
        objective: registered objective: ``"classification"`` or ``"denoising"``, or an import path.
        objective_options: its keyword arguments.
        data: training examples.
        test_data: examples the finished model is evaluated on, for its model card.
        network: what is trained from random weights.
        init: a classifier or denoiser source to train on from instead, such as ``"embedded"``.
        dropout: share that the network's dropout layers drop; unset leaves them as they are.
        denoiser: adapter around the network, for denoisers.
        denoiser_options: its keyword arguments.
        optimiser: how.
        seed: decides first weights, order, augmentation and noise.
        checkpoint_updates: updates between checkpoints.
        store: number format of the final weights file.
    """

    always: ClassVar[frozenset[str] | None] = frozenset(
        {"objective", "objective_options", "data", "test_data", "network", "init", "dropout", "denoiser"}
        | {"denoiser_options", "optimiser", "seed", "checkpoint_updates", "store"}
    )

    objective: str
    objective_options: dict[str, Any] = Field(default_factory=dict)
    data: PartSpec
    test_data: PartSpec
    network: PartSpec | None = None
    init: PartSpec | None = None
    dropout: float | None = Field(default=None, ge=0, lt=1)
    denoiser: str = "edm"
    denoiser_options: dict[str, Any] = Field(default_factory=dict)
    optimiser: OptimiserSpec
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_updates: int = Field(default=500, gt=0)
    store: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _one_start(self) -> "TrainingSpec":
        if (self.network is None) == (self.init is None):
            raise ValueError("give either 'network' (random weights) or 'init' (weights to train on from)")
        if self.init is not None and (self.denoiser != "edm" or self.denoiser_options):
            raise ValueError("'denoiser' comes with 'init'; leave it out")
        return self
