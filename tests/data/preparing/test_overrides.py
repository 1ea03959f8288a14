"""What users bring: a csv of words and a json of descriptions, and one clear line for what is wrong with them."""

import json
from pathlib import Path

import pytest

from medvlsm_jax.data.preparing.overrides import read_descriptions_file, read_overrides
from medvlsm_jax.errors import UserError


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def write(tmp_path):
    def write_file(content: str | bytes, name: str = "words.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def test_a_csv_of_words(write):
    path = write("\ufeffmask, Shape ,colour\n a.png ,bean, \nb.png,,dark red\n".replace("Shape", "shape"))
    assert read_overrides(path) == {"a.png": {"shape": "bean"}, "b.png": {"color": "dark red"}}
    assert read_overrides(write("image,class\nx.jpg,ulcer\n")) == {"x.jpg": {"class": "ulcer"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no lines of words"),
        ("mask,shape\n", "has no lines of words"),
        ("mask,weight\na.png,3\n", "the column 'weight' is no attribute; there are class, shape, "),
        ("mask,general\na.png,3\n", "the column 'general' is no attribute"),
        ("file,shape\na.png,flat\n", "needs a column mask or a column image, and not both"),
        ("mask,image,shape\na.png,b.png,flat\n", "needs a column mask or a column image, and not both"),
        ("mask,shape\na.png,flat\na.png,round\n", "has a.png twice"),
        ("mask,shape\na.png,flat\nb.png\n", "line 3: it has not as many cells as the first line"),
        ("mask,shape\na.png,flat,round\n", "line 2: it has not as many cells as the first line"),
        (b"mask,shape\n\xff\xfe,flat\n", "cannot be read as a csv file"),
        ('mask,shape\n"a.png,flat\n', "cannot be read as a csv file"),
    ],
)
def test_a_broken_csv_is_named(write, content, message):
    path = write(content)
    found = error_of(read_overrides, path)
    assert found.startswith(str(path))
    assert message in found


def test_a_missing_csv_is_named(tmp_path):
    assert error_of(read_overrides, tmp_path / "gone.csv").startswith(f"{tmp_path / 'gone.csv'} cannot be read")


@pytest.mark.parametrize("content", [["a lump"], {"polyp": ["a lump", "a bump"], "ulcer": ["a hole"]}])
def test_a_json_of_descriptions(write, content):
    assert read_descriptions_file(write(json.dumps(content))) == content


@pytest.mark.parametrize("content", ["{", "[]", '"a lump"', '{"polyp": "a lump"}', '["a", 3]', '{"polyp": []}', '[""]'])
def test_a_broken_json_is_named(write, content):
    assert str(write(content, "d.json")) in error_of(read_descriptions_file, write(content, "d.json"))


def test_a_missing_json_is_named(tmp_path):
    assert "gone.json does not exist" in error_of(read_descriptions_file, tmp_path / "gone.json")
