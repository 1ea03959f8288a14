r"""BiomedCLIPSeg-D with the published recipe (MIDL 2024): BiomedCLIP's towers, CLIPSeg's pretrained decoder.

    python tools/convert_weights.py --model=biomedclipseg_d \
        --source=open_clip_pytorch_model.bin --decoder_source=model.safetensors --output=checkpoints/biomedclipseg_d
    python -m medvlsm_jax.train --config=configs/biomedclipseg_d.py:dataset=kvasir_polyp,prompt=p6 \
        --workdir=runs/biomedclipseg_d --config.data_dir=DIR --config.init=checkpoints/biomedclipseg_d

The paper's Table 2 has no number for it.
"""

import ml_collections

from medvlsm_jax.config import apply_overrides, published_config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The published recipe; `arg` overrides fields, as in `dataset=isic,prompt=p3,learning_rate=1e-4`."""
    return apply_overrides(published_config("biomedclipseg_d", batch_size=128, learning_rate=2e-3), arg)
