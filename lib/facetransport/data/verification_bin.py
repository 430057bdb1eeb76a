"""InsightFace's verification sets (``lfw.bin``, ``agedb_30.bin``, ``cfp_fp.bin`` ...): pairs of 112-pixel crops.

A file is a pickle of (encoded images, two a pair; whether each pair is one person). Pickles can run anything, so
nothing is unpickled here: opcodes are walked one by one, those that make lists, tuples, bytes, numbers and
one-dimensional arrays of bytes or booleans are understood, and all else is refused.
"""

from __future__ import annotations

import pickle
import pickletools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from facetransport.data.photographs import Collection, Grey, decode
from facetransport.files import replacing

MOST = 10_000_000  # opcodes; the largest published set has a hundred thousand


@dataclass(frozen=True)
class Pairs:
    """Encoded images, 2 P of them, pair by pair; same: bool (P,)."""

    images: list[bytes]
    same: np.ndarray


def verification_bin(path: Path, grey: Grey = "refuse") -> Collection:
    """The images of a file. Columns: identity, source (the image's place), pair, side (0 or 1).

    Who people are is not in the file: identity is right within a pair. For `protocols.verify_pairs` embed, then compare
    side 0 with side 1.
    """
    pairs = read(path)
    place = np.arange(2 * len(pairs.same))
    pair, side = place // 2, place % 2
    identity = 2 * pair + np.where(pairs.same[pair], 0, side)
    table = pd.DataFrame({"identity": identity, "source": place.astype(str), "pair": pair, "side": side})
    return Collection(table, partial(_read_image, pairs.images, str(path), grey), "insightface")


def _read_image(images: list[bytes], name: str, grey: Grey, source: str) -> np.ndarray:
    return decode(images[int(source)], f"{name}, image {source}", grey)


def read(path: Path) -> Pairs:
    """The pairs of a ``.bin`` file; images stay encoded. ValueError where the file is something else, or hostile."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected a verification set such as lfw.bin")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools, about escapes in broken text
            images, same = _Machine().run(path.read_bytes())
        encoded = [_bytes(image) for image in images]
        labels = np.array([_truth(value) for value in same], bool)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:  # of a broken stack
        raise ValueError(
            f"{path}: expected a pickle of encoded images and booleans ({error}); fetch it again"
        ) from None
    if not len(labels) or len(encoded) != 2 * len(labels):
        raise ValueError(f"{path}: expected two images a pair, got {len(encoded)} images and {len(labels)} pairs")
    return Pairs(encoded, labels)


def write(path: Path, images: Sequence[bytes], same: np.ndarray) -> None:
    """A file as InsightFace's tools read it: 2 P encoded images, pair by pair, and bool (P,)."""
    if len(images) != 2 * len(same) or not len(same):
        raise ValueError(f"images: expected two a pair, got {len(images)} for {len(same)} pairs")
    with replacing(path) as temporary:
        temporary.write_bytes(pickle.dumps((list(images), np.asarray(same, bool).tolist()), protocol=4))


def _bytes(image: Any) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    if not isinstance(image, bytes):
        raise ValueError(f"expected an encoded image, got {type(image).__name__}")
    return image


def _truth(value: Any) -> bool:
    if not isinstance(value, (bool, int, np.bool_)) or int(value) not in (0, 1):
        raise ValueError(f"expected whether a pair is one person, got {type(value).__name__}")
    return bool(value)


# ------------------------------------------------------------------------------------------- opcodes, without running


@dataclass(frozen=True)
class _Name:
    """Something that a pickle would import; here it only has a name."""

    name: str


_MULTIARRAY = {f"numpy.{core}.multiarray" for core in ("core", "_core")}
_NUMERIC = {f"numpy.{core}.numeric" for core in ("core", "_core")}
_TYPES = {"u1": np.uint8, "b1": np.bool_, "|u1": np.uint8, "|b1": np.bool_}
_TOP = {"NEWTRUE": True, "NEWFALSE": False, "NONE": None}
_VALUES = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)
_NOTHING = ("PROTO", "FRAME")


