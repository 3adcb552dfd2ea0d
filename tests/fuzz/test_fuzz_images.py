"""Damaged files of every format through every reader: a picture or a sentence, and nothing else written.

Each case changes a small good file: bytes flipped, cut, doubled, spliced with another format, or a number in
its header made huge.
"""

import gzip
import io
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from dbpkit.data import load_dataset
from dbpkit.data.embedded import NAME, read_embedded
from dbpkit.data.pictures import read_picture
from dbpkit.evaluation.purify_files import purify_files
from dbpkit.experiment.spec import PurifierSpec
from dbpkit.foundation.errors import UserError
from tests.fuzz.harness import ODD, chooser, leaves, replaced, run_case

ONE_STEP = PurifierSpec(sampler="one_step")
FORMATS = {
    "png": "PNG",
    "jpg": "JPEG",
    "bmp": "BMP",
    "gif": "GIF",
    "webp": "WEBP",
    "tif": "TIFF",
    "ppm": "PPM",
}


def good_files() -> dict[str, bytes]:
    """A small file of every format, and of more kinds of pixels, by a name with its ending."""
    colour = (np.arange(8 * 6 * 3) * 37 % 256).astype(np.uint8).reshape(6, 8, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        f"plain.{ending}": (Image.fromarray(colour), form, {}) for ending, form in FORMATS.items()
    }
    kinds |= {
        "palette.png": (Image.fromarray(colour).quantize(7), "PNG", {"transparency": 3}),
        "deep.png": (Image.fromarray(colour[:, :, 0].astype(np.uint16) * 257), "PNG", {}),
        "turned.jpg": (Image.fromarray(colour), "JPEG", {"exif": exif, "progressive": True}),
        "float.tif": (Image.fromarray(colour[:, :, 0].astype(np.float32) / 255), "TIFF", {}),
        "packed.tif": (Image.fromarray(colour), "TIFF", {"compression": "tiff_lzw"}),
        "bits.png": (Image.fromarray(colour[:, :, 0] > 90), "PNG", {}),
    }
    files = {}
    for name, (image, form, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, form, **options)
        files[name] = file.getvalue()
    return files


GOOD = good_files()


