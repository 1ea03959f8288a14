"""Pickles read without trust: what a pickle names is neither imported nor called.

The opcodes are decoded by the standard library's `pickletools`; what they do is here. Numbers, strings, lists, tuples
and dictionaries are made, and tensors by the few rules of `rebuilding.py`. Anything else (a class, a function, an
object) becomes an `Inert` that remembers its name, what it was given and its attributes, and does nothing.
"""

import pickletools
from collections.abc import Callable, Iterable
from typing import Any

from medvlsm_jax.weights.reading.tensors import Damaged

# Of opcodes, and of items that a rule copies. Checkpoints of large networks with their optimizers have some 100,000;
# this many take about 5 s and 0.5 GB.
MAX_WORK = 2_000_000
# Python gives all integers that are the same modulo 2**61 - 1 one hash: a dictionary of them would take forever.
MAX_KEY = 1 << 60
MAX_NAME = 1000  # characters of a global's name

Rule = Callable[..., Any]


class Inert:
    """Stands for a global of a pickle, or for what one would have made; it is never imported and never called.

    Attributes:
        name: of the global, `module.name`.
        args: what it was called with; None for the global itself.
        state: its attributes, as the pickle gives them.
        entries: what was put in as into a dictionary.
    """

    __slots__ = ("args", "entries", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None):
        if len(name) > MAX_NAME:
            raise Damaged("its pickle names a global by what is no name")
        self.name = name
        self.args = args
        self.state: Any = None
        self.entries: dict[str | int, Any] = {}


class Mark:
    """The object on the stack that a later opcode reaches back to."""


MARK = Mark()


