"""What a record can hold: one declaration, from which records.csv and the annotation files are written and read."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from medvlsm_jax.errors import UserError

GIVEN = "given"  # the prompt type of sentences that a dataset has of its own


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where a field of a record is kept.

    Attributes:
        key: in an object of an annotation file; empty where it stands in none.
        has_column: whether records.csv has a column of its name.
        is_sparse: whether the column stands only in a csv that has something in it.
        to_text: makes a cell of its value.
        from_text: a value of a cell; raises ValueError.
        form: what the cell should be like, for people.
        from_json: gives the value for that of `key`; raises UserError, with the place that it is given in front.
    """

    key: str = ""
    has_column: bool = False
    is_sparse: bool = False
    to_text: Callable[[Any], str] = str
    from_text: Callable[[str], Any] = str
    form: str = "a text"
    from_json: Callable[[Any, str], Any] = lambda value, _: value


def stored(**options: Any) -> dict[str, Stored]:
    """The metadata of a dataclass field that is kept."""
    return {"stored": Stored(**options)}


# --- Values of annotation files --------------------------------------------------------------------------------------


def parse_name(value: Any, where: str) -> str:
    """The name of a file; raises UserError for what is no text."""
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is no file name")
    return value


def parse_group(value: Any, where: str) -> str:
    """A patient or a sequence, empty where none is named; raises UserError for what is no text."""
    if not isinstance(value or "", str):
        raise UserError(f"{where}: group must be a text, the name of a patient or a sequence, not {value!r}")
    return value or ""


def parse_spacing(value: Any, where: str) -> tuple[float, float] | None:
    """Millimetres of a pixel, down and across; None for None. Raises UserError for all but two positive numbers."""
    if value is None:
        return None
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and 0 < n < math.inf for n in numbers):
        raise UserError(f"{where}: spacing must be two positive numbers, mm of a pixel down and across, not {value!r}")
    return float(numbers[0]), float(numbers[1])


