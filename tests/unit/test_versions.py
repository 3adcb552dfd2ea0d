"""``dbpkit --version``: what a run depends on, for people and for programs."""

import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dbpkit
from dbpkit.cli import versions
from dbpkit.foundation.packaged import HERE, code_sha256
from tests.integration.test_cli import run

__all__ = ["run"]


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of original data with one data set, and something that is none."""
    for name, text in (("cifar-10-batches-py/b", "two"), ("cifar-10-batches-py/a", "one"), ("mine/x", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("DBPKIT_DATA", str(tmp_path))
    return tmp_path


def test_version_names_what_a_result_depends_on(run, original: Path) -> None:
    found = json.loads(run("--version", "--json")[1])
    assert run("--json", "--version")[1] == json.dumps(found, indent=1) + "\n"
    assert (found["dbpkit"], found["python"]) == (dbpkit.__version__, platform.python_version())
    assert (found["torch"], found["numpy"]) == (torch.__version__, np.__version__)
    assert found["device"].split(" ")[0] == ("cuda" if torch.cuda.is_available() else "cpu")
    weights = HERE / "assets" / "cifar10-unet.safetensors"
    assert found["embedded"][weights.name] == hashlib.sha256(weights.read_bytes()).hexdigest()
    lines = run("--version")[1]
    for words in (dbpkit.__version__, torch.__version__, found["embedded"][weights.name][:16], str(original)):
        assert words in lines


def test_version_hashes_original_data_by_name_and_content(original: Path) -> None:
    one, two = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    both = hashlib.sha256(f"a\0{one}\nb\0{two}\n".encode()).hexdigest()
    assert versions.data(str(original)) == {
        "path": str(original),
        "folders": {"cifar-10-batches-py": {"files": 2, "bytes": 6, "sha256": both}},
    }


@pytest.mark.parametrize("large", [True, False])
def test_version_does_not_hash_what_is_large_or_has_folders(
    large: bool, run, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(versions, "MOST_BYTES", 5)
    else:
        (original / "cifar-10-batches-py" / "more").mkdir()
    assert "2 files, 0 MiB, not hashed" in run("--version")[1]


def test_version_says_that_there_are_no_original_data(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBPKIT_DATA")
    assert "not set: no original data" in run("--version")[1]
    assert json.loads(run("--version", "--json")[1])["data"] is None


def test_every_folder_of_original_data_is_one_that_a_data_set_looks_for() -> None:
    sources = "".join(path.read_text() for path in (HERE / "data").glob("*.py"))
    assert [name for name in versions.ORIGINALS if f'"{name}"' not in sources] == []


def test_device_is_what_torch_says_where_a_driver_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_version", lambda _: "2.13.0")
    monkeypatch.setattr(versions, "DRIVERS", (__file__,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    assert versions.device() == "cuda (A GPU)"
    monkeypatch.setattr(versions, "DRIVERS", (f"{__file__}/no",))
    assert (versions.device() == "cpu") == (sys.platform == "linux")


def test_version_does_not_import_torch_without_a_gpu() -> None:
    """That is what would make it slow."""
    code = "import sys; from dbpkit.cli.versions import versions, DRIVERS; versions()"
    code += "; import os; assert 'torch' not in sys.modules or any(map(os.path.exists, DRIVERS))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("words", [("--json",), ("--json", "list")])
def test_json_without_version_belongs_behind_the_command(words: tuple[str, ...], run) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert "--json belongs behind the command" in err


def test_code_has_one_hash_in_a_checkout_and_in_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel has the documentation's scripts beside the modules, a checkout has not."""
    monkeypatch.setattr("dbpkit.foundation.packaged.HERE", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    before = code_sha256.__wrapped__()
    (tmp_path / "docs" / "shown.py").write_text("b = 1\n")
    assert code_sha256.__wrapped__() == before
    (tmp_path / "a.py").write_text("a = 2\n")
    assert code_sha256.__wrapped__() != before
