"""What Pillow raises, as one line for people."""

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterator

from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base as Tag

from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

SAMPLE_FORMATS = {1: "whole", 2: "signed", 3: "float", 4: "undefined", 5: "complex", 6: "complex"}  # of TIFF 6.0
BIG = 43  # the third byte of a BigTIFF
NO_MODE = "TIFF: unknown pixel mode"  # says Pillow
DEPTHS = "8 or 16 bits a value, or one channel with 32-bit float"

# What Pillow raises for broken files of its forty formats.
BROKEN = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, LookupError, TypeError),
    *(ArithmeticError, AttributeError, AssertionError, MemoryError),
)

# Pillow refuses a header that claims more than 2 * Image.MAX_IMAGE_PIXELS (179 million), before it decodes anything;
# from half of that on it warns of images that it reads all the same, as it does of broken metadata. Its warnings and
# its log are silenced for the whole process, once, for only that is safe with threads; the limit stays Pillow's, so
# that nobody's guard is weakened.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


@contextlib.contextmanager
def naming(path: File) -> Iterator[None]:
    """Turns what Pillow raises into a UserError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large: shrink or remove it ({error})") from error
    except BROKEN as error:
        reason = why_unknown(path) if isinstance(error, UnidentifiedImageError) else one_line(error)
        if reason == NO_MODE and (kind := tiff_values(path)):
            raise UserError(f"{path} is a TIFF of {kind}, which Pillow does not read: save it with {DEPTHS}") from error
        raise UserError(f"{path} cannot be decoded as an image ({reason}): restore or remove it") from error


def one_line(error: Exception) -> str:
    """What an exception says, or its kind where it says nothing; broken bytes of the file may stand in it."""
    words = "".join(x if x.isprintable() else " " for x in str(error)).split()
    return " ".join(words) or type(error).__name__


def tiff_values(path: File) -> str:
    """What the values of a TIFF are; empty where its tags do not say."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header + (file.read(8) if header[2] == BIG else b""))
            file.seek(tags.next)
            tags.load(file)
        kind = SAMPLE_FORMATS[tags.get(Tag.SampleFormat, (1,))[0]]
        bits, count = int(tags[Tag.BitsPerSample][0]), int(tags.get(Tag.SamplesPerPixel, 1))
        return f"{bits}-bit {kind} values, {count} a pixel{', white at 0' * (tags[Tag.PhotometricInterpretation] == 0)}"
    except BROKEN:
        return ""


def why_unknown(path: File) -> str:
    """Why Pillow opens no file with these first bytes: the format that has them may lack only this kind of image."""
    try:
        with path.open("rb") as file:
            prefix = file.read(16)
            for name in Image.ID:
                reader, accept = Image.OPEN[name]
                if accept is not None and accept(prefix) is True:
                    file.seek(0)
                    try:
                        reader(file, "")
                    except BROKEN as error:
                        return f"{name}: {one_line(error)}"
    except BROKEN:
        pass
    return "in no format that Pillow reads"
