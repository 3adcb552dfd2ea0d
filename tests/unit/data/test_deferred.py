"""Images that stay in their files until they are asked for: which are read, and that nothing else changes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dbpkit import EvaluationSpec
from dbpkit.data import Dataset, deferred, folder, in_order, load_dataset, pictures
from dbpkit.data.deferred import DeferredDataset
from dbpkit.experiment.build import chosen_examples
from dbpkit.foundation.errors import UserError

COUNT = 12


def pixels(number: int) -> Tensor:
    """Picture number ``number``, all of whose pixels differ from other pictures'."""
    return torch.arange(3 * 4 * 5).reshape(3, 4, 5).add(number).to(torch.uint8)


def counted(read: list[int], **options: object) -> DeferredDataset:
    """A data set that notes which pictures are read."""

    def one(number: int) -> Tensor:
        read.append(number)
        return pixels(number)

    labels, ids = torch.arange(COUNT) % 3, torch.arange(COUNT) * 7
    origins = tuple(f"{k}.png" for k in range(COUNT))
    return DeferredDataset("pictures", one, labels, ids, ("a", "b", "c"), origins, **options)


def plain() -> Dataset:
    """The same examples in memory."""
    images = torch.stack([pixels(k) for k in range(COUNT)])
    labels, ids = torch.arange(COUNT) % 3, torch.arange(COUNT) * 7
    return Dataset("pictures", images, labels, ids, ("a", "b", "c"), tuple(f"{k}.png" for k in range(COUNT)))


@pytest.mark.parametrize(
    "index", [slice(2, 9, 3), [5, -1, 5, 0][:2], torch.arange(COUNT) % 2 == 0, torch.tensor([11, 3]), []]
)
def test_deferred_selection_is_that_of_memory(index: object) -> None:
    read: list[int] = []
    data = counted(read)
    chosen, same = data.select(index), plain().select(index)  # type: ignore[arg-type]
    assert read == [0]  # the first picture tells the shape
    assert (chosen.shape, len(chosen), chosen.origins) == (same.shape, len(same), same.origins)
    assert torch.equal(chosen.ids, same.ids)
    assert torch.equal(chosen.labels, same.labels)
    assert torch.equal(chosen.x(), same.x())
    assert torch.equal(chosen.images, same.images)
    assert chosen.sha256 == same.sha256


def test_deferred_reads_only_what_is_asked_for() -> None:
    read: list[int] = []
    chosen = counted(read).select(slice(4, 10))
    chosen.select([1, 2]).x([1])
    assert read == [0, 6]
    image, label = chosen[5]
    assert read == [0, 6, 9]
    assert torch.equal(image, pixels(9) / 255)
    assert label == 0


def test_deferred_hash_keeps_what_it_read() -> None:
    read: list[int] = []
    chosen = counted(read).select([3, 4])
    assert chosen.sha256 == chosen.select(slice(0, 2)).sha256 == plain().select([3, 4]).sha256
    chosen.select([0]).x()
    assert read == [0, 3, 4]


def test_deferred_hash_of_many_is_streamed_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "KEPT", 100)
    read: list[int] = []
    data = counted(read)
    assert data.sha256 == plain().sha256
    assert "images" not in vars(data)
    assert read == [0, *range(COUNT)]


def test_deferred_order_is_that_of_memory() -> None:
    for order in ("balanced", "shuffled", "file"):
        assert torch.equal(in_order(counted([]), order, 3), in_order(plain(), order, 3))


def test_deferred_labels_are_checked_without_reading() -> None:
    with pytest.raises(UserError, match=r"labels must lie in \[0, 1\)"):
        DeferredDataset("x", pixels, torch.tensor([0, 1]), torch.arange(2), ("a",))


def folder_of(tmp_path: Path, count: int) -> Path:
    """A folder of two classes."""
    for k in range(count):
        (tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        Image.fromarray(pixels(k).permute(1, 2, 0).numpy()).save(tmp_path / "ab"[k % 2] / f"{k}.png")
    return tmp_path


def loaded(path: Path) -> Dataset:
    return load_dataset("folder", {"path": str(path)})


def test_deferred_folder_is_that_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 6)
    before = loaded(tmp_path)
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    after = loaded(tmp_path)
    assert not isinstance(before, DeferredDataset)
    assert isinstance(after, DeferredDataset)
    assert after.select([4, 1]).sha256 == before.select([4, 1]).sha256
    assert after.sha256 == before.sha256


def test_deferred_damage_is_named_when_it_is_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    folder_of(tmp_path, 6)
    (tmp_path / "a" / "2.png").write_text("no image")
    data = loaded(tmp_path)
    assert data.origins == ("a/0.png", "a/2.png", "a/4.png", "b/1.png", "b/3.png", "b/5.png")
    assert len(data.select([0, 2]).images) == 2
    with pytest.raises(UserError, match=r"image '.*a/2\.png' cannot be read"):
        data.select([1]).x()


def test_deferred_other_size_is_named_when_it_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    folder_of(tmp_path, 4)
    Image.new("RGB", (9, 9)).save(tmp_path / "b" / "3.png")
    with pytest.raises(UserError, match=r"'.*b/3\.png' is 9 x 9 pixels .* where '.*a/0\.png' is 4 x 5"):
        loaded(tmp_path).select([3]).x()


def test_deferred_other_depth_keeps_its_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 4)
    Image.fromarray(np.full((4, 5), 40_000, np.uint16)).save(tmp_path / "b" / "3.png")
    whole = loaded(tmp_path)
    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    data = loaded(tmp_path)
    assert torch.equal(data.select([3]).x(), whole.select([3]).x())
    assert data.sha256 == whole.sha256
    monkeypatch.setattr(deferred, "KEPT", 0)
    with pytest.raises(UserError, match=r"'.*b/3\.png' has another depth of pixels than '.*a/0\.png'"):
        loaded(tmp_path).sha256  # noqa: B018 - the hash is what fails


def test_evaluation_reads_the_chosen_examples_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(source: Path, *given: object, **options: object) -> Tensor:
        read.append(str(source))
        return pictures.read_picture(source, *given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(deferred, "AT_ONCE", 0)
    monkeypatch.setattr(folder, "read_picture", noted)
    data = {"name": "folder", "options": {"path": str(folder_of(tmp_path, 40))}}
    chosen = chosen_examples(EvaluationSpec.model_validate({"data": data, "examples": {"count": 3}}))
    assert len(chosen.sha256) == 64
    assert chosen.x().shape == (3, 3, 4, 5)
    assert len(read) == 1 + 3
