"""The stored images of a run, judged again by a verifier's models: on the run's noise and on fresh draws.

The batches are those of the run, so that on the same kind of machine the logits are equal to the bit.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dbpkit.bundles.archive import refused
from dbpkit.bundles.opening import Opened, own_words
from dbpkit.bundles.tally import Fresh, RowTally, count_batch
from dbpkit.evaluation.averaging import ensemble_classes
from dbpkit.evaluation.rows import Batch, Rows, judged_images
from dbpkit.experiment.build import Parts
from dbpkit.experiment.execution import DEFAULT_ROWS, Execution, kernels
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.foundation.noise import NoisePlan
from dbpkit.results.columns import RowColumns
from dbpkit.results.kinds import kind_of
from dbpkit.results.layout import checked, parsed, read_shard
from dbpkit.results.records import Key, judged
from dbpkit.results.run_directory import REPAIR
from dbpkit.results.schemas import HOW
from dbpkit.results.shards import as_tensor

FRESH_AT_ONCE = 32
"""Fresh draws of a batch that are held in memory."""

MOST_ROWS = 4096
"""Rows in one call, whatever a bundle says that it had: a stranger's number must not fill the memory."""

MOST_DRAWS = 1000
"""Draws of an image that are judged at once where its records have fewer."""

KEPT_SHARDS = 4
"""Files of images that are kept, for the rows of a batch share them."""


class Stored(NamedTuple):
    """A batch of the run: its ids in their order, the logits (B, R, K) that were recorded, and how."""

    tape: int
    ids: list[int]
    logits: Tensor | None
    how: Mapping[str, Any]
    record: dict[int, int]
    """Position among the records of its row, by example id; without those that were replaced later."""


