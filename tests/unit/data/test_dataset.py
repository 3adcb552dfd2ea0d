"""What a data set promises, and the errors of finding and loading one."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dbpkit.data import Dataset, data_root, datasets, load_dataset
from dbpkit.data.dataset import check_md5, existing
from dbpkit.foundation.errors import UserError


def make(images: Tensor | None = None, labels: Tensor | None = None, ids: Tensor | None = None) -> Dataset:
    """Three grey 2 x 2 images of two classes, with one part replaced."""
    return Dataset(
        "tiny",
        torch.full((3, 1, 2, 2), 0.5) if images is None else images,
        torch.tensor([0, 1, 1]) if labels is None else labels,
        torch.tensor([4, 7, 9]) if ids is None else ids,
        ("cat", "dog"),
    )


def test_x_uint8_divides_by_255() -> None:
    data = make(images=torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2))
    assert data.x()[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)  # 51 / 255 = 0.2
    assert data.x().dtype == torch.float32


def test_x_index_returns_those_positions() -> None:
    images = torch.tensor([0.0, 0.25, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    assert make(images=images).x(torch.tensor([2, 0]))[:, 0, 0, 0].tolist() == [1.0, 0.0]


def test_select_reordered_keeps_ids_with_their_images() -> None:
    images = torch.tensor([0.0, 0.25, 1.0])[:, None, None, None].expand(3, 1, 2, 2)
    chosen = make(images=images).select(torch.tensor([2, 0]))
    assert chosen.ids.tolist() == [9, 4]
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.images[:, 0, 0, 0].tolist() == [1.0, 0.0]


def test_shape_of_images_is_channels_height_width() -> None:
    assert make(images=torch.zeros(3, 1, 2, 5)).shape == (1, 2, 5)


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": torch.tensor([1, 1, 1])},
        {"ids": torch.tensor([4, 7, 8])},
        {"images": torch.full((3, 1, 2, 2), 0.25)},
    ],
)
def test_sha256_any_part_changed_differs(changed: dict[str, Tensor]) -> None:
    assert make().sha256 == make().sha256
    assert make(**changed).sha256 != make().sha256


def test_dataset_three_axes_is_refused() -> None:
    with pytest.raises(UserError, match=r"data 'tiny': expected images \(N, C, H, W\).*got \(3, 2, 2\)"):
        make(images=torch.zeros(3, 2, 2))


def test_dataset_fewer_labels_is_refused() -> None:
    with pytest.raises(UserError, match=r"N labels and ids, got \(3, 1, 2, 2\), \(2,\), \(3,\)"):
        make(labels=torch.tensor([0, 1]))


def test_dataset_repeated_ids_are_refused() -> None:
    with pytest.raises(UserError, match="data 'tiny': example ids must be unique"):
        make(ids=torch.tensor([4, 7, 4]))


@pytest.mark.parametrize("wrong", [-1, 2])
def test_dataset_label_outside_classes_is_refused(wrong: int) -> None:
    with pytest.raises(
        UserError, match=rf"labels must lie in \[0, 2\), they span {min(wrong, 0)} to {max(wrong, 1)}"
    ):
        make(labels=torch.tensor([0, 1, wrong]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_dataset_pixel_not_finite_names_the_example(value: float) -> None:
    images = torch.full((3, 1, 2, 2), 0.5)
    images[1, 0, 1, 1] = value
    with pytest.raises(UserError, match=r"data 'tiny': pixels must be finite.*example 7 .*is not finite"):
        make(images=images)


@pytest.mark.parametrize("value", [-0.001, 1.001, 255.0])
def test_dataset_pixel_out_of_range_names_the_example(value: float) -> None:
    images = torch.full((3, 1, 2, 2), 0.5)
    images[2, 0, 0, 0] = value
    with pytest.raises(
        UserError, match=rf"example 9 spans {min(value, 0.5):g} to {max(value, 0.5):g}\. Divide 8-bit"
    ):
        make(images=images)


def test_data_root_unset_asks_for_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBPKIT_DATA", raising=False)
    with pytest.raises(UserError, match="no data folder: set DBPKIT_DATA"):
        data_root()


def test_data_root_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data folder '.*/nowhere' does not exist"):
        data_root(tmp_path / "nowhere")


def test_data_root_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="does not exist"):
        data_root(tmp_path / "file")


def test_data_root_argument_wins_over_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBPKIT_DATA", "/nowhere")
    assert data_root(str(tmp_path)) == tmp_path


def test_data_root_variable_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBPKIT_DATA", str(tmp_path))
    assert data_root() == tmp_path


def test_existing_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CIFAR: file '.*/test_batch' is missing\. Download"):
        existing(tmp_path / "test_batch", "CIFAR")


def test_check_md5_wrong_sum_names_both() -> None:
    found = hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
    check_md5(b"abc", found, Path("a"))
    with pytest.raises(
        UserError, match=rf"'a' is not the published file: MD5 {found} where 0000 was expected \(3 bytes"
    ):
        check_md5(b"abc", "0000", Path("a"))


def test_load_dataset_misspelt_name_suggests_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cifar01'\. Did you mean 'cifar10"):
        load_dataset("cifar01")


@pytest.mark.parametrize("name", list(datasets))
def test_load_dataset_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"data '{name}' has no option 'colour'. Available: "):
        load_dataset(name, {"colour": "red"})


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "digits"])
def test_load_dataset_unknown_split_lists_the_splits(name: str, tmp_path: Path) -> None:
    options = {"split": "tets"} if name == "digits" else {"split": "tets", "root": str(tmp_path)}
    with pytest.raises(UserError, match=r"split must be 'test' or 'train', not 'tets'"):
        load_dataset(name, options)


@pytest.mark.parametrize("name", list(datasets))
def test_datasets_every_name_is_described(name: str) -> None:
    assert len(datasets.describe()[name]) > 20


def test_load_dataset_import_path_calls_the_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_for_test.py").write_text(
        "import torch\nfrom dbpkit.data import Dataset\n"
        "def load(n):\n"
        "    ids = torch.arange(n)\n"
        "    return Dataset('own', torch.zeros(n, 1, 2, 2), torch.zeros_like(ids), ids, ('only',))\n"
        "def wrong():\n"
        "    return [1]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert len(load_dataset("own_data_for_test:load", {"n": 4})) == 4
    with pytest.raises(UserError, match=r"must return a dbpkit\.Dataset, not list"):
        load_dataset("own_data_for_test:wrong")


def test_pixels_off_by_float_rounding_are_accepted_as_they_are() -> None:
    """A colour conversion and back spans -2.98e-08 to 1: nothing to divide by 255."""
    images = torch.full((3, 1, 2, 2), 0.5)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -2.98e-8, 1 + 9e-7
    assert torch.equal(make(images=images).x(), images)
    images[2, 0, 0, 0] = -2e-6
    with pytest.raises(UserError, match=r"example 9 spans -2e-06 to 0\.5"):
        make(images=images)


def test_dataset_in_a_loader_gives_batches_of_images_and_labels() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 1, 2, 2)
    data = make(images=images)
    batches = list(torch.utils.data.DataLoader(data, batch_size=2))
    assert [tuple(x.shape) for x, _ in batches] == [(2, 1, 2, 2), (1, 1, 2, 2)]
    assert torch.equal(torch.cat([x for x, _ in batches]), data.x())
    assert torch.equal(torch.cat([y for _, y in batches]), data.labels)
    assert len(list(data)) == 3  # iteration ends


def test_dataset_position_that_is_no_number_raises() -> None:
    with pytest.raises(UserError, match="position must be a whole number, not 'cat'"):
        make()["cat"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"images": [[[[0.5]]]]}, r"images must be a torch tensor, not list\. Use torch\.stack"),
        ({"images": torch.zeros(3, 1, 2, 2, dtype=torch.int64)}, r"images must be uint8 .* not int64"),
        ({"images": torch.zeros(3, 1, 2, 2, dtype=torch.bool)}, r"images must be uint8 .* not bool"),
        ({"images": torch.zeros(3, 1, 2, 2).to_sparse()}, r"images must lie in memory as a dense tensor"),
        ({"images": torch.zeros(3, 1, 2, 2, device="meta")}, r"on the CPU, not on meta"),
        ({"labels": [0, 1, 1]}, r"labels must be a torch tensor, not list\. Use torch\.as_tensor"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, r"labels and ids must be int64, not torch\.float32"),
        ({"ids": range(3)}, r"ids must be a torch tensor, not range"),
        ({"ids": None}, r"ids must be a torch tensor, not NoneType"),
        ({"class_names": "ab"}, r"class_names must be a list of texts, not 'ab'"),
        ({"class_names": None}, r"class_names must be a list of texts, not None"),
        ({"class_names": (0, 1)}, r"class_names must be a list of texts, and 0 is none"),
        ({"origins": ("a",)}, r"3 images came with 1 origins"),
        ({"name": 3}, r"a data set's name must be text, not 3"),
    ],
)
def test_dataset_of_odd_parts_is_a_sentence(changed: dict[str, object], said: str) -> None:
    parts: dict[str, object] = {
        "name": "tiny",
        "images": torch.full((3, 1, 2, 2), 0.5),
        "labels": torch.tensor([0, 1, 1]),
        "ids": torch.tensor([4, 7, 9]),
        "class_names": ("cat", "dog"),
    }
    with pytest.raises(UserError, match=said):
        Dataset(**{**parts, **changed})


def test_dataset_lists_of_names_become_tuples() -> None:
    data = Dataset("t", torch.zeros(1, 1, 2, 2), torch.tensor([0]), torch.tensor([0]), ["cat"], ["a.png"])
    assert (data.class_names, data.origins) == (("cat",), ("a.png",))


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        (slice(1, None), [7, 9]),
        (slice(0, 99), [4, 7, 9]),
        ([2, 0], [9, 4]),
        (range(2), [4, 7]),
        (torch.tensor([-1]), [9]),
        (torch.tensor([True, False, True]), [4, 9]),
        (torch.tensor([1], dtype=torch.uint8), [7]),  # a position, not a mask
        ([], []),
    ],
)
def test_select_takes_slices_masks_and_positions(index: object, ids: list[int]) -> None:
    data = Dataset(
        "t", torch.zeros(3, 1, 2, 2), torch.tensor([0, 1, 1]), torch.tensor([4, 7, 9]), ("a", "b"),
        ("4.png", "7.png", "9.png"),
    )  # fmt: skip
    chosen = data.select(index)
    assert chosen.ids.tolist() == ids
    assert chosen.origins == tuple(f"{i}.png" for i in ids)
    assert len(data.x(index)) == len(ids)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        (3, r"chosen by a slice forwards, a mask or whole numbers, not 3"),
        ("0", r"not '0'"),
        (1.5, r"not 1\.5"),
        ([0.5], r"not \[0\.5\]"),
        ([True], r"not \[true\]|not \[True\]"),
        ({0}, r"not \{0\}"),
        (slice(None, None, -1), r"a slice forwards"),
        (slice(0, 1, 0), r"a slice forwards"),
        (slice("a", None), r"a slice forwards"),
        (torch.tensor([0.0]), r"whole numbers, not tensor"),
        (torch.tensor(0), r"whole numbers, not tensor"),
        (torch.tensor([[0]]), r"whole numbers, not tensor"),
        (torch.tensor([3]), r"has 3 examples; positions 3 to 3 were asked for"),
        ([-4], r"has 3 examples; positions -4 to -4"),
        (torch.tensor([True]), r"a mask of 1 does not fit"),
    ],
)
def test_odd_positions_are_a_sentence(index: object, said: str) -> None:
    for choose in (make().x, make().select):
        with pytest.raises(UserError, match=said):
            choose(index)
