"""What a mask covers, in pixels and millimetres, for the json beside it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage

MOST_COMPONENTS = 20  # that are listed, the largest; all are counted


def measure(
    mask: Bool[np.ndarray, "h w"], probability: Float[np.ndarray, "h w"], spacing: tuple[float, float] | None
) -> dict[str, Any]:
    """Area, mean probability and bounding box of a mask, and of each component of it (pixels touch at corners, too).

    Args:
        mask: may be empty.
        probability: of each pixel.
        spacing: mm of a pixel, down and across; None leaves areas in mm2 out.
    """
    labels, count = label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    sums = np.bincount(labels.ravel(), probability.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labels)
    order = np.argsort(-areas, kind="stable")[:MOST_COMPONENTS].tolist()
    components = [part(int(areas[i]), float(sums[i]), boxes[i], spacing) for i in order]
    return part(int(areas.sum()), float(sums.sum()), union(boxes), spacing) | {
        "num_components": count,
        "components": components,
    }


def label(mask: Bool[np.ndarray, "h w"]) -> tuple[Int[np.ndarray, "h w"], int]:
    """The number of the component that a pixel belongs to, from 1, and how many there are."""
    labels = np.empty(mask.shape, np.int32)
    count: Any = ndimage.label(mask, np.ones((3, 3)), output=labels)
    return labels, count


def part(
    area: int, probability: float, box: tuple[slice, slice] | None, spacing: tuple[float, float] | None
) -> dict[str, Any]:
    """An area, the mean of the probabilities that sum to `probability` over it, and its box in pixels.

    The box is [left, top, right, bottom], of which right and bottom are the first pixel outside of it.
    """
    return {
        "area_px": area,
        "area_mm2": round(area * spacing[0] * spacing[1], 4) if spacing else None,
        "mean_probability": round(probability / area, 6) if area else None,
        "bounding_box": [box[1].start, box[0].start, box[1].stop, box[0].stop] if box else None,
    }


def union(boxes: list[tuple[slice, slice]]) -> tuple[slice, slice] | None:
    """The box around several; None for none."""
    if not boxes:
        return None
    rows, columns = zip(*boxes, strict=True)
    return around(rows), around(columns)


def around(parts: Sequence[slice]) -> slice:
    """From the first start to the last stop."""
    return slice(min(part.start for part in parts), max(part.stop for part in parts))


def total(slices: dict[int, dict[str, Any]], distance: float | None) -> dict[str, Any]:
    """The measures of a mask of several slices, by the index of each slice that has some of it.

    Args:
        slices: of `measure`.
        distance: mm from a slice to the next; None leaves the volume out.
    """
    areas = [values["area_px"] for values in slices.values()]
    square = [values["area_mm2"] for values in slices.values()]
    weighted = [values["area_px"] * values["mean_probability"] for values in slices.values()]
    in_mm = None not in square
    return {
        "area_px": sum(areas),
        "area_mm2": round(sum(square), 4) if in_mm else None,
        "volume_mm3": round(sum(square) * distance, 4) if in_mm and distance else None,
        "mean_probability": round(sum(weighted) / sum(areas), 6) if areas else None,
    }
