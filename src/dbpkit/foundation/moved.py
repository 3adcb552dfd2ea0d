"""Import paths of 0.1.0 that have moved: they still work, and say where the module is now."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "adapters": "attacks.libraries",
    "adapters.alignment": "attacks.libraries",
    "adapters.art": "attacks.libraries.art",
    "adapters.autoattack": "attacks.libraries.pyautoattack",
    "adapters.foolbox": "attacks.libraries.foolbox",
    "amounts": "foundation.amounts",
    "analyses.boundary": "analyses.tools.boundary",
    "analyses.configurations": "analyses.tools.configurations",
    "analyses.law_charts": "analyses.law.charts",
    "analyses.law_numbers": "analyses.law.numbers",
    "analyses.law_table": "analyses.law.table",
    "analyses.sigmoid": "analyses.law.sigmoid",
    "analyses.targets": "analyses.tools.targets",
    "arrays": "foundation.arrays",
    "benchmarking": "evaluation.benchmark",
    "computation": "evaluation.computation",
    "console": "foundation.console",
    "crash": "cli.crash",
    "denoiser": "models.denoisers",
    "errors": "foundation.errors",
    "evaluation.build": "experiment.build",
    "evaluation.check": "evaluation.quick_check",
    "evaluation.checks": "checks.preflight",
    "evaluation.coverage": "experiment.coverage",
    "evaluation.culprits": "checks.culprits",
    "evaluation.denoising": "checks.denoising",
    "evaluation.draws": "checks.draws",
    "evaluation.knowledge": "experiment.knowledge",
    "evaluation.levels": "checks.levels",
    "evaluation.outputs": "checks.outputs",
    "evaluation.sanity": "checks.short_attacks",
    "evaluation.spec": "experiment.spec",
    "evaluation.state": "experiment.state",
    "files": "foundation.files",
    "frozen": "foundation.frozen",
    "gradients": "purification.replay",
    "heads": "models.heads",
    "identity": "evaluation.identity",
    "image_folder": "foundation.image_folder",
    "images": "evaluation.purify_files",
    "inputs": "foundation.inputs",
    "listing": "cli.listing",
    "machine": "foundation.machine",
    "memory": "foundation.memory",
    "networks": "models.networks",
    "noise": "foundation.noise",
    "options": "foundation.options",
    "overrides": "foundation.overrides",
    "packaged": "foundation.packaged",
    "perceptual": "threats.perceptual",
    "philox": "foundation.philox",
    "pretrained": "models.diffusers",
    "program": "foundation.program",
    "progress": "cli.progress",
    "purify": "purification",
    "registry": "foundation.registry",
    "report": "reporting",
    "report.analyses": "reporting.analyses",
    "report.charts": "reporting.figures.charts",
    "report.checks": "reporting.checks",
    "report.comparison": "reporting.comparison",
    "report.figures": "reporting.figures",
    "report.heat": "reporting.figures.heat",
    "report.lines": "reporting.figures.curves",
    "report.page": "reporting.page",
    "report.picture": "reporting.picture",
    "report.strip": "reporting.strip",
    "report.tables": "reporting.tables",
    "results.crossed": "statistics.crossed",
    "results.estimates": "statistics.estimates",
    "results.intervals": "statistics.intervals",
    "results.locking": "foundation.locking",
    "samplers": "purification.samplers",
    "samplers.ddim": "purification.samplers.ddim",
    "samplers.ddpm": "purification.samplers.ddpm",
    "samplers.heun": "purification.samplers.heun",
    "samplers.method": "purification.samplers",
    "samplers.one_step": "purification.samplers.one_step",
    "samplers.reverse_only": "purification.samplers.reverse_only",
    "samplers.vpsde": "purification.samplers.vpsde",
    "schedule": "models.schedule",
    "spec": "foundation.spec",
    "threat": "threats.pixels",
    "toml": "foundation.toml",
    "training.fid": "fidelity",
    "types": "foundation.types",
    "weights": "models.weights",
}
"""Old and new places of modules, below ``dbpkit``."""


FUNCTIONS = frozenset({"report"})
"""Old paths that are names of public functions now."""


class Callable(ModuleType):
    """A module at an old path that is the name of a public function now, and can be called as such."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Calls the function of the same name."""
        name = self.__name__.rpartition(".")[2]
        return importlib.import_module("dbpkit").__getattr__(name)(*arguments, **options)


class MovedModules(MetaPathFinder, Loader):
    """Finds a module at its old path, warns, and gives the module at the new one."""

    def __init__(self) -> None:
        self._specs: dict[int, ModuleSpec | None] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns how to import an old path; None for all others."""
        del path, target
        old = fullname.removeprefix("dbpkit.")
        return ModuleSpec(fullname, self) if old != fullname and old in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Imports the module at its new path, with a deprecation note."""
        old = spec.name.removeprefix("dbpkit.")
        new = f"dbpkit.{MOVED[old]}"
        note = f"{spec.name} is {new} now; the old path goes in 0.3."
        warnings.warn(note, DeprecationWarning, stacklevel=2)
        found = importlib.import_module(new)
        self._specs[id(found)] = found.__spec__
        if old in FUNCTIONS:
            both = Callable(spec.name)
            both.__dict__.update({k: v for k, v in vars(found).items() if k not in ("__name__", "__spec__")})
            return both
        return found

    def exec_module(self, module: ModuleType) -> None:
        """Leaves a module that has run already alone, and gives it back its own spec."""
        module.__spec__ = self._specs.pop(id(module), module.__spec__)


def install() -> None:
    """Makes the old paths importable, once; before others look into the folders that modules moved to."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())
