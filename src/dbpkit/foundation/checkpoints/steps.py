"""What each opcode of a pickle does to the stack of the machine in `machine`."""

import pickletools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbpkit.foundation.checkpoints.machine import Machine

OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
"""What Python knows of each opcode, by its character."""

_CODES = {opcode.name: opcode.code for opcode in pickletools.opcodes}

MARK = object()
"""What a mark is on the stack."""

_Step = Callable[["Machine"], Any]


def _argument(name: str) -> Callable[["Machine"], Any]:
    """Reads the argument of an opcode that has one of a fixed length, or a line."""
    argument = OPCODES[_CODES[name]].arg
    if argument is None:
        return lambda _: None
    reader: Any = argument.reader
    is_line = argument.n == pickletools.UP_TO_NEWLINE

    def read(machine: "Machine") -> Any:
        try:
            return reader(machine.lines if is_line else machine.file)
        except ValueError as error:  # Python's own words are about its own functions
            raise ValueError("it is truncated or not written as a pickle") from error

    return read


def _pushing(read: Callable[["Machine"], Any]) -> _Step:
    return lambda machine: machine.stack.append(read(machine))


def _wholes(name: str) -> _Step:
    read = _argument(name)
    return lambda machine: machine.stack.append(machine.whole(read(machine)))


def _placed(name: str, act: Callable[["Machine", int], None]) -> _Step:
    read = _argument(name)
    return lambda machine: act(machine, read(machine))


def _text_line(machine: "Machine") -> str:
    text = _UNICODE_LINE(machine)
    machine.hold(len(text))
    return str(text)


def _string_line(machine: "Machine") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python about escapes that it does not know
        text = _STRING_LINE(machine)
    machine.hold(len(text))
    return machine.maker.eight_bit(str(text).encode("latin-1"))


def _text(width: int) -> _Step:
    def step(machine: "Machine") -> None:
        content = machine.counted(width)
        try:
            machine.stack.append(str(content, "utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise ValueError("it holds a text that is none") from error

    return step


def _bytes(width: int) -> _Step:
    return lambda m: m.stack.append(m.counted_or_region(width))


def _string(width: int) -> _Step:
    def step(machine: "Machine") -> None:
        found = machine.counted_or_region(width)
        machine.stack.append(machine.maker.eight_bit(found) if isinstance(found, bytes) else found)

    return step


def _global(machine: "Machine") -> None:
    module, _, name = str(_GLOBAL_LINES(machine)).partition(" ")
    machine.stack.append(machine.maker.named(module, name))


def _byte_array(machine: "Machine") -> None:
    found = machine.counted_or_region(8)
    machine.stack.append(bytearray(found) if isinstance(found, bytes) else found)


def _drop(machine: "Machine") -> None:
    if not machine.stack:
        raise ValueError("it takes a value that is not there")
    machine.stack.pop()


def _drop_marked(machine: "Machine") -> None:
    machine.since_mark()


_UNICODE_LINE, _STRING_LINE, _GLOBAL_LINES = _argument("UNICODE"), _argument("STRING"), _argument("GLOBAL")

_STEPS: dict[str, _Step] = {
    "NONE": lambda m: m.stack.append(None),
    "NEWTRUE": lambda m: m.stack.append(True),
    "NEWFALSE": lambda m: m.stack.append(False),
    "MARK": lambda m: m.stack.append(MARK),
    "EMPTY_LIST": lambda m: m.stack.append([]),
    "EMPTY_DICT": lambda m: m.stack.append({}),
    "EMPTY_TUPLE": lambda m: m.stack.append(()),
    **{name: _wholes(name) for name in ("INT", "LONG", "BININT", "BININT1", "BININT2")},
    "LONG1": lambda m: m.stack.append(m.long(1)),
    "LONG4": lambda m: m.stack.append(m.long(4)),
    "FLOAT": _pushing(_argument("FLOAT")),
    "BINFLOAT": _pushing(_argument("BINFLOAT")),
    "STRING": lambda m: m.stack.append(_string_line(m)),
    "BINSTRING": _string(4),
    "SHORT_BINSTRING": _string(1),
    "UNICODE": lambda m: m.stack.append(_text_line(m)),
    "SHORT_BINUNICODE": _text(1),
    "BINUNICODE": _text(4),
    "BINUNICODE8": _text(8),
    "SHORT_BINBYTES": _bytes(1),
    "BINBYTES": _bytes(4),
    "BINBYTES8": _bytes(8),
    "BYTEARRAY8": _byte_array,
    "PROTO": _argument("PROTO"),
    "FRAME": _argument("FRAME"),
    "TUPLE": lambda m: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m: m.stack.append(m.several(1)),
    "TUPLE2": lambda m: m.stack.append(m.several(2)),
    "TUPLE3": lambda m: m.stack.append(m.several(3)),
    "LIST": lambda m: m.stack.append(m.since_mark()),
    "DICT": lambda m: m.make_dictionary(),
    "APPEND": lambda m: m.append(m.several(1)),
    "APPENDS": lambda m: m.append(m.since_mark()),
    "SETITEM": lambda m: m.put_into(list(m.several(2))),
    "SETITEMS": lambda m: m.put_into(m.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": lambda m: m.stack.append(m.maker.named(*m.several(2))),
    "REDUCE": lambda m: m.stack.append(m.maker.made(*m.several(2))),
    "BUILD": lambda m: m.stack.append(m.maker.completed(*m.several(2))),
    "MEMOIZE": lambda m: m.remember(None),
    **{name: _placed(name, lambda m, p: m.remember(p)) for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    **{name: _placed(name, lambda m, p: m.recall(p)) for name in ("GET", "BINGET", "LONG_BINGET")},
}
"""What every pickle of plain values needs."""

FURTHER: dict[str, _Step] = {
    "NEWOBJ": lambda m: m.stack.append(m.maker.new(*m.several(2))),
    "NEWOBJ_EX": lambda m: m.stack.append(m.maker.new(*m.several(3))),
    "BINPERSID": lambda m: m.stack.append(m.maker.stored(m.pop())),
    "EMPTY_SET": lambda m: m.stack.append([]),
    "ADDITEMS": lambda m: m.append(m.since_mark()),
    "FROZENSET": lambda m: m.stack.append(tuple(m.since_mark())),
    "POP": _drop,
    "POP_MARK": _drop_marked,
}
"""What a maker may admit."""

ALWAYS = {_CODES[name].encode("latin-1"): step for name, step in _STEPS.items()}
"""The steps of every pickle of plain values, by the bytes of their opcodes."""
