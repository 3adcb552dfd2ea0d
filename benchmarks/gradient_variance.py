"""Signal and noise of the attack gradient over 12 purifiers, and what white-box attacks lose to the noise.

    python -m benchmarks.gradient_variance DIR [--images 128] [--out FILE]

One analysis, ``gradient_variance``, of the embedded models in one run directory. It goes on where it was
stopped, batch of images by batch of images over all purifiers; the networks compute in bfloat16.
"""

import argparse
from pathlib import Path
from typing import Any

from dbpkit.analyses.run import analyse
from dbpkit.experiment.execution import Execution
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.spec import validate

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
}


def study(folder: Path, images: int) -> Any:
    """Runs the analysis, or goes on with it; returns its result."""
    table = {**SPEC, "examples": {"count": images, "order": "file"}}
    spec = validate(table, EvaluationSpec, "benchmarks.gradient_variance")
    chosen = {"gradient_variance": {**OPTIONS, "images": images}}
    return analyse(spec, folder, chosen, Execution(device="cpu", micro_batch=32), progress=_say)


def _say(share: float, what: str) -> None:
    print(f"{share:.3f} {what}", flush=True)


def main() -> None:
    """Runs the study and writes its numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    study(asked.folder, asked.images)


if __name__ == "__main__":
    main()
