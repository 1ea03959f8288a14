"""Pickles that would do harm to a reader that trusts them: nothing of them is done, and their tensors are read."""

import struct
import sys
import time

import numpy as np
import pytest
from drawn_checkpoints import (
    Built,
    Call,
    Global,
    Persistent,
    archive,
    encode,
    legacy_checkpoint,
    pickled,
    records,
    tensors,
    view,
    zip_checkpoint,
)

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import read_state_dict
from medvlsm_jax.weights.reading import modules

ARRAYS = {"a": np.array([1.5, -2.0, 3.0], np.float32)}
SYSTEM, EVAL = Global("os", "system"), Global("builtins", "eval")
COMMAND = "touch trap"


def read(tmp_path, pickle_bytes: bytes) -> dict[str, np.ndarray]:
    path = tmp_path / "hostile.pt"
    path.write_bytes(archive(records(pickle_bytes, ARRAYS)))
    return read_state_dict(path)


def refusal(tmp_path, pickle_bytes: bytes) -> str:
    with pytest.raises(UserError) as error:
        read(tmp_path, pickle_bytes)
    assert str(error.value).isprintable()
    return str(error.value)


EVENTS: list[str] = []
watched = False


def watch(event: str, args: tuple) -> None:
    if watched and event.startswith(("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.")):
        EVENTS.append(f"{event} {args!r:.100}")


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(watch)  # it stays, and does nothing after this module


@pytest.fixture(autouse=True)
def nothing_happens(tmp_path, monkeypatch):
    """No process, no connection, no file but the checkpoint itself."""
    global watched
    monkeypatch.chdir(tmp_path)
    (tmp_path / "first.pt").write_bytes(zip_checkpoint(ARRAYS))
    read_state_dict(tmp_path / "first.pt")  # what is imported at the first reading is
    EVENTS.clear()
    watched = True
    yield
    watched = False
    assert not EVENTS
    assert {path.name for path in tmp_path.iterdir()} <= {"first.pt", "hostile.pt"}


