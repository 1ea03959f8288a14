"""The state dict is found in what trainers put around it, and it is said which one was taken."""

import pickle
import re

import numpy as np
import pytest
from drawn_checkpoints import Built, Call, Global, archive, encode, records, zip_checkpoint

from medvlsm_jax.errors import UserError
from medvlsm_jax.weights import read_checkpoint, read_state_dict

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([0.5], np.float32)}
AVERAGE = {"a.weight": np.ones((2, 3), np.float32), "a.bias": np.zeros(1, np.float32)}
BEST = {"best": np.array(0.8, np.float32)}
BOTH = {**ARRAYS, **{f"{name}+": array for name, array in AVERAGE.items()}, **BEST}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.ckpt"


def write(path, wrap) -> None:
    """A file whose content is what `wrap` makes of a state dict, its average, and a tensor that is no weight."""

    def content(described):
        plain = {name: described[name] for name in ARRAYS}
        return wrap(plain, {name: described[f"{name}+"] for name in AVERAGE}, described["best"])

    path.write_bytes(zip_checkpoint(BOTH, content))


def module(described: dict) -> Built:
    """A pickled module with one child, `a`."""
    own = {name.removeprefix("a."): tensor for name, tensor in described.items()}
    child = Built(Global("net", "Layer"), {"_parameters": own, "_buffers": {}, "_modules": {}})
    return Built(Global("net", "Net"), {"_parameters": {}, "_buffers": {}, "_modules": {"a": child}})


LIGHTNING = {
    "optimizer": Call(Global("functools", "partial"), (Global("torch.optim.adamw", "AdamW"),)),
    "loss": Built(Global("monai.losses.dice", "DiceCELoss"), {"_modules": {}, "lambda_dice": 1.0}),
    "stage": Call(Global("enums", "Stage"), ("fit",)),
}
WRAPS = {
    "Lightning": lambda plain, average, best: {
        "state_dict": plain,
        "callbacks": {"ModelCheckpoint": {"best_model_score": best, "dirpath": Global("pathlib", "PosixPath")}},
        "optimizer_states": [{"state": {0: average}, "param_groups": []}],
        "hyper_parameters": LIGHTNING,
    },
    "CRIS": lambda plain, average, best: {
        "epoch": 50,
        "best_iou": Call(Global("numpy.core.multiarray", "scalar"), (Global("numpy", "dtype"), "0")),
        "state_dict": plain,
        "optimizer": {"state": {0: average}},
        "scheduler": {"milestones": Call(Global("collections", "Counter"), ({35: 1},))},
    },
    "fairseq": lambda plain, average, best: {"args": Built(Global("argparse", "Namespace"), {}), "model": plain},
    "nested": lambda plain, average, best: {"model": {"state_dict": plain}, "best": best},
    "DeepSpeed": lambda plain, average, best: {"module": plain, "optimizer": None},
    "average alone": lambda plain, average, best: {"ema": plain, "optimizer": {"a": average}},
    "a module": lambda plain, average, best: module(plain),
    "a module in a dictionary": lambda plain, average, best: {"model": module(plain), "optimizer": average},
    "ordered pairs": lambda plain, average, best: Call(
        Global("collections", "OrderedDict"), ([[name, tensor] for name, tensor in plain.items()],)
    ),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_weights_are_found(path, wrap):
    write(path, wrap)
    read = read_state_dict(path)
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)


def test_weights_under_keys_of_their_own_keep_them(path):
    write(path, lambda plain, average, best: {"encoder": plain, "decoder": average, "best": best, "optimizer": plain})
    names = {f"{part}.{name}" for part in ("encoder", "decoder") for name in ARRAYS}
    assert set(read_state_dict(path)) == {*names, "best"}


AVERAGES = {
    "timm": ("state_dict", "state_dict_ema"),
    "YOLO": ("model", "ema"),
    "mean teacher": ("student", "teacher"),
    "BasicSR": ("params", "params_ema"),
}


@pytest.mark.parametrize(("own", "averaged"), AVERAGES.values(), ids=AVERAGES)
def test_it_is_said_that_an_average_lies_beside_and_how_it_is_taken(path, own, averaged):
    write(path, lambda plain, average, best: {averaged: average, own: plain})
    with pytest.warns(UserWarning, match=rf"its {own}; it holds {averaged} as well: --entry={averaged} takes that"):
        np.testing.assert_array_equal(read_state_dict(path)["a.weight"], ARRAYS["a.weight"])
    checkpoint = read_checkpoint(path, averaged)
    np.testing.assert_array_equal(checkpoint.state_dict["a.weight"], AVERAGE["a.weight"])
    assert f"its {averaged}; it holds {own} as well" in checkpoint.taken


def test_an_entry_can_be_a_prefix_in_the_state_dict(path):
    """As ema-pytorch has it: `online_model.` and `ema_model.` side by side."""

    def wrap(plain, average, best):
        copies = (("online_model", plain), ("ema_model", average))
        return {f"{copy}.{name}": tensor for copy, described in copies for name, tensor in described.items()}

    write(path, wrap)
    np.testing.assert_array_equal(read_checkpoint(path, "ema_model").state_dict["a.bias"], AVERAGE["a.bias"])


def test_an_entry_that_is_not_there_names_those_that_are(path):
    write(path, lambda plain, average, best: {"model": plain, "ema": average})
    with pytest.raises(UserError, match=re.escape("holds no weights under 'swa': it has model, ema")):
        read_state_dict(path, "swa")


def test_dictionaries_that_hold_each_other_are_looked_at_once(tmp_path):
    keys = (b"model", b"net", b"module", b"ema", b"weights", b"params")
    inside = b"".join(encode(key.decode()).partition(b"q")[0] + b"h\xc8" for key in keys)
    (tmp_path / "a.pt").write_bytes(archive(records(b"\x80\x02}q\xc8(" + inside + b"u.", {})))
    with pytest.raises(UserError, match="holds no tensors"):
        read_state_dict(tmp_path / "a.pt")


def test_numpy_arrays_are_weights_too(path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    path.write_bytes(archive(records(pickle.dumps({"a": array, "scalar": np.float64(1)}, 2), {})))
    read = read_state_dict(path)
    assert set(read) == {"a"}
    np.testing.assert_array_equal(read["a"], array)
