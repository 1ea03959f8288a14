"""Annotation files for a dataset's folder: its masks measured, its prompts made."""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlsm_jax.data.cards import SPLITS, Card
from medvlsm_jax.data.decoding.decode import decode
from medvlsm_jax.data.images import check_sizes, picture, to_binary, to_rgb
from medvlsm_jax.data.language.attributes import MEASURED, measure
from medvlsm_jax.data.language.grammars import ATTRIBUTES, GENERAL, make_prompts, named_grammar, read_descriptions
from medvlsm_jax.data.loading import split_card
from medvlsm_jax.data.preparing.overrides import Descriptions, Overrides, check_overrides
from medvlsm_jax.data.preparing.records_csv import back_up, find_rows, has_words, read_annotated
from medvlsm_jax.data.preparing.splits import RecordLine
from medvlsm_jax.errors import UserError
from medvlsm_jax.processes import map_in_processes
from medvlsm_jax.written import Written

KEEPABLE = (*MEASURED, GENERAL)

Measured = tuple[dict[str, str], tuple[int, int, int, int] | None]  # words and box of a mask


@dataclasses.dataclass(frozen=True)
class Described:
    """A record with its words.

    Attributes:
        row: names, split, class and what else was known of it.
        attributes: all its words.
        box: of the mask, in pixels: left, top, and right and bottom just outside of it; None of an empty one.
        published: the same record in the published annotations, if there is one.
    """

    row: RecordLine
    attributes: Mapping[str, str]
    box: tuple[int, int, int, int] | None
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
    record, names = Written("--data_dir", folder), [f"anns/{split}.json" for split in SPLITS]
    record.check(name for name in names if name in record.digests)
    described = describe_records(folder, card, workers=workers, overrides=overrides, keep=keep, true_thirds=true_thirds)
    check_descriptions(descriptions, described)
    files = {split: [] for split in SPLITS}
    for item in described:
        given = descriptions
        if GENERAL in keep and item.published and item.published.entry:
            given = read_descriptions(item.published.entry["prompts"])
        files[item.row.split].append(make_entry(item, card, given))
    back_up(folder)
    record.adopt(names)  # they are of this program, or kept
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
    check_overrides(overrides, rows, folder)
    described = []
    for row, (measured, box) in zip(rows, measure_rows(rows, folder, card, workers, true_thirds), strict=True):
        original = published.get((row.image, row.mask))
        kept = {name: word for name, word in original.attributes.items() if name in keep} if original else {}
        given = {**overrides.get(row.image, {}), **overrides.get(row.mask, {})}
        described.append(Described(row, {**measured, **kept, **row.attributes, **given}, box, original))
    if nameless := [item.row.mask for item in described if not item.attributes.get("class")]:
        more = f" (and {len(nameless) - 1} more)" if len(nameless) > 1 else ""
        raise UserError(
            f"{card.name}: of what class {nameless[0]}{more} is, is not known: name one class in a card's targets, or "
            "each mask's in a column class of tools/make_prompts.py --attributes=FILE.csv"
        )
    return described


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
    return {
        "img_name": item.row.image,
        "mask_name": item.row.mask,
        **item.row.group_and_spacing,
        **({"bbox": list(item.box)} if item.box else {}),
        "attributes": words,
        "prompts": make_prompts(card.grammar, words, descriptions),
    }


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


def measure_files(pair: tuple[Path, Path], true_thirds: bool) -> Measured:
    """The words of one object, and the box around its mask, from an image and a mask file."""
    image_path, mask_path = pair
    image, mask = decode(image_path), decode(mask_path)
    check_sizes(image_path, image, mask_path, mask)
    mask = to_binary(mask_path, mask) > 0
    words = measure(np.asarray(to_rgb(picture(image))), mask, true_thirds=true_thirds)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return words, None
    return words, (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
