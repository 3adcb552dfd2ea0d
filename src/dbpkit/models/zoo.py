"""The models that published rows of the field were measured with: what each is, and whether it is here.

The table is data, `assets/zoo.toml`. The thing people get wrong: a file of the right name and another size.
So sizes and digests are compared where they are known. Nothing is fetched unless it is asked for.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dbpkit.foundation.errors import UserError, one_line, unknown_name
from dbpkit.foundation.packaged import asset
from dbpkit.foundation.spec import Strict
from dbpkit.foundation.toml import read_table

FOLDERS = "DBPKIT_MODELS"
"""The environment's list of folders that models are looked for in, parted as PATH is."""

DEEPEST, MOST = 3, 20_000
"""How far below a folder, and at how many names, it is looked for files."""

DOWNLOADED = ("*.json", "*.safetensors")
"""What is fetched of a Hub repository: descriptions, and weights in which nothing can run."""


class ZooModel(Strict):
    """A model that others publish.

    Attributes:
        name: ours.
        kind: what it is.
        files: patterns of the name of its file or folder, as it is known in several places.
        bytes: size of the first of them, where the originals' lists say.
        sha256: digest of the first of them, where it is known.
        hub: its Hub id, if it is there.
        get: where the user gets it.
        licence: of the code or card that it comes with.
        layout: what is in it.
        checked: what dbpkit's reading of it is checked with.
        specs: published specs whose source used it.
    """

    name: str
    kind: Literal["denoiser", "classifier"]
    files: list[str]
    bytes: int | None = None
    sha256: str | None = None
    hub: str | None = None
    get: str
    licence: str
    layout: str
    checked: str
    specs: list[str]


class Zoo(Strict):
    """All of them, in the file's order."""

    model: list[ZooModel]


class Found(NamedTuple):
    """A model of the zoo on this machine.

    Attributes:
        model: which.
        path: file or folder; None if it is not here.
        verdict: what its size or digest says, in a clause.
        sha256: its digest, where it was computed.
    """

    model: ZooModel
    path: Path | None
    verdict: str
    sha256: str | None = None

    def as_data(self) -> dict[str, Any]:
        """The same for programs."""
        path = None if self.path is None else str(self.path)
        return {**self.model.model_dump(), "path": path, "verdict": self.verdict, "found_sha256": self.sha256}


def zoo() -> list[ZooModel]:
    """Returns the models of the packaged table."""
    return Zoo(**read_table(asset("zoo.toml"))).model


def named(name: str) -> ZooModel:
    """Returns a model by name; UserError if there is none."""
    models = {model.name: model for model in zoo()}
    if name not in models:
        raise unknown_name("model", name, models)
    return models[name]


def look(models: Sequence[ZooModel], *, digests: bool = False) -> list[Found]:
    """Looks for models in the folders of ``DBPKIT_MODELS``, in the current one and in the Hub's cache.

    Args:
        models: what is looked for.
        digests: whether the sha256 of every file that is found is computed, which reads it all.
    """
    places = list(_entries(_folders()))
    return [_found(model, places, digests) for model in models]


def download(model: ZooModel) -> Path:
    """Fetches a model from the Hub into its cache, descriptions and safetensors only.

    Raises:
        UserError: if the model is not on the Hub, or cannot be fetched.
    """
    if model.hub is None:
        raise UserError(f"model '{model.name}' is not on the Hugging Face Hub. Get it from {model.get}.")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError("--download needs a library that is missing: pip install huggingface_hub.") from error
    try:
        return Path(snapshot_download(model.hub, allow_patterns=list(DOWNLOADED)))
    except Exception as error:  # no network, no such repository, no permission: the library raises many kinds
        raise UserError(
            f"model '{model.name}' cannot be fetched from the Hugging Face Hub ({type(error).__name__}:"
            f" {one_line(str(error))}). Fetch {model.hub} by hand into a folder of {FOLDERS}."
        ) from error


def _folders() -> list[Path]:
    """Folders to look in, the user's own first."""
    own = [Path(p).expanduser() for p in os.environ.get(FOLDERS, "").split(os.pathsep) if p]
    return [*own, Path.cwd()]


def hub_cache() -> Path:
    """Where the Hub's library keeps what it has fetched."""
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _entries(folders: Sequence[Path]) -> Iterator[os.DirEntry[str]]:
    """Files and folders below folders, up to `DEEPEST` levels and `MOST` names; hidden ones are left out."""
    left, seen = [(folder, 0) for folder in folders], 0
    while left:
        folder, depth = left.pop(0)
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except (OSError, ValueError):
            continue
        for entry in entries:
            if seen >= MOST:
                return
            if entry.name.startswith("."):
                continue
            seen += 1
            yield entry
            if depth < DEEPEST and _is(entry.is_dir):
                left.append((Path(entry.path), depth + 1))


def _is(ask: Callable[..., bool]) -> bool:
    """Whether an entry is a folder; a link is followed to none."""
    try:
        return ask(follow_symlinks=False)
    except OSError:
        return False


def _found(model: ZooModel, places: Sequence[os.DirEntry[str]], digests: bool) -> Found:
    """The best match of a model: one whose size agrees, else one of its name."""
    here = [Path(e.path) for e in places if any(Path(e.path).match(name) for name in model.files)]
    if model.hub is not None:
        here += sorted((hub_cache() / f"models--{model.hub.replace('/', '--')}" / "snapshots").glob("*"))
    judged = [_judged(model, path, digests) for path in here]
    judged.sort(key=lambda found: "instead" in found.verdict)
    return judged[0] if judged else Found(model, None, "not found")


def _judged(model: ZooModel, path: Path, digests: bool) -> Found:
    """What size and digest say of a file or folder of the right name."""
    if path.is_dir():
        return Found(model, path, "found, a folder")
    size = path.stat().st_size if path.exists() else 0
    known = model.bytes if path.match(model.files[0]) else None
    digest = _sha256(path) if digests else None
    if digest is not None and model.sha256 is not None:
        right = digest == model.sha256
        return Found(model, path, "found, its sha256 agrees" if right else "another sha256 instead", digest)
    if known is None:
        return Found(model, path, f"found by its name, {size:,} bytes", digest)
    verdict = "found, its size agrees" if size == known else f"{size:,} bytes instead of {known:,}"
    return Found(model, path, verdict, digest)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
