"""dbpkit: how robust a diffusion-purified classifier really is, why, and how to make it more robust.

Names are imported when they are used: what reads results needs no torch, which takes a second and 200 MB.
"""

from dbpkit import program  # noqa: F401 - first: before the current folder can hide a module

# isort: split
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbpkit.attacks import Target
    from dbpkit.attacks.pgd import pgd
    from dbpkit.benchmarking import Benchmark, benchmark
    from dbpkit.data import Dataset, load_dataset
    from dbpkit.denoiser import EDMDenoiser, VPDenoiser, from_pretrained
    from dbpkit.errors import UserError
    from dbpkit.evaluation.check import check
    from dbpkit.evaluation.knowledge import Knowledge
    from dbpkit.evaluation.replay import replay
    from dbpkit.evaluation.run import Execution, evaluate
    from dbpkit.evaluation.spec import EvaluationSpec
    from dbpkit.models import load_classifier, load_denoiser, load_embedded
    from dbpkit.noise import NoisePlan
    from dbpkit.perceptual import FeatureDistance
    from dbpkit.purify import PurifiedClassifier, Purifier, Undefended
    from dbpkit.registry import trust
    from dbpkit.results.run_directory import RunDirectory
    from dbpkit.results.summary import summarise
    from dbpkit.spec import read_spec
    from dbpkit.threat import L2, Linf
    from dbpkit.training.loop import train
    from dbpkit.training.spec import TrainingSpec
    from dbpkit.weights import load_weights

__version__ = "0.1.0"

_PLACES = {
    "L2": "dbpkit.threat",
    "Benchmark": "dbpkit.benchmarking",
    "Dataset": "dbpkit.data",
    "EDMDenoiser": "dbpkit.denoiser",
    "EvaluationSpec": "dbpkit.evaluation.spec",
    "Execution": "dbpkit.evaluation.run",
    "FeatureDistance": "dbpkit.perceptual",
    "Knowledge": "dbpkit.evaluation.knowledge",
    "Linf": "dbpkit.threat",
    "NoisePlan": "dbpkit.noise",
    "PurifiedClassifier": "dbpkit.purify",
    "Purifier": "dbpkit.purify",
    "RunDirectory": "dbpkit.results.run_directory",
    "Target": "dbpkit.attacks",
    "TrainingSpec": "dbpkit.training.spec",
    "Undefended": "dbpkit.purify",
    "UserError": "dbpkit.errors",
    "VPDenoiser": "dbpkit.denoiser",
    "benchmark": "dbpkit.benchmarking",
    "check": "dbpkit.evaluation.check",
    "evaluate": "dbpkit.evaluation.run",
    "from_pretrained": "dbpkit.denoiser",
    "load_classifier": "dbpkit.models",
    "load_dataset": "dbpkit.data",
    "load_denoiser": "dbpkit.models",
    "load_embedded": "dbpkit.models",
    "load_weights": "dbpkit.weights",
    "pgd": "dbpkit.attacks.pgd",
    "read_spec": "dbpkit.spec",
    "replay": "dbpkit.evaluation.replay",
    "summarise": "dbpkit.results.summary",
    "train": "dbpkit.training.loop",
    "trust": "dbpkit.registry",
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
