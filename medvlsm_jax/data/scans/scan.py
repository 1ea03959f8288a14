"""What a 2-D network reads of a file: one picture, or the pages, frames or slices of which it is made."""

import abc
import dataclasses
from pathlib import Path
from typing import NamedTuple

from PIL import Image


class Window(NamedTuple):
    """The values that are shown: those below are black, those above white, as radiologists set it.

    Attributes:
        center: in the units of the file; of CT, Hounsfield units.
        width: from black to white.
    """

    center: float
    width: float


@dataclasses.dataclass(frozen=True)
class View:
    """How a person wants to look at volumes.

    Attributes:
        window: None takes the file's own where it has one, else what the values ask for.
        axis: of the file's array, along which the slices lie.
    """

    window: Window | None = None
    axis: int = 2


class Scan(abc.ABC):
    """A file, or the files of a series, as slices.

    Attributes:
        path: names it for people: a file, or the folder of a series.
        files: that it is made of.
        spacing: mm of a pixel of a slice, down and across; None where it is not known.
        distance: mm from a slice to the next; None where there is one slice, or it is not known.
        notes: what was done to its values or its position and a person should know, a line each.
    """

    path: Path
    files: tuple[Path, ...]
    spacing: tuple[float, float] | None = None
    distance: float | None = None
    notes: tuple[str, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> Image.Image:
        """A slice as 8-bit RGB, upright; may be called in threads.

        Raises:
            UserError: it cannot be decoded.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing between two slices
        """Gives back the memory and the files that reading took; what is read again is opened again."""
