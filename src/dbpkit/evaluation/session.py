"""Who a run is: hashes of weights, data and code, noted in every session and compared with the earlier ones.

A path does not identify a file: another one may be there the next time.
"""

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import torch

from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import Execution
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.packaged import code_sha256
from dbpkit.foundation.precision import current_precision
from dbpkit.results.analysis import AnalysisRecords, analysed
from dbpkit.results.run_directory import RunDirectory

RESTORE = "Restore it or use a new --out."


def refuse_other_parts(run: RunDirectory, parts: Parts, remedy: str = RESTORE) -> None:
    """Raises UserError, ending in a remedy, unless weights and data are those of all that the run holds.

    What was made with fewer examples is compared with as many of the first of these.
    """
    for what, noted in _noted(run):
        shared = min(noted.get("examples") or len(parts.data), len(parts.data))
        for name, value in hashes_of(parts, shared).items():
            recorded = noted.get(name) or value
            if recorded != value:
                raise UserError(
                    f"{what} was made with another {name.removesuffix('_sha256')} (sha256"
                    f" {recorded[:12]}, now {value[:12]}). {remedy}"
                )


def _noted(run: RunDirectory) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What sessions of the evaluation and of analyses noted, and what each is called."""
    for session in run.sessions():
        yield str(run.path), session
    for name in analysed(run):
        settings = AnalysisRecords(run, name).settings()
        if settings is not None:
            asked = run.spec()["spec"]["examples"].get("count")  # older analyses did not note their examples
            yield f"analysis '{name}' in {run.path}", {"examples": asked, **settings, **settings["hashes"]}


def hashes_of(parts: Parts, examples: int) -> Mapping[str, str]:
    """Returns the hashes of the parts, that of the data over the first so many examples."""
    if examples == len(parts.data):
        return parts.hashes
    return {**parts.hashes, "data_sha256": parts.data.select(slice(0, examples)).sha256}


def enter_session(run: RunDirectory, parts: Parts, execution: Execution) -> None:
    """Notes versions, device and hashes; UserError if there are records and no session that made them."""
    sessions = run.sessions()
    if not sessions and run.columns().rows:
        raise UserError(
            f"'{run.path / 'env.json'}' is missing, so the weights and data of its records are unknown."
            " Restore it or use a new --out."
        )
    packages = ("dbpkit", "torch", "numpy", "safetensors")
    session: dict[str, Any] = {
        **parts.hashes,
        "examples": len(parts.data),
        "code_sha256": code_sha256(),
        "versions": {"python": platform.python_version(), **{p: _version(p) for p in packages}},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "precision": current_precision(),
        **execution.noted(),
    }
    if execution.world > 1:
        session["shard"] = f"{execution.rank + 1}/{execution.world}"
    if session not in sessions:
        run.write_json("env.json", [*sessions, session])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
