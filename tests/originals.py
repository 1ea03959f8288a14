"""Stand-in checkpoints as our networks, beside what the original networks made of them (`tests/data/parity`)."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from closeness import relative_error
from seeded_weights import seeded_pixels, seeded_state_dict

from medvlsm_jax.models.network import Network
from medvlsm_jax.weights import from_torch

FOLDER = Path(__file__).parent / "data" / "parity"
STRIDE = 3  # of the rows and columns of a large output that are recorded


@dataclasses.dataclass
class Original:
    """A stand-in checkpoint, our network with its weights, and what is recorded of the original's."""

    state_dict: dict[str, np.ndarray]
    model: Network
    arrays: dict[str, np.ndarray]  # see `recorded`
    meta: dict[str, Any]

    def error(self, name: str, ours) -> float:
        """Ours against an output that is recorded whole, or every third row and column of it."""
        if name in self.arrays:
            return relative_error(ours, self.arrays[name])
        return relative_error(ours[:, ::STRIDE, ::STRIDE], self.arrays[f"{name}_stride{STRIDE}"])


def load(fixture: str, **replaced) -> Original:
    """Draws a fixture's checkpoint and builds our network from it, with config fields replaced."""
    state_dict = seeded_state_dict(FOLDER / fixture)
    model = from_torch(fixture.removesuffix("_tiny"), state_dict, **options(fixture) | replaced)
    return Original(state_dict, model, recorded(fixture), meta(fixture))


def small(fixture: str):
    """A function that gives a tiny stand-in's network with config fields replaced; nobody changes its arrays."""
    state_dict = seeded_state_dict(FOLDER / fixture)

    @functools.cache
    def build(**replaced) -> Network:
        return from_torch(fixture.removesuffix("_tiny"), state_dict, **options(fixture) | replaced)

    return build


def meta(fixture: str) -> dict[str, Any]:
    """How the original was built, what it was given, and how it trained."""
    return json.loads((FOLDER / fixture / "meta.json").read_text())


def spec(fixture: str) -> dict[str, int]:
    """The number of values in each tensor of the checkpoint."""
    tensors = json.loads((FOLDER / fixture / "spec.json").read_text())
    return {name: int(np.prod(shape)) for name, (shape, _) in tensors.items()}


def recorded(fixture: str) -> dict[str, np.ndarray]:
    """The inputs and outputs of the original: channels last, tokens as int32."""
    arrays, size = dict(np.load(FOLDER / fixture / "golden.npz")), meta(fixture)["image_size"]
    arrays["pixel_values"] = seeded_pixels(size)
    if "mask" in arrays and arrays["mask"].ndim == 1:  # packed bits
        arrays["mask"] = np.unpackbits(arrays["mask"]).reshape(2, 1, size, size)
    arrays = {name: array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for name, array in arrays.items()}
    return arrays | {name: arrays[name].astype(np.int32) for name in ("input_ids", "attention_mask") if name in arrays}


def inputs(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """What a network is called with."""
    return tuple(arrays[name] for name in ("pixel_values", "input_ids", "attention_mask") if name in arrays)


def options(fixture: str) -> dict[str, Any]:
    """What a checkpoint's arrays do not tell of its network's config."""
    found = meta(fixture)
    if fixture.startswith("cris"):
        heads = {"text": {"heads": found["clip"]["transformer_heads"]}, "decoder_heads": found["num_head"]}
        return heads | {"image_size": found["image_size"]}
    if fixture.startswith("clipseg"):
        config = found["config"]
        text, vision = config["text_config"], config["vision_config"]
        return {
            "text": {"heads": text["num_attention_heads"], "eos_token_id": text["eos_token_id"]},
            "vision": {"heads": vision["num_attention_heads"]},
            "extract_layers": config["extract_layers"],
            "decoder_heads": config["decoder_num_attention_heads"],
            "image_size": found["image_size"],
        }
    if fixture == "biomedclipseg_tiny":
        heads = {"text": {"heads": 4}, "vision": {"heads": 4}}
        return heads | {"extract_layers": found["extract_blocks_actually_used"], "image_size": found["image_size"]}
    return {}  # the preset is the paper's
