"""Signal and noise of the attack gradient over 12 purifiers, and what white-box attacks lose to the noise.

    python -m benchmarks.gradient_variance DIR [--images 128] [--shard K/N] [--read] [--out FILE]

One analysis, ``gradient_variance``, of the embedded models in one run directory. It goes on where it was
stopped, batch of images by batch of images over all purifiers; the networks compute in bfloat16.
"""

import argparse
import json
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbpkit.analyses.analysis import Unit, cut
from dbpkit.analyses.gradient_variance import BATCH, GradientVariance, by_purifier
from dbpkit.analyses.run import analyse
from dbpkit.analyses.tools.gradient_numbers import parts_of_power
from dbpkit.experiment.execution import Execution, shared
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate
from dbpkit.results.analysis import AnalysisRecords, Conclusion
from dbpkit.results.run_directory import RunDirectory
from dbpkit.statistics.components import needed_draws
from dbpkit.statistics.intervals import share

SMALL = {"variance": "small"}
CONFIGURATIONS: list[dict[str, Any]] = [
    *({"sampler": "one_step", "t_star": t, "steps": 20} for t in (0.05, 0.1, 0.15, 0.2)),
    *({"sampler": "ddim", "t_star": t, "steps": s} for t, s in ((0.05, 20), (0.1, 10))),
    *(
        {"sampler": "ddpm", "t_star": t, "steps": s, "options": SMALL}
        for t, s in ((0.05, 40), (0.1, 20), (0.2, 10))
    ),
    {"sampler": "reverse_only", "t_star": 0.1, "steps": 20, "options": SMALL},
    *(
        {"sampler": "heun", "t_star": t, "steps": 2, "options": {"churn": 6}, "grid": {"sigma_min": 0.05}}
        for t in (0.05, 0.1)
    ),
]
"""Twelve purifiers of one to three network calls, with forward noise, reverse noise or both.

Chains of two calls hardly have reverse noise: it is drawn at the lowest level. Heun's churn is reverse noise
at the highest.
"""

OPTIONS: dict[str, Any] = {
    "forward": 2,
    "reverse": 2,
    "fresh": 8,
    "configurations": CONFIGURATIONS,
    "iterations": 4,
    "eot": 3,
    "draws": 4,
    "tapes": 1,
}

SPEC: dict[str, Any] = {
    "name": "gradient variance",
    "data": "embedded",
    "classifier": "embedded",
    "denoiser": "embedded",
    "purifier": {"sampler": "ddpm", "t_star": 0.1, "steps": 20, "options": SMALL},
    "threat": {"norm": "linf", "eps": "8/255"},
    "precision": "bfloat16",
    "examples": {"count": 128, "order": "file"},
}


def study(folder: Path, images: int, shard: str | None = None) -> None:
    """Runs the analysis, or goes on with it.

    Args:
        folder: run directory.
        images: how many of the embedded test images.
        shard: K/N for the K-th of N processes; of 13, the first has the spec's own purifier.
    """
    spec = validate(SPEC, EvaluationSpec, "benchmarks.gradient_variance")
    chosen = {"gradient_variance": {**OPTIONS, "images": images}}
    execution = shared(Execution(device="cpu", micro_batch=32), shard)
    analyse(spec, folder, chosen, execution, progress=_say)


def concluded(folder: Path) -> tuple[Conclusion, dict[str, int], dict[str, Any]]:
    """What follows from the records so far, how many images they are of, and a row for every purifier.

    The spec's own purifier has all batches that are recorded of it, the configurations those of all of them.
    """
    analysis = GradientVariance(**{**OPTIONS, "images": SPEC["examples"]["count"]})
    found = AnalysisRecords(RunDirectory(folder), "gradient_variance").read()
    units = [u for u in analysis.of_each(cut(analysis.images, BATCH)) if str(u) in found]
    whole = [u.images for u in units if sum(v.images == u.images for v in units) > len(CONFIGURATIONS)]
    kept = [u for u in units if u.of is None or u.images in whole]
    images = {
        "own": sum(len(u.images) for u in kept if u.of is None),
        "configurations": sum(map(len, set(whole))),
    }
    measured = {u: found[str(u)] for u in kept}
    return analysis.conclude(measured), images, rows(measured)


def rows(measured: Mapping[Unit, Any]) -> dict[str, Any]:
    """Of every configuration: accuracies, parts of the power, draws for a cosine of 1/2, each with interval.

    Infinite draws are written as text, for JSON has no number for them.
    """
    found = {}
    for setting, own in by_purifier(measured)[1].items():
        columns = {
            "clean": share(own.right),
            "white box": share(own.white_box),
            "DW_Both": share(own.dw_both),
            **parts_of_power(own),
            "draws for 1/2": needed_draws(own.cosines(), own.evenness()),
        }
        found[str(setting)] = {k: [_finite(v) for v in ends[:3]] for k, ends in columns.items()}
    return found


def _finite(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _say(share: float, what: str) -> None:
    print(f"{share:.3f} {what}", flush=True)


def main() -> None:
    """Runs the study and writes its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--shard", help="K/N for the K-th of N processes")
    parser.add_argument("--read", action="store_true", help="measure nothing more")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not asked.read:
        study(asked.folder, asked.images, asked.shard)
    conclusion, images, purifiers = concluded(asked.folder)
    numbers = [{**n._asdict(), "holds": n.holds} for n in conclusion.numbers]
    content = {
        "what": "signal and noise of the attack gradient, and white box minus DW_Both, over 12 purifiers",
        "command": f"python -m benchmarks.gradient_variance DIR --images {asked.images}",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, {platform.system()}",
        "images": images,
        "spec": SPEC,
        "options": OPTIONS,
        "sentences": conclusion.sentences,
        "purifiers": purifiers,
        "numbers": [{k: v for k, v in n.items() if v not in (None, "")} for n in numbers],
    }
    print("\n".join(conclusion.sentences))
    if asked.out:
        asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
