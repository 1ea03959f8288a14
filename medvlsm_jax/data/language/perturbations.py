"""Wrong sentences for right images: what a model that listens must stumble over, and one that does not will not notice.

Every perturbation breaks one thing: a word, the order of the words, the pairing of images and sentences, or all of it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.arrayrecord import image_path
from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.language.attributes import NONE
from medvlsm_jax.data.language.grammars import (
    ATTRIBUTES,
    GENERAL,
    attributes_of,
    compose,
    descriptions_of,
    first,
    named_grammar,
)
from medvlsm_jax.data.language.prompts import SUBSET, TEXT, choose_prompt, parse_attributes

CENTER = "center"
CORNERS = ("top left", "top right", "bottom left", "bottom right")
OPPOSITES = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
# Words of the published annotations that say the same as another of them.
SAME = {
    **{"round": "circle", "circular": "circle", "triangular": "triangle", "rectangular": "rectangle"},
    **{"ovoid": "oval", "grey": "gray"},
}

Labels = Int[np.ndarray, "2 n"]  # numbers of each record's sentence, and of its image
Places = Int[np.ndarray, "n"]  # of records
Words = Mapping[str, str]  # attribute -> word
Counts = Mapping[str, int]  # word -> how often it occurs


def perturb(records: Sequence[Record], prompt: str, seed: int = 0) -> dict[str, list[str | None]]:
    """Wrong sentences for the records of one dataset, whose right ones are those of `choose_prompt`.

    - `none`: the empty sentence.
    - `shuffled`: its words in another order.
    - `other_image`: the sentence of a record of another image; those given are, all together, those taken away.
    - `wrong_class`, `wrong_location`, …: another word for one attribute that the sentence tells, all else as it was.

    Args:
        records: of one dataset.
        prompt: what `choose_prompt` understands; `random` is as in evaluation.
        seed: of all draws, which depend on it and on a record's place alone.

    Returns:
        Perturbation -> a sentence for each record, None where it would leave the sentence as it is or cannot be made;
        a perturbation that changes no record's sentence is left out.
    """
    right = [choose_prompt(record, prompt) for record in records]
    told = [told_words(record, prompt, sentence) for record, sentence in zip(records, right, strict=True)]
    found: dict[str, list[str | None]] = {
        "none": ["" if sentence else None for sentence in right],
        "shuffled": [shuffle(sentence, generator(seed, i)) for i, sentence in enumerate(right)],
        "other_image": other_sentences(right, [image_path(record) for record in records], seed),
    }
    for attribute in ATTRIBUTES:
        found[f"wrong_{attribute}"] = wrong_sentences(records, right, told, attribute, seed)
    return {name: sentences for name, sentences in found.items() if any(text is not None for text in sentences)}


def generator(seed: int, index: int) -> np.random.Generator:
    """The draws for the record at a place."""
    return np.random.default_rng([seed, index])


# --- All words, or the pairing ---------------------------------------------------------------------------------------


def shuffle(sentence: str, rng: np.random.Generator) -> str | None:
    """The words of a sentence in another order; None where there is no other."""
    words = sentence.split()
    if len(set(words)) < 2:
        return None
    while (drawn := [words[i] for i in rng.permutation(len(words))]) == words:
        pass
    return " ".join(drawn)


def other_sentences(sentences: Sequence[str], images: Sequence[str], seed: int) -> list[str | None]:
    """For each record the different sentence of a record of another image.

    The sentences change places, so those that are given are those that are taken away; records that find no partner,
    as where most have the same sentence, have None.
    """
    labels = np.stack([np.unique(np.array(names, str), return_inverse=True)[1] for names in (sentences, images)])
    given = exchange(labels, np.random.default_rng(seed))
    return [sentences[int(j)] if i != j else None for i, j in enumerate(given)]


def exchange(labels: Labels, rng: np.random.Generator) -> Places:
    """A random partner for each record, everyone's only once; who does not fit changes with another if both then fit.

    A change is possible whenever no sentence and no image has more than about half of the records. Who still does not
    fit leaves the round, and the others close the gap; two of those that left may change with each other, and the rest
    are their own partners.
    """
    places = np.arange(labels.shape[1])
    given = rng.permutation(places)
    for i in np.flatnonzero(~fits(labels, places, given)):
        others = np.flatnonzero(fits(labels, i, given) & fits(labels, places, given[i]))
        if len(others) and not fits(labels, i, given[i]):  # an earlier change may have helped it already
            j = rng.choice(others)
            given[[i, j]] = given[[j, i]]
    while len(misfits := np.flatnonzero(~fits(labels, places, given) & (given != places))):
        i = misfits[0]
        given[given == i], given[i] = given[i], i
    for i in np.flatnonzero(given == places):
        others = np.flatnonzero((given == places) & fits(labels, i, places))
        if len(others) and given[i] == i:
            j = rng.choice(others)
            given[[i, j]] = j, i
    return given


def fits(labels: Labels, records: Places | np.integer, partners: Places | np.integer) -> Any:
    """Where a record and its partner have another sentence and another image."""
    sentences, images = labels
    return (sentences[records] != sentences[partners]) & (images[records] != images[partners])


# --- One word --------------------------------------------------------------------------------------------------------


def told_words(record: Record, prompt: str, sentence: str) -> Words:
    """The words that a record's sentence tells, by attribute; none of an empty sentence or one given by `text:`."""
    words = attributes_of(record)
    if not sentence or prompt.startswith(TEXT):
        return {}
    names = ("number", "class") if words.get("number") == NONE else told_names(record, prompt, sentence)
    return {name: words[name] for name in names if words.get(name)}


