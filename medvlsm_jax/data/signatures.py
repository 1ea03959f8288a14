"""What an image looks like in 144 small numbers, by which copies of it are found that were shrunk or compressed."""

import base64

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy.fft import dctn

from medvlsm_jax.data.images import to_rgb

SIDE = 32  # of the thumbnail, in pixels
WAVES = 12  # a side of its cosine transform that is kept
COARSEST = 3  # sums of wave numbers below it are left out: most images of a modality have them in common
LEAST_CONTRAST = 2.0  # standard deviation of grey values below which an image looks like any other

Signature = Float[np.ndarray, "u v"]


def find_signature(image: Image.Image, side: int = SIDE, waves: int = WAVES, coarsest: int = COARSEST) -> Signature:
    """The middle waves of a grey thumbnail, of length 1; all 0 of an image that shows next to nothing.

    The cosine transform (DCT-II) is that of perceptual hashes (Zauner, Implementation and Benchmarking of Perceptual
    Image Hash Functions, 2010). Whole numbers in place of their signs tell apart what has large black parts in common.

    Args:
        image: in any mode.
        side: of the thumbnail.
        waves: how many of the transform's rows and columns are kept.
        coarsest: waves whose numbers add up to less are left out.
    """
    colours = image if image.mode == "L" else to_rgb(image)
    grey = np.asarray(colours.resize((side, side), Image.Resampling.BOX).convert("L"), np.float32)
    numbers = np.arange(waves)
    found = np.asarray(dctn(grey, norm="ortho"))[:waves, :waves] * (numbers[:, None] + numbers >= coarsest)
    length = np.linalg.norm(found)
    if grey.std() < LEAST_CONTRAST or not length:
        return np.zeros_like(found)
    return found / length


def to_text(signature: Signature) -> str:
    """A signature as text, to two digits; empty of one that is all 0."""
    if not signature.any():
        return ""
    numbers = np.rint(signature * (127 / np.abs(signature).max())).astype(np.int8)
    return base64.b64encode(numbers.tobytes()).decode()


def from_text(text: str) -> Signature:
    """The signature of length 1 that a text stands for."""
    numbers = np.frombuffer(base64.b64decode(text), np.int8).astype(np.float32)
    side = round(len(numbers) ** 0.5)
    return numbers.reshape(side, side) / np.linalg.norm(numbers)
