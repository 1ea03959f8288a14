"""The state dict inside what a training framework saved around it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from medvlsm_jax.weights.reading.modules import Names, as_tensor, module_state
from medvlsm_jax.weights.reading.pickles import Inert
from medvlsm_jax.weights.reading.tensors import AnyTensor, Refused, printable

# Where frameworks keep the weights: Lightning and MMCV; many scripts; fairseq, timm and YOLO; DeepSpeed and FSDP.
PLAIN = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "network_weights",
    "net",
    "net_state_dict",
    "weights",
    "params",
    "student",
)
# And the average of the weights over the training.
AVERAGED = (
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "ema",
    "params_ema",
    "ema_weights",
    "averaged_model",
    "swa_state_dict",
    "shadow",
    "teacher",
)
# What else lies in a checkpoint, and holds tensors that are no weights.
NO_WEIGHTS = (
    "optim",
    "sched",
    "callback",
    "hyper_param",
    "hparams",
    "loops",
    "scaler",
    "rng",
    "grad",
    "loss",
    "sampler",
)


@dataclasses.dataclass(frozen=True)
class StateDict:
    """A state dict, and where in the file it lies: the keys that lead to it, joined by dots."""

    path: str
    tensors: dict[str, AnyTensor]


def find_state_dicts(content: Any) -> list[StateDict]:
    """All state dicts in a file's content: the one to take first, then the others that could be meant.

    Weights come before their average, for that is what training code loads by default.
    """
    return list(find(content, "", set(), Names()))


def find(content: Any, path: str, seen: set[int], names: Names) -> Iterator[StateDict]:
    """The state dicts at a place in the content and below it; `seen` are the dictionaries that were looked at."""
    module = module_state(content, names)
    if module is not None:
        if module:
            yield StateDict(path, module)
        return
    entries = entries_of(content)
    if entries is None or id(entries) in seen:
        return
    seen.add(id(entries))
    nested = [
        found
        for key in (*PLAIN, *AVERAGED)
        if key in entries
        for found in find(entries[key], f"{path}.{key}" if path else key, seen, names)
    ]
    if nested:
        yield from nested
        return
    own = {name: tensor for name, value in entries.items() if isinstance(name, str) and (tensor := as_tensor(value))}
    own |= joined(entries, names)
    if own:
        yield StateDict(path, own)


def entries_of(content: Any) -> dict[str | int, Any] | None:
    """A dictionary, or an object that was one; None for anything else."""
    if isinstance(content, dict):
        return content
    return content.entries if isinstance(content, Inert) and content.entries else None


def joined(entries: dict[str | int, Any], names: Names) -> dict[str, AnyTensor]:
    """The tensors of all dictionaries in one that holds weights under keys of its own, as `encoder` and `decoder`."""
    tensors = {}
    for key, value in entries.items():
        if not isinstance(key, str) or any(word in key.lower() for word in NO_WEIGHTS):
            continue
        parts = value if isinstance(value, dict) else module_state(value, names) or {}
        names.add(len(parts))
        for name, part in parts.items():
            if isinstance(name, str) and (tensor := as_tensor(part)):
                tensors[f"{key}.{name}"] = tensor
    return tensors


def choose(found: list[StateDict], entry: str) -> StateDict:
    """The state dict that is asked for: the first, or the one that a place in the file names.

    Raises:
        Refused: there is none, or none of that name.
    """
    if not found:
        raise Refused("holds no tensors")
    if not entry:
        return found[0]
    for state_dict in found:
        if entry in (state_dict.path, state_dict.path.rpartition(".")[2]):
            return state_dict
    for state_dict in found:  # copies that lie side by side under one key have prefixes of their own
        start = entry + "."
        part = {name.removeprefix(start): x for name, x in state_dict.tensors.items() if name.startswith(start)}
        if part:
            return StateDict(entry, part)
    names = ", ".join(printable(state_dict.path or "the whole file") for state_dict in found)
    raise Refused(f"holds no weights under {entry!r}: it has {names}")
