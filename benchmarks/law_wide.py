"""The law over many models: 3 data sets, 4 classifiers each, several denoisers and purifiers, 2 norms.

    python -m benchmarks.law_wide DIR --weights WEIGHTS [--only cifar10] [--rank 0 --world 2]
    python -m benchmarks.law_wide_fit DIR --out benchmarks/results/law-wide.json

Each purified classifier is one unit and one file in DIR: what is there is not measured again, and rank k of a
world takes every world-th unit. WEIGHTS holds what ``dbpkit train specs/train/law-NAME.toml`` makes, as
NAME.safetensors. Per image: accuracy and the classifier's margin at the anchor, compression rate in a random
direction and along the first step of the attack, gradients under two tapes, and whether the image withstands
the exact attack that knows the noise, in Linf and L2.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dbpkit import EvaluationSpec
from dbpkit.analyses.analysis import Subject
from dbpkit.analyses.tools.configurations import screen, settings, survival, with_purifier
from dbpkit.analyses.tools.directions import TINY, budget_length, lengths
from dbpkit.analyses.tools.targets import draw_gradients
from dbpkit.experiment.build import build
from dbpkit.foundation.files import write_atomically
from dbpkit.foundation.machine import settle
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.spec import validate
from dbpkit.threats.pixels import make_threat

ITERATIONS = 8
"""Steps of the attack; one gradient each."""

SMALL = {"variance": "small"}


def purifier(sampler: str, t_star: float, steps: int = 20, **options: Any) -> dict[str, Any]:
    """A setting as a spec has it."""
    return {"sampler": sampler, "t_star": t_star, "steps": steps, "options": options}


ONE, LATE = purifier("one_step", 0.05), purifier("one_step", 0.15)
"""The cheapest purifier at two noise levels."""

SILENT = purifier("reverse_only", 0.1, 10, **SMALL)
"""One call and no forward noise."""

CHAINS = [purifier("ddpm", 0.1, **SMALL), purifier("ddim", 0.15), purifier("ddpm", 0.2, 10, **SMALL)]
"""Purifiers of 2 and 3 network calls."""


class Models(NamedTuple):
    """What is measured on one data set.

    Attributes:
        data: its name in a spec.
        budgets: of each norm, near the point where half of the right anchors stand, set on other images.
        classifiers: by name, one of `KNOWN` or a file of WEIGHTS.
        denoisers: the same.
        rounds: settings of each round, dealt out to the models in turn, so that a study that is cut off after
            a round is still balanced.
    """

    data: str
    budgets: Mapping[str, str]
    classifiers: Mapping[str, str]
    denoisers: Mapping[str, str]
    rounds: list[list[dict[str, Any]]]


def own(data: str, *names: str) -> dict[str, str]:
    """Names and files of the models that were trained for the study."""
    return {name: f"{data}-{name}.safetensors" for name in names}


KNOWN: dict[str, Any] = {
    "embedded": "embedded",
    "addt": {"name": "embedded", "options": {"variant": "addt"}},
    "unmirrored": {"name": "embedded", "options": {"mirror": False}},  # half the cost
}
"""Models in the package, by the name they have here."""

CLASSIFIERS = ("resnet9", "vgg", "wrn", "resnet9-adv")
STUDY = {
    "digits": Models(
        "digits",
        {"linf": "40/255", "l2": "0.9"},
        own("digits", *CLASSIFIERS),
        own("digits", "denoiser"),
        [[ONE], [LATE], [SILENT], *([chain] for chain in CHAINS)],
    ),
    "fashion": Models(
        "fashion_mnist",
        {"linf": "8/255", "l2": "0.6"},
        own("fashion", *CLASSIFIERS),
        own("fashion", "denoiser"),
        [[ONE], [LATE], [SILENT], *([chain] for chain in CHAINS[:1])],
    ),
    "cifar10": Models(
        "embedded",
        {"linf": "3/255", "l2": "0.4"},
        {"resnet9": "unmirrored", **own("cifar10", *CLASSIFIERS[1:])},
        {"plain": "embedded", "addt": "addt"},
        [[ONE, LATE], [LATE, ONE], [SILENT]],
    ),
}


class Work(NamedTuple):
    """One purified classifier on one data set."""

    group: str
    classifier: str
    denoiser: str
    purifier: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the unit and its file."""
        (setting,) = settings([self.purifier])
        words = [self.group, self.classifier, self.denoiser, *setting.name.split()]
        return "_".join(words).replace("=", "").replace("*", "")

    def spec(self, weights: Path) -> EvaluationSpec:
        """The spec of its parts."""
        models = STUDY[self.group]

        def part(named: str) -> Any:
            return KNOWN.get(named) or {"name": "weights", "options": {"path": str(weights / named)}}

        table = {
            "data": models.data,
            "classifier": part(models.classifiers[self.classifier]),
            "denoiser": part(models.denoisers[self.denoiser]),
            "purifier": self.purifier,
            "threat": {"norm": "linf", "eps": models.budgets["linf"]},
            "attacks": ["pgd"],
        }
        return validate(table, EvaluationSpec, self.name)


