r"""U-Net on an ImageNet ResNet-50 with the published recipe (MIDL 2024): no sentence, everything is trained.

    python tools/convert_weights.py --model=unet \
        --source=resnet50.pth --output=checkpoints/unet
    python -m medvlsm_jax.train --config=configs/unet.py:dataset=kvasir_polyp,prompt=p6 \
        --workdir=runs/unet --config.data_dir=DIR --config.init=checkpoints/unet

The paper reports a Dice of 84.77 on Kvasir-SEG's test split for it (its Table 2, finetuned on that dataset alone).
Of several classes among the training records it gets one output each.
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, published_cnn_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    return apply_overrides(published_cnn_config("unet"), arg)
