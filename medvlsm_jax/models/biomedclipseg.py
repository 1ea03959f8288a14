"""BiomedCLIPSeg (Poudel et al., MIDL 2024, arXiv 2308.07706): BiomedCLIP's towers under CLIPSeg's decoder.

BiomedCLIP (Zhang et al. 2023, arXiv 2303.00915) is timm's ViT-B/16 and PubMedBERT, number for number as open_clip runs
them. BiomedCLIPSeg-D is the same network whose decoder starts from CLIPSeg's weights instead of random ones.
"""

import dataclasses

from medvlsm_jax.models.bert import Bert, BertConfig
from medvlsm_jax.models.clipseg import CLIPSeg, CLIPSegConfig
from medvlsm_jax.models.network import CLIP_MEAN, CLIP_STD
from medvlsm_jax.models.vit import ViTConfig

TIMM_VIT = ViTConfig(activation="gelu", epsilon=1e-6, has_pre_norm=False, has_patch_bias=True)


@dataclasses.dataclass(frozen=True)
class BiomedCLIPSegConfig(CLIPSegConfig):
    """What a BiomedCLIPSeg is; the defaults are the paper's."""

    text: BertConfig = dataclasses.field(default_factory=BertConfig)  # pyright: ignore[reportIncompatibleVariableOverride]
    vision: ViTConfig = TIMM_VIT
    # One block later than CLIPSeg's: the paper's code skips the embeddings at the head of the encoder's states, where
    # timm's, unlike Hugging Face's, has none.
    extract_layers: tuple[int, ...] = (4, 7, 10)
    image_size: int = 224
    pixel_mean: tuple[float, float, float] = CLIP_MEAN
    pixel_std: tuple[float, float, float] = CLIP_STD
    tokenizer: str = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


# Trains from scratch on a laptop in minutes, with the built-in tokenizer.
TINY = BiomedCLIPSegConfig(
    text=BertConfig(
        vocab_size=1024,
        context_length=64,
        max_positions=64,
        width=64,
        depth=2,
        heads=2,
        mlp_width=128,
        projection_width=64,
    ),
    vision=dataclasses.replace(TIMM_VIT, patch_size=8, grid=8, width=128, depth=5, heads=4, mlp_width=512),
    projection_dim=64,
    extract_layers=(0, 2, 4),
    reduce_dim=64,
    decoder_mlp_width=128,
    conditional_layer=2,  # as clipseg_tiny's
    image_size=64,
    tokenizer="builtin",
)

PRESETS: dict[str, BiomedCLIPSegConfig] = {
    "biomedclipseg": BiomedCLIPSegConfig(),
    "biomedclipseg_d": BiomedCLIPSegConfig(),
    "biomedclipseg_tiny": TINY,
    "biomedclipseg_d_tiny": TINY,
}


class BiomedCLIPSeg(CLIPSeg):
    """An image and a sentence in, one logit a pixel out."""

    config_class = BiomedCLIPSegConfig
    text_tower = Bert

    def unused(self, path: tuple[str | int, ...]) -> bool:
        """What CLIPSeg does not use, and BERT's own pooler."""
        return path[:2] == ("text", "pooler") or super().unused(path)
