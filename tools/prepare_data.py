r"""Brings a raw download into the layout that training and evaluation read.

    python tools/prepare_data.py --list
    python tools/prepare_data.py --list --dataset=camus
    python tools/prepare_data.py --dataset=camus --raw=DOWNLOAD --data_dir=DATA
    python tools/prepare_data.py --dataset=isic --raw=DOWNLOAD --data_dir=DATA --annotations=PUBLISHED --on_leak=drop
    python tools/prepare_data.py --dataset=mine.toml --raw=FOLDER_WITH_images_AND_masks --data_dir=DATA
    python tools/prepare_data.py --dataset=organs --raw=FOLDER --data_dir=DATA --format=coco
    python tools/prepare_data.py --dataset=camus --data_dir=DATA --verify
    python tools/prepare_data.py --dataset=mine.toml --data_dir=DATA --verify --duplicates=pairs.png
    python tools/prepare_data.py --dataset=camus --data_dir=DATA --preview=camus.png --prompt=p6
    python tools/prepare_data.py --dataset=camus --data_dir=DATA --array_record=STORES --num_shards=8

The download is only read. Its format is that of --format or of the card, or found by looking; files that name their
classes (COCO, LabelMe, YOLO, nnU-Net, a mask for each class, …) need no card. Splits are the published ones
(--annotations), yours (--splits or splits.csv, folders named train, val and test), those of the download, or drawn by
patient, sequence or image. A run that was cut off is continued by the same command, and a complete folder is left as it
is.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import CARDS, SPLITS, Card, card_file, named_card, read_card, split_members
from medvlsm_jax.data.facts import default_cache, read_facts
from medvlsm_jax.data.findings import ERROR, findings_table
from medvlsm_jax.data.images import open_image, read_mask, to_rgb
from medvlsm_jax.data.integrity import inspect_dataset, inspect_records
from medvlsm_jax.data.language.grammars import GENERAL, GRAMMARS
from medvlsm_jax.data.language.prompts import check_prompt, choose_prompt, split_prompts
from medvlsm_jax.data.language.word_counts import counts_table
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.near_copies import NearCopy
from medvlsm_jax.data.preparing.arrayrecord_writer import store_folder, write_store
from medvlsm_jax.data.preparing.importers import FORMATS, IMPORTERS
from medvlsm_jax.data.preparing.importers.item import Options
from medvlsm_jax.data.preparing.prepare import ON_LEAK, prepare
from medvlsm_jax.data.suspicious import find_meaningless
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.pictures import captioned_sheet, overlay
from medvlsm_jax.folders import local_folder
from medvlsm_jax.lease import holding
from medvlsm_jax.text import table

PATHS = ("raw", "data_dir", "annotations", "splits", "preview", "duplicates", "array_record")  # flags
ALL = "all"  # slices
PREVIEWED = 5  # images of each split in a preview
DRAWN = 20  # pairs of images that look alike
LOOKED_AT = 200  # records, after an import


def list_cards() -> str:
    """A table of all datasets and pools."""
    rows = [["dataset", "modality", "targets", *SPLITS, "prompts", "licence"]]
    rows += [card_row(card) for card in CARDS.values()]
    return table(rows)


def card_row(card: Card) -> list[str]:
    """A dataset in the table."""
    members = {split: split_members(card.name, split) for split in SPLITS}
    counts = [str(sum(member.counts.get(split, 0) for member in members[split]) or "-") for split in SPLITS]
    targets = ", ".join(card.targets) if len(card.targets) < 2 else f"{len(card.targets)} classes"
    prompts = "" if card.members else prompt_types(card)
    return [card.name, card.modality, targets, *counts, prompts, card.licence]


def prompt_types(card: Card) -> str:
    """The prompt types of a dataset, p0 included: p0-p9."""
    types = GRAMMARS[card.grammar].types
    return f"p0-{[name for name, told in types.items() if card.descriptions or GENERAL not in told][-1]}"


def card_text(card: Card) -> str:
    """Everything that a card says, a line each."""
    values = {
        "dataset": card.name,
        "title": card.title,
        "modality": card.modality,
        "targets": ", ".join(card.targets),
        "records": ", ".join(f"{split} {count}" for split, count in card.counts.items()),
        "prompts": "" if card.members else prompt_types(card),
        **{f"{split} of": ", ".join(names) for split, names in card.members.items()},
        "licence": card.licence,
        "citation": card.citation,
        "download": card.download,
        "note": card.note,
        "layout": card.layout.strip().replace("\n", f"\n{'':12}"),
    }
    return "\n".join(f"{key:<12}{value}" for key, value in values.items() if value)


def chosen_card(dataset: str) -> Card:
    """The card of a dataset to prepare.

    Raises:
        UserError: there is none, or it is a pool.
    """
    card = known_card(dataset)
    if card.members:
        members = dict.fromkeys(name for names in card.members.values() for name in names)
        raise UserError(f"--dataset={dataset} is a pool: prepare its datasets one by one ({', '.join(members)})")
    return card


def known_card(dataset: str) -> Card:
    """The card of a dataset or a pool; raises UserError when there is none."""
    card = named_card(dataset)
    if card == Card(dataset):
        raise UserError(
            f"--dataset={dataset} is not known: choose one of {', '.join(CARDS)}, or give the path of a card of yours "
            "(*.toml)"
        )
    return card


def summary(card: Card, dataset: str, data_dir: str, records: Mapping[str, int]) -> str:
    """What a run has written, and what to do next; `dataset` is what the user calls it."""
    counts = ", ".join(f"{split} {records[split]}" for split in SPLITS)
    if records["train"]:
        following = (
            f"train --config=configs/clipseg.py:dataset={dataset},prompt=p6 --config.init=CHECKPOINT --workdir=WORKDIR"
        )
    else:
        following = f"evaluate --checkpoint=WORKDIR --dataset={dataset} --prompt=p6 --output=OUTPUT"
    return (
        f"{card.name}: {counts} records in {Path(data_dir) / card.name}\n"
        f"next: python -m medvlsm_jax.{following} --config.data_dir={data_dir}"
    )


def verify(dataset: str, data_dir: str, prompts: Sequence[str], duplicates: str) -> None:
    """Prints all that is wrong with a prepared dataset or pool; ends with status 1 if there are errors."""
    findings, copies = inspect_dataset(data_dir, dataset, *prompts)
    print(findings_table(findings))
    if duplicates:
        draw_copies(copies, Path(duplicates), dataset, data_dir)
    if any(finding.level == ERROR for finding in findings):
        sys.exit(1)


def draw_copies(copies: Sequence[NearCopy], path: Path, dataset: str, data_dir: str) -> None:
    """Draws a sheet of the images of two splits that look alike, a row for each pair."""
    if not copies:
        print(f"no image of one split looks like one of another: nothing is drawn to {path}")
        return
    rows = [
        [
            (to_rgb(open_image(record.image)), f"{split}: {record.image.name}{how}")
            for record, split, how in zip((copy.first, copy.second), copy.splits, ("", copy.how), strict=True)
        ]
        for copy in copies[:DRAWN]
    ]
    records = [r for split in SPLITS for r in load_records(data_dir, dataset, split, is_required=False)]
    save_sheet("--duplicates", path, rows, records)
    more = f", the first {DRAWN} of {len(copies)} pairs" if len(copies) > DRAWN else ""
    print(f"drawn to {path}: a row for each pair of images that look alike{more}")


def preview(dataset: str, data_dir: str, path: Path, prompt: str) -> None:
    """Draws a sheet of some images of each split with their masks outlined and their sentences."""
    rows, drawn = [], []
    for split in SPLITS:
        records = load_records(data_dir, dataset, split, is_required=False)
        drawn += records
        check_prompt(records, prompt)
        rows += [[(outlined(record), choose_prompt(record, prompt)) for record in spread(records, PREVIEWED)]]
    if not drawn:
        raise UserError(f"{dataset}: no annotation file in {data_dir} has records")
    save_sheet("--preview", path, list(filter(None, rows)), drawn)
    print(f"drawn to {path}: a row for each split")


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """At most `count` of some records, evenly spread."""
    count = min(count, len(records))
    return [records[len(records) * i // count] for i in range(count)]


def save_sheet(
    flag: str, path: Path, rows: Sequence[Sequence[tuple[Image.Image, str]]], records: Sequence[Record]
) -> None:
    """Writes rows of pictures with captions; raises UserError when it cannot, or `path` is a file of the dataset."""
    inputs = {str(Path(str(file)).resolve()) for record in records for file in (record.image, record.mask)}
    if str(path.resolve()) in inputs:
        raise UserError(f"{flag}={path} is a file of the dataset: give another FILE.png")
    try:
        captioned_sheet(rows).save(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag}={path} cannot be written ({error}): give another FILE.png") from error


def look(dataset: str, data_dir: str) -> None:
    """Looks at some of what was written: prints what is wrong with it, and how often each word is in the training.

    Raises:
        UserError: nobody could learn from it.
    """
    train = load_records(data_dir, dataset, "train", is_required=False)
    records = [r for split in SPLITS for r in load_records(data_dir, dataset, split, is_required=False)]
    chosen = spread(records, LOOKED_AT)
    facts = read_facts(chosen, default_cache(data_dir))
    findings = [*inspect_records(chosen, facts=facts), *find_meaningless(chosen, facts)]
    if text := counts_table(train):
        print(text)
    if findings:
        print(f"{findings_table(findings)}\n(of {len(chosen)} records; --verify looks at all)")
    if wrong := [finding for finding in findings if finding.level == ERROR]:
        raise UserError(f"{wrong[0]}")


def outlined(record: Record) -> Image.Image:
    """An image with the border of its mask."""
    image, mask = np.asarray(to_rgb(open_image(record.image))), read_mask(record.mask) > 0
    return Image.fromarray(overlay(image, np.zeros_like(mask), mask))


def store(args: flags.FlagValues) -> None:
    """Writes a prepared dataset, or each of a pool, as ArrayRecord."""
    cards = {card.name: card for split in SPLITS for card in split_members(args.dataset, split)}
    for card in cards.values():
        with holding("--array_record", store_folder(args.array_record, card, args.image_size)):
            folder = write_store(
                args.data_dir, card, args.array_record, image_size=args.image_size, num_shards=args.num_shards
            )
        print(f"{card.name}: {folder}; runs read it with --config.data_dir={args.array_record}")


def import_raw(args: flags.FlagValues) -> None:
    """Brings a raw download into the layout."""
    dataset, card = card_to_import(args.dataset, args.data_dir)
    with holding("--data_dir", Path(args.data_dir) / card.name):
        records = prepare(
            card,
            Path(args.raw),
            Path(args.data_dir),
            annotations=Path(args.annotations) if args.annotations else None,
            splits=Path(args.splits) if args.splits else None,
            seed=args.seed,
            workers=args.num_workers,
            on_leak=args.on_leak,
            importer=args.format,
            options=Options(
                per_class=args.per_class,
                per_object=args.per_object,
                channels=parse_channels(args.channels),
                empty_slices=parse_slices(args.empty_slices),
                fold=args.fold,
            ),
            max_side=args.max_side,
        )
    look(dataset, args.data_dir)
    print(summary(card, dataset, args.data_dir, records))


def parse_channels(texts: Sequence[str]) -> tuple[int, ...]:
    """The channels that --channels names; raises UserError unless they are one or three numbers."""
    if len(texts) not in (1, 3) or not all(text.isdecimal() for text in texts):
        raise UserError(f"--channels={','.join(texts)}: give one channel, or three to be red, green and blue: 0,1,2")
    return tuple(map(int, texts))


def parse_slices(text: str) -> int | None:
    """The number that --empty_slices names, None for all; raises UserError for another text."""
    if text != ALL and not text.isdecimal():
        raise UserError(f"--empty_slices={text}: give a number of slices for each volume, or {ALL}")
    return None if text == ALL else int(text)


def card_to_import(dataset: str, data_dir: str) -> tuple[str, Card]:
    """What the user will call a dataset, and its card.

    Of a name without a card the files say what there is: that becomes a card in `data_dir`.
    """
    card = named_card(dataset)
    if card != Card(dataset):
        return dataset, chosen_card(dataset)
    path = card_file(data_dir, dataset)
    return str(path), read_card(path) if path.is_file() else card


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    if args.list:
        print(card_text(known_card(args.dataset)) if args.dataset else list_cards())
        return
    for name in PATHS:  # the shell leaves the ~ of --raw=~/Downloads as it is
        given = str(args[name].value or "")
        setattr(args, name, given and str(local_folder(f"--{name}", given)))
    is_prepared = args.verify or args.duplicates or args.preview or args.array_record
    needed = ("dataset", "data_dir") if is_prepared else ("dataset", "raw", "data_dir")
    if missing := [f"--{name}" for name in needed if not args[name].value]:
        raise UserError(f"give {' and '.join(missing)}, or --list to see the datasets")
    if args.raw:
        import_raw(args)
    prompts = split_prompts(args.prompt)
    if args.verify or args.duplicates:
        verify(args.dataset, args.data_dir, prompts, args.duplicates)
    if args.preview:
        preview(args.dataset, args.data_dir, Path(args.preview), prompts[0] if prompts else "p1")
    if args.array_record:
        store(args)


if __name__ == "__main__":
    flags.DEFINE_string("dataset", "", "A dataset of --list, or the path of a card (*.toml) of your own.")
    flags.DEFINE_string("raw", "", "The unpacked download, or the folder that holds it; it is only read.")
    flags.DEFINE_string("data_dir", "", "Receives the folder of the dataset.")
    flags.DEFINE_string("annotations", "", "Published annotation files, whose splits and prompts are taken over.")
    flags.DEFINE_string("splits", "", "A csv of image, split and group (a patient); else splits.csv in the download.")
    flags.DEFINE_integer("seed", 42, "Of splits that are drawn.", lower_bound=0)
    flags.DEFINE_integer("num_workers", None, "Processes; by default one for each core.", lower_bound=1)
    flags.DEFINE_enum("on_leak", "error", ON_LEAK, "When splits share a patient or an image: stop, keep or drop it.")
    flags.DEFINE_bool("per_class", False, "BKAI: an object for neoplastic and one for non-neoplastic polyps.")
    flags.DEFINE_integer("max_side", 0, "Shrink larger images to it, in pixels; 0 leaves them as found.", lower_bound=0)
    flags.DEFINE_enum(
        "format",
        "",
        ["", *FORMATS, *IMPORTERS],
        "Of the download; by default the card's importer, or found by looking.",
    )
    flags.DEFINE_bool("per_object", False, "A record for each annotation rather than one for each class of an image.")
    flags.DEFINE_list("channels", ["0"], "Of nnU-Net's images: one, or three that are shown as red, green and blue.")
    flags.DEFINE_string("empty_slices", "0", "Of each volume, so many slices without an object are kept; or all.")
    flags.DEFINE_integer("fold", None, "Of nnU-Net's splits_final.json, whose val becomes the split.", lower_bound=0)
    flags.DEFINE_bool("verify", False, "Check every image, mask and record of a prepared dataset or pool.")
    flags.DEFINE_string("prompt", "", "Prompt types that --verify asks of every record; the first is the one drawn.")
    flags.DEFINE_string("preview", "", "A picture file to draw: some images of each split, masks and sentences.")
    flags.DEFINE_string("duplicates", "", "A picture file to draw with --verify: images of two splits that look alike.")
    flags.DEFINE_string("array_record", "", "Also write a prepared dataset as ArrayRecord below this folder.")
    flags.DEFINE_integer("image_size", 0, "Side that --array_record stretches images to; 0 stores them as found.")
    flags.DEFINE_integer("num_shards", None, "Of each split in --array_record; by default one for every 128 records.")
    flags.DEFINE_bool("list", False, "Print all datasets, or everything about --dataset.")
    run_program(main)
