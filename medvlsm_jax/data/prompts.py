"""Which sentence of a record is used."""

import numpy as np

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.errors import UserError

RANDOM = "random"
TEXT = "text:"


def check_prompt(records: list[Record], prompt: str) -> None:
    """Raises a UserError when a record lacks the prompt type, before any work starts."""
    if prompt == RANDOM or prompt.startswith(TEXT):
        return
    for record in records:
        if not record.prompts.get(prompt) and prompt != "p0":
            raise UserError(
                f"{record.dataset}: the annotation of {record.image.name} has no prompt {prompt!r}; it has "
                f"{', '.join(sorted(record.prompts))}, besides them 'random' and '{TEXT}ANY SENTENCE'"
            )


def choose_prompt(record: Record, prompt: str, rng: np.random.Generator | None = None) -> str:
    """The sentence of a record for a prompt type.

    Args:
        record: the record.
        prompt: `p0` … `p9` or another key of the annotations; `random` draws a type from p1 on, then a phrasing;
            `text:A SENTENCE` is that sentence for every record.
        rng: draws among phrasings in training; without it (evaluation) the first phrasing is taken, and `random` means
            the last, most detailed type.
    """
    if prompt.startswith(TEXT):
        return prompt.removeprefix(TEXT)
    if prompt == RANDOM:
        types = sorted(key for key, value in record.prompts.items() if value and is_numbered(key) and key != "p0")
        if not types:
            return ""
        prompt = types[-1 if rng is None else int(rng.integers(len(types)))]
    phrasings = record.prompts.get(prompt, "")
    if isinstance(phrasings, str):
        return phrasings
    return phrasings[0 if rng is None else int(rng.integers(len(phrasings)))]


def is_numbered(key: str) -> bool:
    """Whether a key is one of the paper's types p0 … p9."""
    return key[:1] == "p" and key[1:].isdigit()
