"""What decoding a file once told is remembered until the file changes, wherever it lies."""

import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from checked_records import noise, only, with_image, with_mask
from PIL import Image

from medvlsm_jax.data import facts
from medvlsm_jax.data.integrity import inspect_records
from medvlsm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StoredBytes:
    """A file that lies in no folder, as an entry of an ArrayRecord."""

    name: str
    content: bytes
    shard: Path

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    def open(self, mode):
        return io.BytesIO(self.content)

    def is_file(self) -> bool:
        return True

    def stat(self) -> os.stat_result:
        return self.shard.stat()

    def __str__(self) -> str:
        return f"store[0]:{self.name}"


def test_a_file_in_an_archive_is_checked_and_remembered_alike(record, tmp_path, decoded):
    shard = tmp_path / "shard"
    shard.touch()
    image, mask = (StoredBytes(path.name, path.read_bytes(), shard) for path in (record.image, record.mask))
    good = dataclasses.replace(record, image=image, mask=mask)
    assert inspect_records([good], cache=tmp_path / "cache.json") == []
    assert inspect_records([good], cache=tmp_path / "cache.json") == []
    assert sorted(decoded) == ["0.png", "0_mask.png"]
    bad = dataclasses.replace(good, image=dataclasses.replace(image, content=image.content[:-100]))
    assert str(only(inspect_records([bad]))).startswith("store[0]:0.png cannot be decoded as an image")
    shard.write_text("written anew")
    inspect_records([good], cache=tmp_path / "cache.json")
    assert sorted(decoded[-2:]) == ["0.png", "0_mask.png"]


def test_a_file_is_decoded_once_however_many_records_use_it(records, decoded):
    inspect_records([*records, dataclasses.replace(records[0], mask=records[1].mask)])
    assert sorted(decoded) == sorted(file.name for record in records for file in (record.image, record.mask))


def test_what_was_found_is_remembered_until_a_file_changes(records, tmp_path, decoded):
    cache = tmp_path / "new" / "cache.json"
    Image.fromarray(noise(20, 30, 4)).save(records[0].image)
    with_mask(records[1], Image.new("L", (20, 30), 90))
    exif = Image.Exif()
    exif[0x0112] = 3
    with_image(records[3], Image.fromarray(noise(20, 30, 3)), exif=exif)
    first = inspect_records(records, cache=cache)
    texts = ["is 20x30 but its image", "has an alpha", "none above 127", "is turned upright"]
    assert len(first) == len(texts)
    assert all(text in finding.text for text, finding in zip(texts, first, strict=True))
    decoded.clear()
    assert inspect_records(records, cache=cache) == first
    assert inspect_records(records[2:], cache=cache) == [dataclasses.replace(first[3], indices=(1,))]
    assert decoded == []
    Image.fromarray(noise(20, 30, 3)).save(records[0].image)
    os.utime(records[2].mask, ns=(1, 1))
    assert len(inspect_records(records, cache=cache)) == 3
    assert sorted(decoded) == ["0.png", "2_mask.png"]
    decoded.clear()
    inspect_records(records, cache=cache)
    assert decoded == []


def test_two_calls_share_a_cache_without_forgetting(records, tmp_path, decoded):
    for part in (records[:2], records[2:]):
        inspect_records(part, cache=tmp_path / "cache.json")
    decoded.clear()
    inspect_records(records, cache=tmp_path / "cache.json")
    assert decoded == []


def test_one_file_as_image_and_as_mask_is_looked_at_as_both(record, tmp_path):
    grey = dataclasses.replace(with_image(record, Image.fromarray(noise(20, 30))), mask=record.image)
    for _ in range(2):
        finding = only(inspect_records([grey], cache=tmp_path / "cache.json"))
        assert "holds grey values" in finding.text


def test_a_file_that_failed_is_tried_again(record, tmp_path, monkeypatch):
    def fail(path):
        raise UserError(f"{path} cannot be decoded as an image (Input/output error): restore or remove it")

    with monkeypatch.context() as patch:
        patch.setattr(facts, "decode", fail)
        assert len(inspect_records([record], cache=tmp_path / "cache.json")) == 2
    assert inspect_records([record], cache=tmp_path / "cache.json") == []


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b'{"version": 1}', b'{"version": 1, "files": [[1, 2]]}', b"\xff\xfe", b"null"]
)
def test_a_broken_cache_is_written_anew(records, tmp_path, decoded, content):
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    assert inspect_records(records, cache=cache) == []
    assert len(decoded) == 8
    assert inspect_records(records, cache=cache) == []
    assert len(decoded) == 8


def test_a_cache_of_another_version_is_not_believed(record, tmp_path, decoded):
    cache = tmp_path / "cache.json"
    inspect_records([record], cache=cache)
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"version": 0}))
    inspect_records([record], cache=cache)
    assert len(decoded) == 4


def test_a_cache_that_cannot_be_written_is_done_without(record, tmp_path):
    (tmp_path / "file").touch()
    assert inspect_records([record], cache=tmp_path / "file" / "cache.json") == []


def test_an_unchanged_cache_is_not_written_again(record, tmp_path):
    cache = tmp_path / "cache.json"
    inspect_records([record], cache=cache)
    os.utime(cache, ns=(1, 1))
    inspect_records([record], cache=cache)
    assert cache.stat().st_mtime_ns == 1
    assert [path.name for path in tmp_path.glob("*cache*")] == ["cache.json"]
