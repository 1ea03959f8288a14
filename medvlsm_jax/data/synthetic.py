"""A drawn stand-in for the medical datasets: four modalities, several objects an image, one sentence per object.

Every image is a pure function of (seed, index), so a sample is the same for any number of workers. It is for a first
run without a download; nothing measured on it says anything about patients.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes

SAMPLE = "sample"
VERSION = 1  # raise it when the drawing changes, so that old samples are drawn anew
NOTE = "Drawn by medvlsm_jax.data.synthetic: no image shows a patient."
SPLITS = {"train": (0.0, 0.8), "val": (0.8, 0.9), "test": (0.9, 1.0)}  # shares of the image indices, in order
SIZES = {"small": (0.032, 0.07), "medium": (0.085, 0.14)}  # shares of the image, clear of the 8 % that parts the words
SHAPES = {"round": (1.05, 0.03), "oval": (1.7, 0.03), "irregular": (1.2, 0.21)}  # ratio of the axes, roughness
GAP = 0.02  # least distance between two objects, in image widths

Array = np.ndarray
Rng = np.random.Generator
RGB = tuple[float, float, float]


# --- Noise and coordinates -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centres x and y in image widths, each H W."""
    centre = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = np.meshgrid(centre, centre)
    return x, y


def _upsample(small: Array, size: int) -> Array:
    image = Image.fromarray(small.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _cloud(rng: Rng, size: int, cells: int, octaves: int = 3) -> Array:
    """Smooth noise H W of about unit range around 0; its coarsest lumps are 1 / cells of the width."""
    layers = [_upsample(rng.uniform(-1, 1, (cells << i, cells << i)), size) / 2**i for i in range(octaves)]
    return np.sum(layers, axis=0)


def _ramp(t: Array, low: RGB, high: RGB) -> Array:
    """Colours H W 3 from `low` where t is 0 to `high` where it is 1."""
    t = np.clip(t, 0, 1)[..., None]
    return np.array(low, np.float32) * (1 - t) + np.array(high, np.float32) * t


def _grey(values: Array) -> Array:
    return np.repeat(values[..., None], 3, axis=-1)


def _step(values: Array, width: float) -> Array:
    """0 below -width / 2, 1 above width / 2, smooth between."""
    t = np.clip(values / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _line(distance: Array, width: float) -> Array:
    return np.exp(-((distance / width) ** 2))


def _ellipse(size: int, cx: float, cy: float, rx: float, ry: float, soft: float, power: float = 2) -> Array:
    """1 inside the (super)ellipse, 0 outside; `soft` is the width of its edge in radii."""
    x, y = _grid(size)
    return _step(1 - (np.abs((x - cx) / rx) ** power + np.abs((y - cy) / ry) ** power) ** (1 / power), soft)


# --- Modalities: the part of the frame that is seen, the tissue, and what lies over tissue and objects ----------------


def _scope_view(rng: Rng, size: int) -> Array:
    rim = _ellipse(size, 0.5, 0.5, 0.53, 0.53, 0.06, rng.uniform(2.6, 4.5))
    return rim * (0.8 + 0.2 * _ellipse(size, 0.5, 0.5, 0.6, 0.6, 1.0))


def _mucosa(rng: Rng, size: int) -> Array:
    x, y = _grid(size)
    cx, cy = rng.uniform(0.3, 0.7, 2)
    depth = np.hypot(x - cx, y - cy) + 0.07 * _cloud(rng, size, 4, 2)
    fold = np.sin(2 * np.pi * (rng.uniform(3, 4.5) * np.sqrt(np.maximum(depth, 0)) + rng.uniform()))
    light = rng.uniform(0.88, 1.05, 3) * (0.72 + 0.16 * fold + 0.22 * _step(depth - 0.12, 0.3))[..., None]
    vessel = np.maximum(0, 1 - np.abs(_cloud(rng, size, 6, 2)) / 0.07) * (_cloud(rng, size, 3, 1) > 0)
    tissue = _ramp(0.5 + 0.5 * _cloud(rng, size, 5), (0.74, 0.36, 0.32), (0.90, 0.56, 0.50))
    return tissue * light * (1 - vessel[..., None] * np.array([0.15, 0.3, 0.3], np.float32))


def _glints(rng: Rng, image: Array) -> Array:
    size = len(image)
    glint = np.clip(4 * (_cloud(rng, size, 28, 1) + 0.5 * _cloud(rng, size, 5, 1) - 1.1), 0, 1)
    return image + 0.7 * glint[..., None] + rng.normal(0, 0.012, image.shape)


def _lens_view(rng: Rng, size: int) -> Array:
    return 0.75 + 0.25 * _ellipse(size, 0.5, 0.5, 0.68, 0.68, rng.uniform(0.2, 0.5))


def _skin(rng: Rng, size: int) -> Array:
    x, y = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    gradient = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
    tone = _ramp(0.5 + 0.3 * _cloud(rng, size, 3) + 0.5 * gradient, (0.80, 0.58, 0.47), (0.96, 0.81, 0.72))
    return tone * rng.uniform(0.95, 1.03, 3) * (1 + 0.05 * _cloud(rng, size, 40, 2) + 0.12 * gradient)[..., None]


def _hairs(rng: Rng, image: Array) -> Array:
    x, y = _grid(len(image))
    lean = rng.uniform(0, np.pi)
    for _ in range(rng.integers(3, 10)):
        angle, offset, bend = lean + rng.normal(0, 0.35), rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.5)
        along = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)
        across = (y - 0.5) * np.cos(angle) - (x - 0.5) * np.sin(angle) - offset - bend * along**2
        hair = _line(across, 0.005) * (np.abs(along - rng.uniform(-0.3, 0.3)) < rng.uniform(0.25, 0.6))
        image = image + 0.7 * hair[..., None] * (np.array([0.22, 0.15, 0.12], np.float32) - image)
    return image + rng.normal(0, 0.01, image.shape)