def parse_box(value: Any, where: str) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom; None for anything else, for nothing is made of it."""
    is_box = isinstance(value, list) and len(value) == 4 and all(type(number) is int for number in value)
    return (value[0], value[1], value[2], value[3]) if is_box else None


def parse_words(value: Any, where: str) -> dict[str, str]:
    """Words by attribute; raises UserError for anything else."""
    words = value or {}
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise UserError(f"{where}: attributes must be words by name, not {words!r}")
    return words


def parse_prompts(value: Any, where: str) -> dict[str, str | tuple[str, ...]]:
    """Prompt type -> a sentence or several phrasings; raises UserError for anything else."""
    try:
        return {key: text if isinstance(text, str) else tuple(text) for key, text in value.items()}
    except (TypeError, AttributeError) as error:
        raise UserError(f"{where}: needs img_name, mask_name and prompts ({error})") from error


def read_spacing(text: str) -> tuple[float, float] | None:
    """A cell `0.31x0.15`; raises ValueError for another."""
    return parse_spacing([float(number) for number in text.split("x")], "a cell") if text else None


# --- The schema ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RecordLine:
    """One object of a dataset: a line of records.csv, an object of an annotation file.

    Attributes:
        image: below images/SUBFOLDER.
        mask: below masks/SUBFOLDER.
        split: train, val or test; empty while it is in none. An annotation file is of one split.
        group: the patient or the sequence; the image's name where nothing is known.
        target: its class. In annotation files it is one of the attributes.
        spacing: mm of a pixel of the image file, down and across, where it is known.
        box: of the mask, in pixels: left, top, and right and bottom just outside of it; None of an empty one.
        attributes: words known from metadata, for the prompts; once it is measured, all its words. In a csv each has a
            column.
        prompts: prompt type (p0, p1, …) -> a sentence or several phrasings.
        given: sentences about it that its dataset has. In annotation files they are a prompt type.
        digest: of the image's pixels; it is not kept.
        entry: the published record, where there is one; it is not kept.
    """

    image: str = dataclasses.field(metadata=stored(key="img_name", has_column=True, from_json=parse_name))
    mask: str = dataclasses.field(metadata=stored(key="mask_name", has_column=True, from_json=parse_name))
    split: str = dataclasses.field(default="", metadata=stored(has_column=True))
    group: str = dataclasses.field(default="", metadata=stored(key="group", has_column=True, from_json=parse_group))
    target: str = dataclasses.field(default="", metadata=stored(has_column=True))
    spacing: tuple[float, float] | None = dataclasses.field(
        default=None,
        metadata=stored(
            key="spacing",
            has_column=True,
            is_sparse=True,
            to_text=lambda value: "x".join(map(str, value or ())),
            from_text=read_spacing,
            form="of the form 0.31x0.15, mm of a pixel down and across",
            from_json=parse_spacing,
        ),
    )
    box: tuple[int, int, int, int] | None = dataclasses.field(
        default=None, metadata=stored(key="bbox", from_json=parse_box)
    )
    attributes: Mapping[str, str] = dataclasses.field(
        default_factory=dict, metadata=stored(key="attributes", from_json=parse_words)
    )
    prompts: Mapping[str, str | tuple[str, ...]] = dataclasses.field(
        default_factory=dict, metadata=stored(key="prompts", from_json=parse_prompts)
    )
    given: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=stored(
            has_column=True, is_sparse=True, to_text="\n".join, from_text=lambda text: tuple(text.splitlines())
        ),
    )
    digest: str = ""
    entry: Mapping[str, Any] | None = None


SCHEMA: dict[str, Stored] = {
    field.name: field.metadata["stored"] for field in dataclasses.fields(RecordLine) if "stored" in field.metadata
}
COLUMNS = tuple(name for name, kept in SCHEMA.items() if kept.has_column and not kept.is_sparse)
SPARSE = tuple(name for name, kept in SCHEMA.items() if kept.is_sparse)
REQUIRED = ("image", "mask", "prompts")  # of an object of an annotation file


# --- records.csv -----------------------------------------------------------------------------------------------------


def csv_rows(lines: Sequence[RecordLine]) -> Iterator[list[str]]:
    """Cells, the header first: the columns of every dataset, then the sparse ones and the words that this one has."""
    columns = [*COLUMNS, *(name for name in SPARSE if any(getattr(line, name) for line in lines))]
    words = dict.fromkeys(word for line in lines for word in line.attributes)
    yield [*columns, *words]
    for line in lines:
        cells = [SCHEMA[name].to_text(getattr(line, name)) for name in columns]
        yield [*cells, *(line.attributes.get(word, "") for word in words)]


def read_cells(cells: Mapping[str, str], where: str) -> RecordLine:
    """A line of a csv file by its columns; other columns than the schema's are words, and so is the class.

    Raises:
        UserError: a cell is of another form.
    """
    values: dict[str, Any] = {}
    for name in (*COLUMNS, *SPARSE):
        try:
            values[name] = SCHEMA[name].from_text(cells.get(name, ""))
        except (ValueError, UserError) as error:
            raise UserError(f"{where}: {name} {cells[name]!r} is not {SCHEMA[name].form}") from error
    words = {name: word for name, word in cells.items() if name not in values and word}
    words = {"class": values["target"], **words} if values["target"] else words
    return RecordLine(**values, attributes=words)


# --- Annotation files ------------------------------------------------------------------------------------------------


def known_group(line: RecordLine) -> str:
    """The group of a record, empty where it is no more than its image."""
    return "" if line.group == line.image else line.group


def to_entry(line: RecordLine) -> dict[str, Any]:
    """A record as an annotation file has it, as far as it is known."""
    values = {kept.key: getattr(line, name) for name, kept in SCHEMA.items() if kept.key} | {"group": known_group(line)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value}


def from_entry(entry: Any, where: str) -> RecordLine:
    """An object of an annotation file; `where` names it in errors.

    Raises:
        UserError: it lacks a name or the prompts, or a value is of another form.
    """
    try:
        needed = {name: entry[SCHEMA[name].key] for name in REQUIRED}
    except (TypeError, KeyError) as error:
        raise UserError(f"{where}: needs img_name, mask_name and prompts ({error})") from error
    found = {name: entry[kept.key] for name, kept in SCHEMA.items() if kept.key and kept.key in entry}
    values = {name: SCHEMA[name].from_json(value, where) for name, value in (needed | found).items()}
    given = values["prompts"].get(GIVEN, ())
    return RecordLine(**values, given=(given,) if isinstance(given, str) else given)
