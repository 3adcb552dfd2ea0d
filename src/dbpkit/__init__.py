"""dbpkit: how robust a diffusion-purified classifier really is, why, and how to make it more robust."""

from dbpkit import program  # noqa: F401 - first: before the current folder can hide a module
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
