"""Which sentence of a record is used."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.language.grammars import (
    ALIASES,
    ATTRIBUTES,
    GENERAL,
    attributes_of,
    compose,
    descriptions_of,
    named_grammar,
)
from medvlsm_jax.errors import UserError

RANDOM = "random"
TEXT = "text:"
SUBSET = "attributes:"


def check_prompt(records: list[Record], prompt: str) -> None:
    """Raises a UserError when a record lacks the prompt type, or a dataset an attribute, before any work starts."""
    if prompt == RANDOM or prompt.startswith(TEXT):
        return
    if prompt.startswith(SUBSET):
        check_attributes(records, prompt)
        return
    for record in records:
        if not record.prompts.get(prompt) and prompt != "p0":
            raise UserError(
                f"{record.dataset}: the annotation of {record.image.name} has no prompt {prompt!r}; it has "
                f"{', '.join(sorted(record.prompts))}, besides them 'random', '{SUBSET}number,size,class' and "
                f"'{TEXT}ANY SENTENCE'"
            )


def check_attributes(records: list[Record], prompt: str) -> None:
    """Raises a UserError when the records of a dataset all lack an attribute that `attributes:…` names.

    A record that lacks one, as an empty mask has no location, just leaves it out.
    """
    wanted = parse_attributes(prompt)
    for dataset in dict.fromkeys(record.dataset for record in records):
        members = [record for record in records if record.dataset == dataset]
        grammar = members[0].card.grammar
        found = [
            name for name in named_grammar(grammar).attributes if any(has_attribute(record, name) for record in members)
        ]
        if missing := [name for name in wanted if name not in found]:
            raise UserError(
                f"{dataset}: no record has what --prompt={prompt} asks for ({', '.join(missing)}); grammar {grammar!r} "
                f"can tell {', '.join(found) or 'none'}: tools/make_prompts.py measures others or takes them from a csv"
            )


def has_attribute(record: Record, name: str) -> bool:
    """Whether a record has an attribute."""
    return bool(descriptions_of(record) if name == GENERAL else attributes_of(record).get(name))


@functools.lru_cache
def parse_attributes(prompt: str) -> tuple[str, ...]:
    """The attributes that the prompt type `attributes:A,B,…` names; raises UserError when it names another."""
    names = [name.strip() for name in prompt.removeprefix(SUBSET).split(",")]
    names = [ALIASES.get(name, name) for name in names]
    if unknown := [name for name in names if name not in ATTRIBUTES]:
        raise UserError(f"--prompt={prompt}: {unknown[0]!r} is no attribute; there are {', '.join(ATTRIBUTES)}")
    return tuple(names)


def choose_prompt(record: Record, prompt: str, rng: np.random.Generator | None = None) -> str:
    """The sentence of a record for a prompt type.

    Args:
        record: the record.
        prompt: `p0` … `p9` or another key of the annotations; `random` draws a type from p1 on, then a phrasing;
            `attributes:A,B,…` tells those of its attributes, in the order of its dataset's grammar; `text:A SENTENCE`
            is that sentence for every record.
        rng: draws among phrasings in training; without it (evaluation) the first phrasing is taken, and `random` means
            the last, most detailed type.
    """
    phrasings = find_phrasings(record, prompt, rng)
    return phrasings[0 if rng is None or len(phrasings) == 1 else int(rng.integers(len(phrasings)))]


def find_phrasings(record: Record, prompt: str, rng: np.random.Generator | None = None) -> tuple[str, ...]:
    """All phrasings, at least one, of a record's sentence for a prompt type; `rng` draws the type of `random`."""
    if prompt.startswith(TEXT):
        return (prompt.removeprefix(TEXT),)
    if prompt == RANDOM:
        types = numbered_types(record)
        if not types:
            return ("",)
        prompt = types[-1 if rng is None else int(rng.integers(len(types)))]
    phrasings = record.prompts.get(prompt, "")
    if prompt.startswith(SUBSET):
        words, names = attributes_of(record), parse_attributes(prompt)
        phrasings = compose(record.card.grammar, words, names, descriptions_of(record))
    return (phrasings,) if isinstance(phrasings, str) else tuple(phrasings) or ("",)


def all_sentences(records: Sequence[Record], prompt: str) -> Iterator[str]:
    """Every sentence that a prompt type can give the records in training."""
    for record in records:
        types = numbered_types(record) if prompt == RANDOM else [prompt]
        for kind in types:
            yield from find_phrasings(record, kind)


def numbered_types(record: Record) -> list[str]:
    """The types p1, p2, … that a record has."""
    return sorted(key for key, value in record.prompts.items() if value and is_numbered(key) and key != "p0")


def is_numbered(key: str) -> bool:
    """Whether a key is one of the paper's types p0 … p9."""
    return key[:1] == "p" and key[1:].isdigit()


def split_prompts(text: str) -> list[str]:
    """Prompt types between commas; `attributes:` keeps the names after it, `text:` all that follows."""
    types, marker, sentence = text.partition(TEXT)
    prompts: list[str] = []
    for item in filter(None, types.split(",")):
        is_new = is_numbered(item) or item == RANDOM or item.startswith(SUBSET)
        if prompts and prompts[-1].startswith(SUBSET) and not is_new:
            prompts[-1] += f",{item}"
        else:
            prompts.append(item)
    return prompts + ([TEXT + sentence] if marker else [])
