"""Questions that are answered at the end: the same errors, later. Here the CPU counts as an accelerator."""

import pytest
import torch
from torch import Tensor

from dbpkit.attacks import make_attack
from dbpkit.attacks.loss import losses
from dbpkit.attacks.target import Target
from dbpkit.foundation import later
from dbpkit.foundation.errors import NonFiniteError, UserError
from dbpkit.foundation.inputs import check_labels, check_unit
from dbpkit.foundation.later import asked_at_the_end, refuse
from dbpkit.foundation.noise import NoisePlan
from dbpkit.threats.pixels import Linf


@pytest.fixture(autouse=True)
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(later, "HOST", "none")


def too_large(value: Tensor) -> UserError:
    return UserError(f"too large: {int(value)}")


def look(value: int) -> None:
    told = torch.tensor(value)
    refuse(told > 3, too_large, told, about="size")


def in_a_block(values: tuple[int, ...], done: list[int], last: type[Exception] | None = None) -> None:
    """Looks at values, the second half of them in a block of their own."""
    half = len(values) // 2
    with asked_at_the_end():
        for value in values[:half]:
            look(value)
            done.append(value)
        with asked_at_the_end():
            for value in values[half:]:
                look(value)
                done.append(value)
        done.append(0)
        if last:
            raise last


@pytest.mark.parametrize("values", [(1, 5, 2, 9), (1, 2, 5, 9)])
def test_first_refused_value_is_the_error_at_the_end_of_the_outer_block(values: tuple[int, ...]) -> None:
    done: list[int] = []
    with pytest.raises(UserError, match="too large: 5"):
        in_a_block(values, done)
    assert done == [*values, 0]


def test_another_error_comes_first_and_leaves_nothing_behind() -> None:
    with pytest.raises(KeyError):
        in_a_block((5, 6), [], KeyError)
    in_a_block((1, 2), [])


def test_outside_of_a_block_and_on_the_host_the_answer_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="too large: 5"):
        look(5)
    monkeypatch.setattr(later, "HOST", "cpu")
    with asked_at_the_end(), pytest.raises(UserError, match="too large: 7"):
        look(7)


class Model:
    """Three logits, which are not finite from the second call on, or of pixels that are looked at."""

    def __init__(self, factor: float) -> None:
        self.calls = 0
        self.factor = factor

    def __call__(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.calls += 1
        check_unit(x, "Model")
        means = x.mean(dim=(2, 3))
        return means * self.factor if self.calls > 1 else means


def attack(model: Model, label: int = 0, name: str = "pgd") -> None:
    x, y = torch.full((2, 3, 4, 4), 0.5), torch.full((2,), label)
    plan = NoisePlan.of(0, [1, 2], "attack")
    make_attack(name, {"iterations": 3, "eot": 2})(Target(model, 2), x, y, threat=Linf(0.1), noise=plan)


def test_logits_that_are_not_finite_end_the_attack_with_the_error() -> None:
    model = Model(torch.nan)
    with pytest.raises(NonFiniteError, match="logits that are not finite"):
        attack(model)
    assert model.calls == 6  # three iterations of four rows, two at a time


@pytest.mark.parametrize("name", ["pgd", "fab", "selective_eot"])
def test_label_without_a_logit_ends_the_attack_with_the_error(name: str) -> None:
    with pytest.raises(UserError, match="3 classes, but the labels go up to 7"):
        attack(Model(1), label=7, name=name)


def test_logits_that_leave_the_device_are_finite() -> None:
    model = Model(torch.inf)
    target = Target(model, 1)
    x, plan = torch.full((3, 3, 4, 4), 0.5), NoisePlan.of(0, range(3))
    with pytest.raises(NonFiniteError, match="logits that are not finite"):
        target(x, noise=plan)
    assert model.calls == 3


def test_pixels_of_another_unit_are_told_as_on_the_host() -> None:
    target = Target(Model(1), 1)
    x = torch.full((3, 3, 4, 4), 0.5)
    x[1] = 200
    with pytest.raises(UserError, match=r"Model: pixels must be in \[0, 1\]; these span 200 to 200"):
        target(x, noise=NoisePlan.of(0, range(3)))


def test_labels_out_of_range_are_told_as_on_the_host() -> None:
    with (
        pytest.raises(UserError, match=r"labels must lie in \[0, 3\); these span -2 to 1"),
        asked_at_the_end(),
    ):
        check_labels(torch.tensor([1, -2]), 2, "here", 3)


@pytest.mark.parametrize("loss", ["ce", "margin", "dlr"])
def test_label_without_a_logit_reads_no_memory_of_others(loss: str) -> None:
    """On CUDA an index out of range would end the process's use of the device."""
    values: list[Tensor] = []
    with pytest.raises(UserError, match="3 classes"), asked_at_the_end():
        values.append(losses.get(loss)(torch.zeros(2, 3), torch.tensor([5, 0])))
    assert bool(values[0].isfinite().all())
