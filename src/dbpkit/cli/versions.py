"""What ``dbpkit --version`` says: the program, what it runs on, and hashes of the models and data it finds.

torch is imported only where it may find a GPU, because that alone takes a second.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from dbpkit import __version__
from dbpkit.foundation import console
from dbpkit.foundation.packaged import HERE, code_sha256

PACKAGES = ("torch", "numpy", "safetensors")
"""Packages whose versions may change a last digit."""

DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""What a driver of GPUs makes on Linux."""

ORIGINALS = (
    "cifar-10-batches-py",
    "cifar-100-python",
    "fashion-mnist",
    "mnist",
    "svhn",
    "tiny-imagenet-200",
    "imagenet",
    "celeba",
    "CelebAMask-HQ",
)
"""Folders of original data, as the data sets look for them in ``DBPKIT_DATA``."""

MOST_BYTES = 512 * 2**20
"""Largest folder of original data that is hashed, which takes up to a second."""


def versions() -> dict[str, Any]:
    """Returns what can change a result and is not in a spec, ready for JSON: hashes are sha256."""
    return {
        "dbpkit": __version__,
        "code_sha256": code_sha256(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "system": platform.system(),
        "machine": platform.machine(),
        "device": device(),
        "embedded": {path.name: _sha256(path) for path in _embedded()},
        "data": data(os.environ.get("DBPKIT_DATA", "")),
    }


def device() -> str:
    """Returns what ``--device auto`` takes here: ``"cuda"`` with the GPU's name, or ``"cpu"``."""
    without = _version("torch").endswith("+cpu")
    if without or (sys.platform == "linux" and not any(map(os.path.exists, DRIVERS))):
        return "cpu"
    import torch

    return f"cuda ({torch.cuda.get_device_name(0)})" if torch.cuda.is_available() else "cpu"


def data(root: str) -> dict[str, Any] | None:
    """Returns what is known of the folder of original data, or None if there is none.

    Args:
        root: the folder.

    Returns:
        Its path, and each data set's folder in it: how many files and bytes lie in the folder itself, and one
        sha256 of their names and contents. The hash is None where the folder is too large or has folders of
        its own, and all are None where it cannot be read.
    """
    if not root:
        return None
    found = [folder for name in ORIGINALS if (folder := Path(root).expanduser() / name).is_dir()]
    return {"path": root, "folders": {folder.name: _contents(folder) for folder in found}}


def show_versions(as_json: bool) -> None:
    """Prints `versions`, for programs or for people."""
    found = versions()
    if as_json:
        console.as_json(found)
        return
    console.say(f"dbpkit {found['dbpkit']}")
    packages = ", ".join(f"{package} {found[package]}" for package in PACKAGES)
    lines = {
        "code": _short(found["code_sha256"]),
        "python": f"{found['python']}, {packages}",
        "device": f"{found['device']}, {found['system']} {found['machine']}",
        **{f"embedded {Path(name).stem}": _short(sha256) for name, sha256 in found["embedded"].items()},
        **dict(_of_data(found["data"])),
    }
    for head, text in lines.items():
        console.entry(head, text, indent=2, column=30)


def _of_data(found: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """What is said of the folder of original data."""
    if found is None:
        yield "DBPKIT_DATA", "not set: no original data"
        return
    yield "DBPKIT_DATA", found["path"] if found["folders"] else f"{found['path']} (no original data there)"
    for name, about in found["folders"].items():
        if about["files"] is None:
            yield f"data {name}", "cannot be read"
            continue
        size = f"{about['files']} files, {about['bytes'] / 2**20:.0f} MiB"
        yield f"data {name}", f"{size}, {_short(about['sha256']) if about['sha256'] else 'not hashed'}"


def _short(sha256: str) -> str:
    return f"sha256 {sha256[:16]}"


def _embedded() -> list[Path]:
    """The models and images that the package carries."""
    return sorted(p for p in (HERE / "assets").iterdir() if p.suffix in (".safetensors", ".png"))


def _contents(folder: Path) -> dict[str, Any]:
    """How many files lie in a folder, their size, and one hash of them all unless there is too much."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        files = [entry for entry in entries if entry.is_file()]
        size = sum(entry.stat().st_size for entry in files)
        whole = len(files) == len(entries) and size <= MOST_BYTES
        digest = hashlib.sha256()
        for entry in files if whole else ():
            digest.update(f"{entry.name}\0{_sha256(Path(entry.path))}\n".encode())
    except OSError:
        return {"files": None, "bytes": None, "sha256": None}
    return {"files": len(files), "bytes": size, "sha256": digest.hexdigest() if whole else None}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
