"""`dbpkit.benchmark`: the same numbers as an evaluation of the same parts, for models of every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import (
    NoisePlan,
    PurifiedClassifier,
    Purifier,
    RunDirectory,
    UserError,
    benchmark,
    evaluate,
)
from dbpkit.evaluation.spec import EvaluationSpec
from dbpkit.report import write_report
from tests import parts

Tiny = Callable[..., EvaluationSpec]
PGD = {"name": "pgd", "options": {"iterations": 3, "eot": 2}}


def tiny_data(count: int = 6) -> tuple[Tensor, Tensor]:
    data = parts.data(count)
    return data.x(), data.labels


class Jitter(nn.Module):
    """A random classifier that draws from the plan it is given."""

    sites = frozenset({"forward"})

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Returns (B, 3) logits."""
        return 40 * (x + 0.05 * noise.normal("forward", 0, x)).mean(dim=(2, 3))


class Seeded(nn.Module):
    """Draws from torch's generator: no plan controls it."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = parts.ChannelMean()
        self.noisy = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        return self.mean(nn.functional.dropout(x, 0.2, training=True))


def test_benchmark_plain_linear_classifier_reaches_the_known_optimum(tmp_path: Path) -> None:
    """PGD with steps of eps / 4 moves a linear classifier's pixels to the budget's corner in 4 steps.

    The label's channel mean falls by eps and the others rise by eps: robust if its lead is above 2 eps.
    """
    x, y = tiny_data(12)
    eps = 8 / 255
    means = x.mean(dim=(2, 3))
    label = means.gather(1, y[:, None])[:, 0]
    rival = means.scatter(1, y[:, None], -1).amax(dim=1)
    attack = {"name": "pgd", "options": {"iterations": 8, "loss": "margin"}}
    for threat in (eps, eps / 2):
        expected = float((label - rival > 2 * threat).float().mean())
        found = benchmark(
            parts.ChannelMean(), (x, y), "linf", threat, attacks=[attack], out=tmp_path / f"{threat:.4f}"
        )
        assert found.clean.value == 1
        assert found.robust.value == expected
        assert found.robust.low - 1e-12 <= found.robust.value <= found.robust.high
        assert found.network_calls == 8
    assert found.robust.value == 1  # lead 0.06 against 2 * 4/255 = 0.031


def test_benchmark_purified_model_is_the_evaluation_of_its_parts(tiny: Tiny, tmp_path: Path) -> None:
    model = PurifiedClassifier(Purifier(parts.gaussian_denoiser(), "ddpm", steps=100), parts.ChannelMean())
    found = benchmark(
        model, parts.data(12), attacks=[PGD], examples=4, draws=3, out=tmp_path / "a",
        knowledge=["white_box", "dw_both"],
    )  # fmt: skip
    spec = tiny(examples={"count": 4}, knowledge=["white_box", "dw_both"])
    evaluated = evaluate(spec, tmp_path / "b")
    assert [(r.name, r.estimates, r.network_calls) for r in found.summary.rows] == [
        (r.name, r.estimates, r.network_calls) for r in evaluated.rows
    ]
    assert found.robust == evaluated.row("white_box").headline
    assert found.flags == evaluated.flags


def test_benchmark_random_model_is_judged_on_draws_and_known_noise(tmp_path: Path) -> None:
    found = benchmark(
        Jitter(), tiny_data(), attacks=[PGD], draws=4, out=tmp_path / "run", protocol="worst_of_n"
    )
    assert [row.name for row in found.summary.rows] == ["clean", "noise_control", "white_box", "dw_both"]
    assert found.robust.estimand == "all_draws@4"
    assert found.control is not None
    assert found.summary.row("dw_both").estimates[0].draws == 1
    assert not [f for f in found.flags if f.name == "untracked_randomness"]
    page = write_report([found.run]).read_text()
    assert "unfinished" not in page
    assert "Purified" not in page.partition("</table>")[0].partition("<table")[2]


def test_benchmark_module_with_randomness_of_its_own_is_named(tmp_path: Path) -> None:
    found = benchmark(Seeded(), tiny_data(), attacks=[PGD], out=tmp_path / "run")
    assert [f.severity for f in found.flags if f.name == "untracked_randomness"] == ["error"]
    assert "untracked_randomness" in str(found)


def test_benchmark_same_call_continues_and_leaves_the_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = parts.ChannelMean().train()
    first = benchmark(model, tiny_data(), attacks=[PGD])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    records = (first.run / "records.jsonl").read_bytes()
    again = benchmark(model, tiny_data(), attacks=[PGD])
    assert (again.run, again.robust) == (first.run, first.robust)
    assert (first.run / "records.jsonl").read_bytes() == records
    other = benchmark(parts.ChannelMean(20.0), tiny_data(), attacks=[PGD])
    assert other.run != first.run
    for words in ("clean:", "robust:", "95 % interval", "network calls per image: 3", str(first.run)):
        assert words in str(first)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"threat": "linfinity"}, "unknown threat model 'linfinity'"),
        ({"eps": 8}, "exceeds the pixel range"),
        ({"attacks": "pdg"}, "unknown attack 'pdg'"),
        ({"examples": 99}, "99 examples were asked for, but the data has 6"),
        ({"protocol": "best_of_n"}, "unknown protocol 'best_of_n'"),
        ({"dataset": "cifar"}, "unknown data set 'cifar'"),
        ({"model": nn.Flatten()}, None),
        ({"dataset": (torch.full((2, 3, 8, 8), 3.0), torch.zeros(2))}, "pixels must be finite and in"),
    ],
)
def test_benchmark_mistakes_are_one_sentence(words: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"model": parts.two_classes(), "dataset": tiny_data(), "out": tmp_path / "run", **words}
    if message is None:
        arguments["dataset"] = (tiny_data()[0], torch.full((6,), 1000))
        message = "the labels go up to 1000"
    with pytest.raises(UserError, match=message):
        benchmark(arguments.pop("model"), arguments.pop("dataset"), **arguments)


def test_replay_of_a_benchmark_needs_its_parts(tmp_path: Path) -> None:
    from dbpkit import replay

    found = benchmark(parts.ChannelMean(), tiny_data(), attacks=[PGD], out=tmp_path / "run")
    example = RunDirectory(found.run).records()[0]["example"]
    with pytest.raises(UserError, match="made from objects in Python"):
        replay(found.run, example)
