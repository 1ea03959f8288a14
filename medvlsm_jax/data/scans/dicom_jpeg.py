"""Lossless JPEG and JPEG of 12 bits as a plugin of pydicom."""

from typing import Any

from medvlsm_jax.data.scans.jpeg_codes import read_jpeg
from medvlsm_jax.data.scans.jpeg_lossless import decode_lossless
from medvlsm_jax.data.scans.jpeg_sequential import decode_sequential

NAME = "medvlsm_jax"
SYNTAXES = ("JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1")
LOSSLESS = 0xC3


def is_available(uid: str) -> bool:
    """Whether a transfer syntax can be decoded; pydicom asks for this."""
    return True


def register() -> None:
    """Makes the plugin known to pydicom; once."""
    from pydicom.pixels import decoders

    for name in SYNTAXES:
        decoder = getattr(decoders, f"{name}Decoder")
        if NAME not in decoder.available_plugins:
            decoder.add_plugin(NAME, (__name__, "decode"))


def decode(data: bytes, runner: Any) -> bytes:
    """A frame's values, of one byte or two."""
    jpeg = read_jpeg(data)
    values = (decode_lossless if jpeg.marker == LOSSLESS else decode_sequential)(jpeg)
    bits = 8 if jpeg.header.precision <= 8 else 16
    runner.set_option("bits_allocated", bits)
    runner.set_option("planar_configuration", 0)
    return values.astype(f"<u{bits // 8}").tobytes()
