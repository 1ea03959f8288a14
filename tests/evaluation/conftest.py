"""Cases as an evaluation writes and reads them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from medvlsm_jax.evaluation.cases import CaseLog, Cases, columns

NAMES = columns(("class", "sex"))


@pytest.fixture
def cases(tmp_path) -> Callable[[list[Mapping[str, Any]]], Cases]:
    """Cases of some lines, as they are read back."""

    def make(lines: list[Mapping[str, Any]]) -> Cases:
        log = CaseLog(tmp_path / "cases", NAMES, {})
        log.append(lines)
        found = log.read()
        log.finish()
        return found

    return make


@pytest.fixture
def log(tmp_path) -> Callable[..., CaseLog]:
    """The log in one folder, opened anew each time."""

    def start(folder: Path = tmp_path, **settings: Any) -> CaseLog:
        return CaseLog(folder, NAMES, settings)

    return start