CALLS = {
    "os.system": Call(SYSTEM, (COMMAND,)),
    "eval": Call(EVAL, (f"__import__('os').system({COMMAND!r})",)),
    "chain of getattr": Call(
        Call(Global("builtins", "getattr"), (Call(Global("builtins", "__import__"), ("os",)), "system")), (COMMAND,)
    ),
    "as an attribute": Built(Global("collections", "Counter"), {"__setstate__": SYSTEM}),
    "dotted name": Call(Global("os", "path.os.system"), (COMMAND,)),
    "module of torch": Call(Global("torch.hub", "load"), ("owner/repository", "model")),
    "nested load": Call(Global("torch.storage", "_load_from_bytes"), (pickled(Call(SYSTEM, (COMMAND,))),)),
    "copyreg": Built(Call(Global("copyreg", "_reconstructor"), (SYSTEM, Global("builtins", "object"), None)), {"a": 1}),
    "partial": Call(Call(Global("functools", "partial"), (SYSTEM, COMMAND))),
    "a key": {"x": 1, Call(SYSTEM, (COMMAND,)): 2} | {SYSTEM: 3},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
def test_a_call_is_not_made_and_the_weights_are_read(tmp_path, call, is_legacy):
    write = legacy_checkpoint if is_legacy else zip_checkpoint
    content = write(ARRAYS, lambda state_dict: {"state_dict": state_dict, "hyper_parameters": call})
    (tmp_path / "hostile.pt").write_bytes(content)
    np.testing.assert_array_equal(read_state_dict(tmp_path / "hostile.pt")["a"], ARRAYS["a"])


NAME = b"\x8c\x02os\x8c\x06system"  # os and system, on the stack
OPCODES = {
    "STACK_GLOBAL": NAME + b"\x93\x8c\x0atouch trap\x85R",
    "INST": b"(\x8c\x0atouch trapios\nsystem\n",
    "OBJ": b"(cos\nsystem\n\x8c\x0atouch trapo",
    "NEWOBJ": b"cos\nsystem\n\x8c\x0atouch trap\x85\x81",
    "NEWOBJ_EX": b"cos\nsystem\n\x8c\x0atouch trap\x85}\x92",
    "huge memo indices": b"]r\xff\xff\xff\x7f]r\xff\xff\xff\xffj\xff\xff\xff\x7f",
    "a list in itself": b"]\x94h\x00a",
    "lists in lists": b"]" * 30_000 + b"a" * 29_999,
    "tuples in tuples as a key": b"}" + b")" + b"\x85" * 30_000 + b"K\x01s",
    "items of what is no dictionary": b"cos\nenviron\n\x8c\x04PATH\x8c\x00s",
    "a set of lists": b"\x8f(]]\x90",
    "an integer of many bytes": b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000,
}


@pytest.mark.parametrize("opcodes", OPCODES.values(), ids=OPCODES)
def test_an_opcode_does_no_harm_and_the_weights_are_read(tmp_path, opcodes):
    pickle_bytes = b"\x80\x04" + opcodes + b"0" + encode(tensors(ARRAYS)) + b"."
    np.testing.assert_array_equal(read(tmp_path, pickle_bytes)["a"], ARRAYS["a"])


BROKEN = {
    "EXT1": (b"\x82\x01", "EXT1"),
    "NEXT_BUFFER": (b"\x97", "NEXT_BUFFER"),
    "bytes longer than the file": (b"\x8e" + struct.pack("<Q", 1 << 60), "damaged"),
    "text longer than the file": (b"\x8d" + struct.pack("<Q", (1 << 63) - 1), "damaged"),
    "an integer longer than the file": (b"\x8b\xff\xff\xff\x7f", "damaged"),
    "a name that is no text": (b"K\x01K\x02\x93", "names a global"),
    "a name without end": (b"c" + b"a" * 5000 + b"\nb\n", "names a global"),
    "a call of a list": (b"])R", "calls what is no function"),
    "an unknown memo": (b"h\x07", "damaged"),
    "an empty stack": (b"0000", "damaged"),
    "no end": (b"(((((", "damaged"),
}


@pytest.mark.parametrize(("opcodes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_pickle_is_one_line(tmp_path, opcodes, message):
    assert message in refusal(tmp_path, b"\x80\x04" + opcodes)


VIEWS = {
    "beyond its storage": (view("0", 3, (4,), (1,)), "tensor a reaches beyond its storage of 12 bytes"),
    "beyond it by its strides": (view("0", 3, (2,), (3,)), "reaches beyond"),
    "beyond it by its offset": (view("0", 3, (2,), (1,), offset=2), "reaches beyond"),
    "of a negative size": (view("0", 3, (-1,), (1,)), "no natural numbers"),
    "of a negative stride": (view("0", 3, (2,), (-1,)), "no natural numbers"),
    "before its storage": (view("0", 3, (2,), (1,), offset=-1), "begins before it"),
    "of sizes that are no numbers": (view("0", 3, ("2",), (1,)), "no natural numbers"),
    "of fewer strides than sizes": (view("0", 3, (1, 1), (1,)), "as many strides as sizes"),
    "of too many axes": (view("0", 3, (1,) * 100, (1,) * 100), "no natural numbers"),
    "of a record that is missing": (view("9", 3, (3,), (1,)), "the record data/9 is missing"),
    "of a quantized type": (view("0", 3, (3,), (1,), "QInt8Storage"), "tensor a is of type QInt8"),
    "of one number a million times": (view("0", 3, (1 << 20, 1 << 20), (0, 0)), "times as large as the file"),
    "of a storage by a strange id": (Persistent(["storage", 1]), "refers to what is no storage"),
    "of a storage by a number": (Persistent(7), "refers to what is no storage"),
}


@pytest.mark.parametrize(("described", "message"), VIEWS.values(), ids=VIEWS)
def test_a_tensor_is_held_against_its_storage(tmp_path, described, message):
    assert message in refusal(tmp_path, pickled({"a": described}))


def test_what_is_repeated_over_and_over_ends_soon(tmp_path):
    """Each of 20,000 calls would copy a list of 20,000 items."""
    call = b"ccollections\nOrderedDict\nq\x01]q\x00(" + b"]" * 20_000 + b"e0" + b"h\x01h\x00\x85R" * 20_000
    start = time.monotonic()
    assert "steps" in refusal(tmp_path, b"\x80\x02" + call + b".")
    assert time.monotonic() - start < 10


def test_modules_that_hold_each_other_end_soon(tmp_path):
    """Each of 60 modules holds the next one twice: they have 2**60 names."""
    begin = b"cnet\nNet\n)\x81}(" + encode("_parameters") + b"}" + encode("_modules") + b"}"
    module = begin + b"ubq\xc8"
    for _ in range(60):
        module += begin + b"(" + encode("a") + b"h\xc8" + encode("b") + b"h\xc8" + b"uubq\xc8"
    assert "no end" in refusal(tmp_path, b"\x80\x02" + module + b".")


def test_a_dictionary_that_lies_under_many_names_is_not_read_over_and_over(tmp_path, monkeypatch):
    """Each of 50 entries is one dictionary of 50."""
    monkeypatch.setattr(modules, "MAX_NAMES", 1000)
    names = [encode(str(i)).partition(b"q")[0] for i in range(50)]
    numbers = b"}q\xc8(" + b"".join(name + b"K\x01" for name in names) + b"u0"
    entries = b"}(" + b"".join(name + b"h\xc8" for name in names) + b"u"
    assert "more than 1000 names" in refusal(tmp_path, b"\x80\x02" + numbers + entries + b".")


def test_a_module_without_tensors_holds_none(tmp_path):
    module = Built(Global("net", "Net"), {"_parameters": {}, "_modules": {}})
    assert "holds no tensors" in refusal(tmp_path, pickled(module))
