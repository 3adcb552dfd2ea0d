"""Judging an attack while it runs, and the unattacked image as often: what `while_optimising` needs.

The thing people get wrong: judging an iterate on the draws it was optimised on. Query q of an example has a
draw of its own on the report stream, which no attack, no other judgement and no control uses.
"""

from dataclasses import replace

import torch
from torch import Tensor

from dbpkit.attacks import Target
from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.records import Watched
from dbpkit.threats.pixels import ThreatModel

CONTROL_BRANCH = 1
"""Branch of the lane from which the unattacked images' draws come."""


class Watch:
    """Submits every image it is shown several times, until the example's first wrong answer.

    Args:
        judge: the defence.
        x: clean images (B, C, H, W).
        y: labels (B,).
        noise: plan of the B examples on the report stream, in a lane of its own.
        threat: every image is projected before it is judged.
        draws: queries per image.

    Attributes:
        shown: images shown so far, by example id.
        failed_at: number of the first query that was answered wrongly, from 1 on, by example id.
    """

    def __init__(
        self, judge: Target, x: Tensor, y: Tensor, noise: NoisePlan, threat: ThreatModel, draws: int
    ) -> None:
        self.judge = judge
        self.x = x
        self.y = y
        self.noise = noise
        self.threat = threat
        self.draws = draws
        self.ids: list[int] = noise.example_ids.tolist()
        self.place = {example: b for b, example in enumerate(self.ids)}
        self.shown = dict.fromkeys(self.ids, 0)
        self.failed_at: dict[int, int] = {}

    def __call__(self, x_adv: Tensor, noise: NoisePlan) -> None:
        """Judges images (n, C, H, W) of the examples of a plan; what else is in the plan is ignored."""
        rows, turns = [], []
        for k, example in enumerate(noise.example_ids.tolist()):
            if example not in self.failed_at:
                rows.append(k)
                turns.append(self.shown[example])
            self.shown[example] += 1
        if not rows:
            return
        place = torch.tensor([self.place[int(noise.example_ids[k])] for k in rows])
        image = self.threat.project(self.x[place], x_adv[rows].detach())
        if not bool(torch.isfinite(image).all()):
            raise FloatingPointError("an attack showed an iterate with pixels that are not finite")
        plan = replace(self.noise.rows(place), draw=torch.tensor(turns))  # its repetitions are the queries
        wrong = self.judge.draws(image, noise=plan, count=self.draws).argmax(-1) != self.y[place][:, None]
        for example, turn, answers in zip(plan.example_ids.tolist(), turns, wrong.tolist(), strict=True):
            if True in answers:
                self.failed_at.setdefault(example, turn * self.draws + answers.index(True) + 1)

    def at_least(self, before: dict[int, int], x_adv: Tensor, noise: NoisePlan) -> None:
        """Judges an attack's images (B, C, H, W) where it has shown none since ``before``."""
        unseen = [b for b, i in enumerate(self.ids) if self.shown[i] == before[i]]
        self(x_adv[unseen], noise.rows(unseen))

    def records(self, deterministic: bool) -> list[Watched]:
        """Returns what is recorded of every example, in the order of the batch.

        ``queries`` is how often it was submitted, or would have been had it not failed before.
        """
        control = self.control(deterministic)
        return [
            {
                "queries": self.shown[i] * self.draws,
                "failed_at": self.failed_at.get(i),
                "control_failed_at": control.failed_at.get(i),
            }
            for i in self.ids
        ]

    def control(self, deterministic: bool) -> "Watch":
        """Submits every clean image as often as its attacked images were, on draws of its own.

        Args:
            deterministic: whether nothing is random, so that one query tells all.
        """
        noise = self.noise.branch(CONTROL_BRANCH)
        clean = Watch(self.judge, self.x, self.y, noise, self.threat, self.draws)
        for turn in range(1 if deterministic else max(self.shown.values())):
            rows = [b for b, i in enumerate(self.ids) if self.shown[i] > turn and i not in clean.failed_at]
            if rows:
                clean(self.x[rows], clean.noise.rows(rows))
        return clean