def _probe_view(rng: Rng, size: int) -> Array:
    if rng.uniform() < 0.4:  # a linear probe fills the frame, a curved one sees a fan
        return np.ones((size, size), np.float32)
    x, y = _grid(size)
    apex = rng.uniform(0.45, 0.7)
    reach, angle = np.hypot(x - 0.5, y + apex), np.arctan2(np.abs(x - 0.5), y + apex)
    return _step(reach - apex - 0.05, 0.02) * _step(apex + 0.99 - reach, 0.02) * _step(0.62 - angle, 0.02)


def _layers(rng: Rng, size: int) -> Array:
    _, y = _grid(size)
    depth = y + 0.05 * _cloud(rng, size, 3, 2)
    knots = np.sort(rng.uniform(0.05, 1, 7))
    bands = np.interp(depth, knots, rng.uniform(0.24, 0.52, 7))
    fascia = np.sum([_line(depth - at, 0.012) for at in rng.choice(knots, 3, replace=False)], axis=0)
    return _grey(bands + 0.3 * fascia * _step(_cloud(rng, size, 4, 1), 0.8) + 0.3 * _line(y, 0.06))


def _speckle(rng: Rng, image: Array) -> Array:
    """Multiplies by Rayleigh noise whose grains are wider than deep, as the beam's are, and fades with depth."""
    size = len(image)
    grain = _upsample(rng.rayleigh(0.8, (size * 3 // 5, size // 3)), size)
    return image * _grey((0.45 + 0.5 * grain) * (1.12 - 0.3 * _grid(size)[1])) + 0.01


def _film_view(rng: Rng, size: int) -> Array:
    return np.ones((size, size), np.float32)


def _thorax(rng: Rng, size: int) -> Array:
    x, y = _grid(size)
    spine = rng.uniform(0.46, 0.54)
    side = np.abs(x - spine)
    lungs = np.sum([_ellipse(size, spine + shift, 0.48, 0.19, 0.39, 0.4, 2.4) for shift in (-0.22, 0.22)], axis=0)
    heart = _ellipse(size, spine + 0.06, 0.66, 0.17, 0.16, 0.5)
    body = 0.25 + 0.75 * _ellipse(size, spine, 0.6, 0.5, 0.75, 0.15, 4)
    rib = np.sin(2 * np.pi * (rng.uniform(6, 8) * (y - 0.9 * side + 1.5 * side**2) + rng.uniform()))
    clavicle = _line(y - 0.17 + 0.25 * side, 0.02) * _step(side - 0.08, 0.05)
    bones = 0.07 * _step(rib, 1.2) * _step(side - 0.05, 0.1) + 0.09 * clavicle + 0.07 * _line(side, 0.04)
    return _grey((0.55 - 0.24 * lungs * (1 - 0.5 * heart) + bones + 0.03 * _cloud(rng, size, 8)) * body)


def _film_grain(rng: Rng, image: Array) -> Array:
    size = len(image)
    return image + _grey(rng.normal(0, 0.018, (size, size)) + 0.03 * _cloud(rng, size, 2, 1))


@dataclass(frozen=True)
class Modality:
    """How one kind of image looks and what its sentences call the objects."""

    noun: str
    colors: dict[str, RGB]  # word -> RGB in 0..1
    view: Callable[[Rng, int], Array]  # H W, 0 where the device is blind
    tissue: Callable[[Rng, int], Array]  # H W 3
    finish: Callable[[Rng, Array], Array]  # H W 3, with what lies over the objects
    cover: float  # how much of the tissue behind them objects hide, 0..1
    softness: float  # width of the objects' edges, in image widths
    mottle: float  # strength of the texture inside objects, 0..1
    relief: float = 0.0  # how much objects bulge towards the light, 0..1


_POLYPS = {"red": (0.64, 0.12, 0.12), "yellow": (0.86, 0.70, 0.32), "white": (0.93, 0.87, 0.82)}
_LESIONS = {"red": (0.72, 0.26, 0.25), "brown": (0.50, 0.30, 0.17), "black": (0.14, 0.10, 0.10)}
_GREYS = {"dark": (0.05, 0.05, 0.05), "bright": (0.90, 0.90, 0.90)}
MODALITIES = {
    "endoscopy": Modality("polyp", _POLYPS, _scope_view, _mucosa, _glints, 0.92, 0.03, 0.2, relief=0.7),
    "dermoscopy": Modality("skin lesion", _LESIONS, _lens_view, _skin, _hairs, 0.88, 0.05, 0.45),
    "ultrasound": Modality("tumor", _GREYS, _probe_view, _layers, _speckle, 0.9, 0.05, 0.3),
    "xray": Modality("opacity", _GREYS, _film_view, _thorax, _film_grain, 0.72, 0.08, 0.2),
}


# --- Objects ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """One object: its words and its geometry."""

    color: str
    size: str
    shape: str
    location: str
    distance: Array  # H W, from the outline, negative inside, in image widths
    u: Array  # H W, offset from the centre to the right, in radii
    v: Array  # H W, the same downwards


def _outline(rng: Rng, shape: str) -> tuple[Array, Array]:
    """Angles and the outline's radius at each, for an object of area pi."""
    ratio, roughness = SHAPES[shape]
    ratio, tilt = np.sqrt(ratio * rng.uniform(0.9, 1.1)), rng.uniform(0, np.pi)
    angles = np.linspace(-np.pi, np.pi, 181)
    radius = 1 / np.hypot(np.cos(angles - tilt) / ratio, np.sin(angles - tilt) * ratio)
    for order in range(2, 9):
        height, phase = roughness * rng.uniform(1, 2) / order, rng.uniform(0, 2 * np.pi)
        radius *= np.exp(height * np.cos(order * angles + phase))
    return angles, radius / np.sqrt(np.mean(radius[:-1] ** 2))


def _location(mask: Array) -> str:
    """The word of the third, down and across, in which the centre of the mask's bounding box falls."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    row, column = (int(1.5 * (ends[0] + ends[-1] + 1) / len(mask)) for ends in (rows, columns))
    words = (("top", "", "bottom")[row], ("left", "", "right")[column])
    return " ".join(filter(None, words)) or "center"


def _blob(rng: Rng, color: str, size: int) -> Blob:
    x, y = _grid(size)
    word, shape = str(rng.choice(list(SIZES), p=[0.6, 0.4])), str(rng.choice(list(SHAPES)))
    scale = np.sqrt(rng.uniform(*SIZES[word]) / np.pi)
    cx, cy = (rng.integers(3, size=2) + rng.uniform(0.1, 0.9, 2)) / 3
    u, v = (x - cx) / scale, (y - cy) / scale
    distance = scale * (np.hypot(u, v) - np.interp(np.arctan2(v, u), *_outline(rng, shape)))
    return Blob(color, word, shape, _location(distance < 0), distance, u, v)


def _fits(blob: Blob, placed: list[Blob], view: Array) -> bool:
    """Whether the object is whole, in view, and apart from the others in place and in location word."""
    mask, inner = blob.distance < 0, np.pad(view[1:-1, 1:-1], 1)
    apart = all(other.location != blob.location and not np.any(mask & (other.distance < GAP)) for other in placed)
    return apart and not np.any(mask & (inner < 0.5))


def _place(rng: Rng, modality: Modality, view: Array) -> list[Blob]:
    """Two or three objects that differ in colour and location; two where there are two colours."""
    colors = rng.permutation(list(modality.colors))[: rng.integers(2, 4)]
    while True:  # an arrangement that leaves no room for the next object is given up
        placed: list[Blob] = []
        for _ in range(12 * len(colors)):
            blob = _blob(rng, str(colors[len(placed)]), len(view))
            if _fits(blob, placed, view):
                placed.append(blob)
            if len(placed) == len(colors):
                return placed


def _paint(rng: Rng, image: Array, blob: Blob, modality: Modality) -> Array:
    """The image with the object in it: a shadow at its foot, textured colour, and a lit dome where it bulges."""
    size, u, v, relief = len(image), blob.u, blob.v, modality.relief
    image = image * (1 - 0.35 * relief * _line(np.maximum(blob.distance, 0), 0.035))[..., None]
    frayed = blob.distance + 0.3 * modality.softness * _cloud(rng, size, 16, 2)
    cover = rng.uniform(0.95, 1.05) * modality.cover * _step(-frayed, modality.softness)
    texture = 1 + modality.mottle * _cloud(rng, size, 7)
    dome = 1 + relief * (0.35 * np.sqrt(np.clip(1 - u**2 - v**2, 0, 1)) - 0.16 * (u + v) - 0.2)
    glint = 0.7 * relief * _line(np.hypot(u + 0.35, v + 0.4), 0.16)
    tone = np.array(modality.colors[blob.color], np.float32) * (texture * dome)[..., None] + glint[..., None]
    return image + cover[..., None] * (tone - image)


def _draw(seed: int, index: int, size: int) -> tuple[str, Array, list[Blob]]:
    """The modality's name, the picture (uint8 H W 3) and the objects of one image."""
    rng = np.random.default_rng([seed, index])
    name = list(MODALITIES)[index % len(MODALITIES)]
    modality = MODALITIES[name]
    view = modality.view(rng, size)
    image = modality.tissue(rng, size)
    blobs = _place(rng, modality, view)
    for blob in blobs:
        image = _paint(rng, image, blob, modality)
    image = np.clip(modality.finish(rng, np.clip(image, 0, 1)), 0, 1) * view[..., None]
    return name, np.round(255 * image).astype(np.uint8), blobs


# --- Sentences and files ---------------------------------------------------------------------------------------------


def _prompts(blob: Blob, noun: str) -> dict[str, str]:
    """The paper's p0 to p6, each adding one attribute to the last."""
    prompts = {"p0": "", "p1": noun}
    for i, word in enumerate((blob.shape, blob.color, blob.size, "one"), start=2):
        prompts[f"p{i}"] = f"{word} {prompts[f'p{i - 1}']}"
    return prompts | {"p6": f"{prompts['p5']}, located in {blob.location} of the image"}


def vocabulary() -> tuple[str, ...]:
    """Returns the sorted distinct lower-case words that the sample's sentences can contain, without punctuation."""
    named = [word for modality in MODALITIES.values() for word in (modality.noun, *modality.colors)]
    fixed = "one located in of the image top bottom left right center"
    return tuple(sorted(set(" ".join([*named, *SIZES, *SHAPES, fixed]).split())))


def _write_image(index: int, folder: Path, seed: int, size: int) -> list[dict[str, Any]]:
    """Writes one image and its masks below `folder`; returns a record per object."""
    modality, image, blobs = _draw(seed, index, size)
    stem = f"{modality}_{index:05d}"
    Image.fromarray(image).save(folder / "images" / f"{stem}.png")
    prompts = [_prompts(blob, MODALITIES[modality].noun) for blob in blobs]
    records = []
    for i, blob in enumerate(blobs):
        names = {"img_name": f"{stem}.png", "mask_name": f"{stem}_{i}.png"}
        Image.fromarray(np.uint8(255) * (blob.distance < 0)).save(folder / "masks" / names["mask_name"])
        # "other" names another object of the image: a model that listens segments that one instead.
        records.append(names | {"prompts": prompts[i] | {"other": prompts[(i + 1) % len(blobs)]["p6"]}})
    return records


def _write_all(folder: Path, source: dict[str, Any], workers: int) -> None:
    for name in ("images", "masks", "anns"):
        (folder / name).mkdir(parents=True)
    count = source["num_images"]
    write = functools.partial(_write_image, folder=folder, seed=source["seed"], size=source["size"])
    drawn = map_in_processes(write, range(count), workers=workers, chunksize=16, desc="drawing", unit="image")
    for split, (start, stop) in SPLITS.items():
        records = [record for image in drawn[round(start * count) : round(stop * count)] for record in image]
        (folder / "anns" / f"{split}.json").write_text(json.dumps(records, indent=1))
    (folder / "SOURCE.json").write_text(json.dumps(source, indent=1))


def _is_reusable(folder: Path, source: dict[str, Any]) -> bool:
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / "SOURCE.json").read_text())
    except (OSError, ValueError):
        found = {}
    if not isinstance(found, dict) or found.get("note") != NOTE:  # a dataset of the user's, which must not be replaced
        raise UserError(f"{folder} was not drawn by this program: move it away or choose another folder")
    return found == source


def write_sample(
    data_dir: Path | str, *, num_images: int = 2000, size: int = 128, seed: int = 0, workers: int | None = None
) -> Path:
    """Draws the sample below `data_dir` and returns its folder, with images/, masks/ and anns/{train,val,test}.json.

    A sample that was drawn with the same arguments is left as it is; one drawn with others is replaced. The folder
    appears only when it is complete.

    Args:
      data_dir: folder of datasets; made when missing.
      num_images: images in all three splits together (80, 10 and 10 %), at least 10.
      size: height and width in pixels, at least 64.
      seed: not negative; another seed draws other images.
      workers: processes that draw, at least 1; by default up to 4, or 1 for a sample too small to gain from more.

    Raises:
      UserError: an argument is out of range, or `data_dir` holds a folder of that name from elsewhere.
    """
    if workers is None:
        workers = min(4, os.cpu_count() or 1) if num_images >= 400 else 1
    if num_images < 10 or size < 64 or seed < 0 or workers < 1:
        raise UserError(f"cannot draw {num_images=} (>= 10) of {size=} (>= 64) with {seed=} (>= 0), {workers=} (>= 1)")
    source = {"note": NOTE, "license": "CC0-1.0", "version": VERSION}
    source |= {"num_images": num_images, "size": size, "seed": seed}
    folder = Path(data_dir) / SAMPLE
    if _is_reusable(folder, source):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{SAMPLE}-", dir=folder.parent) as temporary:
        _write_all(Path(temporary) / "new", source, workers)
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        (Path(temporary) / "new").rename(folder)
    return folder
