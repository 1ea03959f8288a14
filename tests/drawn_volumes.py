"""Small volumes, and the ways in which files may store one: 48 orders and directions of axes, upright or oblique."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SHAPE = (12, 10, 9)
SIDES = (0.7, 0.8, 2.5)  # mm
ROTATION = (12.0, -17.0, 9.0)  # degrees about x, y and z: less than what makes another axis the closest


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    """Values as of CT."""
    return np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)


def rotation() -> np.ndarray:
    """(3, 3)."""
    turned = np.eye(3)
    for axis, degrees in enumerate(ROTATION):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = c, -s, s, c
        turned = turned @ turn
    return turned


def lps_affine(is_oblique: bool = False) -> np.ndarray:
    """Of an array whose axes run to the left, to posterior and to superior, from indices to mm in RAS+."""
    affine = np.eye(4)
    affine[:3, :3] = (rotation() if is_oblique else np.eye(3)) @ np.diag([-1, -1, 1]) @ np.diag(SIDES)
    affine[:3, 3] = 10.3, -7.7, 1 / 3
    return affine


def all_orders() -> Iterator[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """The 48 ways to store three axes: their order, and which of them are turned round."""
    return itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))


def stored_as(
    values: np.ndarray, affine: np.ndarray, order: tuple[int, ...], flips: tuple[bool, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same volume in another order: new axis i is old axis order[i], turned round where flips[i] says so."""
    stored, moved = values.transpose(order), affine.copy()
    moved[:3, :3] = affine[:3, list(order)]
    for axis, is_flipped in enumerate(flips):
        if is_flipped:
            moved[:3, 3] += moved[:3, axis] * (stored.shape[axis] - 1)
            moved[:3, axis] *= -1
            stored = np.flip(stored, axis)
    return stored, moved


def write_metaimage(path: Path, values: np.ndarray, *, data: str = "LOCAL", **changes: str | None) -> Path:
    """An `.mha` file of int16, or an `.mhd` one that names its data; lines may be changed, or left out by None."""
    lines = {
        "ObjectType": "Image",
        "NDims": str(values.ndim),
        "BinaryData": "True",
        "TransformMatrix": " ".join(str(number) for number in np.eye(values.ndim).ravel()),
        "Offset": " ".join(["0"] * values.ndim),
        "ElementSpacing": " ".join(["1"] * values.ndim),
        "DimSize": " ".join(map(str, values.shape)),
        "ElementType": "MET_SHORT",
    }
    lines |= changes | {"ElementDataFile": data}
    head = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
    content = values.astype("<i2").tobytes("F")
    path.write_bytes(head.encode() + (content if data == "LOCAL" else b""))
    return path


def write_nrrd(path: Path, values: np.ndarray, **changes: str | None) -> Path:
    """An `.nrrd` file of int16 in LPS; fields may be changed, with _ for a space, or left out by None."""
    fields = {
        "type": "int16",
        "dimension": str(values.ndim),
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, values.shape)),
        "space directions": "(0.7,0,0) (0,0.8,0) (0,0,2.5)",
        "space origin": "(1,2,3)",
        "endian": "little",
        "encoding": "raw",
    }
    fields |= {key.replace("_", " "): value for key, value in changes.items()}
    head = "".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(f"NRRD0004\n{head}\n".encode() + values.astype("<i2").tobytes("F"))
    return path
