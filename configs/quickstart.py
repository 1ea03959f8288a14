"""A tiny CLIPSeg from random weights on the drawn sample: what `make quickstart` runs.

python -m medvlsm_jax.train --config=configs/quickstart.py --workdir=runs/quickstart --config.data_dir=runs/data
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, base_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """A few minutes on four CPU cores.

    Small batches, a larger rate and averaged weights: with batches of 16 at 5e-4 the same seed came to a Dice of 87.0
    on one machine and to 80.5 on another.
    """
    config = base_config()
    config.model = "clipseg_tiny"
    config.dataset = "sample"
    config.prompt = "p6"
    config.loss = "dice_bce"
    config.batch_size = 8
    config.num_epochs = 3
    config.learning_rate = 1e-3
    config.schedule = "cosine"
    config.warmup_steps = 30
    config.log_every_steps = 50
    config.max_grad_norm = 1.0
    config.ema = 0.99
    return apply_overrides(config, arg)