class Court:
    """The verifier's models, before which the images of a run are brought.

    Args:
        opened: the bundle.
        spec: what it claims, with the parts that judge.
        parts: those parts.
        device: where they are.
    """

    def __init__(self, opened: Opened, spec: EvaluationSpec, parts: Parts, device: torch.device) -> None:
        self.path, self.run, self.spec, self.parts, self.device = opened.path, opened.run, spec, parts, device
        self.place = {example: k for k, example in enumerate(parts.data.ids.tolist())}
        self._rows: dict[tuple[int, bool], Rows] = {}
        self._shard = lru_cache(KEPT_SHARDS)(self.run.read_images)
        self._session = (self.run.sessions() or [{}])[0]

    def judge(self, row: str, wanted: set[int] | None, fresh: Fresh | None) -> RowTally:
        """Judges the images of a row again.

        Args:
            row: row of the table.
            wanted: examples to judge; None for all.
            fresh: draws that the run never saw, beside its own; they are counted in it.
        """
        group, tally = self.run.columns().rows[row], RowTally(row)
        most = max(MOST_DRAWS, int(group.draws.max()))
        if self.spec.draws.report > most:
            raise refused(self.path, f"its spec has {self.spec.draws.report:,} draws, its records have fewer")
        for stored in self._batches(row, group):
            chosen = [i for i in stored.ids if i in stored.record and (wanted is None or i in wanted)]
            whole = wanted is None and all(i in self.place for i in stored.ids)
            if chosen:
                ids = stored.ids if whole else chosen
                with self._as_recorded(stored.how) as rows:
                    self._judge_batch(rows, row, stored, group, (ids, chosen), tally, fresh)
        return tally

    @torch.no_grad()
    def _judge_batch(
        self,
        rows: Rows,
        row: str,
        stored: Stored,
        group: RowColumns,
        examples: tuple[list[int], list[int]],
        tally: RowTally,
        fresh: Fresh | None,
    ) -> None:
        """Judges one batch; of its examples the second list counts."""
        ids, chosen = examples
        batch = rows.batch(torch.tensor([self.place[i] for i in ids]))
        x = judged_images(rows, row, batch, partial(self._stored, tape=stored.tape))
        logits = rows.logits(row, stored.tape, batch, x).cpu()
        counts = torch.tensor([ids.index(i) for i in chosen])
        if kind_of(row).runs_attack:
            self._measure(batch, x, counts, tally)
        old = None
        if stored.logits is not None:
            old = stored.logits[[stored.ids.index(i) for i in chosen]]
        found = logits[counts]
        index = np.array([stored.record[i] for i in chosen])
        recorded = group.select(index).records(row)
        answers = ensemble_classes(found, rows.protocol.averages)
        classes, labels = found.argmax(dim=2).tolist(), batch.y[counts.to(batch.y.device)].tolist()
        again = [
            judged(Key(row, stored.tape, i), y, predicted, None, mean)
            for i, y, predicted, mean in zip(chosen, labels, classes, answers, strict=True)
        ]
        count_batch(tally, recorded, again, old, found, self.spec.precision, rows.protocol.averages)
        random = row in rows.knowledge and not rows.is_known(row)
        if fresh is not None and random and stored.tape == 0:  # draws of tapes share their noise
            of_chosen = batch.rows(counts.to(batch.x.device))._replace(noise=batch.noise.rows(counts))
            self._fresh(rows, row, stored.tape, of_chosen, x[counts.to(x.device)], fresh)
            fresh.note_recorded(recorded)

    def _measure(self, batch: Batch, x: Tensor, counts: Tensor, tally: RowTally) -> None:
        """Notes how far the attacked images are from the verifier's own clean ones."""
        sizes = self.parts.threat.distance(batch.x, x).cpu()[counts].double()
        for i, size in zip(batch.noise.example_ids[counts].tolist(), sizes.tolist(), strict=True):
            tally.sizes[i] = float(np.maximum(tally.sizes.get(i, 0.0), size))  # of all tapes; nan stays

    def _fresh(self, rows: Rows, row: str, tape: int, batch: Batch, x: Tensor, fresh: Fresh) -> None:
        """Judges the same images on noise of another seed; what the attacker knows stays as it was."""
        plan = NoisePlan.of(fresh.seed, batch.noise.example_ids)
        if (knowledge := rows.knowledge.get(row)) is not None:
            plan = plan.sharing(knowledge.sites, batch.noise.on("report").in_lane(0).at(tape))
        model = rows.judge(row, tape, batch.noise).model
        labels, target, right = (
            batch.y.cpu()[:, None],
            rows.target(model),
            torch.zeros(len(x), dtype=torch.long),
        )
        at_once = min(fresh.draws, FRESH_AT_ONCE)
        for first in range(0, fresh.draws, at_once):
            logits = target.draws(x, noise=plan.at(first // at_once), count=at_once)
            left = fresh.draws - first
            right += (logits.argmax(dim=2).cpu()[:, :left] == labels).sum(dim=1)
        fresh.note_fresh(batch.noise.example_ids.tolist(), right.tolist())

    def _stored(self, row: str, ids: list[int], tape: int) -> dict[int, Tensor]:
        """The images that the run keeps of examples of a row, by id."""
        with own_words(self.path, self.run):
            newest = self.run.some(row, tape, ids)
            return {i: self._shard(newest[i]["images"])[i] for i in ids if "images" in newest.get(i, {})}

    def _batches(self, row: str, group: RowColumns) -> Iterator[Stored]:
        """The batches in which the newest records of a row were made."""
        seals = self.run.columns().seals
        for append in np.unique(group.append).tolist():
            for tape in np.unique(group.tape[group.append == append]).tolist():
                index = np.flatnonzero((group.append == append) & (group.tape == tape))
                left = dict(zip(group.example[index].tolist(), index.tolist(), strict=True))
                name = re.compile(rf"logits/{re.escape(row)}-{tape}-\d+-\d+-\d+\.safetensors")
                for file in filter(name.fullmatch, seals[append].get("files", {})):
                    stored = self._read(file, tape, left)
                    left = {i: k for i, k in left.items() if i not in stored.record}
                    yield stored
                if left:  # a run that stored no logits
                    yield Stored(tape, list(left), None, self._session, left)

    def _read(self, file: str, tape: int, index: Mapping[int, int]) -> Stored:
        """A batch of stored logits."""
        with own_words(self.path, self.run):
            path = self.run.kept(file)
            ids, logits, about = read_shard(path, "logits", 3, REPAIR)
            how = checked(parsed(about.get("how", ""), f"'{path}'", REPAIR), HOW, f"'{path}'", REPAIR)
        own = {i: index[i] for i in ids.tolist() if i in index}
        return Stored(tape, ids.tolist(), as_tensor(logits), how, own)

    @contextlib.contextmanager
    def _as_recorded(self, how: Mapping[str, Any]) -> Iterator[Rows]:
        """Inside, as many rows in a call and as many CPU threads as the batch was recorded with."""
        key = min(int(how.get("micro_batch", DEFAULT_ROWS)), MOST_ROWS), bool(how.get("deterministic", False))
        if key not in self._rows:
            execution = Execution(self.device, micro_batch=key[0], deterministic=key[1])
            self._rows[key] = Rows(self.spec, self.parts, execution, self.run)
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(int(how.get("threads", before)))
            with kernels(key[1], self.spec.precision):
                yield self._rows[key]
        finally:
            torch.set_num_threads(before)
