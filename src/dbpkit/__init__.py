"""dbpkit: how robust a diffusion-purified classifier really is, why, and how to make it more robust.

Names are imported when they are used: what reads results needs no torch, which takes a second and 200 MB.
"""

from dbpkit.foundation import program  # noqa: F401 - first: before the current folder can hide a module

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbpkit.attacks import Target
    from dbpkit.attacks.pgd import pgd
    from dbpkit.data import Dataset, load_dataset
    from dbpkit.evaluation.benchmark import Benchmark, benchmark
    from dbpkit.evaluation.quick_check import check
    from dbpkit.evaluation.replay import replay
    from dbpkit.evaluation.run import Execution, evaluate
    from dbpkit.experiment.knowledge import Knowledge
    from dbpkit.experiment.spec import EvaluationSpec
    from dbpkit.foundation.errors import UserError
    from dbpkit.foundation.noise import NoisePlan
    from dbpkit.foundation.registry import trust
    from dbpkit.foundation.spec import read_spec
    from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser, from_pretrained
    from dbpkit.models.sources import load_classifier, load_denoiser, load_embedded
    from dbpkit.models.weights import load_weights
    from dbpkit.purification.classifier import PurifiedClassifier, Undefended
    from dbpkit.purification.diffusion import Purifier
    from dbpkit.results.run_directory import RunDirectory
    from dbpkit.results.summary import summarise
    from dbpkit.threats.perceptual import FeatureDistance
    from dbpkit.threats.pixels import L2, Linf
    from dbpkit.training.loop import train
    from dbpkit.training.spec import TrainingSpec

from dbpkit.foundation import moved

moved.install()

__version__ = "0.1.0"

_PLACES = {
    "L2": "dbpkit.threats.pixels",
    "Benchmark": "dbpkit.evaluation.benchmark",
    "Dataset": "dbpkit.data",
    "EDMDenoiser": "dbpkit.models.denoisers",
    "EvaluationSpec": "dbpkit.experiment.spec",
    "Execution": "dbpkit.evaluation.run",
    "FeatureDistance": "dbpkit.threats.perceptual",
    "Knowledge": "dbpkit.experiment.knowledge",
    "Linf": "dbpkit.threats.pixels",
    "NoisePlan": "dbpkit.foundation.noise",
    "PurifiedClassifier": "dbpkit.purification.classifier",
    "Purifier": "dbpkit.purification.diffusion",
    "RunDirectory": "dbpkit.results.run_directory",
    "Target": "dbpkit.attacks",
    "TrainingSpec": "dbpkit.training.spec",
    "Undefended": "dbpkit.purification.classifier",
    "UserError": "dbpkit.foundation.errors",
    "VPDenoiser": "dbpkit.models.denoisers",
    "benchmark": "dbpkit.evaluation.benchmark",
    "check": "dbpkit.evaluation.quick_check",
    "evaluate": "dbpkit.evaluation.run",
    "from_pretrained": "dbpkit.models.denoisers",
    "load_classifier": "dbpkit.models.sources",
    "load_dataset": "dbpkit.data",
    "load_denoiser": "dbpkit.models.sources",
    "load_embedded": "dbpkit.models.sources",
    "load_weights": "dbpkit.models.weights",
    "pgd": "dbpkit.attacks.pgd",
    "read_spec": "dbpkit.foundation.spec",
    "replay": "dbpkit.evaluation.replay",
    "summarise": "dbpkit.results.summary",
    "train": "dbpkit.training.loop",
    "trust": "dbpkit.foundation.registry",
}
"""Which module each public name is of."""

__all__ = [
    "L2",
    "Benchmark",
    "Dataset",
    "EDMDenoiser",
    "EvaluationSpec",
    "Execution",
    "FeatureDistance",
    "Knowledge",
    "Linf",
    "NoisePlan",
    "PurifiedClassifier",
    "Purifier",
    "RunDirectory",
    "Target",
    "TrainingSpec",
    "Undefended",
    "UserError",
    "VPDenoiser",
    "benchmark",
    "check",
    "evaluate",
    "from_pretrained",
    "load_classifier",
    "load_dataset",
    "load_denoiser",
    "load_embedded",
    "load_weights",
    "pgd",
    "read_spec",
    "replay",
    "summarise",
    "train",
    "trust",
]


def __getattr__(name: str) -> Any:
    """Imports a public name, once."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dbpkit' has no attribute '{name}'")
    found = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return found


def __dir__() -> list[str]:
    """Names for completion."""
    return sorted({*globals(), *__all__})
