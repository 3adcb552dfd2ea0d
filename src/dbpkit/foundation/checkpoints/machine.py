"""The one reader of pickles: a stack machine that parses, and never calls, imports or looks up anything.

A pickle is a program. This machine runs it on values that stand for what the program would have made: a name
is a text, a call is whatever a `Maker` makes of the name and the arguments. To admit harmless constructors
would not be enough, because the file also chooses their arguments.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from dbpkit.foundation.checkpoints.regions import Region
from dbpkit.foundation.checkpoints.steps import ALWAYS, FURTHER, MARK, OPCODES


@dataclass
class Budget:
    """What all pickles of a file together may ask for; everything that they make grows with it.

    Attributes:
        steps: how many are left; each makes one object at most.
        text: bytes of texts and byte strings that may still be held.
        bits: of the largest whole number.
        numbers: bytes that all tensors may have together once they are read.
        lazy: byte strings of this many bytes stay in the file, as a `Region`; None holds them all.
    """

    steps: int = 2_000_000
    text: int = 2**26
    bits: int = 128
    numbers: int = 2**62
    lazy: int | None = 2**12

    def charge(self, values: tuple[Any, ...]) -> None:
        """Counts what a call is given, which it may copy: a file can give the same value many times.

        Raises:
            ValueError: if that is more than is left.
        """
        self.steps -= len(values)
        for value in values:
            if isinstance(value, dict | list | tuple):
                self.steps -= len(value)
            elif isinstance(value, str | bytes | bytearray):
                self.text -= len(value)
        if self.steps < 0 or self.text < 0 or self.numbers < 0:
            raise ValueError("it would grow to more than any checkpoint holds")


class Maker(Protocol):
    """What stands for the objects that a pickle would make; each method raises ValueError in words."""

    subject: str
    """What the file should be, for messages."""
    more: frozenset[str]
    """Opcodes that are admitted beyond those that every pickle of plain values has."""

    def named(self, module: Any, name: Any, /) -> Any:
        """What stands for a class or function."""

    def made(self, function: Any, arguments: Any, /) -> Any:
        """What stands for the result of a call."""

    def new(self, kind: Any, arguments: Any, keywords: Any = None, /) -> Any:
        """What stands for an instance of a class."""

    def completed(self, made: Any, state: Any, /) -> Any:
        """What stands for an object that is given its state."""

    def stored(self, identity: Any, /) -> Any:
        """What stands for an object that lies beside the pickle."""

    def key(self, key: Any, /) -> Any:
        """A dictionary's key."""

    def eight_bit(self, value: bytes, /) -> Any:
        """A string of Python 2."""

    def inside(self, target: Any, kind: type, /) -> Any:
        """The list or dictionary in an object that is neither, to be filled."""


