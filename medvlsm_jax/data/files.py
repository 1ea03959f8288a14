"""What the package needs of an image file: a path on disk has it, and so has an entry of an ArrayRecord."""

import os
from typing import IO, Literal, Protocol, runtime_checkable


@runtime_checkable
class File(Protocol):
    """`pathlib.Path`, or `arrayrecord.StoredFile`; its text is how messages name it."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """The content, as it was found."""
        ...

    def is_file(self) -> bool: ...

    def stat(self) -> os.stat_result:
        """Time and size, which change when the content does."""
        ...
