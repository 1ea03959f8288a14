r"""Makes the prompts of a dataset: words measured on its masks and images, sentences from these words.

    python tools/make_prompts.py --dataset=busi --data_dir=DATA
    python tools/make_prompts.py --dataset=isic --data_dir=DATA --attributes=words.csv --descriptions=sentences.json
    python tools/make_prompts.py --dataset=kvasir_polyp --data_dir=DATA --keep=shape,color,general
    python tools/make_prompts.py --dataset=kvasir_polyp --data_dir=DATA --compare --output=differences.csv

Writes DATA/DATASET/anns/{train,val,test}.json; annotations of other origin that were there stay in anns.published/. The
csv has a column mask (or image) with file names and a column for each attribute that it gives; its words replace the
measured ones. The json holds general descriptions: a list, or a list for each class. --compare writes no annotations:
it shows how often the words agree with the published ones, and where they differ.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from medvlsm_jax import atomic
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.cards import SPLITS, Card, named_card
from medvlsm_jax.data.language.attributes import MEASURED
from medvlsm_jax.data.language.grammars import ALIASES, named_grammar
from medvlsm_jax.data.language.word_counts import counts_table
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.preparing.annotate import KEEPABLE, Described, annotate, describe_records
from medvlsm_jax.data.preparing.overrides import read_descriptions_file, read_overrides
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import local_folder, output_file
from medvlsm_jax.lease import holding
from medvlsm_jax.text import table

SHOWN = 20  # differences printed for an attribute; --output has them all


class Pair(NamedTuple):
    """A word of a record and the published one; empty where there is none."""

    attribute: str
    image: str
    mask: str
    measured: str
    published: str


def find_pairs(described: Sequence[Described], card: Card) -> list[Pair]:
    """The words that masks and images tell, beside the published ones, attribute by attribute."""
    told = named_grammar(card.grammar).attributes
    pairs = [
        Pair(
            name, item.row.image, item.row.mask, item.attributes.get(name, ""), item.published.attributes.get(name, "")
        )
        for name in MEASURED
        for item in described
        if item.published and name in told
    ]
    return [pair for pair in pairs if pair.measured or pair.published]


def report(pairs: Sequence[Pair]) -> str:
    """How often the words agree, then the first that differ."""
    rows, lines = [["attribute", "n", "agree", "%"]], []
    for name in dict.fromkeys(pair.attribute for pair in pairs):
        group = [pair for pair in pairs if pair.attribute == name]
        differing = [pair for pair in group if pair.measured != pair.published]
        agree = len(group) - len(differing)
        rows.append([name, str(len(group)), str(agree), f"{100 * agree / len(group):.1f}"])
        lines += [
            f"{name} of {pair.mask}: {pair.measured!r}, published {pair.published!r}" for pair in differing[:SHOWN]
        ]
        lines += [f"{name}: {len(differing) - SHOWN} more"] if len(differing) > SHOWN else []
    return "\n".join([table(rows), *lines])


def compare(described: Sequence[Described], card: Card, output: str) -> None:
    """Prints how the words agree with the published ones, and writes all that differ to a csv if asked for."""
    pairs = find_pairs(described, card)
    if not pairs:
        raise UserError(f"--compare: {card.name} has no published annotations")
    print(report(pairs))
    if output:
        differing = [pair for pair in pairs if pair.measured != pair.published]
        atomic.write_csv(Path(output).expanduser(), [Pair._fields, *differing])
        print(f"all differences are written to {output}")


def check_output(output: str, inputs: Sequence[str]) -> None:
    """Raises a UserError when the csv of differences cannot be written, or would replace what is read."""
    if output and output_file("--output", output) in [Path(name).expanduser() for name in inputs if name]:
        raise UserError(f"--output={output} is read as well: give another file")


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    card, folder = named_card(args.dataset), local_folder("--data_dir", args.data_dir)
    if card.members:
        raise UserError(f"--dataset={args.dataset} is a pool: make the prompts of its datasets one by one")
    folder /= card.name
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist: --data_dir holds a folder for each dataset, tools/prepare_data.py makes it"
        )
    keep = [ALIASES.get(name, name) for name in args.keep]
    if unknown := [name for name in keep if name not in KEEPABLE]:
        raise UserError(f"--keep={unknown[0]}: choose among {', '.join(KEEPABLE)}")
    overrides = read_overrides(Path(args.attributes).expanduser()) if args.attributes else None
    descriptions = read_descriptions_file(Path(args.descriptions).expanduser()) if args.descriptions else None
    options = {"workers": args.num_workers, "overrides": overrides, "keep": keep, "true_thirds": args.true_thirds}
    if args.compare:
        check_output(args.output, (args.attributes, args.descriptions))
        compare(describe_records(folder, card, **options), card, args.output)
        return
    with holding("--data_dir", folder):
        counts = annotate(folder, card, descriptions=descriptions, **options)
    print(f"{', '.join(f'{split} {counts[split]}' for split in SPLITS)} records written to {folder / 'anns'}")
    if text := counts_table(load_records(args.data_dir, args.dataset, "train", is_required=False)):
        print(text)


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "A dataset, or the path of a card (*.toml) of your own.")
    flags.DEFINE_string("data_dir", None, "Holds the folder of the dataset.")
    flags.DEFINE_string("attributes", "", "A csv with words of your own.")
    flags.DEFINE_string("descriptions", "", "A json with general descriptions of your own, for p7 to p9.")
    flags.DEFINE_list("keep", [], f"Keep the published words of these: {', '.join(KEEPABLE)}.")
    flags.DEFINE_bool(
        "true_thirds", False, "Part the width in its own thirds, not the height's as the published prompts do."
    )
    flags.DEFINE_bool("compare", False, "Write no annotations; show how the words agree with the published ones.")
    flags.DEFINE_string("output", "", "With --compare: a csv of all differences.")
    flags.DEFINE_integer("num_workers", None, "Processes; by default one for each core.", lower_bound=1)
    flags.mark_flags_as_required(["dataset", "data_dir"])
    run_program(main)