class Machine:
    """The stack and memo of one pickle.

    Args:
        maker: what makes objects.
        region: where it is written.
        budget: what it may ask for; it is used up.
    """

    def __init__(self, maker: Maker, region: Region, budget: Budget) -> None:
        self.maker: Maker = maker
        self.region, self.budget = region, budget
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, offset: int = 0) -> tuple[Any, int]:
        """Follows the program that begins at ``offset``; returns what it leaves, and where it ends.

        Raises:
            ValueError: if it is truncated, asks for more than is admitted, or is none; in words.
        """
        with self.region.stream(offset) as file:
            self.file, self.lines, self.offset = file, _Lines(file, self.budget), offset
            read, steps, left = file.read, ALWAYS, self.budget
            while left.steps > 0:
                left.steps -= 1
                step = steps.get(code := read(1))
                if step is not None:
                    step(self)
                elif code == b".":
                    return self.pop(), offset + file.tell()
                elif not code:
                    raise ValueError("it does not end")
                else:
                    self._further(code)
        raise ValueError("it has more steps than the description of any checkpoint")

    def _further(self, code: bytes) -> None:
        """A step that only some files may have."""
        opcode = OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError("it is not written as a pickle")
        if opcode.name not in self.maker.more or opcode.name not in FURTHER:
            raise ValueError(f"it needs '{opcode.name}', which is not part of {self.maker.subject}")
        FURTHER[opcode.name](self)

    def pop(self) -> Any:
        """Takes the newest value from the stack."""
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("it takes a value that is not there")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Returns the newest value, which must be of a kind or hold one."""
        value = self.stack[-1] if self.stack else None
        found = value if isinstance(value, kind) else self.maker.inside(value, kind)
        if not isinstance(found, kind):
            raise ValueError(f"it fills something that is not a {kind.__name__}")
        return found

    def since_mark(self) -> list[Any]:
        """Takes everything since the last mark from the stack."""
        place = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK), None)
        if place is None:
            raise ValueError("it takes values that are not there")
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def several(self, count: int) -> tuple[Any, ...]:
        """Takes the newest ``count`` values, oldest first."""
        return tuple(reversed([self.pop() for _ in range(count)]))

    def remember(self, place: int | None) -> None:
        """Stores the newest value under a number, the next free one if not given."""
        if not self.stack or self.stack[-1] is MARK:
            raise ValueError("it remembers a value that is not there")
        self.memo[len(self.memo) if place is None else int(place)] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Puts a stored value on the stack again."""
        if int(place) not in self.memo:
            raise ValueError("it recalls a value that is not there")
        self.stack.append(self.memo[int(place)])

    def append(self, values: Iterable[Any]) -> None:
        """Appends to the list on the stack."""
        self.top(list).extend(values)

    def put_into(self, items: list[Any]) -> None:
        """Puts pairs into the dictionary on the stack."""
        table = self.top(dict)
        if len(items) % 2:
            raise ValueError("it has a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            table[self.maker.key(key)] = value

    def make_dictionary(self) -> None:
        """Makes a dictionary of everything since the last mark."""
        items = self.since_mark()
        self.stack.append({})
        self.put_into(items)

    def hold(self, size: int) -> None:
        """Counts bytes that are held."""
        self.budget.text -= size
        if self.budget.text < 0:
            raise ValueError("it holds more bytes of texts than any real one")

    def counted(self, width: int) -> bytes:
        """Reads bytes whose number comes before them."""
        size = self._size(width)
        self.hold(size)
        content = self.file.read(size)
        if len(content) != size:
            raise ValueError("it is truncated within a text")
        return content

    def counted_or_region(self, width: int) -> bytes | Region:
        """Reads bytes whose number comes before them, or says where they are."""
        size, here = self._size(width), self.file.tell()
        if self.budget.lazy is None or size < self.budget.lazy:
            self.file.seek(here - width)
            return self.counted(width)
        region = self.region.part(self.offset + here, size)
        self.file.seek(here + size)
        return region

    def _size(self, width: int) -> int:
        """Reads a number of bytes; a negative one of Python 2 is beyond every end."""
        content = self.file.read(width)
        if len(content) != width:
            raise ValueError("it is truncated")
        size = int.from_bytes(content, "little")
        if size > self.region.size:
            raise ValueError("it is truncated: a text goes on beyond its end")
        return size

    def whole(self, value: int) -> int:
        """A whole number that is not too large."""
        if value.bit_length() > self.budget.bits and not isinstance(value, bool):
            raise ValueError(f"it holds a whole number of {value.bit_length()} bits")
        return value

    def long(self, width: int) -> int:
        """Reads a whole number whose number of bytes comes before it."""
        return self.whole(int.from_bytes(self.counted(width), "little", signed=True))


class _Lines:
    """A file whose lines end before the memory does."""

    def __init__(self, file: io.BufferedIOBase, budget: Budget) -> None:
        self._file, self._budget = file, budget

    def readline(self) -> bytes:
        return self._file.readline(max(self._budget.text, 0))
