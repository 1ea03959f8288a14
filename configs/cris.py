r"""CRIS with the published recipe (MIDL 2024): soft Dice, AdamW, a learning rate that falls on plateaus.

    python tools/convert_weights.py --model=cris \
        --source=cris_best.pth --output=checkpoints/cris
    python -m medvlsm_jax.train --config=configs/cris.py:dataset=kvasir_polyp,prompt=p6 \
        --workdir=runs/cris --config.data_dir=DIR --config.init=checkpoints/cris

The paper reports a Dice of 91.39 on Kvasir-SEG's test split for it (its Table 2, finetuned on that dataset alone).
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, published_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    return apply_overrides(published_config("cris", batch_size=32, learning_rate=2e-5), arg)
