"""Which way up the pixels of a file are to be looked at, as its EXIF says."""

from PIL import Image
from PIL.ExifTags import Base as Tag

from medvlsm_jax.data.decoding.errors import BROKEN

# How pixels are brought upright, by the EXIF orientation of their file (EXIF 2.32, tag 0x0112); 1 is upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SPENT = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow keeps what says the orientation
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an open file, or of its XMP where EXIF has none; 1 where it is no valid one.

    Of a PNG that has none ahead of its pixels these are decoded; of a TIFF it is forgotten once it is decoded.
    """
    try:
        found = image.getexif().get(Tag.Orientation)
        return int(found) if found in UPRIGHT else 1
    except BROKEN:  # broken metadata make no image unreadable
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """An image as it is to be looked at, without the words that would have it turned once more."""
    if orientation not in UPRIGHT:
        return image
    turned = image.transpose(UPRIGHT[orientation])
    turned.info = {key: value for key, value in image.info.items() if key not in SPENT}
    return turned


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an open file as it is to be looked at, by its header."""
    is_done = Tag.Orientation in getattr(image, "tag_v2", ())  # by Pillow, of a TIFF
    width, height = image.size
    return (height, width) if orientation_of(image) in SIDEWAYS and not is_done else (width, height)
