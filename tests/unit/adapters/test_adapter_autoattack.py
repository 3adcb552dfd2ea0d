"""pyautoattack: frozen noise at two batch sizes, the alignment contract, and what is refused."""

import sys
from functools import partial
from typing import Any

import pytest
import torch

from dbpkit.attacks import Target
from dbpkit.attacks.libraries.alignment import AlignedView
from dbpkit.attacks.libraries.pyautoattack import PARTS, _configure, _Lengths, pyautoattack
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, ThreatModel
from tests.oracles import TinyClassifier, uniform
from tests.unit.adapters.models import (
    COUNT,
    Aligned,
    Taped,
    assert_any_batch_gives_the_same,
    labelled_images,
)

library = pytest.importorskip("pyautoattack")

CASES: dict[str, tuple[ThreatModel, dict[str, Any], bool]] = {
    "restarts": (Linf(0.05), {"iterations": 4, "restarts": 2}, True),
    "square": (Linf(0.05), {"parts": ["square"], "queries": 8}, True),
    "targeted": (L2(0.3), {"parts": ["apgd-t", "square"], "iterations": 3, "queries": 4}, True),
    "fab": (L2(0.5), {"parts": ["fab", "fab-t"], "iterations": 3}, False),
}


@pytest.mark.parametrize("case", list(CASES))
def test_pyautoattack_any_batch_size_gives_the_same_images_with_aligned_noise(case: str) -> None:
    threat, options, refuses = CASES[case]
    model, attack = Aligned(refuses=refuses, side=8), partial(pyautoattack, eot=2, **options)
    assert_any_batch_gives_the_same(attack, model, threat, used=0.2, side=8)


@pytest.mark.parametrize("part", ["apgd-ce", "square"])
def test_pyautoattack_frozen_noise_same_accuracy_at_batch_16_and_48(part: str) -> None:
    """Noise by position moves by 0.39 for APGD between these batch sizes in the same kind of model."""
    count, threat = 48, Linf(0.01)
    x = uniform(count, 1, 8, 8, low=0.4, high=0.6).float()
    tape = NoisePlan.of(3, range(count), "report")
    model = Taped(Aligned(refuses=False, side=8, sigma=0.1), tape)
    y = model(x, noise=tape).argmax(dim=1)
    noise = NoisePlan.of(0, range(count), "attack")
    accuracies, claims = [], []
    for size in (16, 48):
        parts = [
            pyautoattack(
                model,
                x[i : i + size],
                y[i : i + size],
                threat=threat,
                noise=noise.rows(slice(i, i + size)),
                parts=[part],
                iterations=3,
                queries=10,
                eot=1,
            )
            for i in range(0, count, size)
        ]
        x_adv = threat.project(x, torch.cat([p.x_adv for p in parts]))
        accuracies.append(float((model(x_adv, noise=tape).argmax(dim=1) == y).float().mean()))
        claims.append(1 - float(torch.cat([p.claimed for p in parts]).float().mean()))
    assert accuracies[0] == accuracies[1]
    assert 0 < accuracies[0] < 1
    assert claims == pytest.approx(
        accuracies, abs=1e-6
    )  # the library and we agree where noise is frozen and aligned


def test_pyautoattack_on_a_constant_view_is_stopped_when_it_drops_rows() -> None:
    """Called past the adapter, the view itself refuses."""
    x, model = labelled_images(side=8), Aligned(side=8)
    noise = NoisePlan.of(0, range(COUNT), "attack")
    y = model(x, noise=noise).argmax(dim=1)
    y[0] = (y[0] + 1) % 4  # wrong from the start, so the library drops it
    view = AlignedView(model, noise, draws="fixed", alignment="constant")
    evaluation = library.AutoAttack(view, norm="Linf", eps=0.05, seed=0, version="rand")
    evaluation.apgd.n_iter = 1
    tracer = sys.gettrace()
    try:
        with pytest.raises(
            UserError, match="sent 5 images to a model bound to 6 examples: it drops or cuts rows"
        ):
            evaluation.run_standard_evaluation(x, y, batch_size=COUNT)
    finally:
        sys.settrace(tracer)


def test_pyautoattack_constant_batch_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"'constant' is refused: pyautoattack drops the rows that one draw got"
    ):
        small(alignment="constant")


def test_pyautoattack_keeps_the_tracer_that_the_library_removes() -> None:
    def tracer(frame: Any, event: str, arg: Any) -> None: ...

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        small(iterations=1)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("version", list(PARTS))
def test_pyautoattack_versions_are_the_librarys(version: str) -> None:
    evaluation = library.AutoAttack(torch.nn.Identity(), version=version)
    assert tuple(evaluation.attacks_to_run) == PARTS[version]


@pytest.mark.parametrize("iterations", [1, 20, 100])
def test_pyautoattack_iterations_set_the_checkpoints_that_the_library_would(iterations: int) -> None:
    evaluation = library.AutoAttack(torch.nn.Identity(), version="rand")
    _configure(evaluation, ["apgd-ce"], 9, _Lengths(iterations, None, None))
    expected = type(evaluation.apgd)(torch.nn.Identity(), n_iter=iterations, eps=0.1)
    for name in ("n_iter", "n_iter_orig", "n_iter_2", "n_iter_min", "size_decr"):
        assert getattr(evaluation.apgd, name) == getattr(expected, name), name
    assert evaluation.apgd.eot_iter == 1


def test_pyautoattack_queries_and_restarts_reach_the_library() -> None:
    """Square on images that it cannot break: its budget of queries, and the checks before it, by count."""
    target = Target(Undefended(TinyClassifier(classes=4).float()))
    x = uniform(1, 1, 8, 8).float()
    y = target.model(x, noise=NoisePlan.of(0, [0])).argmax(dim=1)
    passes = []
    for queries in (5, 25):
        target.forward_passes.clear()
        pyautoattack(
            target,
            x,
            y,
            threat=Linf(1e-4),
            noise=NoisePlan.of(0, [0]),
            parts=["square"],
            queries=queries,
            restarts=2,
            eot=1,
        )
        passes.append(target.forward_rows)
    assert passes[1] - passes[0] == 2 * 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "standrad"}, "version must be 'standard', 'plus' or 'rand', not"),
        ({"parts": ["apgd"]}, "unknown part of pyautoattack 'apgd'"),
        ({"parts": ["apgd-t"]}, "'apgd-t' needs at least 4 classes, the model has 3"),
    ],
)
def test_pyautoattack_wrong_option_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def small(**options: Any) -> Any:
    x, y = uniform(2, 1, 4, 4).float(), torch.tensor([0, 1])
    model = Undefended(TinyClassifier().float())
    return pyautoattack(model, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [1, 2]), eot=1, **options)
