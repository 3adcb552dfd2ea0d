"""Nothing of a gradient outlives it: the hundredth costs no more memory than the second."""

import gc
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.types import State
from dbpkit.purification.classifier import PurifiedClassifier
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.replay import Replay
from dbpkit.purification.samplers import samplers
from dbpkit.purification.views import gradients
from tests.oracles import TinyClassifier, few_steps, tiny_denoiser, uniform

REPETITIONS = 10


def alive() -> int:
    """Tensors that Python can still reach, after everything unreachable has been freed."""
    gc.collect()
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("sampler", list(samplers))
@pytest.mark.parametrize("memory_bytes", [1, 2**30], ids=["replayed", "kept"])
def test_gradient_repeated_any_view_leaves_no_tensor_behind(sampler: str, memory_bytes: int) -> None:
    """Graphs that are dropped with and without a backward pass."""
    purifier = Purifier(tiny_denoiser(), sampler, steps=few_steps(sampler), memory_bytes=memory_bytes)
    model = PurifiedClassifier(purifier, TinyClassifier())
    views = {name: gradients.get(name)(model) for name in gradients}
    x, noise = uniform(2, 1, 4, 4), NoisePlan.of(3, [4, 5])

    def once(name: str, backward: bool) -> None:
        leaf = x.clone().requires_grad_()
        loss = views[name](leaf, noise=noise).sum()
        assert loss.requires_grad
        if backward:
            torch.autograd.grad(loss, leaf)

    everything = [(name, backward) for name in views for backward in (True, False)]
    for case in everything:
        once(*case)
    before = alive()
    for case in everything:
        for _ in range(REPETITIONS):
            once(*case)
    assert alive() == before


RESIDENT = """
import torch
from dbpkit import NoisePlan, PurifiedClassifier, Purifier, load_embedded

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

denoiser, classifier = load_embedded()
model = PurifiedClassifier(Purifier(denoiser, "ddpm", steps=50, memory_bytes=2**20), classifier)
x, noise, sizes = torch.full((2, 3, 32, 32), 0.5), NoisePlan.of(0, [0, 1]), []
for i in range(20):
    leaf = x.clone().requires_grad_()
    loss = model(leaf, noise=noise).logsumexp(1).sum()
    if i % 2:
        torch.autograd.grad(loss, leaf)
    del loss, leaf
    sizes.append(resident())
print(min(sizes[11:]) - min(sizes[1:11]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_gradient_repeated_resident_memory_stays(tmp_path) -> None:
    """One graph of the first step holds 5 MB; ten left behind add 82 MB, five of them 41 MB.

    The allocator keeps up to 9 MB of freed pages at its pleasure, so the floors of the two halves
    are compared, not two single moments.
    """
    script = tmp_path / "repeat.py"
    script.write_text(RESIDENT, encoding="utf-8")
    found = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 16 * 2**20


def test_first_step_whose_graph_is_kept_notices_a_change_in_place() -> None:
    """As plain autograd does: a saved tensor that was changed gives no gradient at all."""
    inner: list[Tensor] = []

    def step(state: State) -> State:
        inner.append(state[0].sin())
        return (inner[-1] * inner[-1],)

    x = uniform(1, 1, 2, 2).requires_grad_()
    (y,) = Replay(2, 2**30)(step, (x,))
    with torch.no_grad():
        inner[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