def works(only: str = "") -> Iterator[Work]:
    """All units, round by round."""
    for group, models in STUDY.items():
        if only in ("", group):
            for dealt in models.rounds:
                for (i, denoiser), (j, classifier) in product(
                    enumerate(models.denoisers), enumerate(models.classifiers)
                ):
                    yield Work(group, classifier, denoiser, dealt[(i + j) % len(dealt)])


def attacked(
    subject: Subject, x: Tensor, y: Tensor, anchor: Tensor, noise: NoisePlan, grad: Tensor, eps: float
) -> dict[str, list[Any]]:
    """What an image withstands in the norm of the subject's threat, and its rate along the first step."""
    threat = subject.parts.threat
    step = threat.project(x, x + eps * threat.steepest(grad)) - x
    moved = lengths(subject.purify(x + step, noise) - anchor)
    found = survival(subject, x, y, anchor, noise, 0, [eps], ITERATIONS)
    return {
        "step_rate": (moved / lengths(step).clamp_min(TINY)).tolist(),
        "step_length": lengths(step).tolist(),
        "budget_length": budget_length(subject, x).tolist(),
        **{key: [one[0] for one in values] for key, values in found.items()},
    }


def measured(subject: Subject, images: range, budgets: Mapping[str, str]) -> dict[str, Any]:
    """All that is recorded of a batch."""
    x, y, noise = subject.examples(images)
    anchor = subject.purify(x, noise)
    grads = draw_gradients(subject, x, y, noise, 2).double().flatten(2)  # draw 0 is the tape that is attacked
    record: dict[str, Any] = {
        **screen(subject, x, y, anchor, noise, 1),
        "products": torch.einsum("brd,bsd->brs", grads, grads).tolist(),
    }
    grad = grads[:, 0].view_as(x).to(x.dtype)
    for norm in budgets:
        threat = make_threat(norm, budget(budgets[norm]))
        spec = subject.spec.model_copy(update={"threat": validated_threat(subject.spec, norm, budgets[norm])})
        at = subject._replace(spec=spec, parts=subject.parts._replace(threat=threat))
        record[norm] = attacked(at, x, y, anchor, noise, grad, threat.eps)
    return record


def budget(text: str) -> float:
    """A budget in pixel units."""
    top, _, bottom = text.partition("/")
    return float(top) / float(bottom or 1)


def validated_threat(spec: EvaluationSpec, norm: str, eps: str) -> Any:
    """The spec's threat in another norm."""
    return type(spec.threat).model_validate({"norm": norm, "eps": eps})


def measure(work: Work, weights: Path, first: int, images: int) -> dict[str, Any]:
    """One unit, batch by batch of 32."""
    spec, started = work.spec(weights), time.perf_counter()
    parts = build(spec, "cpu")
    subject = with_purifier(Subject(spec, parts), settings([work.purifier])[0])
    stops = range(first, first + images, 32)
    batches = [
        measured(subject, range(s, min(s + 32, first + images)), STUDY[work.group].budgets) for s in stops
    ]
    return {
        **work._asdict(),
        "budgets": dict(STUDY[work.group].budgets),
        "hashes": parts.hashes,
        "seconds": round(time.perf_counter() - started, 1),
        "images": merged(batches),
    }


def merged(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Lists over batches put one behind the other."""
    return {
        key: merged([b[key] for b in batches])
        if isinstance(batches[0][key], dict)
        else [v for b in batches for v in b[key]]
        for key in batches[0]
    }


def main() -> None:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    arguments = parser.parse_args()
    settle()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for work in list(works(arguments.only))[arguments.rank :: arguments.world]:
        path = arguments.out / f"{work.name}.json"
        if path.exists():
            continue
        record = measure(work, arguments.weights, arguments.first, arguments.images)
        write_atomically(path, json.dumps(record).encode())
        found = record["images"]
        shares = {norm: sum(found[norm]["survived"]) / len(found["right"]) for norm in record["budgets"]}
        print(
            work.name,
            f"{sum(found['right']) / len(found['right']):.2f}",
            shares,
            record["seconds"],
            flush=True,
        )


if __name__ == "__main__":
    main()
