"""What happens inside the loops of attacks and samplers between host and device: nothing.

There is no GPU where these tests run. The device is PyTorch's ``meta``, on which operations compute shapes
and refuse to tell values; a dispatch mode counts what would cross over. A count that does not grow with
iterations, draws, micro-batches and steps is one of the loop's frame. The thing people get wrong: an index
that lies on the CPU, a mask, a number put into a tensor. Each of them makes the host wait.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dbpkit.attacks import make_attack
from dbpkit.attacks.loss import losses
from dbpkit.attacks.target import Target
from dbpkit.foundation import drawing, noise
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser, denoiser_adapters
from dbpkit.models.discrete import linear_schedule, log_levels
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.samplers import samplers
from dbpkit.purification.views import gradients
from dbpkit.threats.perceptual import FeatureDistance, Perceptual
from dbpkit.threats.pixels import L2, Linf

DEVICE = torch.device("meta")
COUNT = 3


class Crossings(TorchDispatchMode):
    """Counts what a GPU would wait for or be sent, and answers questions about values with "no"."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        there = [t for t in tensors if t.device == DEVICE]
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique2") and there:
            self.found[name] += 1
            if name == "_local_scalar_dense":
                return there[0].dtype.is_floating_point * 0.5 if there[0].dtype != torch.bool else False
        if (
            name == "_to_copy"
            and torch.device(kwargs.get("device") or tensors[0].device) != tensors[0].device
        ):
            self.found["to the host" if there else "to the device"] += 1
            return torch.ones_like(tensors[0], **kwargs)
        elsewhere = [t for t in tensors if t.device != DEVICE and t.ndim]
        if there and elsewhere:
            self.found[f"{name} with {tuple(elsewhere[0].shape)} of the host"] += 1
        return func(*args, **kwargs)


class Numbers(TorchFunctionMode):
    """Counts what is made there from Python's numbers, which no dispatch tells of."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if (
            func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
            and made.device == DEVICE
        ):
            data = args[-1] if args else None
            self.found["to the device"] += not (isinstance(data, Tensor) and data.device == DEVICE)
        return made


@contextlib.contextmanager
def watched() -> Iterator[Counter[str]]:
    """Counts what crosses inside the block."""
    mode = Crossings()
    with mode, Numbers(mode.found):
        yield mode.found


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives ``meta`` the autocast that Replay asks for, and a kernel that draws."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.float32)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(noise, "values", kernel)
    log_levels(linear_schedule(), DEVICE)  # kept from the first time on


def kernel(like: Tensor, rows: drawing.Rows, *_: Any) -> Tensor:
    """Draws as the kernel on CUDA does, from ids and draws that are there."""
    assert rows.ids.device == rows.draws.device == like.device
    assert len(rows.ids) == len(rows.draws) == len(like)
    return torch.empty_like(like)


class Network(nn.Module):
    """A convolution that takes a time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, device=DEVICE)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(x) + time.to(x)[:, None, None, None]


