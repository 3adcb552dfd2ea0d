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
    check,
    evaluate,
)
from dbpkit.data.given import as_dataset
from dbpkit.experiment.spec import EvaluationSpec
from dbpkit.reporting import write_report
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
        ({"dataset": (torch.full((2, 3, 8, 8), 3.0), torch.zeros(2).long())}, "pixels must be finite and in"),
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


# ------------------------------------------------------------------ what a script hands over


def pairs(kind: str) -> Any:
    """The same six examples in every form that torch's users hold them in."""
    x, y = tiny_data()
    data = torch.utils.data.TensorDataset(x, y)
    return {
        "tensors": (x, y),
        "list": [x, y],
        "numpy": (x.numpy(), y.numpy()),
        "numpy double": (x.double().numpy(), y.numpy().astype("int32")),
        "tensor data set": data,
        "loader": torch.utils.data.DataLoader(data, batch_size=4, shuffle=True),
        "list of pairs": [(image, int(label)) for image, label in zip(x, y, strict=True)],
        "dataset in a loader": torch.utils.data.DataLoader(parts.data(6), batch_size=4),
    }[kind]


FORMS = ("list", "numpy", "numpy double", "tensor data set", "loader", "list of pairs", "dataset in a loader")


@pytest.mark.parametrize("kind", FORMS)
def test_data_in_any_form_are_the_same_examples(kind: str) -> None:
    expected, found = as_dataset(pairs("tensors")), as_dataset(pairs(kind))
    assert torch.equal(found.x(), expected.x())
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.ids, expected.ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x, y: (x.permute(0, 2, 3, 1), y), r"channels last.*x\.permute\(0, 3, 1, 2\)"),
        (lambda x, y: (x, y.float()), r"labels must be int64, not float32\. Use y\.long\(\)"),
        (lambda x, y: (x, nn.functional.one_hot(y)), r"labels must have shape.*argmax\(dim=1\)"),
        (lambda x, y: (x, y[:, None]), r"labels must have shape.*Use y\[:, 0\]"),
        (lambda x, y: (255 * x, y), "Divide 8-bit values by 255"),
        (lambda x, y: (2 * x - 1, y), "undo any normalisation"),
        (lambda x, y: (x, y[:3]), "6 images came with 3 labels"),
        (lambda x, y: (x[:0], y[:0]), "there are no pixels"),
        (lambda x, y: ((255 * x).int(), y), "must be floating point"),
        (lambda x, _: x, "no pairs of an image and a label"),
        (lambda *_: 7, r"cannot be made of int\. Give a data set's name"),
        (lambda *_: [("image.png", 3)], "cannot be made of str"),
        (lambda x, _: [(x[0], 0.5)], "a label must be a whole number"),
        (lambda x, _: [(x[0], 0), (x[0, :, :4], 1)], "images of several shapes"),
    ],
)
def test_benchmark_data_of_another_kind_say_what_to_do(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        benchmark(parts.ChannelMean(), given(*tiny_data()), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_benchmark_plain_function_equals_its_module(tmp_path: Path) -> None:
    model = parts.ChannelMean().requires_grad_(False)
    found = [
        benchmark(m, tiny_data(), attacks=[PGD], out=tmp_path / name)
        for name, m in {"module": model, "function": model.forward}.items()
    ]
    assert found[0].robust == found[1].robust
    assert found[0].clean == found[1].clean


class Regular(nn.Module):
    """Wrong in train mode: dropout, and batch statistics that are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.9)
        self.mean = parts.ChannelMean()

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        return self.mean(self.drop(self.norm(x)))


def test_benchmark_after_train_gives_the_numbers_of_eval_and_leaves_the_mode(tmp_path: Path) -> None:
    model = Regular().eval()
    expected = benchmark(model, tiny_data(), attacks=[PGD], out=tmp_path / "eval")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    found = benchmark(model, tiny_data(), attacks=[PGD], out=tmp_path / "train")
    assert (found.clean, found.robust) == (expected.clean, expected.robust)
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "state_changed" not in {f.name for f in found.flags}


class Counting(parts.ChannelMean):
    """Writes into a buffer at every call, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        self.seen += len(x)
        return super().forward(x)


def test_benchmark_and_check_flag_a_model_that_writes_into_its_buffers(tmp_path: Path) -> None:
    found = benchmark(Counting(), tiny_data(), attacks=[PGD], out=tmp_path / "run")
    (flag,) = [f for f in found.flags if f.name == "state_changed"]
    assert flag.severity == "error"
    assert "seen" in flag.message
    x, y = tiny_data()
    model = Counting()
    assert "state_changed" in {f.name for f in check(model, x, y).flags}
    assert float(model.seen) == 0  # put back


def test_check_model_that_works_in_place_is_not_taken_for_a_random_one() -> None:
    class InPlace(parts.ChannelMean):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(0.5).div_(0.25)) / 4

    x, y = tiny_data()
    before = x.clone()
    found = check(InPlace(), x, y)
    assert torch.equal(x, before)
    assert "untracked_randomness" not in {f.name for f in found.flags}
    assert {f.name for f in found.flags} == {f.name for f in check(parts.ChannelMean(), x, y).flags}


def test_benchmark_models_of_the_same_weights_have_their_own_default_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temperature, a head or a closure changes no tensor; the result of the other model was returned."""
    monkeypatch.chdir(tmp_path)
    model = parts.ChannelMean()
    pgd = [{"name": "pgd", "options": {"iterations": 1}}]

    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: factor * model(x)

    found = [benchmark(scaled(factor), tiny_data(3), attacks=pgd) for factor in (1.0, -1.0, 1.0)]
    assert found[0].run == found[2].run != found[1].run
    assert found[0].clean.value == 1
    assert found[1].clean.value < 1


class Tempered(parts.ChannelMean):
    """The same weights under a temperature; counts its calls."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature, self.calls = temperature, 0

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, 3) logits."""
        self.calls += 1
        return super().forward(x) / self.temperature


def test_benchmark_goes_on_with_a_model_that_counts_and_refuses_another_temperature(tmp_path: Path) -> None:
    model, settings = Tempered(1.0), {"attacks": [PGD], "out": tmp_path / "run"}
    benchmark(model, tiny_data(), examples=2, **settings)
    assert model.calls > 0
    assert benchmark(model, tiny_data(), examples=3, **settings).clean.examples == 3
    assert benchmark(Tempered(1.0), tiny_data(), examples=3, **settings).clean.examples == 3
    with pytest.raises(UserError, match=r"run was made with another model \(sha256 "):
        benchmark(Tempered(2.0), tiny_data(), examples=3, **settings)
