"""Opening a bundle: every member is looked at before one is believed, and unpacked into its own folder."""

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from dbpkit.bundles.archive import Archive, opened_archive, refused
from dbpkit.bundles.manifest import MANIFEST, RUN, SCHEMA, SCHEMA_OF_FILE, Manifest, claims_of
from dbpkit.foundation.errors import UserError, shown
from dbpkit.foundation.files import LARGEST
from dbpkit.results.completeness import unfinished
from dbpkit.results.layout import parsed
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.summary import Summary, summarise

MOST_RECORDS = 2**35
"""Bytes of the largest file of records."""

MOST_SHARD = 2**36
"""Bytes of the largest file of images or logits."""

LIGHT = re.compile(r"run/(?!x_adv/|logits/)")
"""Members without images and logits: all that a table needs."""

_FILE = r"(?!\.)[\w.-]{1,250}"
_ADMITTED = re.compile(
    r"run/(spec\.json|env\.json|checks\.json|records\.jsonl|records/order\.json"
    r"|records/[1-9]\d{0,5}-of-[1-9]\d{0,5}\.jsonl"
    rf"|(x_adv|logits)/{_FILE}\.safetensors|analyses/{_FILE}/(settings|result)\.json)",
    re.ASCII,
)
"""Names that a member may have; none of them leads out of the folder."""


class Opened(NamedTuple):
    """A bundle that was opened.

    Attributes:
        path: the file.
        sha256: of the file.
        manifest: what it says of itself, which was computed again from its members.
        run: its run directory, in a folder that is removed when the bundle is closed.
        summary: of the run.
    """

    path: Path
    sha256: str
    manifest: Manifest
    run: RunDirectory
    summary: Summary


@contextlib.contextmanager
def opened_bundle(path: str | Path, *, light: bool = False) -> Iterator[Opened]:
    """Opens a bundle; its files lie in a new folder of their own until it is closed.

    Args:
        path: the file.
        light: leave images and logits packed; their hashes are looked at all the same.

    Raises:
        UserError: if it is not a bundle as it was written: another form, name, size, hash, count or claim.
    """
    if not isinstance(path, str | Path):
        raise UserError(f"a bundle is named by its path, not by {shown(path)}.")
    path = Path(path)
    with opened_archive(path) as archive, tempfile.TemporaryDirectory(prefix="dbpkit-bundle-") as folder:
        manifest = _manifest(path, archive)
        _unpack(path, archive, manifest, Path(folder), light)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        run = RunDirectory(Path(folder) / RUN)
        yield Opened(path, sha256, manifest, run, _believed(path, manifest, run))


def _manifest(path: Path, archive: Archive) -> Manifest:
    """The manifest, whose list of members must be that of the archive."""
    names = list(archive.sizes)
    if not names or names[0] != MANIFEST:
        raise refused(path, f"its first member is not '{MANIFEST}'")
    text = archive.read(MANIFEST)
    content = parsed(text, f"'{path}' {MANIFEST}", "Ask for the file again.")
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and version > SCHEMA:
        raise UserError(
            f"'{path}' is a bundle of layout {version}, and this dbpkit reads {SCHEMA}. Update it."
        )
    try:
        manifest = SCHEMA_OF_FILE.validate_json(text)
    except (ValidationError, RecursionError) as error:
        problem = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(p)[:60] for p in problem["loc"]) if problem else "it is nested too deeply"
        raise refused(path, f"{MANIFEST}: {where}: {problem['msg'] if problem else ''}") from error
    if manifest.as_bytes() != text:  # a key twice, other spaces: two readers could see two manifests
        raise refused(path, f"{MANIFEST} is not written as dbpkit writes it")
    if {MANIFEST, *manifest.members} != set(names):
        raise refused(path, "its members are not those of its manifest")
    for name in names[1:]:
        if not _ADMITTED.fullmatch(name):
            raise refused(path, f"no file of a run is called {name[:100]!r}")
        _check_size(path, name, archive.sizes[name], manifest)
    return manifest


def _check_size(path: Path, name: str, size: int, manifest: Manifest) -> None:
    """Refuses a member of another size than the manifest's, or a larger one than any of its kind."""
    kinds = ((".jsonl", MOST_RECORDS), (".safetensors", MOST_SHARD), (".json", LARGEST))
    most = next(bound for ending, bound in kinds if name.endswith(ending))
    if size != manifest.members[name].bytes or size > most:
        raise refused(path, f"'{name}' has {size:,} bytes, which is not what its manifest says or too many")


def _unpack(path: Path, archive: Archive, manifest: Manifest, folder: Path, light: bool) -> None:
    """Writes the members into the folder; each must have its hash."""
    for name, member in manifest.members.items():
        target = folder / name if not light or LIGHT.match(name) else None
        if target is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
        if archive.copy(name, target) != member.sha256:
            raise refused(path, f"'{name}' does not have the hash that its manifest gives")


@contextlib.contextmanager
def own_words(path: Path, run: RunDirectory) -> Iterator[None]:
    """Inside, a damaged file of the run is one of the bundle: the error names that, not the folder."""
    try:
        yield
    except UserError as error:
        raise refused(path, str(error).replace(str(run.path), RUN.rstrip("/"))) from error


def _believed(path: Path, manifest: Manifest, run: RunDirectory) -> Summary:
    """The summary of the run, which must be what the manifest claims."""
    with own_words(path, run):
        summary, spec_hash, missing = summarise(run), run.spec()["hash"], unfinished(run)
    if manifest.spec_hash != spec_hash or manifest.unfinished != missing or manifest.name != summary.name:
        raise refused(path, "its manifest is of another spec, or of a run that is more or less complete")
    found = claims_of(summary)
    if found.keys() != manifest.headline.keys():
        raise refused(path, "its manifest claims other rows than its records have")
    for row, claim in manifest.headline.items():
        if abs(claim.value - found[row].value) > 1e-5 or claim.examples != found[row].examples:
            said = (
                f"row '{row}': its manifest claims {claim.value:.2%}, its records say {found[row].value:.2%}"
            )
            raise refused(path, said)
    return summary
