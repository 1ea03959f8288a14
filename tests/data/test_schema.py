"""What a record can hold: the same in a csv, in an annotation file, and in memory."""

import csv
import dataclasses
import io
import json

import pytest

from medvlsm_jax.data.preparing.importers.item import Item
from medvlsm_jax.data.schema import COLUMNS, SCHEMA, SPARSE, RecordLine, csv_rows, from_entry, read_cells, to_entry
from medvlsm_jax.errors import UserError

LINE = RecordLine(
    "a/1.png",
    "liver/1.png",
    "train",
    "patient1",
    "liver",
    spacing=(0.5, 0.25),
    box=(1, 2, 8, 9),
    attributes={"class": "liver", "age": "old"},
    prompts={"p0": "", "p1": "liver", "given": ("liver in CT", "a liver")},
    given=("liver in CT", "a liver"),
)


def through_csv(*lines: RecordLine) -> list[RecordLine]:
    """Lines as they come back from a csv file."""
    file = io.StringIO()
    csv.writer(file).writerows(csv_rows(lines))
    return [read_cells(cells, "a line") for cells in csv.DictReader(io.StringIO(file.getvalue()))]


def test_all_that_has_a_column_comes_back_from_a_csv():
    other = RecordLine("2.png", "2.png")
    first, second = through_csv(dataclasses.replace(LINE, attributes={"age": "old"}), other)
    assert first == dataclasses.replace(LINE, box=None, prompts={})
    assert second == other


def test_a_column_that_only_some_have_stands_where_it_is_needed():
    assert next(csv_rows([RecordLine("1.png", "1.png")])) == list(COLUMNS)
    assert next(csv_rows([LINE])) == [*COLUMNS, *SPARSE, "class", "age"]


def test_all_that_has_a_key_comes_back_from_an_annotation_file():
    entry = json.loads(json.dumps(to_entry(LINE)))
    assert set(entry) == {kept.key for kept in SCHEMA.values() if kept.key}
    assert from_entry(entry, "a record") == dataclasses.replace(LINE, split="", target="")


def test_what_is_not_known_is_not_written():
    assert to_entry(RecordLine("1.png", "2.png", group="1.png")) == {"img_name": "1.png", "mask_name": "2.png"}


@pytest.mark.parametrize(("name", "cell"), [("spacing", "0.5"), ("spacing", "0x1"), ("spacing", "wide")])
def test_a_cell_of_another_form_is_named(name, cell):
    with pytest.raises(UserError, match=f"line 7: {name} '{cell}' is not of the form 0.31x0.15"):
        read_cells({"image": "a", "mask": "b", name: cell}, "line 7")


def test_what_an_importer_finds_is_a_record():
    assert {field.name for field in dataclasses.fields(RecordLine)} <= {
        field.name for field in dataclasses.fields(Item)
    }
