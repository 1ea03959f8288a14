"""Finding files that other files name, wherever they lie in a download."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from medvlsm_jax.data.preparing.importers.layout import is_junk


class FilesBelow:
    """The files of some endings in a folder, by name."""

    def __init__(self, folder: Path, endings: Iterable[str]):
        self.folder = folder
        self._found: dict[str, list[str]] = defaultdict(list)
        wanted = tuple(endings)
        for place, inner, names in os.walk(folder):
            inner[:] = sorted(name for name in inner if not is_junk(name))
            for name in sorted(names):
                if name.lower().endswith(wanted) and not is_junk(name):
                    self._found[name].append(f"{place}{os.sep}{name}")

    def find(self, name: str, near: Iterable[str] = ()) -> Path | None:
        r"""The file that a name means, which may have folders of another machine in front.

        Args:
            name: `a.png`, `train/a.png`, `C:\\data\\a.png`.
            near: of several, the one is taken that shares most folders with it, then one below a folder of these names.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        places = self._found.get(parts[-1], []) if parts else []
        if len(places) < 2:
            return Path(places[0]) if places else None
        wanted = tuple(near)

        def fitness(place: str) -> tuple[int, bool]:
            folders = Path(place).parts
            shared = next((i for i in range(min(len(parts), len(folders))) if parts[-1 - i] != folders[-1 - i]), None)
            return min(len(parts), len(folders)) if shared is None else shared, any(x in folders for x in wanted)

        return Path(max(places, key=fitness))

    def name_of(self, path: Path) -> str:
        """A name for the file below the dataset: its own, with its folders in front where it shares it with others."""
        if len(self._found[path.name]) < 2:
            return path.name
        return path.relative_to(self.folder).as_posix()
