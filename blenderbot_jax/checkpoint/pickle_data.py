"""A pickle read as data: a stack machine that builds plain values and calls nothing that a file names.

A pickle is a program. Python's own `pickle` runs it, and with it whatever functions it names. The machine here knows
the instructions that a PyTorch state dict is made of and no others. A name in the file only becomes an inert `Symbol`,
if the caller has listed it, and "calling" a symbol hands the arguments to the function the caller gave for it.
Everything else is refused, but for what a caller says may be there unread, which comes out as `Unread`. The number of
instructions is limited and no value is copied twice, so that a small file can take up neither the time nor the
memory of the reader.

Source: the comments of CPython's Lib/pickletools.py, which define each instruction.
"""

import io
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from blenderbot_jax.checkpoint.tensor_file import CheckpointError, quote

# The largest published model (9.4B parameters) needs about 40 thousand.
_MAX_INSTRUCTIONS = 2_000_000
_MAX_NAME = 10_000
_WAY_OUT = "The file is refused; if you trust its source, load it with PyTorch and save the state dict alone"
_ORDERED_DICT = "collections.OrderedDict"

# The names a pickle may mention, each with what stands in for a call of it; None: it may be mentioned, not called.
SymbolTable = Mapping[str, Callable[[tuple[Any, ...]], object] | None]


@dataclass(frozen=True)
class Symbol:
    """A name met in a pickle, such as "torch.FloatStorage": nothing is imported and nothing can be called."""

    name: str


@dataclass(frozen=True)
class Unread:
    """An object of a class that nobody reads, without its content: no class was imported and nothing was built."""

    name: str


def interpret(
    data: bytes,
    where: str,
    symbols: SymbolTable,
    persistent: Callable[[object], object],
    unread: Callable[[str], bool] | None = None,
) -> object:
    """Read one pickle as data.

    Args:
        data: the whole pickle, protocol 2 to 5.
        where: what error messages begin with.
        symbols: the names the pickle may mention besides `collections.OrderedDict`; their functions are given the tuple
            of arguments as read.
        persistent: stands in for what the pickle keeps outside itself, given the persistent id as read.
        unread: which further names may stand for objects that the caller does not look at; None: no other names.

    Returns:
        The value: None, bool, int, float, str, tuple, list, dict with str keys, OrderedDict, Symbol, or whatever
        `symbols` and `persistent` returned; with `unread` also Unread, bytes, and dicts with int keys. It never
        contains itself.

    Raises:
        CheckpointError: an instruction or a name is not allowed, or the pickle is malformed; and whatever the given
            functions raise.
    """
    file = io.BytesIO(data)
    value = interpret_next(file, len(data), where, symbols, persistent, unread)
    if file.tell() != len(data):
        raise CheckpointError(f"{where}, byte {file.tell()}: must end with one value and nothing after it. {_WAY_OUT}")
    return value


def interpret_next(
    file: BinaryIO,
    limit: int,
    where: str,
    symbols: SymbolTable,
    persistent: Callable[[object], object],
    unread: Callable[[str], bool] | None = None,
) -> object:
    """Read the pickle that begins where the file stands, and leave the file behind it.

    Args:
        file: read no further than the pickle's last instruction.
        limit: the most bytes it may take.
        where, symbols, persistent, unread: as in `interpret`.

    Returns:
        The value, as `interpret` does.

    Raises:
        CheckpointError: as `interpret` does.
    """
    return _Machine(file, limit, where, symbols, persistent, unread).run()


