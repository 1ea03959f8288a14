"""What Pillow raises, as one line for people."""

import contextlib
import struct
import warnings
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

from medvlsm_jax.data.files import File
from medvlsm_jax.errors import UserError

# What Pillow raises for broken files of its forty formats.
BROKEN = (
    *(OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, LookupError, TypeError),
    *(ArithmeticError, AttributeError, AssertionError, MemoryError),
)

# Pillow refuses a header that claims more than 2 * Image.MAX_IMAGE_PIXELS (179 million), before it decodes anything;
# from half of that on it warns of images that it reads all the same, as it does of broken metadata. Its warnings are
# silenced for the whole process, once, for only that is safe with threads; the limit stays Pillow's, so that nobody's
# guard is weakened.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


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
        raise UserError(f"{path} cannot be decoded as an image ({reason}): restore or remove it") from error


def one_line(error: Exception) -> str:
    """What an exception says, or its kind where it says nothing; broken bytes of the file may stand in it."""
    words = "".join(x if x.isprintable() else " " for x in str(error)).split()
    return " ".join(words) or type(error).__name__


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
