r"""BiomedCLIPSeg with the published recipe (MIDL 2024): BiomedCLIP's towers, CLIPSeg's decoder from random weights.

    python tools/convert_weights.py --model=biomedclipseg \
        --source=microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224 --output=checkpoints/biomedclipseg
    python -m medvlsm_jax.train --config=configs/biomedclipseg.py:dataset=kvasir_polyp,prompt=p6 \
        --workdir=runs/biomedclipseg --config.data_dir=DIR --config.init=checkpoints/biomedclipseg

The paper's Table 2 has no number for it.
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, published_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    return apply_overrides(published_config("biomedclipseg", batch_size=128, learning_rate=2e-3), arg)
