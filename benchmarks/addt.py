"""What one ADDT update costs, against its lower bound and against weight gradients on the inner steps.

python -m benchmarks.addt

The lower bound is five times (denoiser forward, backward to its input, classifier forward and backward) and
once (denoiser forward, full backward): all that the method needs, nothing drawn, sorted, averaged or stepped.
The three are timed in turn within one process, and ratios are medians over the rounds.
"""

import contextlib
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from dbpkit import NoisePlan, load_classifier, load_dataset, load_embedded
from dbpkit.foundation.machine import settle
from dbpkit.training import perturb
from dbpkit.training.average import Average
from dbpkit.training.objectives import Batch, make_objective

ROWS = 64
ROUNDS = 7
GUIDE = {"name": "embedded", "options": {"mirror": False}}


class Setting:
    """The embedded models, a batch of real images, and the pieces of an update."""

    def __init__(self, precision: str) -> None:
        self.denoiser = load_embedded()[0].requires_grad_(True).train()
        self.averaging = Average(load_embedded()[0], self.denoiser)
        self.guide = load_classifier(**GUIDE)
        self.objective = make_objective("denoising", {"perturbation": "addt", "guide": GUIDE})
        data = load_dataset("embedded").select(slice(0, ROWS))
        self.batch = Batch(data.x(), data.labels, NoisePlan.of(0, data.ids, "train"))
        self.sigma = torch.full((ROWS,), 0.2)
        self.optimiser = torch.optim.AdamW(self.denoiser.parameters(), lr=1e-9)
        self.autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")

    def lower_bound(self) -> None:
        """Network calls alone."""
        for _ in range(5):
            with perturb.frozen(self.denoiser, self.guide):
                x = self.batch.x.clone().requires_grad_()
                with self.autocast:
                    logits = self.guide(self.denoiser(x, self.sigma).float())
                torch.autograd.grad(functional.cross_entropy(logits.float(), self.batch.y), x)
        with self.autocast:
            loss = self.denoiser(self.batch.x, self.sigma).float().square().mean()
        self.optimiser.zero_grad()
        loss.backward()

    def update(self) -> None:
        """One update as the training loop makes it."""
        with self.autocast:
            loss = self.objective.loss(self.denoiser, self.batch)
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimiser.step()
        self.averaging.update(0.002)

    def wasteful_update(self) -> None:
        """The same with weight gradients on the inner steps, as code does that calls backward there."""
        frozen, gradient = perturb.frozen, perturb._gradient

        def with_weights(loss: Tensor, perturbation: Tensor, _expect: object) -> Tensor:
            return torch.autograd.grad(loss, [perturbation, *self.denoiser.parameters()])[0]

        perturb.frozen, perturb._gradient = lambda *_: contextlib.nullcontext(), with_weights
        try:
            self.update()
        finally:
            perturb.frozen, perturb._gradient = frozen, gradient


def timed(function: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prints seconds and ratios for both precisions."""
    settle()
    for precision in ("float32", "bfloat16"):
        setting = Setting(precision)
        pieces = (setting.lower_bound, setting.update, setting.wasteful_update)
        for piece in pieces:
            piece()
        rounds = [[timed(piece) for piece in pieces] for _ in range(ROUNDS)]
        bound, update, wasteful = (statistics.median(column) for column in zip(*rounds, strict=True))
        over_bound = statistics.median(r[1] / r[0] for r in rounds)
        saving = statistics.median(r[2] / r[1] for r in rounds)
        print(
            f"{precision}, {ROWS} images, {torch.get_num_threads()} threads: lower bound {bound:.2f} s,"
            f" update {update:.2f} s ({over_bound:.3f} x, limit 1.15), with inner weight"
            f" gradients {wasteful:.2f} s ({saving:.2f} x the update, at least 1.25)"
        )


if __name__ == "__main__":
    main()
