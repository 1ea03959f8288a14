"""Some mutants of each kind of file; `tools/fuzz_readers.py` gives thousands."""

import pytest
from fuzz_readers import READERS, Reader, fuzz


@pytest.mark.parametrize("name", READERS)
def test_mutants_are_read_or_refused_in_one_line(tmp_path, name):
    outcome = fuzz(READERS[name], 50, 0, tmp_path)
    assert outcome.behind_header >= 25
    assert outcome.read < 50
    assert not list(tmp_path.iterdir())


def failing(error: Exception) -> Reader:
    """A reader that fails on all but the whole file."""
    whole = READERS["safetensors"].whole

    def read(path):
        if path.read_bytes() != whole:
            raise error

    reader = READERS["safetensors"]
    return Reader("failing", ".bin", whole, read, reader.behind_header, reader.has_header)


def test_another_exception_is_found_and_its_file_kept(tmp_path):
    with pytest.raises(AssertionError, match="mutant 0 of seed 3 ends with ZeroDivisionError"):
        fuzz(failing(ZeroDivisionError()), 5, 3, tmp_path)
    assert (tmp_path / "mutant.bin").is_file()


def test_a_file_that_a_reader_makes_is_found(tmp_path):
    reader = READERS["safetensors"]

    def read(path):
        (tmp_path / "made").write_bytes(b"")

    writing = Reader("writing", ".bin", reader.whole, read, reader.behind_header, reader.has_header)
    with pytest.raises(AssertionError, match="mutant 0 of seed 0 has effects"):
        fuzz(writing, 5, 0, tmp_path)