class _Machine:
    """The state of one run: a position in the program, the stack (one list per open mark), and the memo."""

    def __init__(
        self,
        file: BinaryIO,
        limit: int,
        where: str,
        symbols: SymbolTable,
        persistent: Callable[[object], object],
        unread: Callable[[str], bool] | None,
    ):
        self._file = file
        self._limit = limit
        self._position = 0
        self._where = where
        self._symbols = {_ORDERED_DICT: self._ordered_dict, **symbols}
        self._persistent = persistent
        self._unread = unread
        self._stacks: list[list[Any]] = [[]]
        self._memo: dict[int, Any] = {}
        # Containers that may not change any more. Held by id, and kept alive so that no id is ever used twice.
        self._sealed: dict[int, Any] = {}

    def run(self) -> object:
        """Follow the program to its STOP and return the one value it leaves."""
        for _ in range(_MAX_INSTRUCTIONS):
            opcode = self.take(1)
            if opcode in _VALUES:
                value = _VALUES[opcode](self)  # first, because it may close a mark and so change the stack
                self._stacks[-1].append(value)
            elif opcode in _STEPS:
                _STEPS[opcode](self)
            elif self._unread and opcode in _UNREAD:
                self._stacks[-1].append(_UNREAD[opcode](self))
            elif opcode == b".":
                return self._result()
            else:
                raise self._refusal(f"instruction {opcode!r} has no place in a state dict")
        raise self._refusal(f"a state dict takes fewer than {_MAX_INSTRUCTIONS} instructions, this one goes on")

    def _result(self) -> object:
        if len(self._stacks) != 1 or len(self._stacks[0]) != 1:
            raise self._refusal("must end with exactly one value")
        return self._stacks[0][0]

    # Arguments that follow an instruction.

    def take(self, count: int) -> bytes:
        taken = self._file.read(count) if self._position + count <= self._limit else b""
        if len(taken) < count:
            raise self._refusal(f"is cut off: {count} more bytes must follow")
        self._position += count
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self, length: int) -> str:
        return self._decoded(self.take(length))

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._refusal(f"text must be UTF-8: {error.reason}") from None

    def line(self) -> str:
        taken = self._file.readline(min(_MAX_NAME, self._limit - self._position))
        self._position += len(taken)
        if not taken.endswith(b"\n"):
            raise self._refusal("is cut off: a name must end with a newline")
        return self._decoded(taken[:-1])

    def protocol(self) -> None:
        version = self.number("B")
        if not 2 <= version <= 5:
            raise self._refusal(f"pickle protocol must be 2 to 5, it is {version}")

    # The stack. Nothing can be taken from below the last mark.

    def mark(self) -> None:
        self._stacks.append([])

    def pop(self) -> Any:
        if not self._stacks[-1]:
            raise self._refusal("takes a value from an empty stack")
        return self._stacks[-1].pop()

    def pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(self.pop() for _ in range(count))[::-1]

    def pop_to_mark(self) -> list[Any]:
        if len(self._stacks) == 1:
            raise self._refusal("takes values back to a mark that was never set")
        return self._stacks.pop()

    # The memo. A container is complete before it is referred to again, so a value cannot come to contain itself.

    def store(self, slot: int | None = None) -> None:
        slot = len(self._memo) if slot is None else slot
        if slot in self._memo:
            raise self._refusal(f"memo slot {slot} is written twice")
        value = self.pop()
        self._stacks[-1].append(value)
        self._memo[slot] = value

    def recall(self, slot: int) -> Any:
        if slot not in self._memo:
            raise self._refusal(f"memo slot {slot} is read before it is written")
        value = self._memo[slot]
        if isinstance(value, list | dict):
            self._sealed[id(value)] = value
        return value

    # Containers.

    def append(self, values: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, Unread):
            if not isinstance(target, list) or id(target) in self._sealed:
                raise self._refusal(f"only a list still being built can be appended to, not {quote(target)}")
            target.extend(values)
        self._stacks[-1].append(target)

    def set_items(self, flat: list[Any]) -> None:
        target = self.pop()
        if not isinstance(target, Unread):
            if not isinstance(target, dict) or id(target) in self._sealed:
                raise self._refusal(f"only a dict still being built can be given items, not {quote(target)}")
            if len(flat) % 2:
                raise self._refusal(f"a dict takes pairs of key and value, here are {len(flat)} values")
            for key, value in zip(flat[::2], flat[1::2], strict=True):
                self._set_item(target, key, value)
        self._stacks[-1].append(target)

    def _set_item(self, target: dict[Any, Any], key: object, value: object) -> None:
        # An optimizer numbers its parameters.
        if not isinstance(key, str) and not (self._unread and type(key) is int):
            raise self._refusal(f"a key must be a string, this one is {quote(key)}")
        if key in target:
            raise self._refusal(f"key {quote(key)} is there twice")
        target[key] = value

    def _ordered_dict(self, arguments: tuple[Any, ...]) -> OrderedDict[str, Any]:
        """OrderedDict() or OrderedDict([(key, value), ...]), the two forms that pickles of dicts have taken."""
        built: OrderedDict[str, Any] = OrderedDict()
        if not arguments:
            return built
        pairs = arguments[0]
        # A list may be used up once only: with many copies of one long list a small file could fill the memory.
        if len(arguments) != 1 or not isinstance(pairs, list) or id(pairs) in self._sealed:
            raise self._refusal(f"{_ORDERED_DICT} takes nothing or one new list of pairs")
        self._sealed[id(pairs)] = pairs
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise self._refusal(f"{_ORDERED_DICT} takes pairs of key and value, not {quote(pair)}")
            self._set_item(built, *pair)
        return built

    def add_items(self) -> Unread:
        self.pop_to_mark()
        if self.pop() != Unread("set"):
            raise self._refusal("only a set still being built can be added to")
        return Unread("set")

    def frozen_set(self) -> Unread:
        self.pop_to_mark()
        return Unread("frozenset")

    # Symbols.

    def symbol(self, module: object, name: object) -> Symbol:
        if not isinstance(module, str) or not isinstance(name, str):
            raise self._refusal(f"a symbol is named by two strings, not {quote(module)} and {quote(name)}")
        if f"{module}.{name}" not in self._symbols and not (self._unread and self._unread(f"{module}.{name}")):
            rule = f"refers to {quote(f'{module}.{name}')}, which a state dict has no use for"
            raise self._refusal(f"{rule}; nothing was executed")
        return Symbol(f"{module}.{name}")

    def call(self) -> object:
        symbol, arguments = self.pop_many(2)
        if isinstance(symbol, Symbol) and symbol.name not in self._symbols:
            return Unread(symbol.name)
        function = self._symbols[symbol.name] if isinstance(symbol, Symbol) else None
        if function is None or not isinstance(arguments, tuple):
            name = symbol.name if isinstance(symbol, Symbol) else symbol
            raise self._refusal(f"calls {quote(name)} with {quote(arguments)}: that is no call a state dict makes")
        return function(arguments)

    def outside(self) -> object:
        return self._persistent(self.pop())

    def discard_state(self) -> None:
        """Drop the attributes of an OrderedDict: PyTorch keeps version numbers of modules there."""
        target, _ = self.pop_many(2)
        if not isinstance(target, OrderedDict | Unread):
            raise self._refusal(f"only an OrderedDict can be given attributes, not {quote(target)}")
        self._stacks[-1].append(target)

    def _refusal(self, rule: str) -> CheckpointError:
        return CheckpointError(f"{self._where}, byte {self._position}: {rule}. {_WAY_OUT}")


