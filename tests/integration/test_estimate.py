"""What an evaluation takes is told before it: the counts of its records, and its time."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from dbpkit import EvaluationSpec, Execution, estimate, evaluate
from dbpkit.attacks import AttackOutcome
from dbpkit.evaluation import timing
from dbpkit.evaluation.estimate import Estimate, duration, of_parts
from dbpkit.evaluation.rows import Rows
from dbpkit.evaluation.run import _Runner
from dbpkit.evaluation.timing import Clock
from dbpkit.experiment.build import build
from dbpkit.experiment.sizing import Need, settled
from dbpkit.purification.replay import DEFAULT_MEMORY
from dbpkit.results.run_directory import RunDirectory
from tests.oracles import GaussianDenoiser

Tiny = Callable[..., EvaluationSpec]

CALL, ROW = 0.004, 0.001
"""Seconds that a call of the slow denoiser takes, and each of its rows, on a clock that only it moves."""

CLOSE = 1.2
"""Factor within which a time that is told must lie of one that is measured."""


class Slow(nn.Module):
    """A denoiser that moves its own clock on, however busy the machine is."""

    now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.inner = GaussianDenoiser(-0.1, 0.05)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        Slow.now += CALL + ROW * len(x)
        return self.inner(x, sigma)


def slow() -> nn.Module:
    return Slow()


def stubborn(target, x, y, *, threat, noise, turns: int = 4):
    """An attack of the user's own that asks in a way that no formula knows."""
    losses = []
    for i in range(turns):
        found = target.gradient(x, y, noise=noise.at(i), eot=1 + i)
        target(x, noise=noise.at(i))
        losses.append(found.loss)
    loss = torch.stack(losses, 1)
    return AttackOutcome(x, loss, torch.ones_like(loss))


ATTACKS = {
    "pgd": [{"name": "pgd", "options": {"iterations": 3, "eot": 2}}],
    "two": [{"name": "pgd", "options": {"iterations": 2, "eot": 3}}, {"name": f"{__name__}:stubborn"}],
    "apgd": [{"name": "apgd", "options": {"iterations": 5, "eot": 2, "n_restarts": 1}}],
}


@pytest.mark.parametrize("name", ATTACKS)
def test_passes_and_calls_are_those_that_a_run_records(name: str, tiny: Tiny, tmp_path: Path) -> None:
    spec = tiny(attacks=ATTACKS[name], examples={"count": 2})
    told = {row: one for one in estimate(spec, Execution("cpu")).rows for row in one.rows}
    found = evaluate(spec, tmp_path / "run", Execution("cpu"))
    assert {row.name for row in found.rows} == set(told)
    for row in found.rows:
        recorded = (row.forward_passes, row.gradient_passes, row.network_calls or 0)
        mine = told[row.name]
        said = (mine.forward_passes, mine.gradient_passes, mine.network_calls)
        if row.name == "transfer":
            continue  # made together with 'undefended', which has its passes
        if name != "pgd":  # an example that is decided meets no more of the attacks
            assert all(a <= b for a, b in zip(recorded, said, strict=True)), row.name
        else:
            assert recorded == said, row.name


def test_views_with_another_chain_or_none_count_their_own_calls(tiny: Tiny, tmp_path: Path) -> None:
    knowledge = [
        "white_box",
        "blind",
        "bpda",
        {"name": "short", "gradient": "surrogate", "gradient_options": {"steps": 50}},
    ]
    spec = tiny(knowledge=knowledge, examples={"count": 2}, purifier={"sampler": "heun", "steps": 100})
    told = {one.rows[0]: one.network_calls for one in estimate(spec, Execution("cpu")).rows}
    found = evaluate(spec, tmp_path / "run", Execution("cpu"))
    assert {row.name: row.network_calls for row in found.rows if row.network_calls} == {
        name: calls for name, calls in told.items() if calls
    }
    assert told["short"] < told["white_box"]


def test_time_is_that_of_the_work_itself(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(
        denoiser=f"{__name__}:slow",
        attacks=ATTACKS["pgd"],
        knowledge=["white_box", "dw_both"],
        examples={"count": 2},
    )
    execution = Execution("cpu", batch_size=2, micro_batch=4, memory_bytes=DEFAULT_MEMORY)
    rows = Rows(spec, build(spec, "cpu"), execution, RunDirectory(tmp_path))

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: Slow.now))
    told = 3600 * estimate(spec, execution).hours
    began = Slow.now
    for unit in rows.units():
        unit.work(rows.batch(torch.arange(2)))
    ratio = (Slow.now - began) / told
    assert 1 / CLOSE < ratio < CLOSE, ratio


def test_gradient_costs_what_is_replayed_and_no_more() -> None:
    """N (F + B) + (N - k) F, with the k that the budget keeps, from times that are given."""
    clock = Clock.__new__(Clock)
    clock.execution, clock.need = Execution("cpu", memory_bytes=3000), Need(100, 0, 11)
    assert clock._kept(11, 10) == 3
    assert clock._kept(11, 1) == 11
    assert clock._kept(11, 1000) == 1


