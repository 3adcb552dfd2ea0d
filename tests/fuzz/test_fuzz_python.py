"""Public functions called from Python with one argument replaced by something odd: a value or a sentence.

Every function is called once as it should be, then with each argument in turn replaced by every odd value
that suits its kind. Only `UserError` is admitted.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from dbpkit import (
    L2,
    Linf,
    NoisePlan,
    PurifiedClassifier,
    Purifier,
    Target,
    Undefended,
    benchmark,
    check,
    load_classifier,
    load_dataset,
    load_denoiser,
)
from dbpkit.attacks import attacks, make_attack
from dbpkit.attacks.libraries import AlignedView
from dbpkit.foundation.errors import UserError
from dbpkit.threats.pixels import make_threat
from tests import parts
from tests.fuzz.harness import ODD as EVERYTHING
from tests.fuzz.harness import chooser, run_case
from tests.oracles import TinyClassifier, tiny_denoiser, uniform

ODD = tuple(value for value in EVERYTHING if value != "os:system")
"""Whoever types an import path means it; what it does is not ours."""

X, Y, NOISE = uniform(2, 3, 4, 4), torch.tensor([0, 2]), NoisePlan.of(3, [4, 5])

IMAGES: tuple[Any, ...] = (
    255 * X, 2 * X - 1, X * torch.nan, X / 0, (255 * X).byte(), (255 * X).int(), X > 0.5, X[0], X[:, 0],
    X[None], X.permute(0, 2, 3, 1), X[:0], X[:, :0], X[:1], X.numpy(), list(X), X.tolist(),
    X.to(torch.complex64), X.half(), X.float(), X.to_sparse(), X.clone().requires_grad_(), X.double() - 2e-6,
    None, 0.5, "x.png", {}, np.zeros((2, 4, 4, 3)), torch.zeros(()), X.expand(2, 3, 4, 4).transpose(2, 3),
)  # fmt: skip
LABELS: tuple[Any, ...] = (
    Y.float(), torch.eye(3)[Y], torch.eye(3)[Y].long(), Y[:, None], Y[:1], torch.cat([Y, Y]), Y - 1, Y + 7,
    Y.int(), Y.bool(), Y.tolist(), Y.numpy(), None, 0, "0", torch.tensor(0), Y.to(torch.complex64),
    Y.float() * torch.nan, {},
)  # fmt: skip
PLANS: tuple[Any, ...] = (
    NOISE.rows([0]), NOISE.repeat(2), NoisePlan.of(0, []), 0, "noise", X, [1, 2], {"seed": 0}, NoisePlan,
    Ellipsis,
)  # fmt: skip
MODELS: tuple[Any, ...] = (
    None, 0, "resnet", TinyClassifier, [], {}, X, torch.nn.Flatten, lambda _: None, lambda x: x,
    lambda x: x[0], lambda x: x.mean(dim=(2, 3)).squeeze(), lambda x: x.mean(dim=(2, 3)) > 0,
)  # fmt: skip
THREATS: tuple[Any, ...] = (None, 0.03, "linf", Linf, {"norm": "linf"}, X)
SEEDS = (*ODD, 1.0, 2**32, -1, torch.tensor(1), np.int64(3), np.float64(3.0))
INDICES: tuple[Any, ...] = (*ODD, [0.5], [5], [-3], [[0]], torch.tensor([True]), torch.tensor([1.5]), "ab", Y)
SPAN = Callable[..., Any]


class Public(NamedTuple):
    """A public function, arguments that suit it, and what each is replaced by."""

    call: SPAN
    good: dict[str, Any]
    odd: dict[str, tuple[Any, ...]]


def small(kind: Any = TinyClassifier) -> PurifiedClassifier:
    purifier = Purifier(tiny_denoiser(3), "one_step")
    return PurifiedClassifier(purifier, kind(3))


def functions(folder: Path) -> Iterator[tuple[str, Public]]:
    model, names = small(), itertools.count()
    batch = {"x": X, "y": Y, "noise": NOISE}
    inputs = {"x": IMAGES, "noise": PLANS}
    attacked = {**inputs, "y": LABELS, "threat": THREATS, "target": MODELS[:7]}
    purifying = {"sampler": "ddim", "t_star": 0.1, "steps": 50, "options": {}, "grid": {}, "memory_bytes": 0}
    yield (
        "Purifier",
        Public(
            lambda denoiser, **o: Purifier(denoiser, **o)(X, noise=NOISE),
            {"denoiser": tiny_denoiser(3), **purifying},
            {"denoiser": (*MODELS[:7], lambda x, _: x[:1], lambda *_: None), **dict.fromkeys(purifying, ODD)},
        ),
    )
    yield (
        "PurifiedClassifier",
        Public(
            lambda **o: PurifiedClassifier(**o),
            {"purifier": model.purifier, "classifier": TinyClassifier(3), "seed": 0},
            {"purifier": MODELS[:7], "classifier": MODELS[:7], "seed": SEEDS},
        ),
    )
    yield "Undefended", Public(lambda c: Undefended(c), {"c": TinyClassifier(3)}, {"c": MODELS[:7]})
    for name, one in {
        "model": model,
        "purifier": model.purifier,
        "undefended": Undefended(TinyClassifier(3)),
    }.items():
        yield name, Public(lambda one=one, **o: one(**o), {"x": X, "noise": NOISE}, inputs)
    yield "fresh", Public(lambda x: model(x), {"x": X}, {"x": IMAGES})
    yield "bound", Public(lambda noise, x: model.bind(noise)(x), {"noise": NOISE, "x": X}, inputs)
    yield (
        "draws",
        Public(lambda **o: model.draws(**o), {"x": X, "noise": NOISE, "count": 2}, {**inputs, "count": ODD}),
    )
    yield (
        "Target",
        Public(
            lambda **o: Target(**o)(X, noise=NOISE),
            {"model": model, "micro_batch": 2},
            {"model": MODELS[:7], "micro_batch": SEEDS},
        ),
    )
    yield (
        "gradient",
        Public(
            lambda **o: Target(model).gradient(**o),
            {**batch, "eot": 1, "loss": "ce"},
            {**inputs, "y": LABELS, "eot": ODD, "loss": ODD},
        ),
    )
    yield (
        "AlignedView",
        Public(
            lambda **o: AlignedView(model, **o)(X),
            {"noise": NOISE.rows([0]), "eot": 1, "draws": "fresh", "alignment": "single"},
            {"noise": PLANS[1:], "eot": ODD, "draws": ODD, "alignment": ODD},
        ),
    )
    for name in ("pgd", "apgd", "fab", "square", "selective_eot", "low_frequency"):
        options = {"iterations": 1, "eot": 1}
        yield (
            name,
            Public(
                attacks.get(name),
                {"target": model, **batch, "threat": Linf(0.03), **options},
                {**attacked, **dict.fromkeys(options, ODD)},
            ),
        )
    yield "pgd options", Public(
        attacks.get("pgd"),
        {"target": model, **batch, "threat": L2(0.5), "iterations": 1, "eot": 1, "step_size": 0.1,
         "start": "zero", "keep": "last", "keep_draws": 1, "loss": "ce"},
        {"step_size": ODD, "start": ODD, "keep": ODD, "keep_draws": ODD, "loss": ODD},
    )  # fmt: skip
    yield (
        "make_attack",
        Public(
            lambda name, options: make_attack(name, options),
            {"name": "pgd", "options": {}},
            {"name": ODD, "options": ODD},
        ),
    )
    key = {"seed": 0, "example_ids": [1, 2], "stream": "report", "draw": 0}
    yield (
        "NoisePlan.of",
        Public(NoisePlan.of, key, {"seed": SEEDS, "example_ids": INDICES, "stream": ODD, "draw": SEEDS}),
    )
    for name, odd in {
        "repeat": SEEDS,
        "rows": INDICES,
        "on": ODD,
        "at": SEEDS,
        "in_lane": SEEDS,
        "branch": SEEDS,
    }.items():
        good = {"repeat": 2, "rows": [0], "on": "attack", "at": 1, "in_lane": 1, "branch": 1}[name]
        yield (
            f"NoisePlan.{name}",
            Public(lambda v, name=name: getattr(NOISE, name)(v), {"v": good}, {"v": odd}),
        )
    yield (
        "NoisePlan.sharing",
        Public(NOISE.sharing, {"sites": ["forward"], "source": NOISE}, {"sites": ODD, "source": PLANS}),
    )
    yield (
        "NoisePlan.normal",
        Public(
            NOISE.normal,
            {"site": "forward", "step": 0, "like": X},
            {"site": ODD, "step": SEEDS, "like": IMAGES},
        ),
    )
    for kind in (Linf, L2):
        yield kind.__name__, Public(kind, {"eps": 0.1}, {"eps": (*SEEDS, 8, 300, 1e6, -1e-9)})
    yield "make_threat", Public(make_threat, {"norm": "linf", "eps": 0.1}, {"norm": ODD, "eps": ODD})
    yield (
        "check",
        Public(
            lambda model, **o: check(model, **o),
            {
                "model": lambda x: x.mean(dim=(2, 3)),
                "x": X,
                "y": Y,
                "threat": Linf(0.03),
                "noise": NOISE,
                "eot": 1,
            },
            {
                "model": MODELS[:7],
                "x": IMAGES[:20],
                "y": LABELS[:9],
                "threat": THREATS,
                "noise": PLANS[:6],
                "eot": ODD[5:16],
            },
        ),
    )
    run = {"dataset": (X, Y), "threat": "linf", "eps": "8/255", "attacks": [], "knowledge": ["white_box"],
           "protocol": "one_shot", "examples": 1, "order": "file", "draws": 1, "seed": 0}  # fmt: skip
    pgd = [{"name": "pgd", "options": {"iterations": 1, "eot": 1}}]
    yield "benchmark", Public(
        lambda **o: benchmark(**o, out=folder / f"run-{next(names)}"),
        {"model": parts.ChannelMean(), **run, "attacks": pgd},
        {"model": MODELS, "dataset": (*ODD, *IMAGES[:5], (X, Y, Y), (X.numpy(), Y.float()), [(X[0], 0)]),
         **{k: ODD for k in run if k != "dataset"}},
    )  # fmt: skip
    for load in (load_classifier, load_denoiser, load_dataset):
        yield load.__name__, Public(load, {"name": "embedded", "options": {}}, {"name": ODD, "options": ODD})
    yield (
        "Dataset[]",
        Public(
            lambda i: parts.data(6)[i],
            {"i": 0},
            {"i": [v for v in ODD if v not in (2**31, 2**63, -1, 10**30, -(10**30))]},
        ),
    )


def cases(folder: Path) -> list[tuple[str, Callable[[], Any]]]:
    """Every public function with one argument replaced; benchmark and check, which run long, in part."""
    found: list[tuple[str, Callable[[], Any]]] = []
    for name, public in functions(folder):
        for argument, odd in public.odd.items():
            for number, value in enumerate(odd):
                changed = {**public.good, argument: value}
                found.append(
                    (
                        f"{name} {argument} #{number} {str(value)[:40]!r}",
                        lambda p=public, c=changed: p.call(**c),
                    )
                )
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("share", [2, pytest.param(1, marks=pytest.mark.long)])
def test_public_functions_with_an_odd_argument_answer_or_say_a_sentence(tmp_path: Path, share: int) -> None:
    """Half of the cases, about 1,900, in every run; all of them in the longer mode."""
    tried = cases(tmp_path)
    chooser(9).shuffle(tried)
    tried = tried[::share]
    assert len(tried) >= 1500
    defects = []
    for name, case in tried:
        with torch.random.fork_rng():
            outcome = run_case(case, writes=[tmp_path], admitted=(UserError,))
        defects += [f"{name}: {d.strip().splitlines()[-1]}\n{d}" for d in outcome.defects]
    assert not defects, f"{len(defects)} defects:\n" + "\n".join(defects)


@pytest.mark.filterwarnings("ignore")
def test_public_functions_with_good_arguments_answer(tmp_path: Path) -> None:
    """So that the cases above fail for their odd argument, not for another one."""
    for name, public in functions(tmp_path):
        outcome = run_case(lambda p=public: p.call(**p.good), writes=[tmp_path], admitted=(UserError,))
        assert outcome.defects == [], name
        assert outcome.said == "", name
