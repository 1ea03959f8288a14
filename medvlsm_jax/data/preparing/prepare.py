"""A raw download to `<data_dir>/<dataset>/{images,masks,anns}`, safely run twice or continued."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlsm_jax import atomic
from medvlsm_jax.data.cards import SPLITS, Card, card_file, write_card
from medvlsm_jax.data.integrity import is_colondb_copy
from medvlsm_jax.data.preparing.annotate import Described, write_annotations
from medvlsm_jax.data.preparing.copying import Written, write_files
from medvlsm_jax.data.preparing.importers import choose_importer, find_sources
from medvlsm_jax.data.preparing.importers.item import Options, Source
from medvlsm_jax.data.preparing.measuring import told_words
from medvlsm_jax.data.preparing.own_splits import (
    OwnSplits,
    apply_own_splits,
    complete_splits,
    find_own_splits,
    group_by_card,
)
from medvlsm_jax.data.preparing.provenance import check_apart, claim, files_made, write_source
from medvlsm_jax.data.preparing.published import find_published, match_published, read_entries, write_published
from medvlsm_jax.data.preparing.splits import Leak, assign_splits, drop_leaks, find_leaks
from medvlsm_jax.data.schema import RecordLine, csv_rows
from medvlsm_jax.errors import UserError

ON_LEAK = ("error", "keep", "drop")


def prepare(
    card: Card,
    raw: Path,
    data_dir: Path,
    *,
    annotations: Path | None = None,
    splits: Path | None = None,
    seed: int = 42,
    workers: int | None = None,
    on_leak: str = "error",
    importer: str = "",
    options: Options | None = None,
    max_side: int = 0,
) -> dict[str, int]:
    """Brings a raw download into the layout that training and evaluation read.

    A folder that is complete is left as it is, an unfinished one is continued. The download is only read.

    Args:
        card: of the dataset.
        raw: the unpacked download, or the folder that holds it.
        data_dir: receives the folder of the dataset.
        annotations: folder of published annotation files, whose splits and prompts are taken over; without it the
            splits are the user's or those of the download, or drawn by patient or sequence, and the prompts are made
            from the masks.
        splits: a csv of image, split and group; by default the download's splits.csv, if it has one.
        seed: of the splits.
        workers: processes; by default one for each core.
        on_leak: what to do about a patient or an image in two splits: `error`, `keep`, or `drop` the training copies.
        importer: reads the download; by default the card's, or what the download looks like.
        options: what is wanted of the download.
        max_side: larger images are shrunk to it, in pixels; 0 leaves them as found.

    Returns:
        The number of records of each split.

    Raises:
        UserError: the download or the annotations are not what they should be, splits leak, or the folder holds
            something else.
    """
    options = options or Options()
    if on_leak not in ON_LEAK:
        raise UserError(f"--on_leak={on_leak}: choose one of {', '.join(ON_LEAK)}")
    if options.per_class and annotations is not None:
        raise UserError("--per_class: the published records are about all polyps of an image; leave out --annotations")
    if annotations is not None and max_side:
        check_unsized(annotations, card)
    if splits is not None and annotations is not None:
        raise UserError("--splits: the published records have splits of their own; leave out --annotations")
    own = None if annotations else find_own_splits(splits, raw)
    folder = data_dir / card.name
    check_apart(raw, folder)
    importer = choose_importer(raw, card, importer)
    sources, known = find_sources(raw, card, importer, options)
    card = keep_card(data_dir, card, dataclasses.replace(known, importer=importer))
    if annotations is not None and is_copy_of_colondb(annotations, card):
        print(f"warning: the published records of {card.name} are CVC-ColonDB's: its own are made from its images")
        annotations = None
    files = files_made(card, importer, options, max_side)
    dividing = {"annotations": "published" if annotations else "generated", "seed": seed, "on_leak": on_leak}
    dividing |= {"group": card.group, "splits": own.digest if own else ""}
    if finished := claim(folder, files, dividing):
        return finished
    atomic.remove_abandoned(folder)
    written = write_files(
        sources, folder, card.subfolder, max_side=max_side, workers=workers, is_measured=annotations is None
    )
    say_left_out(sources, written)
    rows, words = [line for line, _ in written], {line.mask: found for line, found in written}
    rows = match_published(annotations, card, rows) if annotations else divide(rows, card, own, seed, on_leak)
    rows = settle_leaks(rows, on_leak, is_published=annotations is not None)
    atomic.write_csv(folder / "records.csv", csv_rows(rows))
    shutil.rmtree(folder / "anns", ignore_errors=True)  # of an earlier run that was cut off
    if annotations:
        write_published(folder, rows)
    else:
        write_annotations(folder, card, [described(row, words[row.mask], card) for row in rows])
    counts = Counter(row.split for row in rows)
    records = {split: counts[split] for split in SPLITS}
    terms = {"licence": card.licence, "citation": card.citation, "download": card.download}
    write_source(folder, files | dividing | {"records": records} | terms)
    return records


# --- The card ---------------------------------------------------------------------------------------------------------


def keep_card(data_dir: Path, card: Card, known: Card) -> Card:
    """The card with what the files say of it; where the user has none it becomes DATA/NAME.toml.

    Raises:
        UserError: the files name no classes, so that a card has to.
    """
    if card != Card(card.name):
        if not card.targets and known.targets:
            print(f"the card names no targets: add targets = {json.dumps(known.targets, ensure_ascii=False)}")
        return known
    if not known.targets:
        raise UserError(
            f"--dataset={card.name}: of what class the masks are, is not known: give a card NAME.toml instead, with a "
            f'line name = "{card.name}" and a line targets = ["CLASS"]'
        )
    path = card_file(data_dir, card.name)
    if not path.exists():
        write_card(path, known)
        print(f"a card of what the files say is written to {path}: {', '.join(known.targets)}")
    return known


def say_left_out(sources: Sequence[Source], written: Sequence[Written]) -> None:
    """Prints how many images have no object, and so no record."""
    total, kept = sum(source.size for source in sources), len({record.line.image for record in written})
    if kept < total:
        hint = " (--empty_slices=N keeps some)" if any(source.size > 1 for source in sources) else ""
        print(f"{total - kept} of {total} images have no object and are left out{hint}")


# --- Rows ------------------------------------------------------------------------------------------------------------


def described(row: RecordLine, words: Mapping[str, str], card: Card) -> Described:
    """A record with the words that its image and mask show, and those that are known."""
    target = {"class": row.target} if row.target else {}
    return Described(row, {**told_words(words, card), **target, **row.attributes}, row.box, published=None)


def divide(rows: Sequence[RecordLine], card: Card, own: OwnSplits | None, seed: int, on_leak: str) -> list[RecordLine]:
    """The rows with the user's splits and groups, else those of the download; what these leave open is drawn."""
    rows = group_by_card(rows, card)
    rows = apply_own_splits(rows, own) if own else rows
    if any(row.split == "train" for row in rows):
        rows = settle_leaks(rows, on_leak, is_published=False)
    return draw_splits(complete_splits(rows, card, seed), card, seed)