def test_machines_share_the_hours_and_a_sentence_says_all(tiny: Tiny) -> None:
    spec = tiny(examples={"count": 8})
    one, four = (estimate(spec, Execution("cpu", batch_size=2), machines) for machines in (1, 4))
    assert one.network_calls == four.network_calls > 0
    assert four.hours_each == four.hours / 4
    assert one.memory == max(row.memory for row in one.rows) > 0
    assert "8 examples take about" in four.sentence
    assert "on each of 4" in four.sentence
    assert "on cpu, 32 rows at a time" in four.sentence
    assert four.as_json()["rows"][0]["rows"] == ("undefended_clean", "clean", "noise_control")


def told(hours: float, machines: int, batches: int) -> Estimate:
    return Estimate([], 12, 2304, hours, machines, batches, 0, "on cpu")


def test_machines_take_whole_batches_and_the_fullest_is_told() -> None:
    assert told(6.0, 4, 6).hours_each == 2.0
    assert told(6.0, 4, 1).hours_each == 6.0
    assert (
        "6.0 hours on each of 4 (3 of them without a batch: lower --batch-size)" in told(6.0, 4, 1).sentence
    )
    assert told(6.0, 4, 1).sentence.startswith("12 examples take about")
    assert told(6.0, 1, 1)._replace(examples=1).sentence.startswith("1 example takes about")
    assert "without a batch" not in told(6.0, 4, 4).sentence


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.01, "1 second"), (1.4, "1 second"), (1.6, "2 seconds"), (90, "90 seconds"), (120, "2.0 minutes")],
)
def test_duration_is_in_words(seconds: float, words: str) -> None:
    assert duration(seconds / 3600) == words


def test_progress_is_a_share_of_the_forecast_time(tiny: Tiny, tmp_path: Path) -> None:
    """Each unit of work counts as much as its row takes."""
    spec = tiny(knowledge=["white_box", {"name": "fixed", "tapes": 2}])
    parts = build(spec, "cpu")
    execution = settled(Execution("cpu"), parts)
    forecast = of_parts(spec, parts, execution)
    seen: dict[str, float] = {}
    runner = _Runner(spec, parts, execution, RunDirectory(tmp_path / "run"), lambda s, what: None)
    guessed = [unit.cost for unit in runner.units]
    runner.weigh(None)
    assert [unit.cost for unit in runner.units] == guessed
    runner.weigh(forecast)
    for unit in runner.units:
        seen[unit.rows[0]] = seen.get(unit.rows[0], 0.0) + unit.cost * runner.examples / runner.total
    assert seen == pytest.approx({row.rows[0]: row.hours / forecast.hours for row in forecast.rows})


def test_evaluate_says_the_line_before_it_starts_and_once(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dbpkit.estimates")
    spec = tiny(examples={"count": 1}, knowledge=["dw_both"])
    for _ in range(2):
        evaluate(spec, tmp_path, Execution("cpu"))
    assert sum("network calls (on cpu" in message for message in caplog.messages) == 1


def test_estimates_that_share_timings_time_each_network_once(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other steps and another budget mean the same networks; another sampler is another chain."""
    timed: list[str] = []

    def given(name: str, plain: float) -> Callable[..., timing.Seconds]:
        def seconds(_clock: Clock, _part: object, count: int) -> timing.Seconds:
            timed.append(f"{name}, {count} rows")
            return timing.Seconds(count, plain * count, 3 * plain * count)

        return seconds

    monkeypatch.setattr(Clock, "_purifier", given("chain", 0.002))
    monkeypatch.setattr(Clock, "_whole", given("classifier", 0.001))
    one_step = {"sampler": "one_step", "steps": 1000}
    specs = [
        tiny(examples={"count": 2}, purifier=one_step),
        tiny(examples={"count": 2}, purifier={**one_step, "steps": 500, "t_star": 0.2}),
        tiny(examples={"count": 4}, purifier=one_step, threat={"norm": "l2", "eps": "0.5"}),
        tiny(examples={"count": 2}, purifier={"sampler": "ddim", "steps": 100}),
    ]
    execution = Execution("cpu", micro_batch=8, memory_bytes=DEFAULT_MEMORY)
    timings: timing.Timings = {}
    counts, shared = [], []
    for spec in specs:
        shared.append(estimate(spec, execution, timings=timings))
        counts.append(len(timed))
    first = counts[0]
    assert sorted(set(timed[:first])) == [f"{n}, {r} rows" for n in ("chain", "classifier") for r in (2, 8)]
    assert counts == [first, first, first, first + 2]
    assert timed[first:] == ["chain, 8 rows", "chain, 2 rows"]
    for spec, found in zip(specs, shared, strict=True):
        alone = estimate(spec, execution)
        assert (found.hours, found.checks, found.network_calls) == (
            alone.hours,
            alone.checks,
            alone.network_calls,
        )
    assert len(timed) == first + 2 + len(specs) * first
