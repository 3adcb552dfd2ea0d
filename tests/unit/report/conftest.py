"""Small run directories, written through the `RunDirectory` API as the evaluation loop writes them."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dbpkit.results.analysis import AnalysisRecords, AnalysisResult, Chart, Number, Series
from dbpkit.results.flags import Flag
from dbpkit.results.kinds import BASELINE_ROWS
from dbpkit.results.run_directory import RunDirectory

CLASSES = ["airplane", "automobile", "bird", "cat"]
PREFLIGHT_CHECKS = {
    "probabilities": "the classifier returns logits, not probabilities",
    "gradient_mismatch": "the exact gradient agrees with a numeric derivative",
    "suspicious_level": "purification starts well above what the attack can do",
}
"""What ran before the runs that are made here."""

EXAMPLES = 6
"""Examples of a run, unless a test asks for fewer."""
DRAWS = 4
"""Draws of a row, unless it has one draw per tape."""

RIGHT = {
    "undefended_clean": [1, 1, 1, 1, 1, 1],
    "undefended": [0, 0, 0, 0, 0, 0],
    "clean": [4, 4, 4, 3, 4, 2],
    "noise_control": [4, 4, 3, 3, 4, 2],
    "transfer": [4, 3, 3, 3, 4, 2],
    "white_box": [3, 2, 2, 1, 0, 0],
    "dw_both": [0, 0, 0, 0, 0, 0],
    "fixed": [1, 0, 0, 0, 0, 0],
}
"""Draws that are right, for every row and example; a row that is not named is half right."""

SINGLE = {"undefended_clean", "undefended", "dw_both", "fixed"}
"""Rows with one draw per tape."""

MakeRun = Callable[..., RunDirectory]
Analysed = Callable[..., RunDirectory]

CHARTS = {
    "line": Chart(
        "line",
        "A line",
        "tapes",
        "share",
        [
            Series("known", [1, 2, 4], [0.9, 0.8, 0.6], [0.8, 0.7, 0.5], [0.95, 0.9, 0.7]),
            Series("unseen", [1, 2, 4], [0.2, math.nan, 0.4]),
        ],
        "The lines meet.",
        x_log=True,
    ),
    "bar": Chart(
        "bar",
        "Bars",
        "",
        "share",
        [Series("a", ["alone", "+ $x$"], [0.2, -0.1], [0, -0.2], [0.4, 0])],
        "Two.",
    ),
    "histogram": Chart(
        "bar", "Histogram", "cosine", "images", [Series("a", [0, 1, 2], [3, 5, 1])], "A hump."
    ),
    "scatter": Chart(
        "scatter", "Points", "rate", "accuracy", [Series("a", [0.1, 0.2], [0.5, 0.7])], "A slope."
    ),
    "heat": Chart(
        "heat",
        "Heat",
        "judged on",
        "made on",
        [
            Series("tape 0", ["tape 0", "tape 1"], [1.0, -0.2]),
            Series("tape 1", ["tape 0", "tape 1"], [0.3, math.nan]),
        ],
        "A bright diagonal.",
    ),
}
"""One chart of every kind."""

NUMBERS = [
    Number(
        "share fooled", 0.42, 0.31, 0.55, 64, "bootstrap", 0.5, "Liu 2025, table 3", "above 0.3: fuzzy", 0.3
    ),
    Number("a gap", 0.02, -0.01, 0.05, 20, "bootstrap", claim="above 0: randomness decides", least=0),
    Number("slope", -12345.6, -12345.6, -12345.6, 30, "bootstrap", claim="rises", least=0),
    Number("rate", 0.25),
    Number("broken", math.nan, 1.0, 2.0, 30, "bootstrap", claim="is a number", least=0),
]
"""Numbers that hold, are undecided, do not hold, have no claim, and are none."""


def resolved_spec(name: str, knowledge: Sequence[str], count: int | None) -> dict[str, Any]:
    """A resolved spec as `EvaluationSpec` dumps it."""
    part = {"name": "embedded", "options": {}}
    exact = {"gradient": "exact", "gradient_options": {}, "shared_sites": []}
    return {
        "name": name,
        "data": part,
        "classifier": part,
        "denoiser": part,
        "purifier": {
            "sampler": "ddpm", "t_star": 0.1, "steps": 100, "options": {}, "grid": {}, "clamp": None,
        },
        "threat": {"norm": "linf", "eps": "8/255"},
        "attacks": [{"name": "pgd", "options": {"iterations": 3}}],
        "knowledge": [
            {**exact, "name": k, "tapes": 2 if k == "fixed" else 1} for k in knowledge
        ],
        "examples": {"count": count, "first": 0},
        "draws": {"report": DRAWS, "select": 4},
        "seed": 0,
    }  # fmt: skip


def record(row: str, tape: int, example: int, tapes: int) -> dict[str, Any]:
    """One result: the label is the example modulo the classes, a wrong prediction is the next class."""
    label = example % len(CLASSES)
    draws = 1 if row in SINGLE else DRAWS
    right = RIGHT.get(row, [2] * EXAMPLES)[example % EXAMPLES]
    right = int(tape < right) if tapes > 1 else right
    predicted = [label if k < right else (label + 1) % len(CLASSES) for k in range(draws)]
    attack = {}
    if row not in ("undefended_clean", "clean", "noise_control", "transfer"):
        attack = {
            "attack": "pgd", "excess": 0.0, "loss": [0.5, 1.5, 2.5], "grad_norm": [0.1, 0.2, 0.1],
            "forward_passes": 12.0, "gradient_passes": 12.0, "distance": 8 / 255,
        }  # fmt: skip
    return {"row": row, "tape": tape, "example": example, "label": label, "predicted": predicted, **attack}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Returns a function that writes a run directory.

    Its arguments: folder's name, title, attackers, examples asked for and recorded, rows left out, flags
    of the preflight (None: it has not run), whether there are pictures, and the shape of an image.
    """

    def make(
        folder: str = "run",
        name: str = "a run",
        knowledge: Sequence[str] = ("white_box", "dw_both", "fixed"),
        count: int | None = EXAMPLES,
        recorded: int = EXAMPLES,
        without: Sequence[str] = (),
        flags: Sequence[Flag] | None = (),
        strip: bool = True,
        shape: tuple[int, int, int] = (3, 8, 8),
        classes: Sequence[str] = tuple(CLASSES),
    ) -> RunDirectory:
        run = RunDirectory(tmp_path / folder)
        spec = resolved_spec(name, knowledge, count)
        run.claim(spec)
        session = {
            "data_sha256": "d" * 64,
            "examples": EXAMPLES,
            "versions": {"torch": "2.13.0"},
            "device": "cpu",
            "deterministic": False,
        }
        run.write_json("env.json", [session])
        if flags is not None:
            run.write_checks([flag._asdict() for flag in flags], PREFLIGHT_CHECKS)
        rows = [r for r in (*BASELINE_ROWS, *knowledge) if r not in without]
        tapes = {k["name"]: k["tapes"] for k in spec["knowledge"]}
        run.append(
            record(row, tape, example, tapes.get(row, 1))
            for row in rows
            for tape in range(tapes.get(row, 1))
            for example in range(recorded)
        )
        if strip:
            _write_strip(run, [k for k in knowledge if k not in without], shape, classes)
        return run

    return make