# Instructions that push the value they compute.
_VALUES: dict[bytes, Callable[[_Machine], object]] = {
    b"N": lambda machine: None,  # NONE
    b"\x88": lambda machine: True,  # NEWTRUE
    b"\x89": lambda machine: False,  # NEWFALSE
    b"K": lambda machine: machine.number("B"),  # BININT1
    b"M": lambda machine: machine.number("H"),  # BININT2
    b"J": lambda machine: machine.number("i"),  # BININT
    b"\x8a": lambda machine: int.from_bytes(machine.take(machine.number("B")), "little", signed=True),  # LONG1
    b"G": lambda machine: struct.unpack(">d", machine.take(8))[0],  # BINFLOAT
    b"\x8c": lambda machine: machine.text(machine.number("B")),  # SHORT_BINUNICODE
    b"X": lambda machine: machine.text(machine.number("I")),  # BINUNICODE
    b"}": lambda machine: {},  # EMPTY_DICT
    b"]": lambda machine: [],  # EMPTY_LIST
    b")": lambda machine: (),  # EMPTY_TUPLE
    b"\x85": lambda machine: machine.pop_many(1),  # TUPLE1
    b"\x86": lambda machine: machine.pop_many(2),  # TUPLE2
    b"\x87": lambda machine: machine.pop_many(3),  # TUPLE3
    b"t": lambda machine: tuple(machine.pop_to_mark()),  # TUPLE
    b"h": lambda machine: machine.recall(machine.number("B")),  # BINGET
    b"j": lambda machine: machine.recall(machine.number("I")),  # LONG_BINGET
    b"c": lambda machine: machine.symbol(machine.line(), machine.line()),  # GLOBAL
    b"\x93": lambda machine: machine.symbol(*machine.pop_many(2)),  # STACK_GLOBAL
    b"R": _Machine.call,  # REDUCE
    b"Q": _Machine.outside,  # BINPERSID
}

# Instructions that change the state of the machine.
_STEPS: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": _Machine.protocol,  # PROTO
    b"\x95": lambda machine: machine.take(8),  # FRAME: a hint for buffering
    b"(": _Machine.mark,  # MARK
    b"q": lambda machine: machine.store(machine.number("B")),  # BINPUT
    b"r": lambda machine: machine.store(machine.number("I")),  # LONG_BINPUT
    b"\x94": _Machine.store,  # MEMOIZE
    b"a": lambda machine: machine.append([machine.pop()]),  # APPEND
    b"e": lambda machine: machine.append(machine.pop_to_mark()),  # APPENDS
    b"s": lambda machine: machine.set_items([*machine.pop_many(2)]),  # SETITEM
    b"u": lambda machine: machine.set_items(machine.pop_to_mark()),  # SETITEMS
    b"b": _Machine.discard_state,  # BUILD
}

# Instructions for what is left unread, which push what stands for it.
_UNREAD: dict[bytes, Callable[[_Machine], object]] = {
    b"\x81": _Machine.call,  # NEWOBJ: a class and the arguments for an object of it
    b"\x8f": lambda machine: Unread("set"),  # EMPTY_SET
    b"\x90": _Machine.add_items,  # ADDITEMS
    b"\x91": _Machine.frozen_set,  # FROZENSET
    b"B": lambda machine: machine.take(machine.number("I")),  # BINBYTES
    b"C": lambda machine: machine.take(machine.number("B")),  # SHORT_BINBYTES
}