def damaged(content: bytes, choose: Random) -> bytes:
    """The file with one to three changes, most of them near its beginning, where the headers are."""
    changed = bytearray(content)
    for _ in range(choose.randint(1, 3)):
        place = choose.randrange(max(1, min(len(changed), choose.choice([16, 64, 1 << 20]))))
        kind = choose.choice(["flip", "byte", "cut", "double", "splice", "huge", "zero"])
        if kind == "flip" and changed:
            changed[place] ^= 1 << choose.randrange(8)
        elif kind == "byte" and changed:
            changed[place] = choose.randrange(256)
        elif kind == "cut":
            del changed[place:]
        elif kind == "double":
            changed[place:place] = changed[place : place + 64]
        elif kind == "splice":
            other = GOOD[choose.choice(sorted(GOOD))]
            changed[place:] = other[choose.randrange(len(other)) :]
        elif kind == "huge":
            changed[place : place + 4] = choose.choice(
                [b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\xff" * 4]
            )
        else:
            changed[place : place + 4] = bytes(4)
    return bytes(changed)


def cases(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """So many damaged files, of all kinds in turn."""
    choose, names = chooser(seed), sorted(GOOD)
    for number in range(count):
        name = names[number % len(names)]
        yield name, damaged(GOOD[name], choose)


def judge(case: Callable[[], object], what: str, *writes: Path) -> str:
    """Fails on any defect; returns what the case said."""
    outcome = run_case(case, writes=writes)
    assert not outcome.defects, f"{what}: {outcome.defects[0]}"
    return outcome.said


def through_the_reader(count: int, seed: int) -> None:
    """Cases of `read_picture` from memory; what is read is an image, and both outcomes are common."""
    sentences = 0
    for number, (name, content) in enumerate(cases(count, seed)):
        mode, size = ("RGB", "L")[number % 2], (None, 5)[number % 3 == 0]

        def case(content: bytes = content, mode: str = mode, size: int | None = size) -> None:
            x = read_picture(content, "it", size=size, mode=mode)
            assert x.ndim == 3
            assert x.shape[0] == (3 if mode == "RGB" else 1)
            assert x.dtype == torch.uint8 or bool(((x >= 0) & (x <= 1)).all())

        sentences += bool(judge(case, f"{number} {name}"))
    assert 0.2 * count < sentences < 0.9 * count


def through_a_folder(count: int, seed: int, root: Path) -> None:
    """Cases of `folder`, each with a good file beside the damaged one."""
    for number, (name, content) in enumerate(cases(count, seed)):
        folder = root / str(number) / "class"
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        (folder / "good.png").write_bytes(GOOD["plain.png"])
        options = {"path": str(folder.parent), "size": 4, "unreadable": ("error", "skip")[number % 2]}
        said = judge(lambda options=options: load_dataset("folder", options), f"{number} {name}")
        assert not said or number % 2 == 0, f"{number} {name}: skipped files are no error, but {said}"


def through_purify(count: int, seed: int, root: Path) -> None:
    """Cases of `purify_files`, five files at a time of which one is good and is always written."""
    made = list(cases(count, seed))
    for number in range(0, count, 4):
        source, out = root / "in" / str(number), root / "out" / str(number)
        source.mkdir(parents=True)
        paths = [source / f"{k}-{name}" for k, (name, _) in enumerate(made[number : number + 4])]
        for path, (_, content) in zip(paths, made[number : number + 4], strict=True):
            path.write_bytes(content)
        good = source / "good.png"
        good.write_bytes(GOOD["plain.png"])

        def case(paths: tuple[Path, ...] = (*paths, good), out: Path = out) -> None:
            purify_files(paths, out, ONE_STEP, "tests.parts:gaussian_denoiser")

        judge(case, f"{number}", out)
        assert (out / "good.png").is_file()
        assert not [p for p in out.iterdir() if p.suffix == ".tmp"]


def test_damaged_images_through_the_reader() -> None:
    through_the_reader(3000, 1)


def test_damaged_images_through_a_folder(tmp_path: Path) -> None:
    through_a_folder(400, 2, tmp_path)


def test_damaged_images_through_purify(tmp_path: Path) -> None:
    through_purify(200, 3, tmp_path)


@pytest.mark.long
def test_damaged_images_for_long(tmp_path: Path) -> None:
    through_the_reader(20_000, 4)
    through_a_folder(2_000, 5, tmp_path / "folder")
    through_purify(1_000, 6, tmp_path / "purify")


def idx(shape: tuple[int, ...], content: bytes, kind: int = 8) -> bytes:
    """An idx file of bytes, not packed."""
    return bytes([0, 0, kind, len(shape)]) + b"".join(struct.pack(">I", n) for n in shape) + content


def fashion_files(root: Path) -> dict[str, bytes]:
    """The unpacked content of a small test part."""
    (root / "fashion-mnist").mkdir(parents=True)
    return {
        "t10k-images-idx3-ubyte.gz": idx((3, 28, 28), bytes(3 * 784)),
        "t10k-labels-idx1-ubyte.gz": idx((3,), bytes([0, 9, 4])),
    }


HEADERS = [
    idx((2**32 - 1,) * 3, b""),
    idx((0, 0, 0), b""),
    idx((3, 0, 28), b""),
    idx((3, 28, 0), b""),
    idx((3, 784), bytes(3 * 784)),
    idx((3, 28, 28), bytes(3 * 784), kind=13),
    idx((3,), bytes([0, 10, 255])),
    idx((2,), bytes([0, 1])),
    b"",
    bytes(3),
]


def fashion_cases(count: int, seed: int, root: Path) -> None:
    """Damaged idx files and damaged archives, checksums off."""
    good, choose = fashion_files(root), chooser(seed)
    packed = {name: gzip.compress(content, mtime=0) for name, content in good.items()}
    for number in range(count):
        name = sorted(good)[number % 2]
        if number < 2 * len(HEADERS):
            content = gzip.compress(HEADERS[number // 2], mtime=0)
        elif choose.random() < 0.5:
            content = damaged(packed[name], choose)
        else:
            content = gzip.compress(damaged(good[name], choose), mtime=0)
        for other in packed:
            (root / "fashion-mnist" / other).write_bytes(content if other == name else packed[other])
        options = {"root": str(root), "verify": False, "size": (None, 32)[number % 3 == 0]}
        judge(lambda options=options: load_dataset("fashion_mnist", options), f"{number} {name}")


def test_damaged_idx_files(tmp_path: Path) -> None:
    fashion_cases(300, 7, tmp_path)


def test_idx_file_that_unpacks_to_more_than_there_can_be_is_a_sentence(tmp_path: Path) -> None:
    good = fashion_files(tmp_path)
    for name, content in good.items():
        (tmp_path / "fashion-mnist" / name).write_bytes(gzip.compress(content))
    bomb = gzip.compress(idx((60_001, 28, 28), bytes(60_001 * 784)), compresslevel=1)
    assert len(bomb) < 1 << 20
    (tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(bomb)
    with pytest.raises(UserError, match="unpacks to more than 47,040,016 bytes"):
        load_dataset("fashion_mnist", {"root": str(tmp_path), "verify": False})


def test_damaged_embedded_images(tmp_path: Path) -> None:
    """A mosaic of another size, and every field of its description replaced."""
    Image.new("RGB", (512, 512)).save(tmp_path / f"{NAME}.png")
    about = {"sha256": "0" * 64, "class_names": ["a"], "ids": [0, 1], "labels": [0, 0]}
    for path in leaves(about):
        for value in ODD[:24]:
            (tmp_path / f"{NAME}.json").write_text(json.dumps(replaced(about, path, value)))
            said = judge(lambda: read_embedded(tmp_path), f"{path} {value!r}")
            assert "Reinstall dbpkit" in said
    content = (tmp_path / f"{NAME}.png").read_bytes()
    for number in range(20):
        (tmp_path / f"{NAME}.png").write_bytes(damaged(content, chooser(number)))
        judge(lambda: read_embedded(tmp_path), f"mosaic {number}")
