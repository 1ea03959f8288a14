"""What a name table is made of.

A row is (PyTorch's prefix, our prefix, kind of layer); `*` stands for a layer number, the same one on both sides.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One tensor of a layer: its names on both sides, and how PyTorch's layout becomes ours.

    Attributes:
        torch_name: PyTorch's.
        our_name: ours.
        axes: the axis order that takes PyTorch's layout to ours; None leaves it.
        leading: axes of length 1 that PyTorch has in front.
        part: PyTorch keeps several of our tensors in one, along its first axis: which of how many this one is.
    """

    torch_name: str
    our_name: str
    axes: tuple[int, ...] | None = None
    leading: int = 0
    part: tuple[int, int] | None = None


BIAS = Leaf("bias", "bias")
LINEAR = (Leaf("weight", "kernel", (1, 0)), BIAS)
CONV = (Leaf("weight", "kernel", (2, 3, 1, 0)), BIAS)
TRANSPOSED_CONV = (Leaf("weight", "kernel", (0, 2, 3, 1)), BIAS)
NORM = (Leaf("weight", "scale"), BIAS)
BATCH_NORM = (*NORM, Leaf("running_mean", "mean"), Leaf("running_var", "var"))
EMBEDDING = (Leaf("weight", ""),)
ARRAY = (Leaf("", ""),)

Row = tuple[str, str, tuple[Leaf, ...]]
StateDict = Mapping[str, np.ndarray]


def third(part: int, weight: str, bias: str) -> tuple[Leaf, ...]:
    """Query, key or value (part 0, 1, 2) of a matrix that holds all three."""
    return (Leaf(weight, "kernel", (1, 0), part=(part, 3)), Leaf(bias, "bias", part=(part, 3)))


def joined_attention(torch_prefix: str, our_prefix: str, weight: str, bias: str) -> list[Row]:
    """Query, key and value in one matrix: torch.nn.MultiheadAttention's `in_proj_weight`, timm's `qkv`."""
    names = ("query", "key", "value")
    return [(torch_prefix, f"{our_prefix}.{name}", third(i, weight, bias)) for i, name in enumerate(names)]


def conv_norm(torch_conv: str, torch_norm: str, ours: str) -> list[Row]:
    """A convolution without bias and its BatchNorm."""
    return [(torch_conv, f"{ours}.conv", CONV), (torch_norm, f"{ours}.norm", BATCH_NORM)]


def stage_rows(torch_prefix: str, our_prefix: str) -> list[Row]:
    """A stage of a ResNet: its bottleneck blocks."""
    parts = [(f"conv{i}", f"bn{i}", f"conv{i}") for i in (1, 2, 3)] + [("downsample.0", "downsample.1", "shortcut")]
    return [
        row
        for conv, norm, ours in parts
        for row in conv_norm(f"{torch_prefix}.*.{conv}", f"{torch_prefix}.*.{norm}", f"{our_prefix}.*.{ours}")
    ]


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of a network, how to read its sizes, and what its checkpoints hold that is no parameter.

    Attributes:
        rows: covers every parameter and running statistic.
        sizes: overrides of a preset that fit a checkpoint; what its arrays do not tell stays as in the preset.
        rename: names of any checkpoint that users hold, without wrappers -> those of the rows.
        head: prefixes of PyTorch's names that pretrained encoders lack: all of them start random then.
        ignored: endings of names that carry no learned value.
    """

    rows: list[Row]
    sizes: Callable[[StateDict, Any], dict[str, Any]]
    rename: Callable[[str], str] = str
    head: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ("position_ids", "num_batches_tracked")


def size(state_dict: StateDict, name: str, axis: int, default: int) -> int:
    """The length of an axis of an array, or the default where there is none of that name."""
    array = state_dict.get(name)
    return int(array.shape[axis]) if array is not None and array.ndim > axis else default


def count_layers(state_dict: StateDict, prefix: str) -> int:
    """One more than the highest layer number that follows `prefix` in a name."""
    numbers = (name[len(prefix) :].split(".")[0] for name in state_dict if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def count_heads(width: int, default: Any) -> int:
    """CLIP's rule of 64 channels a head where the width is not the preset's; a checkpoint does not tell."""
    return default.heads if width == default.width else max(1, width // 64)
