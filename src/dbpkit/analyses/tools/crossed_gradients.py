"""Attack gradients under crossed tapes: every forward tape with every reverse tape, and what pairs share.

Two gradients under independent noise have the same expected inner product as the expected gradient with
itself; what pairs gain by sharing their forward noise is what that noise alone explains, and so on. The
thing people get wrong: taking the squared norm of a mean of draws for that of the expected gradient. It is
too large by the variance of the mean; inner products of different draws are not.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dbpkit.analyses.analysis import Subject
from dbpkit.attacks import Target
from dbpkit.experiment.knowledge import known
from dbpkit.foundation.noise import NoisePlan

SHARED = ("nothing", "forward", "reverse", "all")
"""What the noise of two gradients has in common."""


class Crossed(NamedTuple):
    """Of every cell: ``grad`` (B, F, R, C, H, W) and ``logits`` (B, F, R, K)."""

    grad: Tensor
    logits: Tensor


def forward_sites(subject: Subject) -> frozenset[str]:
    """The sites of the model's noise that an attacker who knows the forward noise knows."""
    return subject.parts.model.sites & known["dw_fwd"].sites


def tape_counts(subject: Subject, forward: int, reverse: int) -> tuple[int, int]:
    """Forward and reverse tapes of the design; a model with one kind of noise has all of them there."""
    own = forward_sites(subject)
    if own and subject.parts.model.sites - own:
        return forward, reverse
    return (forward + reverse, 1) if own else (1, forward + reverse)


def crossed_plan(noise: NoisePlan, sites: frozenset[str], forward: int, reverse: int) -> NoisePlan:
    """Noise of B * F * R rows: row (b F + f) R + r has ``sites`` of draw f and all other noise of draw r.

    Args:
        noise: plan of the B examples.
        sites: the forward noise.
        forward: F.
        reverse: R.
    """
    b, f, r = (
        at.flatten()
        for at in torch.meshgrid(
            torch.arange(len(noise)), torch.arange(forward), torch.arange(reverse), indexing="ij"
        )
    )
    back = noise.at(0).repeat(reverse).rows(b * reverse + r)
    return back.sharing(sorted(sites), noise.at(0).repeat(forward).rows(b * forward + f))


def crossed_gradients(
    subject: Subject, x: Tensor, y: Tensor, noise: NoisePlan, forward: int, reverse: int
) -> Crossed:
    """The loss gradient under every pair of a forward and a reverse tape; cell (k, k) is draw k of ``noise``.

    Args:
        subject: what is attacked.
        x: images (B, C, H, W).
        y: labels (B,).
        noise: plan of the B examples.
        forward: F, see `tape_counts`.
        reverse: R.
    """
    image = torch.arange(len(x)).repeat_interleave(forward * reverse)
    plan = crossed_plan(noise, forward_sites(subject), forward, reverse)
    found = Target(subject.parts.model, subject.limit).per_draw(x[image], y[image], noise=plan, eot=1)
    cells = (len(x), forward, reverse)
    return Crossed(found.grad[:, 0].unflatten(0, cells), found.logits[:, 0].unflatten(0, cells))


def shared_products(cells: Tensor) -> dict[str, Tensor]:
    """Mean inner product of pairs of cells by what their noise has in common, each (B,) float64.

    Args:
        cells: vectors of F forward by R reverse tapes, (B, F, R, D). A side of one tape stands for noise that
            the model does not draw: what shares the other side shares everything.

    Returns:
        For each of `SHARED` the mean over all such pairs, unbiased for its expectation.

    Source:
        The expectations are |m|^2, and with the variance of the main effects and the interaction added:
        Searle, Casella & McCulloch 1992, Variance Components, section 4.3, two-way random model, whose
        analysis-of-variance estimators are differences of these means.
    """
    count, forward, reverse = cells.shape[:3]
    flat = cells.reshape(count, forward * reverse, -1).double()
    gram = flat @ flat.mT
    f, r = (v.flatten() for v in torch.meshgrid(torch.arange(forward), torch.arange(reverse), indexing="ij"))
    same_f, same_r = f[:, None] == f, r[:, None] == r
    same_f, same_r = (same_f, same_f & same_r) if reverse == 1 else (same_f, same_r)
    same_f = same_r & same_f if forward == 1 else same_f
    pairs = {
        "nothing": ~same_f & ~same_r,
        "forward": same_f & ~same_r,
        "reverse": ~same_f & same_r,
        "all": same_f & same_r,
    }
    found = {name: gram[:, chosen].mean(dim=1) for name, chosen in pairs.items() if chosen.any()}
    alike = {"forward": "all" if reverse == 1 else "nothing", "reverse": "all" if forward == 1 else "nothing"}
    return {name: found[name] if name in found else found[alike[name]] for name in SHARED}


def gradient_products(cells: Tensor) -> dict[str, dict[str, Tensor]]:
    """`shared_products` of gradients (B, F, R, C, H, W), of their directions and of their lengths.

    A gradient of length 0 has the direction 0.
    """
    flat = cells.flatten(3).double()
    length = flat.norm(dim=3, keepdim=True)
    direction = torch.where(length > 0, flat / length.clamp_min(torch.finfo(flat.dtype).tiny), 0.0)
    return {
        "gradient": shared_products(flat),
        "direction": shared_products(direction),
        "length": shared_products(length),
    }


def mean_cosine(fresh: Tensor, tapes: Tensor, count: int) -> Tensor:
    """Cosine (B,) of the mean over ``count`` draws to single tapes, averaged over tapes and groups of draws.

    Args:
        fresh: gradients of single draws (B, R, C, H, W), cut into groups of ``count``; the rest is left out.
        tapes: gradients under known noise (B, T, C, H, W).
        count: N.
    """
    groups = fresh.shape[1] // count
    eot = fresh[:, : groups * count].unflatten(1, (groups, count)).mean(dim=2)
    return cosine_similarity(eot[:, :, None].flatten(3), tapes[:, None].flatten(3), dim=3).mean(dim=(1, 2))


def evenness(fresh: Tensor) -> Tensor:
    """Product of two lengths over the mean square of a length, (B,); 1 for equal lengths, and if all are 0.

    Args:
        fresh: gradients of R independent draws (B, R, C, H, W).
    """
    length = fresh.flatten(2).double().norm(dim=2)
    square, count = length.square().sum(dim=1), fresh.shape[1]
    product = (length.sum(dim=1).square() - square) / (count - 1)
    return torch.where(square > 0, product / square.clamp_min(torch.finfo(square.dtype).tiny), 1.0)


def per_image(products: dict[str, dict[str, Tensor]]) -> dict[str, list[Any]]:
    """The same as columns of records: for every kind a list of B lists in the order of `SHARED`."""
    return {kind: torch.stack([of[name] for name in SHARED], 1).tolist() for kind, of in products.items()}
