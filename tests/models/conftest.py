"""The stand-in checkpoint of clipseg_tiny as a model: small enough that every test can have it."""

import functools
import json
from pathlib import Path

import pytest
from seeded_weights import seeded_state_dict

from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.weights import from_torch


@pytest.fixture(scope="session")
def overrides():
    """What a CLIPSeg checkpoint's arrays do not tell, from the original's config in a fixture's meta.json."""

    def read(folder) -> dict:
        config = json.loads((folder / "meta.json").read_text())["config"]
        text, vision = config["text_config"], config["vision_config"]
        return {
            "text": {"heads": text["num_attention_heads"], "eos_token_id": text["eos_token_id"]},
            "vision": {"heads": vision["num_attention_heads"]},
            "extract_layers": config["extract_layers"],
            "decoder_heads": config["decoder_num_attention_heads"],
            "image_size": json.loads((folder / "meta.json").read_text())["image_size"],
        }

    return read


@pytest.fixture(scope="session")
def tiny(overrides):
    """The tiny stand-in with config fields replaced: `tiny(image_size=96)`; nobody changes its arrays."""
    folder = Path(__file__).parents[1] / "data" / "parity" / "clipseg_tiny"

    @functools.cache
    def build(**replaced) -> CLIPSeg:
        return from_torch("clipseg", seeded_state_dict(folder), **overrides(folder) | replaced)

    return build
