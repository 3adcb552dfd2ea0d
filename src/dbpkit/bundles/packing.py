"""``dbpkit bundle``: a run directory becomes one file, the same bytes wherever it is packed.

Packed is what the numbers follow from: spec, sessions, checks, records, the attacked images and the logits
that the records name, and what analyses concluded. Clean images are not: a hash stands for the data, and
whoever verifies has them. Tracebacks, pages and pictures are left out too.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dbpkit.bundles.archive import write_archive
from dbpkit.bundles.manifest import MANIFEST, RUN, Manifest, Member, manifest_of
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import OwnFile, check_place, read_whole, regular_size, sha256_of
from dbpkit.results.analysis import analysed
from dbpkit.results.completeness import unfinished as what_is_missing
from dbpkit.results.records_file import OF_ALL, ORDER, journals_in
from dbpkit.results.run_directory import RunDirectory
from dbpkit.results.shards import fault_of_file
from dbpkit.results.summary import summarise

_TELLING = re.compile(rb'"error": |"message": ')
"""What lines of records are searched for paths: those that quote an error."""

BUNDLE = OwnFile("a bundle", ".zip", re.compile(rb"PK\x03\x04.{4}\0\0.{20}manifest\.json", re.DOTALL))
"""Its manifest comes first, and nothing is compressed; weights files of torch and documents are zips, too."""


class Bundled(NamedTuple):
    """A bundle that was written.

    Attributes:
        path: the file.
        sha256: of the file.
        bytes: its size.
        manifest: what is in it.
    """

    path: Path
    sha256: str
    bytes: int
    manifest: Manifest

    def as_json(self) -> dict[str, Any]:
        """Returns plain dictionaries and lists, the members as a count."""
        manifest = self.manifest.as_json()
        manifest["members"] = len(manifest["members"])
        return {"path": str(self.path), "sha256": self.sha256, "bytes": self.bytes, **manifest}


def bundle(
    run: str | Path | RunDirectory, out: str | Path | None = None, *, unfinished: bool = False
) -> Bundled:
    """Packs a run into one file that somebody else can verify.

    Args:
        run: run directory of an evaluation.
        out: the file; ``RUN.zip`` beside the run directory if not given.
        unfinished: pack a run that lacks results, too. The manifest says so, and so does all that shows it.

    Returns:
        The file, its hash, and the manifest, which lists the names of your machine that remain in it.

    Raises:
        UserError: if the run is unfinished and that is not asked for, was made by a dbpkit whose records
            carry no digests, or images or logits are missing or changed.

    Example:
        >>> dbpkit.bundle("runs/demo")  # doctest: +SKIP
    """
    directory = run if isinstance(run, RunDirectory) else RunDirectory(run)
    directory.spec()  # of no run it says so
    missing = what_is_missing(directory)
    if not directory.columns().rows:
        raise UserError(f"'{directory.path}' holds no result of an evaluation. Run dbpkit evaluate first.")
    if directory.schema == 1:
        raise UserError(
            f"'{directory.path}' was made by a dbpkit whose records have no digests. Use a new --out."
        )
    if missing and not unfinished:
        raise UserError(f"'{directory.path}' is not packed. {missing} Or pack it as it is with --unfinished.")
    whole = directory.path.resolve()
    path = check_place(out or whole.with_name(f"{whole.name}.zip"), BUNDLE)
    files = {f"{RUN}{name}": directory.path / name for name in packed_files(directory)}
    members = {name: _member(file) for name, file in files.items()}
    manifest = manifest_of(directory, summarise(directory), members, _words(files))
    content: list[tuple[str, bytes | Path]] = [(MANIFEST, manifest.as_bytes()), *files.items()]
    sha256 = write_archive(path, content)
    return Bundled(path, sha256, regular_size(path), manifest)


def packed_files(run: RunDirectory) -> list[str]:
    """Returns the files of a run directory that are packed, in the order of the bundle.

    Raises:
        UserError: if an image or logit is missing or is not the one that its records were made with.
    """
    fixed = ("spec.json", "env.json", "checks.json", OF_ALL, *journals_in(run.path), ORDER)
    found = [name for name in fixed if (run.path / name).is_file()]
    for name in sorted(analysed(run)):
        own = (f"analyses/{name}/settings.json", f"analyses/{name}/result.json")
        found += [file for file in own if (run.path / file).is_file()]
    columns = run.columns()
    used = {k for group in columns.rows.values() for k in np.unique(group.append).tolist()}
    needed = {file for k in used for file in columns.seals[k].get("files", {})}
    sealed = dict(item for seal in columns.seals for item in seal.get("files", {}).items())
    for file, sha256 in list(sealed.items()):
        if not (why := fault_of_file(run.path, file, sha256)):
            continue
        if file in needed:
            raise UserError(f"'{run.path / file}' {why}. Run the same evaluation again, then pack it.")
        del sealed[file]  # of records that were made again since
    for path in (run.path / name for name in found):
        if path.is_symlink() or path.parent.is_symlink():
            raise UserError(f"'{path}' is a link, and links are not packed. Put the file in its place.")
    return [*found, *sorted(sealed)]


def _member(file: Path) -> Member:
    return Member(bytes=regular_size(file), sha256=sha256_of(file))


def _words(files: dict[str, Path]) -> Iterator[str]:
    """What packed files say in words; of records the lines that quote an error, for others hold numbers."""
    for name, file in files.items():
        if name.endswith(".jsonl"):
            with file.open("rb") as lines:
                for line in lines:
                    if _TELLING.search(line):
                        yield line.decode(errors="replace")
        elif name.endswith(".json") and not name.endswith(("spec.json", "order.json")):
            yield read_whole(file).decode(errors="replace")
