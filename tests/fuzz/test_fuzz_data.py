"""Damaged lists and arrays of the data sets that come with them: a data set or a sentence, and nothing else.

Each case changes one small good file of a data set; the others stay.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import io

from dbpkit.data import load_dataset
from dbpkit.models.libraries import transformers
from tests.fuzz.harness import ODD, chooser, leaves, replaced
from tests.fuzz.test_fuzz_images import GOOD, damaged, judge

CASES = 60
PNG = GOOD["plain.png"]
WNIDS = [f"n{k:08d}" for k in range(1, 1001)]


def written(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def svhn(root: Path) -> dict[str, object]:
    (root / "svhn").mkdir()
    arrays = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [10]], np.uint8)}
    io.savemat(root / "svhn" / "test_32x32.mat", arrays, do_compression=True)
    return {"name": "svhn", "options": {"root": str(root), "verify": False}}


def devkit(root: Path) -> dict[str, object]:
    table = np.empty(1000, [("ILSVRC2012_ID", "O"), ("WNID", "O")])
    for k, wnid in enumerate(WNIDS):
        table[k] = (k + 1, wnid)
    truth = "".join(f"{k}\n" for k in range(1, 1001))
    written(root, {"ILSVRC2012_validation_ground_truth.txt": truth, "ILSVRC2012_val_00000001.JPEG": PNG})
    io.savemat(root / "meta.mat", {"synsets": table}, do_compression=True)
    return {"name": "imagenet", "options": {"path": str(root), "size": 4, "resize": None}}


def kaggle(root: Path) -> dict[str, object]:
    solution = "ImageId,PredictionString\nILSVRC2012_val_00000001,n00000007 1 2 3 4 \n"
    mapping = "\n".join(f"{wnid} a, b" for wnid in WNIDS)
    written(root, {"LOC_val_solution.csv": solution, "LOC_synset_mapping.txt": mapping})
    written(root, {"ids.txt": "x/ILSVRC2012_val_00000001.JPEG\n", "val/ILSVRC2012_val_00000001.JPEG": PNG})
    options = {"path": str(root), "size": 4, "resize": None, "files": str(root / "ids.txt")}
    return {"name": "imagenet", "options": options}


def tiny(root: Path) -> dict[str, object]:
    annotations = "val_0.JPEG\tn00000002\t0\t0\t9\t9\nval_1.JPEG\tn00000001\t0\t0\t9\t9\n"
    written(root, {"wnids.txt": "n00000002\nn00000001\n", "words.txt": "n00000001\tcat\n"})
    written(root, {"val/val_annotations.txt": annotations})
    written(root, {f"val/images/val_{k}.JPEG": PNG for k in range(2)})
    return {"name": "tiny_imagenet", "options": {"path": str(root)}}


def celeba(root: Path) -> dict[str, object]:
    written(root, {"list_attr_celeba.txt": "2\nBald Smiling\n000001.jpg -1 1\n000002.jpg 1 -1\n"})
    written(root, {"list_eval_partition.txt": "000001.jpg 2\n000002.jpg 2\n"})
    written(root, {f"img_align_celeba/00000{k}.jpg": PNG for k in (1, 2)})
    return {"name": "celeba", "options": {"path": str(root), "attribute": "Smiling"}}


@pytest.mark.parametrize("make", [svhn, devkit, kaggle, tiny, celeba])
def test_damaged_lists_and_arrays(make: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    given, choose = make(tmp_path), chooser(11)
    good = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.suffix in (".mat", ".txt", ".csv")}
    assert not judge(lambda: load_dataset(given["name"], given["options"]), "undamaged")
    sentences = 0
    for number in range(CASES):
        path = sorted(good)[number % len(good)]
        path.write_bytes(damaged(good[path], choose))
        said = judge(lambda: load_dataset(given["name"], given["options"]), f"{number} {path.name}")
        sentences += bool(said)
        path.write_bytes(good[path])
    assert sentences > CASES // 6


def test_odd_configurations_of_an_image_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good: dict[str, Any] = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": 8, "width": 8},
        "crop_size": {"height": 8, "width": 8},
        "do_center_crop": True,
        "rescale_factor": 1 / 255,
        "resample": 2,
    }
    monkeypatch.setattr(transformers, "imported", lambda *_: SimpleNamespace())
    monkeypatch.setattr(transformers, "_loaded", lambda *_: SimpleNamespace(config=None))
    monkeypatch.setattr(transformers, "as_classifier", lambda *_: None)
    (tmp_path / "model.safetensors").touch()
    path = tmp_path / "preprocessor_config.json"
    for place in leaves(good):
        for value in ODD:
            path.write_text(json.dumps(replaced(good, place, value)))
            judge(lambda: transformers.transformers(str(tmp_path)), f"{place} {value!r}")
