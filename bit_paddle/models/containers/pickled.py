"""A reader of pickles which executes nothing: it interprets their opcodes symbolically.

No module is imported, and nothing from the file is called. The few functions that weight files
need are replaced by functions of this package (`Calls`). Everything else becomes `Opaque`.
The opcodes are described in Python's module `pickletools`, which decodes their arguments.

Long texts and bytes stay in the file: the value is their place there (`Span`). Every other value
needs one step or more, and at most 200 bytes per step. Values can contain themselves: code that
walks through them must limit the depth.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Callable

from bit_paddle.errors import CheckpointError
from bit_paddle.models.containers import npz
from bit_paddle.models.containers.symbols import Array, Calls, Dtype, Global, Opaque, Span

MOST_STEPS = 1_000_000  # a training checkpoint of ResNet-152 with its optimizer needs about 60,000
LONGEST_TEXT = 1024  # bytes

BROKEN = (*npz.BROKEN, IndexError, KeyError, struct.error)  # what damaged pickles can raise, too


class _Passed(bytes):
    """Stands for bytes that stay in the file: it has their length, and is empty."""

    def __new__(cls, length: int) -> _Passed:
        passed = super().__new__(cls)
        passed.length = length
        return passed

    def __len__(self) -> int:
        return self.length


class _Stream:
    """What `pickletools.genops` reads from. It jumps over long texts and bytes."""

    def __init__(self, stream: BinaryIO, size: int):
        self._stream, self._size = stream, size
        self.tell = stream.tell
        self.last = Span(0, 0)  # what was read last

    def readline(self) -> bytes:
        self.last = Span(self.tell(), 0)
        line = self._stream.readline(LONGEST_TEXT)
        if b"\\" in line:  # Python warns of unknown escapes; names have none
            raise ValueError("a name with a backslash")
        return line

    def read(self, length: int) -> bytes:
        self.last = Span(self.tell(), length)
        if length <= LONGEST_TEXT:
            return self._stream.read(length)
        if self.last.start + length > self._size:
            return b""  # `genops` reports that the end is missing
        self._stream.seek(length, 1)
        return _Passed(length)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NUMBERS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_TEXTS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2
_UNICODE = {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}


class _Machine:
    """The machine that runs a pickle, with values that do nothing.

    Opcodes that copy a value pay for its length, so that time and memory are bounded by the steps.
    """

    def __init__(self, stream: _Stream, calls: Calls, persistent: Callable[[Any], Any] | None):
        self.stream, self.calls, self.persistent = stream, calls, persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack below each mark
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.stream):
            name = opcode.name
            self.spend(1)
            if name == "STOP":
                return self.stack.pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _NUMBERS:
                if self.stream.last.length > LONGEST_TEXT:
                    raise ValueError("a number is too long")
                self.stack.append(argument)
            elif name in _BYTES:
                self.stack.append(self.stream.last)
            elif name in _TEXTS or name in _UNICODE:
                passed = self.stream.last.length > LONGEST_TEXT
                place = self.stream.last._replace(utf8=name in _UNICODE)
                self.stack.append(place if passed else argument)
            else:
                action = getattr(self, f"do_{name.lower()}", None)
                if action is None:
                    raise ValueError(f"the opcode {name} is not known here")
                action(argument)
        raise ValueError("the end is missing")

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MOST_STEPS:
            raise ValueError(f"it has more than {MOST_STEPS:,} steps")

    def pop(self, count: int) -> list[Any]:
        """Remove and return the last ``count`` values."""
        if len(self.stack) < count:
            raise IndexError("a value is missing")
        values = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return values

    def pop_marked(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Opaque):
            return function
        if not isinstance(function, Global):
            raise ValueError("a call of something that is no function")
        stand_in = self.calls.get(str(function))
        if stand_in is None or type(arguments) is not tuple:
            return Opaque(function)
        copied = sum(len(value) for value in arguments if isinstance(value, (tuple, list, dict)))
        self.spend(len(arguments) + copied)
        return stand_in(*arguments)

    # --- The stack and the memo ---

    def do_proto(self, _: int) -> None:
        pass

    do_frame = do_proto

    def do_mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _: None) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_marked()

    def do_pop_mark(self, _: None) -> None:
        self.pop_marked()

    def do_dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def do_put(self, index: int) -> None:
        if not 0 <= index < 2**32:  # longer numbers can all have the same hash
            raise ValueError("a value's number is too large")
        self.memo[index] = self.stack[-1]

    do_binput = do_long_binput = do_put

    def do_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    do_binget = do_long_binget = do_get

    # --- Containers ---

    def do_tuple(self, _: None) -> None:
        values = tuple(self.pop_marked())
        self.stack.append(values)

    def do_tuple1(self, _: None) -> None:
        self.stack.append(tuple(self.pop(1)))

    def do_tuple2(self, _: None) -> None:
        self.stack.append(tuple(self.pop(2)))

    def do_tuple3(self, _: None) -> None:
        self.stack.append(tuple(self.pop(3)))

    def do_empty_list(self, _: None) -> None:
        self.stack.append([])

    def do_list(self, _: None) -> None:
        values = self.pop_marked()
        self.stack.append(values)

    def do_empty_dict(self, _: None) -> None:
        self.stack.append({})

    def do_dict(self, _: None) -> None:
        values = self.pop_marked()
        self.stack.append({})
        self.set_items(values)

    def do_empty_set(self, _: None) -> None:
        self.stack.append(Opaque(Global("builtins", "set")))

    def do_frozenset(self, _: None) -> None:
        self.pop_marked()
        self.do_empty_set(None)

    def append_all(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def do_append(self, _: None) -> None:
        self.append_all(self.pop(1))

    def do_appends(self, _: None) -> None:
        self.append_all(self.pop_marked())

    do_additems = do_appends  # a set is opaque

    def set_items(self, values: list[Any]) -> None:
        """Other keys than texts are left out: hashing a nested tuple can take for ever."""
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(
                (key, value) for key, value in zip(values[::2], values[1::2]) if type(key) is str
            )

    def do_setitem(self, _: None) -> None:
        self.set_items(self.pop(2))

    def do_setitems(self, _: None) -> None:
        self.set_items(self.pop_marked())

    # --- Classes, functions and objects ---

    def do_global(self, name: str) -> None:
        self.stack.append(Global(*name.split(" ", 1)))

    def do_stack_global(self, _: None) -> None:
        module, name = self.pop(2)
        if type(module) is not str or type(name) is not str:
            raise ValueError("a class without a name")
        self.stack.append(Global(module, name))

    def do_ext1(self, _: int) -> None:
        self.stack.append(Opaque(Global("copyreg", "extension")))

    do_ext2 = do_ext4 = do_ext1

    def do_inst(self, name: str) -> None:
        arguments = tuple(self.pop_marked())
        self.do_global(name)
        self.stack.append(self.call(self.stack.pop(), arguments))

    def do_obj(self, _: None) -> None:
        function, *arguments = self.pop_marked()
        self.stack.append(self.call(function, tuple(arguments)))

    def do_reduce(self, _: None) -> None:
        self.stack.append(self.call(*self.pop(2)))

    do_newobj = do_reduce

    def do_newobj_ex(self, _: None) -> None:
        function, arguments, _ = self.pop(3)
        self.stack.append(self.call(function, arguments))

    def do_build(self, _: None) -> None:
        (state,) = self.pop(1)
        if isinstance(self.stack[-1], (Array, Dtype)):
            self.stack[-1].build(state)

    def do_persid(self, key: str) -> None:
        if self.persistent is None:
            raise ValueError("it refers to objects outside of the file")
        self.stack.append(self.persistent(key))

    def do_binpersid(self, _: None) -> None:
        self.do_persid(*self.pop(1))


def interpret(
    stream: BinaryIO,
    size: int,
    calls: Calls,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Return the value of the pickle at the position of ``stream``, whose end is at ``size``.

    Values are None, numbers, texts, tuples, lists, dictionaries with texts as keys, the classes of
    `symbols`, and what ``calls`` and ``persistent`` (for persistent ids) return.
    """
    return _Machine(_Stream(stream, size), calls, persistent).run()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn the errors of damaged files into `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except BROKEN as error:
        raise CheckpointError(
            f"{path}: {what} is damaged ({npz.reason(error)}); download or copy the file again"
        ) from error
