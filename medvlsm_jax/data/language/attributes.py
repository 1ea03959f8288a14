"""Words for what a mask and its image show: number, size, location, shape and colour.

Number, size and location follow the rules behind the paper's published prompts. Shape and colour were there the answers
of a visual-question model; here they are rules on the mask's outline and the pixels' mean, in words of the same
vocabulary, and often another word than the model's.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from scipy.spatial import ConvexHull

MEASURED = ("number", "size", "location", "shape", "color")
NONE = "no"  # the number of an empty mask: "no polyp"

UNITS = (
    *(NONE, "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")

# The published rule for sizes, in shares of the image.
SIZES = ("tiny", "small", "medium", "large")
TINY_BELOW, MEDIUM_ABOVE, LARGE_ABOVE = 0.001, 0.08, 0.3
LEAST_SHARE = 0.0001  # components up to this share have no size

# The published rule: a grid of 3 x 3 cells, row by row; a cell counts when it holds this share of a component.
CELLS = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
CELL_SHARE = 0.1

# Our rule for shapes, on the convex hull: its share of the least rectangle around it (a rectangle fills all of it, an
# ellipse pi / 4 = 0.79, a triangle half), and how much longer than wide that rectangle is.
RECTANGLE_FILL, TRIANGLE_FILL = 0.88, 0.64
CIRCLE_ASPECT, ROUND_ASPECT, SQUARE_ASPECT = 1.2, 1.5, 1.25

LEAST_CHROMA = 1.0  # mean difference of the brightest and the darkest of red, green and blue, of 255
SAMPLED = 4  # every fourth pixel of a row and a column is looked at for it

# Our rule for colours: the nearest in CIELAB of these typical tones (sRGB) of mucosa, skin and wounds.
COLORS = {
    "white": (240, 230, 220),
    "pink": (215, 140, 120),
    "yellow": (225, 190, 90),
    "brown": (130, 85, 60),
    "orange": (220, 130, 60),
    "red": (175, 50, 45),
    "tan": (210, 170, 130),
    "black": (30, 25, 25),
    "green": (70, 120, 60),
    "gray": (135, 135, 135),
    "blue": (70, 95, 150),
    "purple": (110, 70, 120),
}


def measure(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], *, true_thirds: bool = False
) -> dict[str, str]:
    """The words of an object: attribute -> word.

    Args:
        image: RGB.
        mask: its pixels; 4-connected components of it are counted one by one.
        true_thirds: otherwise locations divide the width by the height's thirds, as the published ones do.

    Returns:
        number, size, location, shape and color; no size when all components are too small for one, and only the number
        ("no") when the mask is empty.
    """
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)  # 4-connected
    boxes = ndimage.find_objects(labels)
    if not boxes:
        return {"number": NONE}
    components = [labels[box] == i for i, box in enumerate(boxes, start=1)]
    areas = [int(component.sum()) for component in components]
    words = {
        "number": number_word(len(boxes)),
        "size": find_sizes([area / mask.size for area in areas]),
        "location": ", ".join(
            find_location(*pair, mask.shape, true_thirds) for pair in zip(components, boxes, strict=True)
        ),
        "shape": find_shape(components[int(np.argmax(areas))]),
        "color": find_color(image[mask]),
    }
    return {name: word for name, word in words.items() if word}


def number_word(number: int) -> str:
    """A whole number from 0 in words ("no", "one", "twenty-one"); from 100 on in digits."""
    if number < len(UNITS):
        return UNITS[number]
    if number > 99:
        return str(number)
    tens, unit = divmod(number, 10)
    return TENS[tens - 2] + (f"-{UNITS[unit]}" if unit else "")


def find_sizes(shares: list[float]) -> str:
    """The sizes that components have, from the smallest, each once, for their shares of the image."""
    found = {find_size(share) for share in shares if share > LEAST_SHARE}
    return ", ".join(size for size in SIZES if size in found)


def find_size(share: float) -> str:
    """The size of one component for its share of the image."""
    if share > MEDIUM_ABOVE:
        return "large" if share > LARGE_ABOVE else "medium"
    return "tiny" if share < TINY_BELOW else "small"


def find_location(
    component: Bool[np.ndarray, "rows columns"],
    box: tuple[slice, slice],
    shape: tuple[int, ...],
    true_thirds: bool,
) -> str:
    """Where a component lies in the image.

    Args:
        component: cut out of the image.
        box: its rows and columns in the image.
        shape: height and width of the image.
        true_thirds: as for `measure`.
    """
    height, width = shape
    rows, columns = np.nonzero(component)
    cells = 3 * (3 * (rows + box[0].start) // height) + 3 * (columns + box[1].start) // width
    # Of nine cells one always holds a ninth: the published rule for "none" can never apply.
    counted = np.flatnonzero(np.bincount(cells, minlength=9) / len(cells) >= CELL_SHARE)
    if len(counted) == 1:
        return CELLS[counted[0]]
    return CELLS[3 * third(box[0], height) + third(box[1], width if true_thirds else height)]


def third(extent: slice, length: int) -> int:
    """Which third of `length` the centre of a range of pixels lies in; the middle one has both its borders."""
    center = (extent.start + extent.stop - 1) / 2
    return 0 if center < length / 3 else 2 if center > 2 * length / 3 else 1


def find_shape(component: Bool[np.ndarray, "rows columns"]) -> str:
    """circle, round, oval, square, rectangle or triangle: what the outline of a component is most like."""
    hull = find_hull(component)
    # One side of the least rectangle around a convex polygon lies along a side of the polygon.
    sides = np.diff(hull, axis=0, append=hull[:1])
    along = sides / np.linalg.norm(sides, axis=1, keepdims=True)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    extents = np.sort([np.ptp(hull @ along.T, axis=0), np.ptp(hull @ across.T, axis=0)], axis=0)
    least = extents[:, np.argmin(extents.prod(axis=0))]
    x, y = hull.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    fill, aspect = area / least.prod(), least[1] / least[0]
    if fill >= RECTANGLE_FILL:
        return "square" if aspect < SQUARE_ASPECT else "rectangle"
    if fill < TRIANGLE_FILL:
        return "triangle"
    return "circle" if aspect < CIRCLE_ASPECT else "round" if aspect < ROUND_ASPECT else "oval"


def find_hull(component: Bool[np.ndarray, "rows columns"]) -> Float[np.ndarray, "corners 2"]:
    """The corners x, y of the convex hull of a component's pixels, taken as squares, in order."""
    y = np.flatnonzero(component.any(axis=1))
    first = component[y].argmax(axis=1)
    last = component.shape[1] - component[y, ::-1].argmax(axis=1)
    corners: Int[np.ndarray, "corners 2"] = np.concatenate(
        [np.stack([x, y + below], axis=1) for x in (first, last) for below in (0, 1)]
    )
    return corners[ConvexHull(corners).vertices].astype(np.float64)


def has_colour(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether an image is in colours: its red, green and blue differ by more than what JPEG makes of grey ones."""
    sample = image[::SAMPLED, ::SAMPLED].astype(np.int16)
    return bool((sample.max(axis=-1) - sample.min(axis=-1)).mean() >= LEAST_CHROMA)


def find_color(pixels: UInt8[np.ndarray, "n 3"]) -> str:
    """The word for the mean of some pixels."""
    words, tones = list(COLORS), np.array(list(COLORS.values()), np.float64)
    distances = np.linalg.norm(to_lab(tones) - to_lab(pixels.mean(axis=0, keepdims=True)), axis=1)
    return words[int(np.argmin(distances))]


def to_lab(colors: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """sRGB, 0 to 255, as CIELAB under D65 (IEC 61966-2-1 and CIE 15)."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