def told_names(record: Record, prompt: str, sentence: str) -> Sequence[str]:
    """The attributes that a prompt type can tell; of a type that the grammar does not have, all."""
    if prompt.startswith(SUBSET):
        return parse_attributes(prompt)
    grammar = named_grammar(record.card.grammar)
    if prompt in grammar.types:
        return grammar.types[prompt]
    same = [names for kind, names in grammar.types.items() if first(record.prompts.get(kind)) == sentence]  # `random`
    return same[-1] if same else grammar.attributes


def wrong_sentences(
    records: Sequence[Record], sentences: Sequence[str], told: Sequence[Words], attribute: str, seed: int
) -> list[str | None]:
    """The sentences with another word for one attribute; None where a sentence does not tell it."""
    counts = Counter(words[attribute] for words in told if attribute in words)
    choices: dict[str, Counts] = {}
    found: list[str | None] = []
    for i, (record, sentence, words) in enumerate(zip(records, sentences, told, strict=True)):
        if not (word := words.get(attribute)):
            found.append(None)
            continue
        if word not in choices:
            choices[word] = other_words(attribute, word, counts, record.card)
        wrong = draw_word(attribute, word, choices[word], generator(seed, i))
        found.append(change_word(record, sentence, words, attribute, wrong) if wrong else None)
    return found


def other_words(attribute: str, word: str, counts: Counts, card: Card) -> Counts:
    """What may stand for a word: those that occur in its place, rather none that says a part of the same.

    Where the records have but one class, it is another of the card's, or of another dataset's; where they have but one
    number, "two" or "one".
    """
    different = {other: n for other, n in counts.items() if other != NONE and parts(other) != parts(word)}
    if attribute == "class" and not different:
        known = [target for other in CARDS.values() for target in other.targets]
        own, foreign = ([name for name in names if not parts(name) <= parts(word)] for names in (card.targets, known))
        return dict.fromkeys(own or foreign[:1], 1)
    if attribute == "number" and not different:
        return {"two" if word == "one" else "one": 1}
    apart = {other: n for other, n in different.items() if not parts(other) & parts(word)}
    return different if attribute == "class" else apart or different


def parts(word: str) -> frozenset[str]:
    """What a word says, in whatever order: "top left, center" is top, left and center."""
    return frozenset(SAME.get(part, part) for part in word.lower().replace(",", " ").split())


def draw_word(attribute: str, word: str, choices: Counts, rng: np.random.Generator) -> str | None:
    """The wrong word for a word: the opposite of a place, else one of the choices as often as it occurs."""
    if attribute == "location" and (place := opposite(word, rng)):
        return place
    if not choices:
        return None
    counts = np.array(list(choices.values()), np.float64)
    return str(rng.choice(list(choices), p=counts / counts.sum()))


def opposite(location: str, rng: np.random.Generator) -> str | None:
    """The places across, of the centre a corner; None where that is a place of the old ones, as for "left, right"."""
    places = location.split(", ")
    across = [
        str(rng.choice(CORNERS)) if place == CENTER else " ".join(OPPOSITES.get(word, word) for word in place.split())
        for place in places
    ]
    return None if set(across) & set(places) else ", ".join(across)


def change_word(record: Record, sentence: str, told: Words, attribute: str, word: str) -> str | None:
    """The sentence with another word for one attribute; None where the old one is not to be found.

    It is composed anew where the dataset's grammar has the very sentence, for a word may change its neighbours ("two
    tumors"); else the old word is replaced if it stands there once.
    """
    names = [*told, GENERAL]
    for descriptions in ((), descriptions_of(record)):
        phrasings = compose(record.card.grammar, told, names, descriptions)
        if sentence in phrasings:
            changed = compose(record.card.grammar, {**told, attribute: word}, names, descriptions)
            return changed[phrasings.index(sentence)]
    return replace_word(sentence, told[attribute], word)


def replace_word(sentence: str, old: str, new: str) -> str | None:
    """The sentence with one word for another, in the old one's case; None unless it stands there once, and whole."""
    found = list(re.finditer(rf"(?<![\w-]){re.escape(old)}(?![\w-])", sentence, re.IGNORECASE))
    if len(found) != 1:
        return None
    start, end = found[0].span()
    return sentence[:start] + in_case_of(sentence[start:end], new) + sentence[end:]


def in_case_of(model: str, word: str) -> str:
    """A word with capitals where the model has them: on its first letter, on all its words, or nowhere."""
    if " " in model and model.istitle():
        return word.title()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
