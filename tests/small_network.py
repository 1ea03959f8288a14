"""A CLIPSeg of a few thousand parameters, which compiles in seconds; its tokens are those of `clipseg_tiny`."""

from medvlsm_jax import models
from medvlsm_jax.models import clipseg

SMALL = models.override(
    clipseg.PRESETS["clipseg_tiny"],
    {
        "text": {"context_length": 32, "width": 16, "depth": 1, "heads": 2, "mlp_width": 32},
        "vision": {"patch_size": 8, "grid": 4, "width": 32, "depth": 2, "heads": 2, "mlp_width": 64},
        "projection_dim": 16,
        "extract_layers": (0,),
        "conditional_layer": 0,
        "reduce_dim": 16,
        "decoder_heads": 2,
        "decoder_mlp_width": 32,
        "image_size": 32,
    },
)

# The same with one layer a tower, for tests that trace and compile it in each run; a sentence still counts.
SMALLEST = models.override(SMALL, {"vision": {"depth": 1}})
