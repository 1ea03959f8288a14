"""Outlines as masks, by Pillow's rule: what lies inside, and the outline itself."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from medvlsm_jax.data.preparing.importers.classes import mask_name
from medvlsm_jax.data.preparing.importers.item import Item, Mask
from medvlsm_jax.errors import UserError

Point = tuple[float, float]  # x, y in pixels
Region = TypeVar("Region")  # as a format has it

FARTHEST = 10  # how many widths or heights of its image a corner may lie outside


def items_of(
    name: str,
    split: str,
    regions: Mapping[tuple[str, int], list[Region]],
    read_image: Callable[[], Path | np.ndarray],
    draw: Callable[[list[Region]], Mask],
) -> Iterator[Item]:
    """The objects of an image.

    Args:
        name: of the image.
        split: that the download fixes for it.
        regions: of each object, by its class and a number, which is 0 where all of a class are one object.
        read_image: as of `Item`.
        draw: the union of regions; an object without a pixel is left out.
    """
    for (word, number), several in regions.items():
        yield Item(
            name,
            mask_name(word, name, number),
            split=split,
            group=name,
            target=word,
            read_image=read_image,
            read_mask=functools.partial(draw, several),
            keep_empty=False,
        )


def draw_polygons(size: tuple[int, int], polygons: Sequence[Sequence[Point]]) -> Mask:
    """The union of polygons in an image of (width, height); those of less than three corners have no inside."""
    canvas = Image.new("1", size)
    for polygon in polygons:
        if len(polygon) > 1:
            ImageDraw.Draw(canvas).polygon(list(polygon), fill=1, outline=1)
    return np.asarray(canvas)


def check_points(size: tuple[int, int], points: Sequence[Point], where: str) -> None:
    """Raises a UserError for corners that are no numbers, or lie far outside of an image of (width, height)."""
    for point in points:
        for value, side in zip(point, size, strict=True):
            if not math.isfinite(value) or abs(value) > FARTHEST * side:
                raise UserError(
                    f"{where}: a corner lies at {point[0]}, {point[1]}, outside of the {size[0]}x{size[1]} image"
                )


def points_of(values: object, where: str) -> list[Point]:
    """A list of [x, y] as corners; raises UserError for anything else."""
    try:
        return [(float(x), float(y)) for x, y in values]  # pyright: ignore[reportGeneralTypeIssues]
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{where}: its corners are no list of [x, y] ({error})") from error