def draw_splits(rows: Sequence[RecordLine], card: Card, seed: int) -> list[RecordLine]:
    """The rows with the splits of the download, or drawn where it has none.

    Other images that are copies of one in a split of the download are left out: that split stays as it was published.
    """
    fixed = [row.split for row in rows]
    splits = assign_splits(
        [row.group for row in rows], card.counts, seed, images=[row.digest for row in rows], fixed=fixed
    )
    kept = [row for row in rows if row.split or splits[row.group] not in fixed]
    if copies := len(rows) - len(kept):
        print(
            f"{copies} records are left out, whose images the download has in {' or '.join(set(fixed) - {''})} as well"
        )
    return [dataclasses.replace(row, split=row.split or splits[row.group]) for row in kept]


def check_unsized(annotations: Path, card: Card) -> None:
    """Raises a UserError when published records have sizes of pixels, which a smaller image would not have."""
    entries = [entry for path in find_published(annotations, card).values() for entry in read_entries(path)]
    if any(entry.get("spacing") for entry in entries):
        raise UserError("--max_side: the published records have pixel sizes, which then would be wrong; leave it out")


def is_copy_of_colondb(annotations: Path, card: Card) -> bool:
    """Whether the published test records of another dataset are those of CVC-ColonDB."""
    path = find_published(annotations, card).get("test")
    return card.name != "colondb_polyp" and path is not None and is_colondb_copy(read_entries(path))


def settle_leaks(rows: Sequence[RecordLine], on_leak: str, *, is_published: bool) -> list[RecordLine]:
    """The rows that stay when what lies in two splits is kept, dropped or an error.

    Published splits may have frames of one video in several: that is how they were drawn, so it is said, and no error.
    """
    leaks = find_leaks(rows)
    if is_published and (parted := [leak for leak in leaks if leak.is_sequence]):
        print(f"warning: the published splits part frames: {len(parted)} sequences are in several of them")
        leaks = [leak for leak in leaks if not leak.is_sequence]
    if not leaks:
        return list(rows)
    if on_leak == "error":
        raise UserError(f"{summary(leaks)}: give --on_leak=drop to leave out the training copies, or --on_leak=keep")
    kept = drop_leaks(rows, leaks) if on_leak == "drop" else list(rows)
    action = f"{len(rows) - len(kept)} records are left out" if on_leak == "drop" else "they are kept"
    print(f"warning: {summary(leaks)}; {action}")
    return kept


def summary(leaks: Sequence[Leak]) -> str:
    """The first leaks in words, and how many there are."""
    more = f" and {len(leaks) - 3} more" if len(leaks) > 3 else ""
    return f"splits are not apart: {'; '.join(map(str, leaks[:3]))}{more}"
