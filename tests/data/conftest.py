"""Good records, and a count of the files that are decoded to check them."""

import pytest
from checked_records import make_record

from medvlsm_jax.data import facts
from medvlsm_jax.data.annotations import Record


@pytest.fixture
def record(tmp_path) -> Record:
    return make_record(tmp_path)


@pytest.fixture
def records(tmp_path) -> list[Record]:
    return [make_record(tmp_path, i) for i in range(4)]


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded."""
    names, real = [], facts.decode

    def count(path):
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(facts, "decode", count)
    return names
