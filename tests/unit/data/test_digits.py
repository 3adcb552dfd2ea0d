"""Scikit-learn's digits: the split, the scale, the padding."""

import sys

import pytest
import torch

from dbpkit.data import load_dataset
from dbpkit.foundation.errors import UserError


def test_digits_splits_share_out_all_ids() -> None:
    pytest.importorskip("sklearn")
    train, test = load_dataset("digits", {"split": "train"}), load_dataset("digits")
    assert test.ids.tolist() == list(range(0, 1797, 5))
    assert sorted(train.ids.tolist() + test.ids.tolist()) == list(range(1797))
    assert train.labels.unique().tolist() == test.labels.unique().tolist() == list(range(10))


def test_digits_pixels_are_the_originals_divided_by_16() -> None:
    whole = pytest.importorskip("sklearn.datasets").load_digits()
    data = load_dataset("digits")
    assert data.shape == (1, 8, 8)
    assert data.ids[3] == 15
    assert (data.images[3, 0] * 16).tolist() == whole.images[15].tolist()
    assert data.labels[3] == whole.target[15]
    assert float(data.images.max()) == 1.0


def test_digits_size_16_pads_four_on_each_side() -> None:
    pytest.importorskip("sklearn")
    plain, padded = load_dataset("digits"), load_dataset("digits", {"size": 16})
    assert padded.shape == (1, 16, 16)
    assert torch.equal(padded.images[:, :, 4:12, 4:12], plain.images)
    assert torch.equal(padded.images.sum(), plain.images.sum())


def test_digits_size_too_small_is_refused() -> None:
    pytest.importorskip("sklearn")
    with pytest.raises(UserError, match="data 'digits': size 4 cannot be reached by padding 8 x 8"):
        load_dataset("digits", {"size": 4})


def test_digits_without_scikit_learn_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        load_dataset("digits")
