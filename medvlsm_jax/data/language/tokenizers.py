"""Sentences to token ids, with a Hugging Face tokenizer from a hub id or a folder, or the built-in one."""

import contextlib
import os
import string
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from medvlsm_jax import hub
from medvlsm_jax.data.synthetic import vocabulary
from medvlsm_jax.errors import UserError

# One sentence at a time, from grain's threads: the library's own thread pool would only warn about them.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

BUILTIN = "builtin"
LOCK = threading.Lock()  # of all backends: tokenizers travel to other processes, locks do not
# Of the paper's attributes, so that its prompts are whole words to the built-in tokenizer.
PAPER_WORDS = """
polyp polyps foot ulcer skin melanoma tumor tumors left ventricular cavity myocardium atrium benign malignant
one two three four five six seven eight nine ten tiny small medium large round oval circle rectangle square
triangle irregular regular shaped red pink white yellow brown black green blue purple orange grey located in
of the image top bottom left right center no breast ultrasound chest xray at and which is a an with view
chamber heart end cycle diastole systole female male year old good medium poor quality
twenty thirty forty fifty sixty seventy eighty ninety atrial shape frontal lateral findings airspace atelectasis
cardiomegaly consolidation edema enlarged cardiomediastinum lesion lung devices support effusion pleural
pneumothorax often tissue growth small lump colon abnormal spot wound skin surface projecting
"""


class Tokenizer:
    """A tokenizer with a fixed length; sentences that repeat are tokenised once.

    Padding is `pad_token_id`, or the backend's own where it is None.
    """

    def __init__(self, backend: Any, context_length: int, pad_token_id: int | None = None):
        self.backend = backend
        self.context_length = context_length
        self.pad_token_id = pad_token_id
        self.cache: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.is_cut_said = False

    def check(self, vocab_size: int, eos_token_id: int | None) -> None:
        """Raises UserError when the tokenizer is not the one that a text encoder was built for.

        An encoder that looks for no end token (BERT) has the `eos_token_id` None.
        """
        is_other_end = eos_token_id is not None and self.backend.eos_token_id != eos_token_id
        if len(self.backend) > vocab_size or is_other_end:
            raise UserError(
                f"the tokenizer (vocabulary {len(self.backend)}, end token {self.backend.eos_token_id}) does not fit "
                f"the model (vocabulary {vocab_size}, end token {eos_token_id}): pass its own with --config.tokenizer"
            )

    def __call__(self, sentence: str) -> tuple[Int32[np.ndarray, " t"], Int32[np.ndarray, " t"]]:
        """Ids and attention mask (1 for tokens, 0 for padding), cut and padded to the context length.

        The first sentence that is cut is said, unless `say_cut` has been asked about all of them.
        """
        if sentence not in self.cache:
            if not self.is_cut_said and self.count_tokens(sentence) > self.context_length:
                self.say_cut([sentence])
            encoded = self.encode(sentence, padding="max_length", truncation=True, max_length=self.context_length)
            ids, mask = encoded["input_ids"], encoded["attention_mask"]
            ids, mask = np.asarray(ids, np.int32), np.asarray(mask, np.int32)
            if self.pad_token_id is not None:
                ids = np.where(mask > 0, ids, np.int32(self.pad_token_id))
            self.cache[sentence] = ids, mask
        return self.cache[sentence]

    def count_tokens(self, sentence: str) -> int:
        """How many tokens a whole sentence has, with those of start and end; not counted where they surely fit."""
        most = len(sentence.encode()) + 2
        return most if most <= self.context_length else len(self.encode(sentence, verbose=False)["input_ids"])

    def encode(self, sentence: str, **options: Any) -> Any:
        """What the backend makes of a sentence; one thread at a time, for it keeps the options that it was given."""
        with LOCK:
            return self.backend(sentence, **options)

    def say_cut(self, sentences: Iterable[str], *, is_shown: bool = True) -> None:
        """Prints how many of all sentences of a run are cut, and the longest of them, which then is not said again."""
        self.is_cut_said = True
        if not is_shown:
            return
        distinct = set(sentences)
        lengths = {sentence: self.count_tokens(sentence) for sentence in distinct}
        cut = [sentence for sentence in distinct if lengths[sentence] > self.context_length]
        if cut:
            longest = max(cut, key=lambda sentence: (lengths[sentence], sentence))
            print(
                f"warning: {len(cut)} of {len(distinct)} sentences are cut, for the network reads "
                f"{self.context_length} tokens: the longest has {lengths[longest]}, {longest!r}"
            )

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer's files, so that a checkpoint needs no hub."""
        self.backend.save_pretrained(str(folder))


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """While transformers is imported: without its advice to install PyTorch, which its tokenizers do without.

    Its warnings come all the same, and its advice too once it is imported.
    """
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def load_tokenizer(name: str, context_length: int, pad_token_id: int | None = None) -> Tokenizer:
    """A tokenizer by hub id or folder, or `builtin`, which needs no download; padding as `Tokenizer` has it.

    Raises:
        UserError: the folder holds no tokenizer, or the hub cannot be reached.
    """
    if name == BUILTIN:
        return Tokenizer(builtin_tokenizer(), context_length, pad_token_id)
    with without_advice():
        from transformers import AutoTokenizer

    try:
        is_local = Path(name).is_dir() or not hub.is_reachable()
        backend = AutoTokenizer.from_pretrained(name, local_files_only=is_local)
        if len(backend) <= len(backend.all_special_ids):
            raise ValueError("it has no vocabulary")
        return Tokenizer(backend, context_length, pad_token_id)
    except Exception as error:  # the tokenizers library raises bare ones for broken files
        raise UserError(
            f"cannot load the tokenizer {name!r}: pass --config.tokenizer=FOLDER that holds its files (CLIP: "
            "vocab.json, merges.txt, tokenizer_config.json; BERT: vocab.txt, tokenizer_config.json), or use a machine "
            "that reaches the Hugging Face hub"
        ) from error


def builtin_tokenizer() -> Any:
    """A WordPiece tokenizer over the sample's and the paper's words; other words are spelt letter by letter."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, processors

    with without_advice():
        from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[BOS]", "[UNK]", "[EOS]"]  # Hugging Face's CLIP takes an end token of 2 for something else
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = sorted({*vocabulary(), *PAPER_WORDS.split()} - set(characters))
    tokens = [*special, *characters, *(f"##{c}" for c in characters), *words]
    backend = Backend(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]", unk_token="[UNK]"
    )
