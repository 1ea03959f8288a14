"""Lossless JPEG and JPEG of 12 bits by GDCM: a plugin of pydicom, whose own leaves the latter out."""

from typing import Any

from medvlsm_jax.data.scans.codestreams import read_jpeg_header

NAME = "medvlsm_jax"
SYNTAXES = ("JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1")

# What pydicom looks for in a plugin.
DECODER_DEPENDENCIES = {
    "1.2.840.10008.1.2.4.51": ("python-gdcm",),
    "1.2.840.10008.1.2.4.57": ("python-gdcm",),
    "1.2.840.10008.1.2.4.70": ("python-gdcm",),
}


def is_available(uid: str) -> bool:
    """Whether GDCM is installed."""
    try:
        import gdcm
    except ImportError:
        return False
    return uid in DECODER_DEPENDENCIES and hasattr(gdcm, "ImageReader")


def register() -> None:
    """Makes the plugin known to pydicom; once."""
    from pydicom.pixels import decoders

    for name in SYNTAXES:
        decoder = getattr(decoders, f"{name}Decoder")
        if NAME not in (*decoder.available_plugins, *decoder.missing_dependencies):
            decoder.add_plugin(NAME, (__name__, "decode"))


def decode(data: bytes, runner: Any) -> bytes:
    """A frame's values, of one byte or two."""
    import gdcm

    header = read_jpeg_header(data)
    # GDCM has a codec each for 8, 12 and 16 bits, and complains on the terminal when told another than the data's.
    bits = next(bits for bits in (8, 12, 16) if header.precision <= bits)
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((header.width, header.height, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.RGB if header.channels == 3 else gdcm.PhotometricInterpretation.MONOCHROME2
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(runner.transfer_syntax))))
    image.SetPixelFormat(gdcm.PixelFormat(header.channels, bits, bits, bits - 1, 0))
    runner.set_option("bits_allocated", 8 if bits == 8 else 16)
    runner.set_option("planar_configuration", 0)
    return image.GetBuffer().encode("utf-8", "surrogateescape")
