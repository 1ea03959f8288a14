"""TorchScript archives: which attributes are a module's parameters and buffers stands in the text of its class."""

import re
from typing import Any

from medvlsm_jax.weights.reading.archives import Archive
from medvlsm_jax.weights.reading.modules import MAX_DEPTH, Names, as_tensor
from medvlsm_jax.weights.reading.pickles import Inert
from medvlsm_jax.weights.reading.tensors import AnyTensor, Damaged

# As in `class Linear(Module):`, followed by its lists of names; files of before PyTorch 1.5 list no buffers.
CLASS = re.compile(
    r"^class (\w+)\(Module\):\n  __parameters__ = \[([^\]\n]*)\]\n(?:  __buffers__ = \[([^\]\n]*)\]\n)?", re.MULTILINE
)
NAME = re.compile(r'"([^"]*)"')
CODE = "code/"

Classes = dict[str, tuple[set[str], set[str]]]  # class -> names of its parameters and of its buffers


def module_classes(archive: Archive) -> Classes:
    """The classes of modules that the archive's code declares, by the names that its pickle uses."""
    classes: Classes = {}
    for record in archive.records:
        if record.startswith(CODE) and record.endswith(".py"):
            qualifier = record[len(CODE) : -len(".py")].replace("/", ".")
            text = archive.read(record).tobytes().decode("utf-8", "replace")
            for name, parameters, buffers in CLASS.findall(text):
                classes[f"{qualifier}.{name}"] = (set(NAME.findall(parameters)), set(NAME.findall(buffers)))
    return classes


def module_tensors(root: Inert, classes: Classes) -> dict[str, AnyTensor]:
    """Parameters and buffers of a module and of those in it.

    Raises:
        Damaged: a module holds itself, or more than can be named.
    """
    tensors: dict[str, AnyTensor] = {}
    waiting, names = [(root, "", 0)], Names()
    while waiting:
        module, prefix, depth = waiting.pop()
        parameters, buffers = classes.get(module.name, (set(), set()))
        state: dict[str | int, Any] = module.state if isinstance(module.state, dict) else {}
        names.add(1 + len(state))
        if depth > MAX_DEPTH:
            raise Damaged("it holds modules that have no end")
        for wanted in (parameters, buffers):
            for name, value in state.items():
                tensor = as_tensor(value) if name in wanted else None
                if tensor is not None:
                    tensors[f"{prefix}{name}"] = tensor
        children = [
            (value, f"{prefix}{name}.", depth + 1)
            for name, value in state.items()
            if isinstance(value, Inert) and value.name in classes
        ]
        waiting += reversed(children)
    return tensors
