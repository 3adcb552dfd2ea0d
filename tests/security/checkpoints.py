"""Checkpoints that a stranger may send, made byte by byte: what `read_checkpoint` must refuse."""

import io
import os
import pickle  # noqa: TID251 - to make the files
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

COMMAND = "touch EXECUTED"
P2 = b"\x80\x02"
MAGIC = P2 + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY = MAGIC + P2 + b"M\xe9\x03." + P2 + b"}X\x0d\x00\x00\x00little_endian\x88s."
"""The beginning of a legacy file: magic number, version, machine."""


def text(value: str) -> bytes:
    """A text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    """A whole number of up to 63 bits."""
    return b"\x8a\x08" + struct.pack("<q", value)


def row(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def name(path: str) -> bytes:
    """A class or function."""
    module, _, last = path.rpartition(".")
    return b"c" + module.encode() + b"\n" + last.encode() + b"\n"


def call(path: str, *arguments: bytes) -> bytes:
    """What a call returns."""
    return name(path) + row(*arguments) + b"R"


def pickled(program: bytes) -> bytes:
    """A file that leaves what a program makes."""
    return P2 + program + b"."


def zipped(program: bytes, more: dict[str, bytes] | None = None, method: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of torch.save with that program as its description."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for entry, data in {"data.pkl": pickled(program), "version": b"3\n", **(more or {})}.items():
            archive.writestr(entry if entry.startswith(("/", "..")) else f"archive/{entry}", data)
    return stream.getvalue()


def storage(key: str = "0", count: int = 4, kind: str = "torch.FloatStorage", *more: bytes) -> bytes:
    """The numbers of a tensor."""
    return row(text("storage"), name(kind), text(key), text("cpu"), whole(count), *more) + b"Q"


def tensor(numbers: bytes, offset: int = 0, shape: Any = (4,), steps: Any = (1,)) -> bytes:
    """A tensor of torch."""
    sides = [row(*map(whole, values)) for values in (shape, steps)]
    return call(
        "torch._utils._rebuild_tensor_v2",
        numbers,
        whole(offset),
        *sides,
        b"\x89",
        call("collections.OrderedDict"),
    )


def view(offset: int, shape: Any, steps: Any, count: int = 4, size: int = 16) -> bytes:
    """A zip file with one tensor in it."""
    return zipped(tensor(storage("0", count), offset, shape, steps), {"data/0": bytes(size)})


def legacy(
    program: bytes, keys: tuple[str, ...] = ("0",), counts: tuple[int, ...] = (4,), size: int = 16
) -> bytes:
    """A legacy file with storages of these keys and counts."""
    content = LEGACY + pickled(program) + pickled(b"](" + b"".join(map(text, keys)) + b"e")
    return content + b"".join(struct.pack("<q", count) + bytes(size) for count in counts)


def nested(content: bytes) -> bytes:
    """A tensor whose numbers are a file within the file."""
    inner = b"B" + struct.pack("<I", len(content)) + content
    return b"\x80\x03" + tensor(call("torch.storage._load_from_bytes", inner)) + b"."


def array(dtype: bytes, data: bytes, *shape: int) -> bytes:
    """An array of NumPy."""
    shell = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), row(whole(0)), b"U\x01b")
    kind = (
        call("numpy.dtype", dtype, b"\x89", b"\x88")
        + row(whole(3), b"U\x01<", *b"NNN".split(), b"NNN")
        + b"b"
    )
    return shell + row(whole(1), row(*map(whole, shape)), kind, b"\x89", data) + b"b"


def damaged(content: bytes, old: bytes, new: bytes) -> bytes:
    """A file with some bytes replaced."""
    assert old in content
    return content.replace(old, new)


def doubled() -> bytes:
    """An archive with two entries of one name."""
    content = zipped(b"}", {"data/0": b"a", "data/1": b"b"})
    return damaged(content, b"archive/data/1", b"archive/data/0")


def overlapping() -> bytes:
    """An archive whose second tensor lies in its first."""
    content = zipped(b"}", {"data/0": bytes(64), "data/1": bytes(64)})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        one, other = (archive.getinfo(f"archive/data/{i}").header_offset for i in (0, 1))
    inner = content[other : other + 45]  # the second header, put into the content of the first
    content = content[: one + 50] + inner + content[one + 50 + len(inner) :]
    return content.replace(struct.pack("<I", other), struct.pack("<I", one + 50))


def bomb() -> bytes:
    """Lists that hold the one before them ten times."""
    program, depth = b"]", 12
    for place in range(depth):
        program += b"q" + bytes([place]) + b"0](" + (b"h" + bytes([place])) * 10 + b"e"
    return pickled(program)


def tarred() -> bytes:
    """A tar archive, as torch wrote before its version 0.2."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for entry in ("sys_info", "pickle", "tensors", "storages"):
            archive.addfile(tarfile.TarInfo(entry))
    return stream.getvalue()


def safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def persistent(**meta: bytes) -> bytes:
    """An object of EDM with this description."""
    pairs = b"".join(text(key) + value for key, value in meta.items())
    return pickled(call("torch_utils.persistence._reconstruct_persistent_obj", b"}(" + pairs + b"u"))


RUNS = {
    f"a call of {path}": pickled(call(path, *arguments))
    for path, arguments in {
        "os.system": [text(COMMAND)],
        "posix.system": [text(COMMAND)],
        "nt.system": [text(COMMAND)],
        "subprocess.Popen": [b"](" + text("touch") + text("EXECUTED") + b"e"],
        "subprocess.check_output": [text(COMMAND)],
        "builtins.eval": [text("open('EXECUTED', 'w')")],
        "__builtin__.exec": [text("open('EXECUTED', 'w')")],
        "builtins.open": [text("EXECUTED"), text("w")],
        "builtins.__import__": [text("trap")],
        "importlib.import_module": [text("trap")],
        "runpy.run_path": [text("trap.py")],
        "pickle.loads": [b"U\x01."],
        "torch.load": [text("evil.pt")],
        "torch.hub.load": [text("someone/something"), text("model")],
        "torch.serialization.load": [text("evil.pt")],
        "torch.utils.cpp_extension.load": [text("x"), b"]"],
        "torch._dynamo.x": [],
        "numpy.load": [text("evil.npy"), b"N", b"\x88"],
        "numpy.core.multiarray.fromfile": [text("/etc/passwd")],
        "numpy.f2py.crackfortran.myeval": [text("1")],
        "dnnlib.util.get_obj_by_name": [text("os.system")],
        "dnnlib.util.call_func_by_name": [text(COMMAND)],
        "dnnlib.util.open_url": [text("http://localhost/")],
        "trap.x": [text(COMMAND)],
        "operator.attrgetter": [text("system")],
        "types.FunctionType": [text("x"), b"}"],
        "ctypes.CDLL": [text("libc.so.6")],
        "socket.create_connection": [row(text("localhost"), whole(80))],
        "functools.reduce": [name("trap.X"), b"]"],
        "webbrowser.open": [text("http://localhost/")],
        "shutil.rmtree": [text("/")],
        "os.path.exists": [text("/")],
        "codecs.open": [text("EXECUTED"), text("w")],
    }.items()
}
"""Calls, in a plain pickle; some of them also in the other containers."""

