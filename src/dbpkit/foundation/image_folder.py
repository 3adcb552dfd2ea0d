"""A folder that image files are written into, and the list of what was written there.

The list holds hashes, because a name proves nothing: ``photo.png`` in the folder may be an original, a result
of yesterday, or that result after somebody worked on it. Only the second may be replaced.
"""

import hashlib
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dbpkit.foundation.errors import UserError
from dbpkit.foundation.files import sha256_of, write_atomically
from dbpkit.foundation.locking import remove_temporaries

LIST = ".dbpkit-purified.json"
"""In the folder: hashes of the files written there, by name."""

KEPT = 4
"""Latest hashes of a file that are kept: the one before counts until its successor is written."""


class ImageFolder:
    """Writes files and remembers them, so that nothing else is overwritten.

    Args:
        path: the folder; made with the first file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def targets(self, paths: Sequence[Path], overwrite: bool = False) -> dict[Path, Path]:
        """Returns where the result of every image goes, ``<name>.png``.

        Args:
            paths: the images.
            overwrite: whether files that were not written here may be replaced.

        Raises:
            UserError: if two results would be one file, or one would replace an image given, a link, or a
                file that was not written here.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"'{self.path}' is not a folder. Choose another --out.")
        owners: dict[str, Path] = {}
        for path in paths:
            key = unicodedata.normalize("NFC", path.stem).casefold()  # one name on many file systems
            if key in owners:
                raise UserError(
                    f"two images are called '{path.stem}': their results would overwrite each other. Purify"
                    " them into two folders."
                )
            owners[key] = path
        found = {path: self.path / f"{path.stem}.png" for path in paths}
        inputs = {identity for path in paths if (identity := _identity(path))}
        for path, target in found.items():
            if _identity(target) in inputs:
                raise UserError(
                    f"the result of '{path}' would overwrite '{target}', which is one of the images given."
                    " Choose another --out."
                )
            if os.path.lexists(target) and not overwrite and not self._is_own(target):
                raise UserError(
                    f"the result of '{path}' would overwrite '{target}', which 'dbpkit purify' did not write,"
                    " or which was changed since. Choose another --out, or say --overwrite."
                )
        remove_temporaries(self.path, {LIST, *(target.name for target in found.values())})
        return found

    def write(self, target: Path, content: bytes) -> None:
        """Writes a file whole or not at all, and notes its hash before, so that it is known whatever happens.

        Raises:
            UserError: if it cannot be written.
        """
        noted = self._noted()
        sha256 = hashlib.sha256(content).hexdigest()
        hashes = [h for h in noted.get(target.name, []) if h != sha256]
        noted[target.name] = [*hashes[1 - KEPT :], sha256]
        write_atomically(self.path / LIST, json.dumps(noted, indent=1).encode())
        write_atomically(target, content)

    def _is_own(self, target: Path) -> bool:
        """Whether a file is one that was written here, unchanged."""
        if target.is_symlink() or not target.is_file():
            return False
        return sha256_of(target) in self._noted().get(target.name, [])

    def _noted(self) -> dict[str, list[str]]:
        """Hashes by name; a list that cannot be read knows nothing, so that nothing is overwritten."""
        try:
            noted = json.loads((self.path / LIST).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        whole = isinstance(noted, dict) and all(
            isinstance(hashes, list) and all(isinstance(h, str) for h in hashes) for hashes in noted.values()
        )
        return noted if whole else {}


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and number of a file, the same for every name and link of it; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
