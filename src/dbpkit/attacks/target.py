"""What an attack may ask of the model: logits, judgements and gradients, in micro-batches of bounded size.

The thing people get wrong: averaging the gradient over draws (EoT) one image batch at a time. Here the
draws of all images are rows of one batch, cut into micro-batches, and each image's rows are summed in
the order of its draws, so that the sum does not depend on how they were cut.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dbpkit.attacks.designs import Design, controlled, random_for
from dbpkit.attacks.loss import Loss, check_classes, losses
from dbpkit.attacks.passing import (
    DrawGradients,
    ExpectedGradient,
    Judgement,
    calls_of,
    check_call,
    check_goal,
    gradient_of,
    logits_of,
    mean_in_order,
    takes_noise,
)
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.inputs import whole
from dbpkit.foundation.later import asked_at_the_end
from dbpkit.foundation.noise import NoisePlan
from dbpkit.foundation.rows import RowLimit
from dbpkit.foundation.types import RandomisedClassifier, Traced

Visit = Callable[[Tensor, NoisePlan], None]
"""Called with an iterate (B, C, H, W) and the attack's plan of its examples."""


class Target:
    """A randomised classifier as an attack may use it.

    Wherever the model returns something else than logits (B, K), `OutputError` is raised. Logits that are not
    finite are refused at once on a CPU; on an accelerator when a method returns, or when the attack ends.

    Args:
        model: the classifier.
        micro_batch: most rows (images times draws) that go through the model at once. Rows that run out of
            memory are tried again in halves; all who share a `RowLimit` learn of it.
        fixed_shape: whether every call has exactly ``micro_batch`` rows, the last row repeated as needed, so
            that kernels round alike however the rows are cut. Running out of memory is then an error.

    Attributes:
        limit: the rows that go through the model at once.
        forward_passes: rows passed through the model so far, by example id.
        gradient_passes: those of them that were differentiated.
        spent: network passes so far, by example id: `calls` for a row, twice as many for one that was
            differentiated; those of surrogates (`coarser`) are in it.
        design: how the draws of gradients are made where a call does not say.
        surrogates: made so far by `coarser`, by their steps.
        visit: an attack calls it with every iterate, for protocols that judge while the attack runs.
    """

    def __init__(
        self, model: RandomisedClassifier, micro_batch: int | RowLimit = 32, *, fixed_shape: bool = False
    ) -> None:
        self.model = takes_noise(model)
        self.limit = RowLimit.of(micro_batch, fixed=fixed_shape)
        self.fixed_shape = fixed_shape
        self.forward_passes: Counter[int] = Counter()
        self.gradient_passes: Counter[int] = Counter()
        self.spent: Counter[int] = Counter()
        self.calls = calls_of(model)
        self.design = Design()
        self.surrogates: dict[int, Target] = {}
        self.visit: Visit = lambda _x, _noise: None

    @property
    def micro_batch(self) -> int:
        """Most rows that go through the model at once, as of now."""
        return self.limit.rows

    @property
    def forward_rows(self) -> int:
        """Rows passed through the model so far."""
        return self.forward_passes.total()

    @property
    def gradient_rows(self) -> int:
        """Those of them that were differentiated."""
        return self.gradient_passes.total()

    @classmethod
    def of(cls, model: "RandomisedClassifier | Target") -> "Target":
        """Returns ``model`` as a target with default settings, or as it is if it is one."""
        return model if isinstance(model, Target) else cls(model)

    def coarser(self, steps: int) -> "Target | None":
        """Returns the model on a grid of ``steps`` steps as a target; None if it has none with fewer calls.

        With 1 step a diffusion purifier denoises once, where its chain begins.

        It shares `spent`, `limit` and `visit` with this one, and is made once.
        """
        whole(steps, "steps of a surrogate", 1)
        if steps not in self.surrogates:
            make = getattr(self.model, "coarser", None)
            model = make(steps) if make else None
            if model is None or calls_of(model) >= self.calls:
                return None
            made = self._like(model)
            made.spent = self.spent
            self.surrogates[steps] = made
        found = self.surrogates[steps]
        found.visit = self.visit
        return found

    def extra_calls(self, example: int) -> int:
        """Network calls of surrogates for an example so far."""
        return sum(s.calls * s.forward_passes[example] for s in self.surrogates.values())

    def _like(self, model: RandomisedClassifier) -> "Target":
        """A target of another model, called in the same way."""
        return Target(model, self.limit, fixed_shape=self.fixed_shape)

    def _count(self, ids: list[int], *, differentiated: bool = False) -> None:
        """Counts rows of these examples."""
        self.forward_passes.update(ids)
        if differentiated:
            self.gradient_passes.update(ids)
        for example, rows in Counter(ids).items():
            self.spent[example] += rows * self.calls * (2 if differentiated else 1)

    @asked_at_the_end()
    @torch.no_grad()
    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns logits (B, K) of images (B, C, H, W) under their own noise."""
        check_call(x, noise)
        self._count(noise.example_ids.tolist())
        return torch.cat(self.limit.over(len(x), lambda rows: self._logits(x[rows], noise.rows(rows))))

    @asked_at_the_end()
    def draws(self, x: Tensor, *, noise: NoisePlan, count: int) -> Tensor:
        """Returns logits (B, R, K) of ``count`` = R independent draws of each image."""
        check_call(x, noise)
        plan = noise.repeat(count)
        logits: Tensor = self(x.repeat_interleave(count, dim=0), noise=plan)
        by_image: Tensor = logits.unflatten(0, (len(x), count))
        return by_image

    @asked_at_the_end()
    def judge(self, x: Tensor, y: Tensor, *, noise: NoisePlan, draws: int, loss: str = "margin") -> Judgement:
        """Averages a loss of labels (B,) and the accuracy over ``draws`` draws of each image."""
        logits = self.draws(x, noise=noise, count=draws)
        values = losses.resolve(loss)(logits.flatten(0, 1), y.repeat_interleave(draws))
        right = (logits.argmax(dim=2) == y[:, None]).to(x.dtype)
        return Judgement(mean_in_order(values.unflatten(0, (len(x), draws))), mean_in_order(right))

    def gradient(
        self,
        x: Tensor,
        y: Tensor,
        *,
        noise: NoisePlan,
        eot: int = 1,
        loss: str | Loss = "ce",
        deviation: float = 0.0,
        design: Design | None = None,
    ) -> ExpectedGradient:
        """Averages the loss and its gradient over ``eot`` draws of each image.

        Args:
            x: images (B, C, H, W) in [0, 1].
            y: labels (B,), or (B, n) with the label first, for a loss that needs more than the label.
            noise: plan of the B examples; its repetitions are the draws.
            eot: draws per image.
            loss: registered loss name, or the loss.
            deviation: weight of the purification's deviation, which is added to the loss.
            design: how the draws are made; None for that of the target. It changes nothing where the plan
                leaves the model nothing random.

        Returns:
            The averaged gradient (B, C, H, W), loss (B,) and accuracy (B,).

        Raises:
            UserError: if images, labels and plan do not fit, or a deviation is asked of a model that does not
                tell it, see `Traced`.

        Source:
            Athalye et al. 2018 (arXiv:1707.07397), expectation over transformation.
        """
        design = self._design(design, noise)
        surrogate = None if design.control is None else self.coarser(design.control)
        total = eot if surrogate is None else eot + design.control_draws
        ask: dict[str, Any] = {"loss": loss, "deviation": deviation}
        found = self.per_draw(x, y, noise=noise, eot=eot, design=design, of=total, **ask)
        labels = y if y.ndim == 1 else y[:, 0]
        right = (found.logits.argmax(dim=2) == labels[:, None]).to(x.dtype)
        means = ExpectedGradient(*map(mean_in_order, (found.grad, found.loss, right)))
        if surrogate is None:
            return means
        ask |= {"noise": noise, "design": design.of_draws, "of": total}
        paired = surrogate.per_draw(x, y, eot=eot, **ask)
        further = surrogate.per_draw(x, y, eot=design.control_draws, skip=eot, **ask)
        return means._replace(grad=controlled(found.grad, paired.grad, further.grad, design))

    @asked_at_the_end()
    def per_draw(
        self,
        x: Tensor,
        y: Tensor,
        *,
        noise: NoisePlan,
        eot: int = 1,
        loss: str | Loss = "ce",
        deviation: float = 0.0,
        design: Design | None = None,
        skip: int = 0,
        of: int | None = None,
    ) -> DrawGradients:
        """Returns gradient, loss and logits of each of ``eot`` = R draws; arguments and errors as `gradient`.

        All R gradients of an image are held at once. A control variate changes averages only, and nothing
        here. ``skip`` and ``of`` are those of `NoisePlan.repeat`.
        """
        check_call(x, noise)
        whole(eot, "eot", 1)
        check_goal(y, len(x), loss)
        loss_function = losses.resolve(loss) if isinstance(loss, str) else loss
        plan = self._design(design, noise).repeat(noise, eot, skip=skip, of=of)

        def differentiated(rows: slice) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                image = torch.arange(rows.start, rows.stop, device=x.device) // eot
                leaf = x[image].detach().requires_grad_()
                if deviation:
                    logits, apart = self._traced(leaf, plan.rows(rows))
                else:
                    logits, apart = self._logits(leaf, plan.rows(rows)), torch.zeros(())
                value = loss_function(logits, check_classes(y, logits)[image])
                value = value + deviation * apart if deviation else value
                return gradient_of(value, leaf), value.detach(), logits.detach()

        found = zip(*self.limit.over(len(plan), differentiated), strict=True)
        self._count(plan.example_ids.tolist(), differentiated=True)
        return DrawGradients(*(torch.cat(rows).unflatten(0, (len(x), eot)) for rows in found))

    def _design(self, design: Design | None, noise: NoisePlan) -> Design:
        """The design that is asked for, or the target's; the plain one where nothing is random."""
        design = self.design if design is None else design
        return design if design.plain or random_for(self.model, noise) else Design()

    def _logits(self, x: Tensor, noise: NoisePlan) -> Tensor:
        """One call of the model."""
        images, plan = self._padded(x, noise)
        return logits_of(self.model(images, noise=plan), images)[: len(x)]

    def _traced(self, x: Tensor, noise: NoisePlan) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and deviation (B,) from one call of the model."""
        if not isinstance(self.model, Traced):
            raise UserError(
                f"the loss has a deviation of purification states, which {type(self.model).__name__} does not"
                " tell. Attack a PurifiedClassifier by its exact gradient, or give the model a method"
                " traced(x, noise=...) that returns logits (B, K) and deviation (B,)."
            )
        images, plan = self._padded(x, noise)
        logits, deviation = self.model.traced(images, noise=plan)
        return logits_of(logits, images)[: len(x)], deviation[: len(x)]

    def _padded(self, x: Tensor, noise: NoisePlan) -> tuple[Tensor, NoisePlan]:
        """All rows, and the last one again up to the fixed shape if there is one."""
        more = self.limit.rows - len(x)
        if not self.fixed_shape or more <= 0:
            return x, noise
        return torch.cat([x, x[-1:].expand(more, -1, -1, -1)]), noise.padded(self.limit.rows)
