"""Finding one's way in a raw download, however it was unpacked."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import shown
from medvlsm_jax.errors import UserError
from medvlsm_jax.text import listed

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
JUNK = ("__macosx", "thumbs.db")
DEPTH = 3  # folders between --raw and what marks a download


def is_junk(name: str) -> bool:
    """Whether a file or folder was left by an operating system (`._a.png`, `.DS_Store`, `__MACOSX`)."""
    return name.startswith(".") or name.lower() in JUNK


def walk(raw: Path, depth: int = DEPTH) -> Iterator[Path]:
    """`raw` and the folders in it, the nearest first, down to `depth` levels."""
    level = [raw]
    for _ in range(depth + 1):
        yield from level
        level = [Path(entry) for folder in level for entry in sorted_folders(folder)]


def sorted_folders(folder: Path) -> list[str]:
    """The folders in a folder, by name."""
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir() and not is_junk(entry.name))


def find_inside(folder: Path, names: Iterable[str]) -> Path | None:
    """The folder of one of these names (lower case) directly in `folder`, in any spelling of cases."""
    wanted = tuple(names)
    return next((Path(path) for path in sorted_folders(folder) if Path(path).name.lower() in wanted), None)


def find_parent(raw: Path, card: Card, *marks: Iterable[str]) -> Path:
    """The folder in `raw` that holds a folder of each of `marks`, each a choice of lower-case names.

    Raises:
        UserError: there is none, or there are several side by side.
    """
    choices = [tuple(names) for names in marks]
    found = [folder for folder in folders_of(raw, card) if all(find_inside(folder, names) for names in choices)]
    if not found:
        raise wrong_folder(raw, card)
    rivals = [folder for folder in found if folder.parent == found[0].parent]
    if len(rivals) > 1:
        named = ", ".join(folder.name for folder in rivals)
        raise UserError(f"--raw={raw} holds several datasets ({named}): give the folder of {card.title or card.name}")
    return found[0]


def folders_of(raw: Path, card: Card) -> list[Path]:
    """`raw` and the folders in it; raises UserError when it is no folder."""
    if not raw.is_dir():
        raise wrong_folder(raw, card)
    return list(walk(raw))


def list_images(folder: Path) -> dict[str, Path]:
    """Stem -> image file, of a folder and the folders in it; raises UserError when two have the same stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not any(map(is_junk, path.relative_to(folder).parts)):
            if path.stem in found:
                raise UserError(f"{found[path.stem]} and {path} have the same name: remove one of them")
            found[path.stem] = path
    return found


def wrong_folder(raw: Path, card: Card) -> UserError:
    """An error that says what a raw download looks like and what was found instead."""
    if raw.is_file():
        found = "a file (unpack the archive first)"
    elif not raw.exists():
        found = "no such folder"
    else:
        names = sorted(name for name in os.listdir(raw) if not is_junk(name))
        found = listed(names, 5)
    expected = "; ".join(filter(None, map(str.strip, card.layout.splitlines()))) or "images/* and masks/*"
    return UserError(
        f"--raw={raw} is not the download of {card.title or card.name}: expected {expected}; found {found or 'nothing'}"
    )


def lonely(what: str, names: Iterable[str], looked_for: str = "") -> UserError:
    """An error about files whose partner, which may be called as `looked_for` says, is missing; `what` begins it."""
    first, *others = map(shown, names)
    more = f" and {len(others)} more" if others else ""
    forms = f"; it would be called {looked_for}" if looked_for else ""
    return UserError(f"{what}: {first}{more}{forms}; complete the download or remove them")
