r"""CLIPSeg with the published recipe (MIDL 2024): soft Dice, AdamW, a learning rate that falls on plateaus.

    python tools/convert_weights.py --model=clipseg \
        --source=CIDAS/clipseg-rd64-refined --output=checkpoints/clipseg
    python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 \
        --workdir=runs/clipseg --config.data_dir=DIR --config.init=checkpoints/clipseg

The paper reports a Dice of 89.51 on Kvasir-SEG's test split for it (its Table 2, finetuned on that dataset alone).
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, published_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    return apply_overrides(published_config("clipseg", batch_size=128, learning_rate=2e-3), arg)
