"""CLIPSeg with the published recipe (MIDL 2024): soft Dice, AdamW, a learning rate that falls on plateaus.

    python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 --workdir=runs/kvasir_p6 \
        --config.data_dir=DIR --config.init=CONVERTED_CHECKPOINT

The paper reports a Dice of 89.51 on Kvasir-SEG's test split for it (its Table 2, finetuned on that dataset alone).
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, base_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    config = base_config()
    config.model = "clipseg"
    config.dataset = "kvasir_polyp"
    config.prompt = "p6"
    config.loss = "dice"
    config.batch_size = 128
    config.num_epochs = 1000
    config.learning_rate = 2e-3
    config.weight_decay = 1e-3
    config.max_grad_norm = 0.5
    config.seed = 42
    return apply_overrides(config, arg)
