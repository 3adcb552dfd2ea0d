"""Nothing of a computation outlives it: no graph of any registered part, and no byte of memory.

Each part runs often: as it should, with results that are dropped before any backward pass, and with an error
inside. After each no autograd graph may be alive, without help from the garbage collector.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dbpkit.analyses.analysis import analyses
from dbpkit.analyses.run import make_analysis
from dbpkit.attacks import Target, attacks, make_attack
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import State
from dbpkit.models.denoisers import EDMDenoiser
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.replay import Replay
from dbpkit.purification.samplers import samplers
from dbpkit.purification.views import gradients
from dbpkit.threats.pixels import Linf
from dbpkit.training.objectives import Batch, make_objective, objectives
from dbpkit.training.perturb import perturbations
from tests.leaks import FLAT, Observed, Probed, left_after_an_error, observed
from tests.oracles import TinyClassifier, TinyNetwork, few_steps, uniform
from tests.unit.analyses.linear import subject
from tests.unit.analyses.test_contract import DATA, short
from tests.unit.test_attacks import SHORT

BUDGETS = {"replayed": 0, "some kept": 6000, "kept": 2**30}
SHORTEST: dict[str, list[dict[str, Any]]] = {
    "apgd": [{"iterations": 2, "eot": 1, "judge_draws": 2}],
    "autoattack": [{"iterations": 1, "eot": 1, "judge_draws": 1, "parts": ["apgd", "fab", "square"]}],
    "autopilot": [{"gradients": 16}],
    "square": [{"iterations": 3, "eot": 1}],
}
"""Shorter than those of the tests of the seam."""
LIBRARIES: dict[str, dict[str, Any]] = {
    "art": {"iterations": 2, "eot": 2},
    "foolbox": {"iterations": 2, "eot": 2},
    "pyautoattack": {"iterations": 2, "eot": 2},
}
WITHOUT_GRADIENT = {"square", "randomness"}
"""Parts that make no graph at all."""
GUIDE = "tests.unit.test_leaks:guide"


def model_of(sampler: str = "ddpm", memory_bytes: int = 0, steps: int = 50) -> PurifiedClassifier:
    """A purified classifier with a sentinel in the graph of every network call."""
    purifier = Purifier(EDMDenoiser(Probed(TinyNetwork())), sampler, steps=steps, memory_bytes=memory_bytes)
    return PurifiedClassifier(purifier, Probed(TinyClassifier(classes=4)))


def gradient_of(view: Any, backward: bool = True, create_graph: bool = False) -> None:
    """One pass through a view, dropped with or without a backward pass."""
    x = uniform(2, 1, 4, 4).requires_grad_()
    loss = view(x, noise=NoisePlan.of(3, [4, 5])).logsumexp(1).sum()
    if backward:
        (grad,) = torch.autograd.grad(loss, x, create_graph=create_graph)
        if create_graph:
            torch.autograd.grad(grad.square().sum(), x)


def attack_of(name: str, options: dict[str, Any], model: Any) -> None:
    x, y = uniform(2, 1, 4, 4, low=0.3, high=0.7), torch.tensor([0, 1])
    plan = NoisePlan.of(0, [4, 5], "attack")
    make_attack(name, options)(Target(model), x, y, threat=Linf(0.05), noise=plan)


def analysis_of(name: str, own: Any) -> None:
    options = short(name)
    options.update({"images": 1} if "images" in options else {})
    analysis, done = make_analysis(name, options), {}
    for unit in analysis.units(own):
        done[unit] = analysis.measure(own._replace(done=done), unit)


def guide() -> Any:
    """What guides a perturbation of the training noise."""
    return Probed(TinyClassifier()).requires_grad_(False)


def objective_of(name: str, options: dict[str, Any], model: Any, backward: bool = True) -> None:
    noise = NoisePlan.of(3, range(4), "train")
    batch = Batch(uniform(4, 1, 4, 4), torch.arange(4) % 3, noise)
    loss = make_objective(name, options).loss(model, batch)
    if backward:
        loss.backward()
        model.zero_grad()


def view_cases() -> dict[str, Callable[[], None]]:
    """Views with some graphs kept and others replayed; samplers with none, some and all kept."""
    cases: dict[str, Callable[[], None]] = {}
    for name in gradients:
        view = gradients.get(name)(model_of("ddpm", BUDGETS["some kept"]))
        cases[f"view {name}"] = partial(gradient_of, view)
    for name in samplers:
        for budget, memory in BUDGETS.items():
            model = model_of(name, memory, few_steps(name))
            cases[f"sampler {name}, {budget}"] = partial(gradient_of, model)
            if budget == "some kept":
                cases[f"sampler {name}, {budget}, dropped"] = partial(gradient_of, model, backward=False)
    second = partial(gradient_of, model_of("ddpm"), create_graph=True)
    return {**cases, "second derivative": second}


def attack_cases() -> dict[str, Callable[[], None]]:
    return {
        f"attack {name}, {i}": partial(attack_of, name, options, model_of("ddpm", 6000, 20))
        for name in attacks
        if name not in LIBRARIES
        for i, options in enumerate(SHORTEST.get(name, SHORT.get(name, [{}])[:1]))
    }


def analysis_cases() -> dict[str, Callable[[], None]]:
    parts = {"classifier": "tests.leaks:channel_mean", "denoiser": "tests.leaks:gaussian", "data": DATA}
    own = subject("ddpm", **parts)
    return {f"analysis {name}": partial(analysis_of, name, own) for name in analyses}


def objective_cases() -> dict[str, Callable[[], None]]:
    classifier, denoiser = Probed(TinyClassifier()), EDMDenoiser(Probed(TinyNetwork())).requires_grad_(True)
    cases = {}
    for name in objectives:
        if name == "denoising":
            for p in perturbations:
                guided = {"guide": GUIDE} if perturbations.get(p).needs_guide else {}
                run = partial(objective_of, name, {"perturbation": p, **guided}, denoiser)
                cases[f"objective {name} {p}"] = run
                cases[f"objective {name} {p}, dropped"] = partial(run, backward=False)
        elif objectives.get(name).kind == "denoiser":
            run = partial(objective_of, name, {"guide": GUIDE}, denoiser)
            cases[f"objective {name}"] = run
            cases[f"objective {name}, dropped"] = partial(run, backward=False)
        else:
            options = {"shift": 1, "cutout": 2} if name == "classification" else {}
            cases[f"objective {name}"] = partial(objective_of, name, options, classifier)
            if name == "classification":
                attacked = partial(objective_of, name, {**options, "adversarial": "pgd"}, classifier)
                cases[f"objective {name} adversarial"] = attacked
    return cases


CASES = {**view_cases(), **attack_cases(), **analysis_cases(), **objective_cases()}
each_case = pytest.mark.parametrize("case", list(CASES))


def makes_no_graph(case: str) -> bool:
    return bool(WITHOUT_GRADIENT & set(case.replace(",", " ").split()))


@each_case
def test_repeated_no_graph_is_left_and_memory_stays(case: str) -> None:
    found = observed(CASES[case])
    assert found.made > 0 or makes_no_graph(case)
    assert found.left == 0
    assert found.growth <= FLAT


@each_case
def test_error_inside_leaves_no_graph(case: str) -> None:
    """In the first call of a network, and in one behind it; a part that makes one call fails there only."""
    assert left_after_an_error(CASES[case], 1) == 0
    assert not left_after_an_error(CASES[case], 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LIBRARIES))
def test_attack_of_another_library_leaves_no_graph(name: str) -> None:
    pytest.importorskip({"art": "art", "foolbox": "foolbox", "pyautoattack": "autoattack"}[name])
    found = observed(partial(attack_of, name, LIBRARIES[name], model_of("ddpm", 6000, 20)), tries=1)
    assert found.made > 0
    assert found.left == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", list(BUDGETS))
@pytest.mark.parametrize("sampler", list(samplers))
def test_repeated_on_cuda_allocated_memory_stays_to_the_byte(sampler: str, budget: str) -> None:
    model, noise = model_of(sampler, BUDGETS[budget], few_steps(sampler)).cuda(), NoisePlan.of(3, [4, 5])
    sizes = []
    for i in range(12):
        x = uniform(2, 1, 4, 4).cuda().requires_grad_()
        loss = model(x, noise=noise).logsumexp(1).sum()
        if i % 2:
            torch.autograd.grad(loss, x)
        del x, loss
        sizes.append(torch.cuda.memory_allocated())
    assert set(sizes[2:]) == {sizes[1]}


# ------------------------------------------------------------------ that a leak is found


class OldFirst(Replay):
    """What leaked on the first GPU: the pack hook returns the saved tensor itself."""

    def _weighed(self, step: Callable[[State], State], state: State) -> State:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            result = step(state)
        self._full = True
        return self._replayed(step, state, tuple(y.detach() for y in result))


class Keeper:
    """A view that keeps the logits of every call, and an attack and a step that do likewise."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.kept: list[Any] = []

    def view(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.kept.append(self.model(x, noise=noise))
        return self.kept[-1]

    def cyclic(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        logits = self.model(x, noise=noise)
        cycle: list[Any] = [logits]
        cycle.append(cycle)  # only the collector would free it
        return logits


def leaky_model() -> PurifiedClassifier:
    model = model_of("ddpm", 6000)
    model.purifier._hook = lambda: OldFirst(6, 1)
    return model


PLANTED: dict[str, Callable[[], None]] = {
    "the first step's graph, dropped": partial(gradient_of, leaky_model()),
    "a view that keeps logits": partial(gradient_of, Keeper(model_of("ddpm", 2**30)).view),
    "a cycle of Python objects": partial(gradient_of, Keeper(model_of("ddpm", 2**30)).cyclic),
    "an attack on such a view": partial(
        attack_of, "pgd", {"iterations": 2, "eot": 1}, Keeper(model_of("ddpm", 2**30)).view
    ),
}


@pytest.mark.parametrize("planted", list(PLANTED))
def test_planted_leak_is_found(planted: str) -> None:
    # Growth is a share of what the process holds, which is more the more tests it has run: so larger blocks.
    found: Observed = observed(PLANTED[planted], block=3 * 2**20, tries=1)
    assert found.left >= 10
    assert found.growth > FLAT or not sys.platform.startswith("linux")


def test_planted_leak_after_an_error_is_found() -> None:
    """A part that keeps what it had when the error came."""
    keeper = Keeper(Probed(TinyClassifier()))

    def once() -> None:
        keeper.kept.append(keeper.model(uniform(2, 1, 4, 4).requires_grad_()))
        keeper.model(uniform(2, 1, 4, 4))

    assert left_after_an_error(once, 2) > 0
