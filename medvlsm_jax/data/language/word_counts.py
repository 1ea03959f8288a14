"""How many examples stand behind each class and each word of a dataset's sentences."""

from collections import Counter
from collections.abc import Sequence

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.language.grammars import GENERAL, attributes_of, named_grammar
from medvlsm_jax.text import listed, table

FEW = 10  # examples from which a word is hardly learnt
SHOWN = 8  # words of an attribute in the table


def count_words(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Attribute -> word -> how many records have it, of the attributes that their sentences tell.

    A record that has several sizes or places counts for each of them once.
    """
    found: dict[str, Counter[str]] = {}
    for record in records:
        words = attributes_of(record)
        for name in named_grammar(record.card.grammar).attributes:
            if name != GENERAL and words.get(name):
                several = [words[name]] if name == "class" else words[name].split(", ")
                found.setdefault(name, Counter()).update(dict.fromkeys(several, 1))
    return found


def counts_table(records: Sequence[Record]) -> str:
    """The counts for the terminal, the most frequent words first, and which have few examples; empty without words."""
    counts = count_words(records)
    if not counts:
        return ""
    lines = [["attribute", "words and their training examples"]]
    for name, words in counts.items():
        lines.append([name, listed((f"{word} {count}" for word, count in words.most_common()), SHOWN)])
    width = max(len(cells) for _, cells in lines)
    text = table([[name, cells.ljust(width)] for name, cells in lines])
    few = [f"{name} {word!r} {count}" for name, words in counts.items() for word, count in words.items() if count < FEW]
    if few:
        text += f"\nwarning: fewer than {FEW} training examples stand behind {listed(few, SHOWN)}"
    return "\n".join(line.rstrip() for line in text.splitlines())
