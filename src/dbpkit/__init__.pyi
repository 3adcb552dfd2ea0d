# isort: skip_file
# The public names of dbpkit and where each is defined. This file is the only list of them: type checkers read
# it, and `dbpkit/__init__.py` takes from it which module to import when a name is first used.

__version__: str

# What the commands do, from Python.
from dbpkit.analyses.law.law import law as law
from dbpkit.analyses.run import analyse as analyse
from dbpkit.bundles.board import board as board
from dbpkit.bundles.packing import bundle as bundle
from dbpkit.bundles.verification import verify as verify
from dbpkit.evaluation.benchmark import Benchmark as Benchmark
from dbpkit.evaluation.benchmark import benchmark as benchmark
from dbpkit.evaluation.estimate import Estimate as Estimate
from dbpkit.evaluation.estimate import estimate as estimate
from dbpkit.evaluation.purify_files import purify_files as purify_files
from dbpkit.checks import Checked as Checked
from dbpkit.checks.proof import Proof as Proof
from dbpkit.checks.proof import proof as proof
from dbpkit.checks.proof import proof_of_classifier as proof_of_classifier
from dbpkit.evaluation.quick_check import check as check
from dbpkit.evaluation.quick_check import check_spec as check_spec
from dbpkit.evaluation.replay import replay as replay
from dbpkit.evaluation.run import evaluate as evaluate
from dbpkit.fidelity.chain import Chain as Chain
from dbpkit.fidelity.features import make_features as make_features
from dbpkit.fidelity.measurement import quality as quality
from dbpkit.reporting.page import report as report
from dbpkit.results.compare import compare as compare
from dbpkit.results.findings import findings as findings
from dbpkit.results.summary import summarise as summarise
from dbpkit.tables.reproduce import reproduce as reproduce
from dbpkit.training.loop import train as train

# What they are told.
from dbpkit.experiment.execution import Execution as Execution
from dbpkit.experiment.knowledge import Knowledge as Knowledge
from dbpkit.experiment.spec import EvaluationSpec as EvaluationSpec
from dbpkit.experiment.spec import PurifierSpec as PurifierSpec
from dbpkit.foundation.errors import UserError as UserError
from dbpkit.foundation.noise import NoisePlan as NoisePlan
from dbpkit.foundation.precision import precise as precise
from dbpkit.foundation.progress import progress_bar as progress_bar
from dbpkit.foundation.plugins import load_plugins as load_plugins
from dbpkit.foundation.registry import trust as trust
from dbpkit.foundation.spec import read_spec as read_spec
from dbpkit.results.run_directory import RunDirectory as RunDirectory
from dbpkit.training.spec import TrainingSpec as TrainingSpec

# Models, data and budgets.
from dbpkit.data import Dataset as Dataset
from dbpkit.data import load_dataset as load_dataset
from dbpkit.models.denoisers import BlindDenoiser as BlindDenoiser
from dbpkit.models.denoisers import ConsistencyDenoiser as ConsistencyDenoiser
from dbpkit.models.denoisers import EDMDenoiser as EDMDenoiser
from dbpkit.models.denoisers import FlowDenoiser as FlowDenoiser
from dbpkit.models.denoisers import IDDPMDenoiser as IDDPMDenoiser
from dbpkit.models.denoisers import MeanFlowDenoiser as MeanFlowDenoiser
from dbpkit.models.denoisers import VEDenoiser as VEDenoiser
from dbpkit.models.denoisers import VEPrecondDenoiser as VEPrecondDenoiser
from dbpkit.models.denoisers import VPDenoiser as VPDenoiser
from dbpkit.models.denoisers import VPPrecondDenoiser as VPPrecondDenoiser
from dbpkit.models.denoisers import from_pretrained as from_pretrained
from dbpkit.models.converting import convert as convert
from dbpkit.models.opening import open_model as open_model
from dbpkit.models.denoisers import reinterpreted as reinterpreted
from dbpkit.models.sources import load_classifier as load_classifier
from dbpkit.models.sources import load_denoiser as load_denoiser
from dbpkit.models.sources import load_embedded as load_embedded
from dbpkit.models.stages import Resize as Resize
from dbpkit.models.stages import StagedClassifier as StagedClassifier
from dbpkit.models.weights import load_weights as load_weights
from dbpkit.purification.classifier import PurifiedClassifier as PurifiedClassifier
from dbpkit.purification.classifier import Undefended as Undefended
from dbpkit.purification.ensemble import Ensemble as Ensemble
from dbpkit.purification.diffusion import Purifier as Purifier
from dbpkit.purification.fitting import FittedPurifier as FittedPurifier
from dbpkit.threats.perceptual import FeatureDistance as FeatureDistance
from dbpkit.threats.pixels import L2 as L2
from dbpkit.threats.pixels import Linf as Linf

# Attacks.
from dbpkit.attacks import AttackOutcome as AttackOutcome
from dbpkit.attacks import Design as Design
from dbpkit.attacks import Target as Target
from dbpkit.attacks.apgd import apgd as apgd
from dbpkit.attacks.apgd import apgd_targeted as apgd_targeted
from dbpkit.attacks.autoattack import autoattack as autoattack
from dbpkit.attacks.autopilot import autopilot as autopilot
from dbpkit.attacks.diffattack import diffattack as diffattack
from dbpkit.attacks.fab import fab as fab
from dbpkit.attacks.libraries.art import art as art
from dbpkit.attacks.libraries.foolbox import foolbox as foolbox
from dbpkit.attacks.libraries.pyautoattack import pyautoattack as pyautoattack
from dbpkit.attacks.low_frequency import low_frequency as low_frequency
from dbpkit.attacks.pgd import pgd as pgd
from dbpkit.attacks.selective_eot import selective_eot as selective_eot
from dbpkit.attacks.square import square as square
