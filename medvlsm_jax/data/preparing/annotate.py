"""Annotation files for a dataset's folder: its masks measured, its prompts made."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.language.attributes import MEASURED
from medvlsm_jax.data.language.grammars import ATTRIBUTES, GENERAL, make_prompts, named_grammar, read_descriptions
from medvlsm_jax.data.loading import split_card
from medvlsm_jax.data.preparing.measuring import Box, Measured, measure_files, told_words
from medvlsm_jax.data.preparing.overrides import Descriptions, Overrides, check_overrides
from medvlsm_jax.data.preparing.records_csv import back_up, find_rows, has_words, read_annotated
from medvlsm_jax.data.schema import GIVEN, RecordLine, to_entry
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes
from medvlsm_jax.written import Written

KEEPABLE = (*MEASURED, GENERAL)
NAMES = tuple(f"anns/{split}.json" for split in SPLITS)


@dataclasses.dataclass(frozen=True)
class Described:
    """A record with its words.

    Attributes:
        row: names, split, class and what else was known of it.
        attributes: all its words.
        box: of the mask; None of an empty one.
        published: the same record in the published annotations, if there is one.
    """

    row: RecordLine
    attributes: Mapping[str, str]
    box: Box | None
    published: RecordLine | None


def annotate(
    folder: Path,
    card: Card,
    *,
    workers: int | None = None,
    overrides: Overrides | None = None,
    descriptions: Descriptions | None = None,
    keep: Sequence[str] = (),
    true_thirds: bool = False,
) -> Counter[str]:
    """Writes anns/{train,val,test}.json of a dataset; published ones move to anns.published/ first.

    Args:
        folder: of the dataset, with images/ and masks/. Splits and classes are those of its records.csv, else of its
            annotations; else every image is paired with the mask of its name and the splits are drawn.
        card: names classes, grammar and general descriptions.
        workers: processes; by default one for each core, or one alone where there is little to do.
        overrides: words to take instead of the measured ones.
        descriptions: to take instead of the card's.
        keep: attributes to take from the published annotations instead: measured ones, or "general".
        true_thirds: as for `attributes.measure`.

    Returns:
        The number of records of each split.

    Raises:
        UserError: a file is missing or broken, a class is not known, an override is of no file, the descriptions
            are of no class, or annotations that were written here have been changed by hand.
    """
    check_unchanged(folder)
    described = describe_records(folder, card, workers=workers, overrides=overrides, keep=keep, true_thirds=true_thirds)
    check_descriptions(descriptions, described)
    return write_annotations(folder, card, described, descriptions=descriptions, keep_general=GENERAL in keep)


def check_unchanged(folder: Path) -> None:
    """Raises a UserError when annotations that were written here have been changed by hand."""
    record = Written("--data_dir", folder)
    record.check(name for name in NAMES if name in record.digests)


def write_annotations(
    folder: Path,
    card: Card,
    described: Sequence[Described],
    *,
    descriptions: Descriptions | None = None,
    keep_general: bool = False,
) -> Counter[str]:
    """Writes anns/{train,val,test}.json of records with their words; published ones move to anns.published/ first.

    Args:
        folder: of the dataset.
        card: names classes, grammar and general descriptions.
        described: the records.
        descriptions: to take instead of the card's.
        keep_general: take the published ones instead.

    Returns:
        The number of records of each split.
    """
    check_named(described, card)
    files = {split: [] for split in SPLITS}
    for item in described:
        given = descriptions
        if keep_general and item.published and item.published.entry:
            given = read_descriptions(item.published.entry["prompts"])
        files[item.row.split].append(make_entry(item, card, given))
    back_up(folder)
    record = Written("--data_dir", folder)
    record.adopt(NAMES)  # they are of this program, or kept
    with record.adding() as staged:
        (staged / "anns").mkdir()
        for split, entries in files.items():
            text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
            (staged / "anns" / f"{split}.json").write_text(text, "utf-8")
    return Counter({split: len(entries) for split, entries in files.items()})


def describe_records(
    folder: Path,
    card: Card,
    *,
    workers: int | None = None,
    overrides: Overrides | None = None,
    keep: Sequence[str] = (),
    true_thirds: bool = False,
) -> list[Described]:
    """The records of a dataset with their words, as `annotate` writes them."""
    named_grammar(card.grammar)
    annotated = read_annotated(folder, card)
    published = {(row.image, row.mask): row for row in annotated if not has_words(row.entry)}
    if keep and not published:
        raise UserError(f"--keep={','.join(keep)}: {folder} has no published annotations to keep words of")
    rows = find_rows(folder, card, annotated)
    overrides = overrides or {}
    check_overrides(overrides, rows, folder, card)
    described = []
    for row, (measured, box) in zip(rows, measure_rows(rows, folder, card, workers, true_thirds), strict=True):
        original = published.get((row.image, row.mask))
        kept = {name: word for name, word in original.attributes.items() if name in keep} if original else {}
        given = {**overrides.get(row.image, {}), **overrides.get(row.mask, {})}
        words = {**told_words(measured, card, is_published=bool(original)), **kept, **row.attributes, **given}
        described.append(Described(row, words, box, original))
    check_named(described, card)
    return described


def check_named(described: Sequence[Described], card: Card) -> None:
    """Raises a UserError when the class of a record is not known."""
    if nameless := [item.row.mask for item in described if not item.attributes.get("class")]:
        more = f" (and {len(nameless) - 1} more)" if len(nameless) > 1 else ""
        raise UserError(
            f"{card.name}: of what class {nameless[0]}{more} is, is not known: name one class in a card's targets, or "
            "tell it by the masks, as IMAGE_CLASS.png, CLASS/IMAGE.png or in a csv of image, mask and class, which "
            "tools/prepare_data.py --raw reads; or in a column class of tools/make_prompts.py --attributes=FILE.csv"
        )


def check_descriptions(descriptions: Descriptions | None, described: Sequence[Described]) -> None:
    """Raises a UserError when descriptions are given by class, but for no class of the records."""
    classes = dict.fromkeys(item.attributes["class"] for item in described)
    if isinstance(descriptions, Mapping) and not set(descriptions) & set(classes):
        raise UserError(
            f"--descriptions has sentences for {', '.join(descriptions) or 'no class'}, but the records are of "
            f"{', '.join(classes)}"
        )


def make_entry(item: Described, card: Card, descriptions: Descriptions | None) -> dict[str, Any]:
    """A record as the annotation file has it."""
    words = {name: item.attributes[name] for name in ATTRIBUTES if item.attributes.get(name)}
    if descriptions is None:
        descriptions = card.descriptions
    elif isinstance(descriptions, Mapping):
        descriptions = descriptions.get(words["class"], card.descriptions)
    prompts = make_prompts(card.grammar, words, descriptions)
    if item.row.given:
        prompts[GIVEN] = list(item.row.given)
    return to_entry(dataclasses.replace(item.row, box=item.box, attributes=words)) | {"prompts": prompts}


# --- Measuring -------------------------------------------------------------------------------------------------------


def measure_rows(
    rows: Sequence[RecordLine], folder: Path, card: Card, workers: int | None, true_thirds: bool
) -> list[Measured]:
    """What the masks and images of records show, in their order."""
    below = {split: split_card(folder, card, split).subfolder for split in SPLITS}
    images = [folder / "images" / below[row.split] / row.image for row in rows]
    masks = [folder / "masks" / below[row.split] / row.mask for row in rows]
    if missing := [path for path in (*images, *masks) if not path.is_file()]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} is missing, but records of {card.name} name it: restore it or drop them")
    function = functools.partial(measure_files, true_thirds=true_thirds)
    pairs = list(zip(images, masks, strict=True))
    return map_in_processes(function, pairs, workers=workers, chunksize=8, desc="measuring", unit="mask")
