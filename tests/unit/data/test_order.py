"""The order in which examples are taken: fair, seeded, every choice the start of a larger one."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from dbpkit import EvaluationSpec
from dbpkit.data import Dataset, in_order
from dbpkit.data.order import ORDERS
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.spec import read_spec, spec_hash, validate
from tests.parts import data as tiny


def of(labels: list[int], ids: list[int] | None = None, classes: int | None = None) -> Dataset:
    """Black images with these labels."""
    own = torch.tensor(ids if ids is not None else list(range(len(labels))))
    names = tuple(str(k) for k in range(classes or max(labels) + 1))
    return Dataset("made", torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels), own, names)


def test_in_order_file_is_the_order_held() -> None:
    assert in_order(tiny(5), "file", 3).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_in_order_takes_every_example_once(order: str, seed: int) -> None:
    assert sorted(in_order(tiny(12), order, seed).tolist()) == list(range(12))


def test_in_order_balanced_every_prefix_differs_by_at_most_one_between_classes_with_examples_left() -> None:
    labels = [0] * 40 + [1] * 3 + [2] * 17 + [3] * 9
    data, left = of(labels), Counter(labels)
    order = in_order(data, "balanced", 5)
    taken: Counter[int] = Counter()
    for position in order.tolist():
        taken[labels[position]] += 1
        open_classes = [k for k in left if taken[k] < left[k]]
        # A class that still has examples is never more than one behind any other.
        assert all(max(taken.values()) - taken[k] <= 1 for k in open_classes)
    assert taken == left


def test_in_order_balanced_of_a_sorted_folder_is_not_its_first_class() -> None:
    labels = [k for k in range(10) for _ in range(72)]
    chosen = in_order(of(labels), "balanced", 0)[:72]
    counts = Counter(labels[i] for i in chosen.tolist())
    assert sorted(counts.values()) == [7] * 8 + [8] * 2


def test_in_order_balanced_fewer_than_classes_takes_different_ones_for_other_seeds() -> None:
    labels = [k for k in range(50) for _ in range(4)]
    firsts = {in_order(of(labels), "balanced", seed)[0].item() // 4 for seed in range(20)}
    assert len(firsts) > 10


@pytest.mark.parametrize("order", ["balanced", "shuffled"])
def test_in_order_depends_on_ids_and_labels_and_not_on_positions(order: str) -> None:
    labels, ids = [0, 1, 2, 0, 1, 2, 0, 0], [7, 100, 3, 2**44 - 1, 5, 6, 2, 9]
    data = of(labels, ids)
    turned = data.select(torch.tensor([3, 1, 7, 0, 6, 2, 5, 4]))
    before = data.ids[in_order(data, order, 4)]
    assert torch.equal(turned.ids[in_order(turned, order, 4)], before)
    assert not torch.equal(data.ids[in_order(data, order, 5)], before)


def test_in_order_shuffled_keeps_the_order_of_the_others_when_one_is_removed() -> None:
    data = tiny(12)
    before = data.ids[in_order(data, "shuffled", 0)].tolist()
    fewer = data.select(torch.tensor([i for i in range(12) if i != 4]))
    assert fewer.ids[in_order(fewer, "shuffled", 0)].tolist() == [i for i in before if i != 104]


def test_in_order_shuffled_of_known_ids_is_that_of_their_uniforms() -> None:
    from dbpkit import NoisePlan

    ids = list(range(20))
    uniform = NoisePlan.of(9, ids, "control").uniform("order", 0, torch.zeros(20, 2))[:, 0].tolist()
    assert len(set(uniform)) == 20  # the second word decides nothing here
    assert in_order(of([0] * 20), "shuffled", 9).tolist() == sorted(ids, key=uniform.__getitem__)


def test_in_order_of_nothing_is_nothing() -> None:
    assert in_order(tiny(12).select(slice(0, 0)), "balanced", 0).tolist() == []


def test_in_order_unknown_order_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown order of examples 'balance'\. Did you mean 'balanced'\?"):
        in_order(tiny(3), "balance", 0)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("first-1024", {"count": 1024, "order": "file"}),
        ("first-1000", {"count": 1000, "order": "file"}),
        ("first-200", {"count": 200, "first": 0, "order": "file"}),
        ("robustbench", {"order": "file"}),
    ],
)
def test_subset_of_a_paper_is_the_spec_that_says_it_in_full(name: str, table: dict[str, object]) -> None:
    short, long = (EvaluationSpec.model_validate({"examples": value}) for value in (name, table))
    assert short == long
    assert spec_hash(short) == spec_hash(long)
    assert short.examples.order == "file"


def test_subset_goes_on_the_command_line_and_can_be_changed(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('examples = "first-200"\n')
    spec = read_spec(tmp_path / "spec.toml", EvaluationSpec, ["examples=first-8"])
    assert (spec.examples.count, spec.examples.order) == (8, "file")
    spec = read_spec(tmp_path / "spec.toml", EvaluationSpec, ["examples.count=16", "examples.first=4"])
    assert (spec.examples.count, spec.examples.first, spec.examples.order) == (16, 4, "file")


@pytest.mark.parametrize("name", ["first-0", "first-", "first-1e3", "last-10", "", "first-01"])
def test_subset_unknown_names_what_there_is(name: str) -> None:
    with pytest.raises(UserError, match=r"is no subset. Available: first-1024 .*, robustbench"):
        validate({"examples": name}, EvaluationSpec, "spec")
