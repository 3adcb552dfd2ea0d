"""MATLAB files of version 5, read by SciPy after what they unpack to has been looked at.

Such a file calls nothing, but a few megabytes of it can unpack to gigabytes before SciPy sees a size.
"""

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any

_HDF5 = b"\x89HDF\r\n\x1a\n"
_HEAD = 128
_PACKED = 15
_PIECE = 2**20


def headers(content: bytes, most: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns shape and kind of every variable by name.

    Args:
        content: of the file.
        most: bytes that all of it may unpack to.

    Raises:
        ValueError: if it is no such file, is one of version 7.3, or unpacks to more; in words.
    """
    if content[:8] == _HDF5 or content[512:520] == _HDF5 or content.startswith(b"MATLAB 7.3"):
        raise ValueError("it is of version 7.3, which is HDF5; save it with -v7 in MATLAB")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None:
        raise ValueError("it does not begin as a file of version 5 does")
    _refuse_bombs(content, order, most)
    from scipy import io

    return {name: (tuple(shape), kind) for name, shape, kind in _quiet(io.whosmat, content)}


def variables(content: bytes, names: list[str], **options: Any) -> dict[str, Any]:
    """Returns these variables as SciPy has them; call `headers` first. Raises what SciPy raises."""
    from scipy import io

    return _quiet(io.loadmat, content, variable_names=names, **options)


def _quiet(function: Any, content: bytes, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of variables that are not wanted
        return function(BytesIO(content), **options)


def _refuse_bombs(content: bytes, order: str, most: int) -> None:
    """Unpacks every part of a file piece by piece, and keeps nothing."""
    at, total, whole = _HEAD, 0, memoryview(content)
    while at + 8 <= len(content):
        kind, count = struct.unpack_from(f"{order}II", content, at)
        part, at = whole[at + 8 : at + 8 + count], at + 8 + count
        total += 0 if kind == _PACKED else len(part)
        unpacker, left = zlib.decompressobj(), bytes(part) if kind == _PACKED else b""
        while left:
            piece = unpacker.decompress(left, _PIECE)
            total, left = total + len(piece), unpacker.unconsumed_tail
            if total > most:
                raise ValueError(f"it unpacks to more than {most:,} bytes")
            if not piece:
                break