ODD: dict[str, bytes] = {
    "a call in a zip file": zipped(call("os.system", text(COMMAND))),
    "a call in a legacy file": legacy(call("os.system", text(COMMAND)), (), ()),
    "a call in a file within the file": nested(RUNS["a call of os.system"]),
    "a call in the legacy file within the file": nested(legacy(call("os.system", text(COMMAND)), (), ())),
    "files within files within files": nested(
        legacy(call("torch.storage._load_from_bytes", b"C\x01x"), (), ())
    ),
    "a zip file within the file": nested(zipped(storage(), {"data/0": bytes(16)})),
    "a file within the file that holds no numbers": nested(legacy(b"}", (), ())),
    "a name of several lines": b"\x80\x04" + text("os\nsystem\nx") + text("y") + b"\x93.",
    "a name in other letters": b"\x80\x04" + text("\u043es") + text("system") + b"\x93.",
    "a name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "a name of a megabyte": b"\x80\x04" + text("a" * 10**6) + text("B") + b"\x93.",
    "a name through an attribute": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93)R.",
    "builtins under another name": pickled(call("builtins.dict.__class__", text("x"))),
    "an instance by INST": b"(X\x01\x00\x00\x00aios\nsystem\n.",
    "an instance by OBJ": pickled(b"(" + name("os.system") + text(COMMAND) + b"o"),
    "an instance by NEWOBJ": pickled(name("os.system") + row(text(COMMAND)) + b"\x81"),
    "an instance by NEWOBJ_EX": b"\x80\x04" + name("os.system") + row(text(COMMAND)) + b"}\x92.",
    "an instance by copyreg": pickled(call("copyreg.__newobj__", name("os.system"), text(COMMAND))),
    "an instance by copy_reg": pickled(
        call("copy_reg._reconstructor", name("os.system"), name("builtins.object"), b"N")
    ),
    "an instance of nothing": pickled(b"}" + row() + b"\x81"),
    "a partial call": pickled(call("functools.partial", name("os.system"))),
    "a tensor of a type that is a call": pickled(
        call("torch._tensor._rebuild_from_type_v2", name("os.system"), name("trap.X"), row(), b"}")
    ),
    "a call of what a call returned": pickled(call("trap.X") + row() + b"R"),
    "a call of an attribute": pickled(call("builtins.getattr", name("trap.X"), text("x")) + row() + b"R"),
    "attributes of a class": pickled(name("trap.X") + b"}" + text("__setstate__") + name("trap.Y") + b"sb"),
    "items of a class": pickled(name("trap.X") + text("a") + text("b") + b"s"),
    "elements of a class": pickled(name("trap.X") + text("a") + b"a"),
    "a state for a text": pickled(text("a") + b"}b"),
    "an extension by one byte": b"\x80\x02\x82\x01.",
    "an extension by two bytes": b"\x80\x02\x83\x01\x00.",
    "an extension by four bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "a persistent name": b"P/etc/passwd\n.",
    "numbers beside a pickle": pickled(storage()),
    "a persistent path": zipped(row(text("storage"), text("/etc/passwd")) + b"Q"),
    "numbers at a path": zipped(tensor(storage("../../../../etc/passwd")), {"data/0": bytes(16)}),
    "numbers of a type that is a call": zipped(tensor(storage(kind="os.system")), {"data/0": bytes(16)}),
    "numbers of a class of a stranger": zipped(
        tensor(storage(kind="trap.FloatStorage")), {"data/0": bytes(16)}
    ),
    "numbers that are missing": zipped(tensor(storage("7")), {"data/0": bytes(16)}),
    "numbers of another count": view(0, (4,), (1,), count=5),
    "numbers without end": view(0, (2**62,), (1,), count=2**62),
    "a negative count of numbers": view(0, (1,), (1,), count=-1),
    "a buffer beside the pickle": b"\x80\x05\x97.",
    "a tensor beyond its numbers": view(1, (4,), (1,)),
    "a negative step": view(3, (4,), (-1,)),
    "a negative side": view(0, (-4,), (1,)),
    "a negative offset": view(-1, (4,), (1,)),
    "sides without end": view(0, (2**40, 2**40), (0, 0)),
    "a repeated number": view(0, (2**30,), (0,)),
    "repeated numbers, many times": zipped(
        b"](" + tensor(storage("0"), 0, (2**24,), (0,)) * 5 + b"e", {"data/0": bytes(16)}
    ),
    "a thousand axes": view(0, (1,) * 1000, (1,) * 1000),
    "more steps than sides": view(0, (4,), (1, 1)),
    "a tensor of something else": zipped(tensor(b"}")),
    "a parameter of something else": zipped(call("torch._utils._rebuild_parameter", b"}", b"\x88", b"}")),
    "lists in lists": pickled(b"]" * 10**5 + b"a" * (10**5 - 1)),
    "tuples in tuples": pickled(b")" + b"\x85" * 10**5),
    "records in records": pickled(name("trap.X") + b"q\x000" + b"h\x00(" * 5000 + b"tR" * 5000),
    "a list that holds itself": pickled(b"]q\x00h\x00a"),
    "a dictionary that holds itself": pickled(b"}q\x00U\x01ah\x00s"),
    "ten to the twelfth lists": bomb(),
    "two million dictionaries": pickled(b"}" * 2_000_001),
    "one dictionary copied again and again": pickled(
        b"}q\x00(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(5000)) + b"u0"
        + name("collections.OrderedDict") + b"q\x01h\x00\x85q\x02" + b"h\x01h\x02R" * 3000
    ),
    "one text as bytes again and again": pickled(
        name("_codecs.encode") + b"q\x01" + text("a" * 10**6) + text("latin1") + b"\x86q\x02"
        + b"h\x01h\x02R" * 1000
    ),
    "one tuple as sides again and again": pickled(
        name("torch.Size") + b"q\x01(" + b"N" * 10**5 + b"t\x85q\x02" + b"h\x01h\x02R" * 1000
    ),
    "marks": b"(" * 10**5 + b".",
    "an empty stack": b"a.",
    "a stack that runs empty": pickled(b"N0" + b"0"),
    "a value from before the mark": pickled(b"N(0(R"),
    "a memory that is empty": pickled(b"h\x07"),
    "a key that is a list": pickled(b"}]Ns"),
    "a key of tuples in tuples": pickled(b"})" + b"\x85" * 10**5 + b"Ns"),
    "a number of eight million bits": P2 + b"\x8b" + struct.pack("<I", 10**6) + b"\x7f" * 10**6 + b".",
    "a number of 10,000 digits": b"L" + b"9" * 10**4 + b"L\n.",
    "a text beyond the end": P2 + b"X\xff\xff\xff\x7fab.",
    "bytes beyond the end": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"ab.",
    "a text that is none": P2 + b"X\x02\x00\x00\x00\xff\xfe.",
    "a line without end": b"V" + b"a" * 10**6,
    "an array of 2**60 bytes": pickled(array(text("f4"), b"U\x01a", 2**58)),
    "an array of a negative length": pickled(array(text("f4"), b"U\x01a", -1)),
    "an array without bytes": pickled(array(text("f4"), b"N", 1)),
    "a dictionary of something else": pickled(call("collections.OrderedDict", text("a"))),
    "a persistent object that is a function": persistent(
        type=text("func"), class_name=text("x"), state=b"}"
    ),
    "a persistent object without a state": persistent(
        type=text("class"), class_name=text("x"), module_src=text("x")
    ),
    "a persistent object of nothing": pickled(
        call("torch_utils.persistence._reconstruct_persistent_obj", b"N")
    ),
    "numbers that a legacy file lacks": legacy(tensor(storage()), ("0",), (4,), 12),
    "numbers that a legacy file counts otherwise": legacy(tensor(storage()), ("0",), (2**61,)),
    "numbers that a legacy file does not list": legacy(tensor(storage()), (), ()),
    "numbers that a legacy file lists twice": legacy(tensor(storage()), ("0", "0"), (4, 4)),
    "a legacy view beyond its numbers": legacy(
        tensor(storage("0", 4, "torch.FloatStorage", row(text("1"), whole(3), whole(4))))
    ),
    "a legacy file of another version": damaged(legacy(b"}", (), ()), b"M\xe9\x03.", b"M\xea\x03."),
    "a legacy file that ends after its version": MAGIC + P2 + b"M\xe9\x03.",
    "an entry that leads outside": zipped(b"}", {"../../EXECUTED": b"x"}),
    "an entry at a path": zipped(b"}", {"/tmp/EXECUTED": b"x"}),
    "an entry of Windows": zipped(b"}", {"..\\EXECUTED": b"x"}),
    "an entry that grows a thousandfold": zipped(b"}", {"data/0": bytes(10**7)}, zipfile.ZIP_DEFLATED),
    "two entries of one name": doubled(),
    "entries that lie over each other": overlapping(),
    "two descriptions": zipped(b"}", {"more/data.pkl": pickled(b"}")}),
    "a zip file of something else": zipped(b"}", {}).replace(b"data.pkl", b"data.txt"),
    "an encrypted entry": damaged(
        zipped(b"}"), b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"
    ),
    "bytes in no order": zipped(b"}", {"byteorder": b"middle"}),
    "a directory of 2**32 bytes": zipped(b"}")[:-10] + b"\xff" * 8 + b"\x00\x00",
    "a zip file without a directory": zipped(b"}")[:-60],
    "a zip file that is only a beginning": b"PK\x03\x04",
    "TorchScript": zipped(b"}", {"code/__torch__.py": b"", "constants.pkl": b""}),
    "torch.export": zipped(b"}", {"archive_format": b"pt2"}),
    "a tar file": tarred(),
    "a compressed file": b"\x1f\x8b\x08" + bytes(40),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "a page of the web": b"<!DOCTYPE html><script>alert(1)</script>",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "a text": b"Sorry, this file was moved.\n",
    "nothing": b"",
    "zeros": bytes(4096),
    "a safetensors header of 2**63 bytes": safetensors(b"{}", b"", 2**63),
    "a safetensors tensor beyond the file": safetensors(
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "safetensors that lie over each other": safetensors(
        b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
        b'"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}', bytes(6),
    ),
    "safetensors of other sides": safetensors(
        b'{"w":{"dtype":"F32","shape":[1,-1],"data_offsets":[0,4]}}', bytes(4)
    ),
    "safetensors nested deeply": safetensors(b'{"a":' + b"[" * 10**5),
    "safetensors of one name": safetensors(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'
    ),
}  # fmt: skip