@pytest.fixture
def analysed(tmp_path: Path) -> Analysed:
    """Returns a function that adds a finished analysis to a run, or makes a run that has nothing else."""

    def add(
        run: RunDirectory | None = None,
        name: str = "compression",
        title: str = "Why it is so",
        sentences: Sequence[str] = ("It keeps 28% of a length.", "Attacks keep more."),
        numbers: Sequence[Number] = tuple(NUMBERS),
        charts: Sequence[Chart] = (CHARTS["line"],),
        folder: str = "alone",
    ) -> RunDirectory:
        if run is None:
            run = RunDirectory(tmp_path / folder)
            run.claim(resolved_spec("alone", ["white_box"], 6))
        records = AnalysisRecords(run, name)
        records.claim({"options": {}, "hashes": {"denoiser_sha256": "e" * 64}})
        result = AnalysisResult(name, title, list(sentences), list(numbers), list(charts), {"images": 8})
        records.write_result(result)
        return run

    return add


def _write_strip(
    run: RunDirectory, attackers: Sequence[str], shape: tuple[int, int, int], classes: Sequence[str]
) -> None:
    """Pictures that are a ramp, with perturbations of one budget."""
    clean = torch.linspace(0.1, 0.9, EXAMPLES * shape[0] * shape[1] * shape[2]).reshape(EXAMPLES, *shape)
    tensors = {"ids": torch.arange(EXAMPLES), "clean": clean, "clean.x_pure": clean + 1 / 255}
    labels = [i % len(CLASSES) for i in range(EXAMPLES)]
    predicted = {"clean": labels}
    for attacker in attackers:
        tensors[f"{attacker}.x_adv"] = clean + 8 / 255
        tensors[f"{attacker}.x_pure"] = clean + 4 / 255
        predicted[attacker] = [(y + 1) % len(CLASSES) for y in labels]
    run.write_strip(tensors, {"class_names": list(classes), "labels": labels, "predicted": predicted})
