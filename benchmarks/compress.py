"""What training for compression buys: accuracy at known noise, and what the law predicts of it.

    python -m benchmarks.compress DIR --models clean=clean.safetensors compress=compress.safetensors

Every denoiser purifies the same images at the same noise, and PGD that knows the noise attacks them. Records
are kept batch by batch in DIR, so that the same command goes on where it stopped. Differences are to the
first model. ``vanilla`` and ``addt`` without a file are the embedded denoisers.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dbpkit import EvaluationSpec
from dbpkit.analyses.analysis import Subject
from dbpkit.analyses.tools.configurations import budget_lengths, per_image, predicted, screen, survival
from dbpkit.experiment.build import build
from dbpkit.foundation.machine import settle
from dbpkit.foundation.spec import validate
from dbpkit.statistics.intervals import difference, mean, share

BATCH = 32
"""Images of one record."""

Record = dict[str, list[Any]]
"""What is known of every image: lists of one value each."""


class Protocol(NamedTuple):
    """How denoisers are compared.

    Attributes:
        images: how many of the embedded test images.
        sampler: of the chain.
        steps: S of its grid.
        eps: Linf budget as text.
        iterations: steps of PGD.
        classifier: ``"embedded"``, or a weights file.
        law: whether to measure what the law predicts from, too.
    """

    images: int = 256
    sampler: str = "ddim"
    steps: int = 50
    eps: str = "2/255"
    iterations: int = 10
    classifier: str = "embedded"
    law: bool = False


def subject_of(weights: str, protocol: Protocol) -> Subject:
    """The purified classifier whose denoiser is a weights file, or an embedded one by its variant."""
    embedded = weights in ("vanilla", "addt")
    options = {"variant": weights} if embedded else {"path": weights}
    own = protocol.classifier == "embedded"
    content = {
        "name": "compress",
        "data": "embedded",
        "classifier": "embedded" if own else {"name": "weights", "options": {"path": protocol.classifier}},
        "denoiser": {"name": "embedded" if embedded else "weights", "options": options},
        "purifier": {"sampler": protocol.sampler, "t_star": 0.1, "steps": protocol.steps},
        "threat": {"norm": "linf", "eps": protocol.eps},
        "examples": {"count": protocol.images, "order": "file"},
        "attacks": ["pgd"],
        "knowledge": ["dw_both"],
    }
    spec = validate(content, EvaluationSpec, "benchmarks.compress")
    return Subject(spec, build(spec, torch.device("cpu")), BATCH)


def measured(subject: Subject, positions: range, protocol: Protocol) -> Record:
    """Images at one known tape: right without an attack and under it, rates, margin at the anchor."""
    x, y, noise = subject.examples(positions)
    eps = [subject.parts.threat.eps]
    anchor = subject.purify(x, noise.at(0))
    found = survival(subject, x, y, anchor, noise, 0, eps, protocol.iterations)
    record: Record = {key: [of[0] for of in values] for key, values in found.items()}
    if not protocol.law:
        return record | {"right": (subject.classify(anchor).argmax(1) == y).tolist()}
    lengths = per_image({"lengths": budget_lengths(subject, eps, x)}, len(x))[:, 0].tolist()
    return record | screen(subject, x, y, anchor, noise.at(0), directions=2) | {"budget": lengths}


def recorded(file: Path, weights: str, protocol: Protocol) -> Record:
    """All images of one denoiser: what the file has, and what is still missing."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    subject = subject_of(weights, protocol)
    for start in range(len(lines) * BATCH, protocol.images, BATCH):
        line = measured(subject, range(start, min(start + BATCH, protocol.images)), protocol)
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
        lines.append(line)
        print(file.name, start + BATCH, np.mean(line["survived"]), flush=True)
    return {key: [v for line in lines for v in line[key]] for key in lines[0]}


def row_of(own: Record, first: Record | None) -> dict[str, Any]:
    """The figures of one denoiser, with 95 % intervals, and its differences to the first one."""
    found = {
        "clean": _said(share(_floats(own["right"]))),
        "dw_both": _said(share(_floats(own["survived"]))),
        "rate, attack": _said(mean(_floats([r for r in own["attack_rate"] if r is not None]))),
    }
    if "margin" in own:
        found["rate, random"] = _said(mean(_floats(own["rate"])))
        for name in ("random", "attack"):
            rate = found[f"rate, {name}"]["value"]
            guess = predicted(own["right"], own["margin"], rate, own["budget"])
            found[f"predicted, rate {name}"] = _said(share(_floats(guess)))
    if first is not None:
        for name, key in (("clean", "right"), ("dw_both", "survived")):
            less = _floats(own[key]) - _floats(first[key])
            found[f"{name}, difference"] = _said(difference(less))
    return found


def _floats(values: Sequence[Any]) -> np.ndarray:
    return np.asarray(values, dtype=float)


def _said(interval: Any) -> dict[str, float]:
    value, low, high = interval[:3]
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what is missing and prints the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME[=WEIGHTS]")
    defaults = Protocol()
    parser.add_argument("--law", action="store_true")
    for name, value in defaults._asdict().items():
        if name != "law":
            parser.add_argument(f"--{name}", type=type(value), default=value)
    given = parser.parse_args(words)
    protocol = Protocol(**{name: getattr(given, name) for name in defaults._fields})
    given.directory.mkdir(parents=True, exist_ok=True)
    chain = f"{protocol.sampler}-{protocol.steps}-{protocol.eps.replace('/', '_')}-{protocol.iterations}"
    key = f"{chain}-{Path(protocol.classifier).parent.name or protocol.classifier}{'-law' * protocol.law}"
    rows: dict[str, Any] = {}
    first = None
    for model in given.models:
        name, _, weights = model.partition("=")
        own = recorded(given.directory / f"{name}-{key}.jsonl", weights or name, protocol)
        rows[name] = row_of(own, first)
        first = first or own
    print(json.dumps({"protocol": protocol._asdict(), "models": rows}, indent=1))
    return rows


if __name__ == "__main__":
    settle()
    main()