SPECIAL: dict[str, Callable[[Path], None]] = {
    "a pipe": os.mkfifo,
    "a folder": lambda path: path.mkdir(),
    "a link to zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a terabyte": lambda path: _sparse(path, 2**40),
    "a missing file": lambda path: None,
}

HARMLESS: dict[str, bytes] = {
    "an object of a planted module": pickled(name("trap.X") + b")\x81}" + text("a") + b"K\x01sb"),
    "an object made by a call": pickled(call("trap.X", text(COMMAND))),
    "a state for __setstate__": pickled(name("trap.X") + b")\x81" + text(COMMAND) + b"b"),
    "a class": pickled(name("trap.X")),
    "an attribute": pickled(call("builtins.getattr", name("trap.X"), text("__globals__"))),
    "a function": pickled(name("trap.x")),
    "a class of the main program": pickled(name("__main__.Network") + b")\x81}b"),
    "source code": persistent(
        type=text("class"), class_name=text("Net"), module_src=text("open('EXECUTED', 'w')"), state=b"}"
    ),
    "texts that are code": pickled(text("__import__('os').system('touch EXECUTED')")),
    "an array of objects": pickled(array(text("O8"), b"](" + name("trap.X") + b"e", 1)),
}
"""Files that name what they must not get; they are read as records."""


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def good_files() -> dict[str, bytes]:
    """A small valid file of every container."""
    content = {"w": torch.arange(6.0).reshape(2, 3), "step": 3, "ema": [torch.ones(2, dtype=torch.float64)]}
    streams = {}
    for kind, is_zip in (("torch zip", True), ("legacy torch", False)):
        streams[kind] = io.BytesIO()
        torch.save(content, streams[kind], _use_new_zipfile_serialization=is_zip)  # noqa: TID251
    found = {kind: stream.getvalue() for kind, stream in streams.items()}
    found["pickle"] = pickle.dumps({**content, "array": torch.ones(3).numpy()})
    header = b'{"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"__metadata__":{"format":"pt"}}'
    found["safetensors"] = safetensors(header, bytes(range(16)))
    return found