class Classifier(nn.Module):
    """Five classes by a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 5, device=DEVICE)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))


def model(
    sampler: str = "ddpm", steps: int = 50, adapter: Callable[..., nn.Module] = VPDenoiser, **rest: Any
) -> PurifiedClassifier:
    """A purified classifier on the device."""
    purifier = Purifier(adapter(Network()), sampler, t_star=0.04, steps=steps, **rest)
    return PurifiedClassifier(purifier, Classifier())


def batch() -> tuple[Tensor, Tensor, NoisePlan]:
    """Images, labels, and a plan that shares a site with another."""
    x, y = torch.empty(COUNT, 3, 8, 8, device=DEVICE), torch.zeros(COUNT, dtype=torch.int64, device=DEVICE)
    plan = NoisePlan.of(0, range(COUNT), "attack").sharing(["forward"], NoisePlan.of(0, range(COUNT)))
    return x, y, plan


def crossings(work: Callable[[], object]) -> Counter[str]:
    """What crosses between host and device."""
    with watched() as found:
        work()
    return found


def attacked(name: str, net: nn.Module, micro_batch: int, norm: Any = Linf, **options: Any) -> Counter[str]:
    """The crossings of an attack."""

    def work() -> object:
        x, y, plan = batch()
        return make_attack(name, options)(Target(net, micro_batch), x, y, threat=norm(0.1), noise=plan)

    return crossings(work)


def test_the_count_sees_what_makes_the_host_wait() -> None:
    x = torch.empty(4, 2, device=DEVICE)
    with watched() as found:
        _ = bool(x.isnan().any()), x.cpu(), torch.arange(4).to(DEVICE)
        _ = x[torch.arange(2)], torch.tensor(0.5, device=DEVICE), x.new_tensor([0.5])
    assert found["_local_scalar_dense"] == found["to the host"] == 1
    assert found["to the device"] + sum(v for k, v in found.items() if "of the host" in k) == 4


@pytest.mark.parametrize("adapter", [VPDenoiser, EDMDenoiser, lambda n: VPDenoiser(n, time="continuous")])
@pytest.mark.parametrize("sampler", sorted(samplers))
def test_steps_of_a_sampler_cross_nothing(sampler: str, adapter: Callable[..., nn.Module]) -> None:
    options = {"vpsde": {"corrector_steps": 1}, "heun": {"churn": 2.0}, "ddim": {"eta": 0.5}}.get(sampler)
    x, _, plan = batch()
    plan.placed(DEVICE)
    net = model(sampler, adapter=adapter, options=options)
    found = crossings(torch.no_grad()(lambda: net(x, noise=plan)))
    assert set(found) <= {"_local_scalar_dense"}
    assert found["_local_scalar_dense"] <= 2  # are these pixels in [0, 1]? asked by model and purifier


class Told(Network):
    """One that takes a class, and answers with a variance if asked."""

    outputs = 1

    def forward(self, x: Tensor, time: Any, label: Tensor | None = None) -> Tensor:
        return torch.cat(
            [super().forward(x, time[0] if isinstance(time, tuple) else time)] * self.outputs, dim=1
        )


@pytest.mark.parametrize("name", sorted(denoiser_adapters))
def test_adapters_of_other_ranges_with_a_class_cross_nothing(name: str) -> None:
    more = {"schedule": {"beta_schedule": "cosine"}, "time_index": "floor"} if name == "vp" else {}
    denoiser = denoiser_adapters.get(name)(Told(), image_range=(0.0, 2.0), label=3, **more)
    x, sigma = torch.empty(COUNT, 3, 8, 8, device=DEVICE), torch.full((), 0.1, device=DEVICE)
    denoiser(x, sigma)  # tables are copied the first time
    assert crossings(torch.no_grad()(lambda: denoiser(x, sigma))).total() == 0


def test_steps_with_a_learned_variance_cross_nothing() -> None:
    def learned(network: nn.Module) -> nn.Module:
        network = Told()
        network.outputs = 2
        return VPDenoiser(network, variance="learned")

    x, _, plan = batch()
    plan.placed(DEVICE)
    net = model("ddpm", adapter=learned, options={"variance": "learned"})
    found = crossings(torch.no_grad()(lambda: net(x, noise=plan)))
    assert set(found) <= {"_local_scalar_dense"}
    assert found["_local_scalar_dense"] <= 2


def test_drawing_by_operations_crosses_nothing() -> None:
    """Where there is no kernel."""
    plan, like = NoisePlan.of(0, range(3)).placed(DEVICE), torch.empty(3, 5, device=DEVICE)
    with watched() as found:
        for kind in (0, 1):
            drawing.values(like, plan.twins[DEVICE], (0, 2), 0, kind)
    assert not found


FRAME = {"_local_scalar_dense", "to the device"}
"""Questions when an attack begins and ends, and its plan's ids on their way."""


@pytest.mark.parametrize(
    ("name", "norm"),
    [("pgd", Linf), ("pgd", L2), ("low_frequency", Linf), ("selective_eot", L2), ("diffattack", Linf)],
)
def test_iterations_draws_and_micro_batches_of_an_attack_cross_nothing(name: str, norm: Any) -> None:
    few = attacked(name, model(), 8, norm, iterations=1, eot=1)
    many = attacked(name, model(steps=100), 2, norm, iterations=2, eot=2)
    assert few == many
    assert set(few) <= FRAME
    assert few.total() <= 8


@pytest.mark.parametrize("loss", sorted(losses))
def test_losses_cross_nothing(loss: str) -> None:
    counts = [attacked("pgd", model(), 2, iterations=n, eot=1, loss=loss) for n in (1, 2)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("view", sorted(gradients))
def test_views_of_a_model_cross_nothing(view: str) -> None:
    counts = [attacked("pgd", gradients.get(view)(model()), 2, iterations=n, eot=2) for n in (1, 2)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("options", [{"start": "random"}, {"keep": "best", "keep_draws": 2}])
def test_options_of_pgd_cross_nothing(options: dict[str, Any]) -> None:
    counts = [attacked("pgd", model(), 2, iterations=n, eot=2, **options) for n in (1, 2)]
    assert counts[0] == counts[1]


def test_replayed_steps_cross_nothing() -> None:
    counts = [attacked("pgd", model(steps=s, memory_bytes=0), 2, iterations=1, eot=1) for s in (50, 100)]
    assert counts[0] == counts[1]


def test_steps_of_fab_wait_once() -> None:
    """For which examples are still searching; here all of them are."""
    counts = [attacked("fab", model(), 8, iterations=n, eot=2, n_targets=1) for n in (1, 3)]
    assert counts[1] - counts[0] == {"to the host": 2}


def test_projection_in_features_crosses_nothing() -> None:
    features = FeatureDistance(nn.Sequential(nn.Conv2d(3, 2, 3, device=DEVICE), nn.ReLU()))
    x = torch.empty(2, 3, 8, 8, device=DEVICE)
    found = crossings(lambda: Perceptual(0.1, features).project(x, x + 1))
    assert not found


@pytest.mark.parametrize("level", [np.array(0.5), np.float32(0.5), np.array([0.5, 0.5]), [0.5, 0.5], 0.5])
def test_level_is_anything_that_becomes_a_tensor(level: Any) -> None:
    x = torch.ones(2, 3, 4, 4)
    for adapter in (EDMDenoiser, VPDenoiser):
        denoiser: Any = adapter(lambda x, t: x + t[:, None, None, None] / 1000)
        assert torch.equal(denoiser(x, level), denoiser(x, torch.tensor(0.5)))
