"""What Pillow reads, as slices: an image, the pages of a TIFF, the frames of what moves."""

import io
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.decoding.depth import DEEP_COLOUR, check_depth, raw_mode, tags_of
from medvlsm_jax.data.decoding.errors import naming
from medvlsm_jax.data.decoding.orientation import orientation_of, upright
from medvlsm_jax.data.decoding.pages import count_frames, find_pages
from medvlsm_jax.data.decoding.tiff_pages import imagej_spacing
from medvlsm_jax.data.files import File
from medvlsm_jax.data.images import TURNED, picture, to_rgb, what_was_done
from medvlsm_jax.data.scans.scan import Scan
from medvlsm_jax.errors import UserError

KEPT = 8  # frames that were passed on the way to one that was asked for, if they are of no more pixels than the next
MAX_FRAME = 1 << 26  # pixels of a frame, which Pillow holds several times while it composes


def open_pages(path: Path) -> "Pages | Frames":
    """An image as a scan of one slice, a TIFF as one of its pages, what moves as one of its frames.

    Raises:
        UserError: the file is missing, broken, no image or absurdly large, or of a kind that is not read.
    """
    with naming(path), path.open("rb") as file, Image.open(file) as image:
        if image.format != "TIFF":  # whose pages differ
            check_depth(path, image)
        if (count := count_frames(path, image)) > 1:
            if image.width * image.height > MAX_FRAME:
                raise UserError(f"{path} has frames of {image.width}x{image.height} pixels: shrink or remove it")
            if DEEP_COLOUR.fullmatch(raw_mode(image)):
                raise UserError(f"{path} has frames of 16 bits a colour: split it into files of their own")
            return Frames(path, count, orientation_of(image))
        pages = Pages(path, find_pages(path, image))
        if image.format == "TIFF" and orientation_of(image) == 1:
            pages.spacing, pages.distance = imagej_spacing(tags_of(image))
        return pages


class Noted(Scan):
    """A scan whose notes are found while it is read: they are whole when every slice was."""

    def __init__(self, path: Path):
        self.path = path
        self.files = (path,)
        self.lock = threading.Lock()

    def note(self, lines: Iterable[str]) -> None:
        """Adds lines that are not among the notes."""
        with self.lock:
            self.notes = tuple(dict.fromkeys((*self.notes, *lines)))


class Pages(Noted):
    """An image, or the pages of a TIFF, each with its own size, mode and orientation, opened when it is read."""

    def __init__(self, path: Path, pages: Sequence[File]):
        super().__init__(path)
        self.pages = pages

    def __len__(self) -> int:
        return len(self.pages)

    def read(self, index: int) -> Image.Image:
        decoded = decode(self.pages[index], is_page=True)
        self.note(what_was_done(decoded))
        return to_rgb(picture(decoded))


class Frames(Noted):
    """The frames of a GIF, APNG, WebP, …, each as it is shown: drawn over those before it where the format says so.

    A frame can only be had by way of those before it. So one thread decodes at a time, in an open copy of the file, and
    the last frames that it passed are kept for the threads that come a little later.
    """

    def __init__(self, path: Path, count: int, orientation: int):
        super().__init__(path)
        self.count = count
        self.orientation = orientation
        self.decoding = threading.Lock()
        self.image: Image.Image | None = None
        self.next = 0  # frame that the image has not shown
        self.passed: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Image.Image:
        self.note([TURNED] if self.orientation != 1 else [])
        with self.decoding, naming(self.path):
            if index not in self.passed:
                self.go_to(index)
            return self.passed.pop(index)

    def go_to(self, index: int) -> None:
        """Adds a frame to those that were passed; reading starts anew where it lies behind."""
        if self.image is None or index < self.next:
            self.image, self.next = Image.open(io.BytesIO(self.path.read_bytes())), 0
        kept = max(1, min(KEPT, MAX_FRAME // (self.image.width * self.image.height)))
        for i in range(max(self.next, index - kept + 1), index + 1):
            self.image.seek(i)
            self.next = i + 1
            shown = upright(to_rgb(self.image), self.orientation)
            self.passed[i] = shown.copy() if shown is self.image else shown  # the next one is drawn over it
        for i in sorted(self.passed, key=lambda i: abs(i - index))[kept:]:
            del self.passed[i]
        if index == self.count - 1:
            self.image = None
