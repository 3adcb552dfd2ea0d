"""What a purification, a gradient and an expectation over draws cost, against bare calls of the network.

N calls forward cost N F at least, a gradient whose last k graphs are kept (2 N - k) F + N B. F is a bare
forward pass without a graph, B a bare backward pass with respect to the input, weights frozen. Both are timed
in the same rounds. k and the calls made are counted, not assumed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.plain import PlainPurification, Trainable, apart, draws, plain_gradient
from benchmarks.subjects import KEEP_ALL, Subject, bare_backward, bare_forward, subject
from benchmarks.timing import in_turn, now, quotients, spread, synchronise, weighted
from dbpkit import PurifiedClassifier, Purifier
from dbpkit.attacks import Target

EQUAL = 1e-5
"""Norm of the difference of two gradients over the norm of one, up to which they are equal."""

Result = dict[str, Any]


def purification(one: Subject, calls: int, rounds: int) -> Result:
    """A row: purifying without a gradient, over N bare calls."""
    purifier = one.purifier(calls)
    plain = PlainPurification(one, purifier, one.noise, one.x)

    @torch.no_grad()
    def ours() -> None:
        purifier(one.x, noise=one.noise)

    @torch.no_grad()
    def peers() -> None:
        plain(one.x)

    forward = bare_forward(one, calls)
    taken = in_turn({"F": forward, "purification": ours, "plain": peers, "F again": forward}, rounds)
    taken["F"] = [(a + b) / 2 for a, b in zip(taken["F"], taken.pop("F again"), strict=True)]
    bound = weighted((calls, taken["F"]))
    return {
        "network": one.name,
        "images": len(one.x),
        "calls N": calls,
        "F, s": spread(taken["F"]),
        "purification, s": spread(taken["purification"]),
        "over N F": quotients(taken["purification"], bound),
        "plain, s": spread(taken["plain"]),
        "plain over N F": quotients(taken["plain"], bound),
        "seconds": taken,
    }


def graph_bytes(one: Subject) -> int:
    """Bytes of the graph of one call of the network, as `dbpkit.purification.replay` counts them."""
    sizes: dict[int, int] = {}

    def weigh(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda saved: saved):
        one.network(one.x.clone().requires_grad_(), one.label())
    return sum(sizes.values())


def counted(way: Callable[[], object], purifier: Purifier) -> int:
    """Network calls that a call of ``way`` makes."""
    before = purifier.network_calls
    way()
    return purifier.network_calls - before


def purifier_gradient(one: Subject, purifier: Purifier) -> Callable[[], Tensor]:
    """The gradient of the sum of purified pixels."""

    def way() -> Tensor:
        leaf = one.x.clone().requires_grad_()
        return torch.autograd.grad(purifier(leaf, noise=one.noise).sum(), leaf)[0]

    return way


def plain_purifier_gradient(one: Subject, purifier: Purifier) -> Callable[[], Tensor]:
    """The same by the plain implementation."""
    plain = PlainPurification(one, purifier, one.noise, one.x)

    def way() -> Tensor:
        with Trainable(one.denoiser):
            leaf = one.x.clone().requires_grad_()
            plain(leaf).sum().backward()
            assert leaf.grad is not None
            return leaf.grad

    return way


def gradient(one: Subject, calls: int, rounds: int, equal: float | None = EQUAL) -> list[Result]:
    """Rows, by what memory keeps: the gradient of a purification over its bound, and the plain one.

    That they are equal to ``equal`` is asserted; None for kernels that round differently at every call.
    """
    half = int((calls + 1) // 2 * graph_bytes(one) * 1.05)
    budgets = {"all": KEEP_ALL, "half": half, "last": 0}
    purifiers = {name: one.purifier(calls, budget) for name, budget in budgets.items()}
    ours = {name: purifier_gradient(one, p) for name, p in purifiers.items()}
    peers = plain_purifier_gradient(one, purifiers["all"])
    made = {name: counted(way, purifiers[name]) for name, way in ours.items()}
    reference = peers()
    differences = {name: apart(reference, way()) for name, way in ours.items()}
    backward = bare_backward(one, calls)
    ways = {
        "F": bare_forward(one, calls),
        "B": backward,
        **ours,
        "plain": peers,
        "B with weights": bare_backward(one, calls, weights=True),
    }
    taken = in_turn(ways, rounds)
    rows = []
    for name in ours:
        assert equal is None or differences[name] <= equal, (one.name, name, differences[name])
        bound = weighted((made[name], taken["F"]), (calls, taken["B"]))
        most = weighted((2 * calls, taken["F"]), (calls, taken["B with weights"]))
        rows.append(
            {
                "network": one.name,
                "images": len(one.x),
                "calls N": calls,
                "graphs kept k": 2 * calls - made[name],
                "F, s": spread(taken["F"]),
                "B / F": quotients(taken["B"], taken["F"]),
                "bound, s": spread(bound),
                "gradient, s": spread(taken[name]),
                "over bound": quotients(taken[name], bound),
                "plain, s": spread(taken["plain"]),
                "times faster than plain": quotients(taken["plain"], taken[name]),
                "plain's own calls over bound": quotients(most, bound),
                "gradients differ by": differences[name],
                "seconds": taken if not rows else {},
            }
        )
    return rows


def equal_in_double(name: str, calls: int, device: str = "cpu", eot: int = 2) -> float:
    """How far the gradients of both implementations are apart in double precision, on one image."""
    one = subject(name, 1, device).double()
    purifier = one.purifier(calls)
    target = Target(PurifiedClassifier(purifier, one.classifier), eot)
    ours = target.gradient(one.x, one.y, noise=one.noise, eot=eot).grad
    found = apart(ours, plain_gradient(one, draws(one, purifier, eot)))
    assert found <= EQUAL, (name, found)
    return found


def eot(one: Subject, calls: int, count: int, micro_batch: int, rounds: int) -> list[Result]:
    """Rows, by what memory keeps: the attack's gradient over ``count`` draws, and the plain one.

    The two cut draws into other batches, whose kernels round otherwise, and a pixel near a clip then has a
    gradient in one and none in the other. So that they are equal is asserted in double precision.
    """
    purifiers = {"all": one.purifier(calls, KEEP_ALL), "last": one.purifier(calls, 0)}
    ways: dict[str, Callable[[], Any]] = {}
    for name, purifier in purifiers.items():
        target = Target(PurifiedClassifier(purifier, one.classifier), micro_batch)
        ways[name] = lambda target=target: target.gradient(one.x, one.y, noise=one.noise, eot=count).grad
    peers = draws(one, purifiers["all"], count)
    ways["plain"] = lambda: plain_gradient(one, peers)
    made = {name: counted(ways[name], purifier) for name, purifier in purifiers.items()}
    cuts = -(-len(one.x) * count // micro_batch)
    reference = ways["plain"]()
    differences = {name: apart(reference, ways[name]()) for name in purifiers}
    in_double = equal_in_double(one.name, calls, str(one.x.device))
    taken = in_turn(ways, rounds)
    rows = []
    for name in purifiers:
        rows.append(
            {
                "network": one.name,
                "images": len(one.x),
                "draws": count,
                "rows at once": min(micro_batch, len(one.x) * count),
                "calls N": calls,
                "graphs kept k": 2 * calls - made[name] // cuts,
                "gradient, s": spread(taken[name]),
                "plain, s": spread(taken["plain"]),
                "times faster than plain": quotients(taken["plain"], taken[name]),
                "gradients differ by": differences[name],
                "in double by": in_double,
                "seconds": taken if not rows else {},
            }
        )
    return rows


def noise(one: Subject, rounds: int) -> Result:
    """A row: one draw of noise for the images, over one bare call of the network."""
    numbers = iter(range(1 << 20))

    def drawn() -> float:
        synchronise()
        start = now()
        for _ in range(11):
            one.noise.normal("reverse", next(numbers), one.x)
        synchronise()
        return (now() - start) / 11

    taken = in_turn({"F": bare_forward(one, 3), "draw": drawn}, rounds)
    return {
        "network": one.name,
        "images": len(one.x),
        "F, s": spread(taken["F"]),
        "one draw, s": spread(taken["draw"]),
        "share of a call": quotients(taken["draw"], taken["F"]),
        "seconds": taken,
    }