class _Array:
    """numpy's ``_reconstruct``: an array whose state comes later."""

    value: np.ndarray | None = None


class _Machine:
    """A stack and a memo, as pickle has them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > MOST:
                raise ValueError(f"more than {MOST:,} opcodes")
            if opcode.name == "STOP":
                return _settled(self.stack.pop())
            self.step(opcode.name, argument)
        raise ValueError("it ends before its STOP")

    def step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_value(name, argument))
        elif name in _TOP:
            self.stack.append(_TOP[name])
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _NOTHING:
            raise ValueError(f"asks for {name}, which no verification set needs")

    def since_mark(self) -> list[Any]:
        place = self.marks.pop()
        taken = self.stack[place:]
        del self.stack[place:]
        return taken

    def put(self, argument: Any) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def take(self, count: int) -> None:
        taken = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(taken)))

    def extend(self, argument: Any) -> None:
        items = self.since_mark()
        self.list_on_top().extend(items)

    def append(self, argument: Any) -> None:
        item = self.stack.pop()
        self.list_on_top().append(item)

    def list_on_top(self) -> list[Any]:
        if not isinstance(self.stack[-1], list):
            raise ValueError(f"appends to a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def named(self, argument: Any) -> None:
        module, name = argument.split(" ", 1) if argument else (self.stack.pop(-2), self.stack.pop())
        self.stack.append(_Name(f"{_text(module)}.{_text(name)}"))

    def reduce(self, argument: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(what, arguments))

    def build(self, argument: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Array):
            _, shape, kind, _, raw = state
            self.stack[-1].value = _array(raw, kind, shape)
        elif not isinstance(self.stack[-1], np.dtype):
            raise ValueError(f"sets the state of a {type(self.stack[-1]).__name__}")


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.take(1),
    "TUPLE2": lambda m, _: m.take(2),
    "TUPLE3": lambda m, _: m.take(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, place: m.stack.append(m.memo[place])),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.named),
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}


def _value(name: str, argument: Any) -> Any:
    """Text of Python 2 is bytes."""
    if "STRING" in name and isinstance(argument, str):
        return argument.encode("latin-1")
    return bytes(argument) if isinstance(argument, bytearray) else argument


def _text(value: Any) -> str:
    if not isinstance(value, (bytes, str)):  # nested tuples take gigabytes as text
        raise ValueError(f"expected a name, got {type(value).__name__}")
    return value.decode("ascii") if isinstance(value, bytes) else value


def _called(what: Any, arguments: Any) -> Any:
    """What a call would give, of those that NumPy and Python's own bytes need."""
    name = what.name if isinstance(what, _Name) else type(what).__name__
    module, _, last = name.rpartition(".")
    if name == "_codecs.encode" and _text(arguments[1]) in ("latin1", "latin-1"):
        return arguments[0].encode("latin-1")
    if name == "numpy.dtype":
        return np.dtype(_TYPES[_text(arguments[0])])
    if module in _MULTIARRAY and last == "_reconstruct":
        return _Array()
    if module in _MULTIARRAY and last == "scalar":
        return _array(arguments[1], arguments[0], (1,))[0]
    if module in _NUMERIC and last == "_frombuffer":
        return _array(arguments[0], arguments[1], arguments[2])
    raise ValueError(f"asks for {name}, which no verification set needs")


def _array(raw: Any, kind: Any, shape: Any) -> np.ndarray:
    """One-dimensional, of as many bytes as are there."""
    if not isinstance(kind, np.dtype) or not isinstance(raw, bytes) or tuple(shape) != (len(raw),):
        raise ValueError("holds an array that is no row of bytes or booleans")
    return np.frombuffer(raw, kind)


def _settled(value: Any) -> tuple[Any, Any]:
    """(images, labels) with arrays in their places."""
    images, same = value
    return [_unwrapped(image) for image in _unwrapped(images)], _unwrapped(same)


def _unwrapped(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value
