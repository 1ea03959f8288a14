"""How PyTorch checkpoints name the parameters of each network: one table per network, read both ways."""

from medvlsm_jax.weights.tables import biomedclipseg, clipseg, cnn, cris
from medvlsm_jax.weights.tables.rows import Leaf, Row, StateDict, Table

__all__ = ["TABLES", "Leaf", "Row", "StateDict", "Table"]

TABLES: dict[str, Table] = {
    "clipseg": clipseg.TABLE,
    "biomedclipseg": biomedclipseg.TABLE,
    "cris": cris.TABLE,
    "unet": cnn.UNET,
    "unetplusplus": cnn.UNETPLUSPLUS,
    "deeplabv3plus": cnn.DEEPLABV3PLUS,
}