def put(entries: dict[str | int, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    """Adds to a dictionary. Weights lie under names: what lies under anything else but an integer is left out."""
    for key, value in pairs:
        if isinstance(key, str) or (type(key) is int and -MAX_KEY < key < MAX_KEY):
            entries[key] = value


class Unpickler:
    """One pickle, from a stream that stands at its start; afterwards the stream stands behind it.

    Args:
        stream: has `read`, `readline` and `tell`; reads no more than it holds, whatever it is asked for.
        rules: name of a global -> what is done in its place; it raises Damaged when it is given nonsense.
        persistent: of a persistent id, what it stands for.
    """

    def __init__(self, stream: Any, rules: dict[str, Rule], persistent: Callable[[Any], Any]):
        self.stream = stream
        self.rules = rules
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.work = 0

    def load(self) -> Any:
        """The object that the pickle describes.

        Raises:
            Damaged: it is no pickle, it is cut short, or it asks for too much.
        """
        try:
            for opcode, arg, _ in pickletools.genops(self.stream):
                self.charge(1)
                self.run(opcode.name, arg)
        except Damaged:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            # Of pickletools: unknown opcodes, arguments cut short. Of the stack: opcodes that find nothing there.
            raise Damaged("its pickle is damaged") from error
        return self.stack.pop() if self.stack else None

    def charge(self, items: int) -> None:
        """Counts work; raises Damaged when there is too much of it."""
        self.work += items
        if self.work > MAX_WORK:
            raise Damaged(f"its pickle takes more than {MAX_WORK} steps")

    def run(self, name: str, arg: Any) -> None:
        """What one opcode does."""
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in LITERALS:
            self.stack.append(arg)
        elif name in ACTIONS:
            ACTIONS[name](self, arg)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Damaged(f"its pickle has the opcode {name}, which no checkpoint has")

    def pop(self) -> Any:
        """The object on top of the stack, which is no mark."""
        value = self.stack.pop()
        if value is MARK:
            raise Damaged("its pickle is damaged")
        return value

    def top(self) -> Any:
        """The same, which stays."""
        value = self.stack[-1]
        if value is MARK:
            raise Damaged("its pickle is damaged")
        return value

    def items(self) -> list[Any]:
        """All that lies above the last mark; both are taken away."""
        start = len(self.stack) - 1
        while self.stack[start] is not MARK:
            start -= 1
            if start < 0:
                raise Damaged("its pickle is damaged")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def call(self, function: Any, args: Any) -> Any:
        """What stands for the result of a call."""
        if not isinstance(function, Inert) or not isinstance(args, tuple):
            raise Damaged("its pickle calls what is no function")
        rule = self.rules.get(function.name) if function.args is None else None
        return Inert(function.name, args) if rule is None else rule(self, *args)

    def append(self, items: list[Any]) -> None:
        """Adds to the list on top of the stack; of sequences that stand in for others nothing is kept."""
        target = self.top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise Damaged("its pickle is damaged")

    def set_items(self, items: list[Any]) -> None:
        """Adds keys and values in turn to the dictionary on top of the stack."""
        target = self.top()
        if not isinstance(target, dict | Inert):
            raise Damaged("its pickle is damaged")
        put(target if isinstance(target, dict) else target.entries, zip(items[::2], items[1::2], strict=True))

    def build(self) -> None:
        """Gives the object on top of the stack its attributes; those of what is real are of no use."""
        state, target = self.pop(), self.top()
        if isinstance(target, Inert):
            target.state = state

    def new_object(self) -> None:
        """An object of a class, its arguments by name left out."""
        args, cls = self.pop(), self.pop()
        self.stack.append(self.call(cls, args))


def new_object_by_names(unpickler: Unpickler, _: Any) -> None:
    """NEWOBJ_EX: as NEWOBJ, and arguments by name."""
    unpickler.pop()
    unpickler.new_object()


def global_from_stack(unpickler: Unpickler, _: Any) -> None:
    """STACK_GLOBAL: a global whose module and name lie on the stack."""
    name, module = unpickler.pop(), unpickler.pop()
    if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > MAX_NAME:
        raise Damaged("its pickle names a global by what is no name")
    unpickler.stack.append(Inert(f"{module}.{name}"))


def instance(unpickler: Unpickler, arg: str) -> None:
    """INST: a class by name, called with what lies above the mark."""
    args = tuple(unpickler.items())
    unpickler.stack.append(unpickler.call(Inert(arg.replace(" ", ".", 1)), args))


def instance_from_stack(unpickler: Unpickler, _: Any) -> None:
    """OBJ: the same with the class above the mark."""
    cls, *args = unpickler.items()
    unpickler.stack.append(unpickler.call(cls, tuple(args)))


def dictionary(unpickler: Unpickler, _: Any) -> None:
    """DICT: of the keys and values above the mark."""
    items = unpickler.items()
    unpickler.stack.append({})
    unpickler.set_items(items)


def tuple_of(count: int) -> Callable[[Unpickler, Any], None]:
    """TUPLE1 to TUPLE3."""

    def run(unpickler: Unpickler, _: Any) -> None:
        items = [unpickler.pop() for _ in range(count)]
        unpickler.stack.append(tuple(reversed(items)))

    return run


def remember(unpickler: Unpickler, index: int | None) -> None:
    """PUT and its kind: the memo is a dictionary, so that an index may be any number."""
    unpickler.memo[len(unpickler.memo) if index is None else index] = unpickler.top()


def reduce(unpickler: Unpickler, _: Any) -> None:
    """REDUCE: a call."""
    args, function = unpickler.pop(), unpickler.pop()
    unpickler.stack.append(unpickler.call(function, args))


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,  # what is in it is all that anyone asks
    "MARK": lambda: MARK,
}
# Opcodes whose argument is the object: numbers, bytes (and text of Python 2), text.
LITERALS = frozenset(
    (
        *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    )
)
ACTIONS: dict[str, Callable[[Unpickler, Any], Any]] = {
    "APPEND": lambda unpickler, _: unpickler.append([unpickler.pop()]),
    "APPENDS": lambda unpickler, _: unpickler.append(unpickler.items()),
    "ADDITEMS": lambda unpickler, _: unpickler.append(unpickler.items()),
    "LIST": lambda unpickler, _: unpickler.stack.append(unpickler.items()),
    "FROZENSET": lambda unpickler, _: unpickler.stack.append(unpickler.items()),
    "TUPLE": lambda unpickler, _: unpickler.stack.append(tuple(unpickler.items())),
    "TUPLE1": tuple_of(1),
    "TUPLE2": tuple_of(2),
    "TUPLE3": tuple_of(3),
    "DICT": dictionary,
    "SETITEM": lambda unpickler, _: unpickler.set_items([unpickler.pop(), unpickler.pop()][::-1]),
    "SETITEMS": lambda unpickler, _: unpickler.set_items(unpickler.items()),
    "POP": lambda unpickler, _: unpickler.stack.pop(),
    "POP_MARK": lambda unpickler, _: unpickler.items(),
    "DUP": lambda unpickler, _: unpickler.stack.append(unpickler.top()),
    **dict.fromkeys(
        ("GET", "BINGET", "LONG_BINGET"), lambda unpickler, index: unpickler.stack.append(unpickler.memo[index])
    ),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), remember),
    "GLOBAL": lambda unpickler, arg: unpickler.stack.append(Inert(arg.replace(" ", ".", 1))),
    "STACK_GLOBAL": global_from_stack,
    "INST": instance,
    "OBJ": instance_from_stack,
    "REDUCE": reduce,
    "NEWOBJ": lambda unpickler, _: unpickler.new_object(),
    "NEWOBJ_EX": new_object_by_names,
    "BUILD": lambda unpickler, _: unpickler.build(),
    "PERSID": lambda unpickler, arg: unpickler.stack.append(unpickler.persistent(arg)),
    "BINPERSID": lambda unpickler, _: unpickler.stack.append(unpickler.persistent(unpickler.pop())),
}
