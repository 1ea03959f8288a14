"""Under which sentences a set of records is evaluated: prompt types, all their phrasings, or perturbed sentences."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.language.mirror import mirrored_sentence
from medvlsm_jax.data.language.perturbations import perturb
from medvlsm_jax.data.language.prompts import choose_prompt, find_phrasings
from medvlsm_jax.errors import UserError

SENTENCES, FLIPS = "sentences", "flips"  # what an ensemble may be made of
JOIN = "+"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to ask for all records of a set.

    Attributes:
        sentences: one a record.
        weights: how much the answer counts for each record, in the mean over several variants.
        is_mirrored: whether the sentences are about the images with left and right exchanged.
    """

    sentences: Sequence[str]
    weights: Sequence[float]
    is_mirrored: bool = False


Conditions = dict[str, list[Variant]]  # name -> what is averaged


def split_ensemble(ensemble: str) -> tuple[str, ...]:
    """The parts of `--ensemble`; raises UserError when one is not known."""
    parts = tuple(filter(None, ensemble.split(JOIN)))
    if unknown := [part for part in parts if part not in (SENTENCES, FLIPS)]:
        raise UserError(f"--ensemble={ensemble}: {unknown[0]!r} is not known; give {SENTENCES}, {FLIPS} or both, by +")
    return parts


def prompt_conditions(records: Sequence[Record], prompts: Sequence[str], ensemble: Sequence[str] = ()) -> Conditions:
    """A condition for each prompt type: its first phrasing, or the mean over what the ensemble names.

    `sentences` averages over all phrasings of a record; `flips` over the image and its mirror image, whose sentence has
    left and right exchanged.
    """
    return {prompt: prompt_variants(records, prompt, ensemble) for prompt in prompts}


def prompt_variants(records: Sequence[Record], prompt: str, ensemble: Sequence[str]) -> list[Variant]:
    """What is averaged for one prompt type; weights of a record add up to 1."""
    phrasings = [find_phrasings(record, prompt) for record in records]
    if SENTENCES not in ensemble:
        phrasings = [several[:1] for several in phrasings]
    flips = (False, True) if FLIPS in ensemble else (False,)
    variants = []
    for i in range(max(map(len, phrasings))):
        sentences = [several[min(i, len(several) - 1)] for several in phrasings]
        weights = [(i < len(several)) / (len(several) * len(flips)) for several in phrasings]
        variants.append(Variant(sentences, weights))
        if FLIPS in ensemble:
            mirrored = [mirrored_sentence(*pair) for pair in zip(records, sentences, strict=True)]
            variants.append(Variant(mirrored, weights, is_mirrored=True))
    return variants


def perturbed_conditions(records: Sequence[Record], prompt: str) -> Conditions:
    """A condition for each perturbation of the sentences of one dataset's records, by its name.

    Records whose sentence it leaves as it is have no weight.
    """
    right = [choose_prompt(record, prompt) for record in records]
    return {
        name: [
            Variant(
                [r if s is None else s for s, r in zip(sentences, right, strict=True)],
                [float(s is not None) for s in sentences],
            )
        ]
        for name, sentences in perturb(records, prompt).items()
    }


def is_asked(variants: Sequence[Variant], index: int) -> bool:
    """Whether a record is evaluated under a condition."""
    return any(variant.weights[index] > 0 for variant in variants)


def sentence_of(variants: Sequence[Variant], index: int) -> str:
    """The sentences that a record is given under a condition."""
    asked = (v.sentences[index] for v in variants if v.weights[index] > 0 and not v.is_mirrored)
    return " | ".join(dict.fromkeys(asked))


def lines_before(conditions: Conditions, count: int, batch_size: int) -> list[int]:
    """How many lines of cases.csv come before each batch of a dataset's records, and behind the last one."""
    asked = [sum(is_asked(variants, i) for variants in conditions.values()) for i in range(count)]
    ends = [*range(0, count, batch_size), count]
    return [0, *np.add.accumulate([sum(asked[a:b]) for a, b in itertools.pairwise(ends)]).tolist()]
