"""The built-in tokenizer and CLIP's."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medvlsm_jax.data.language.tokenizers import PAPER_WORDS, Tokenizer, load_tokenizer
from medvlsm_jax.data.synthetic import vocabulary
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import PRESETS


@pytest.fixture(scope="module")
def builtin() -> Tokenizer:
    return load_tokenizer("builtin", 16)


@pytest.fixture
def clip(shared) -> Tokenizer:
    return load_tokenizer(str(shared / "tokenizers" / "clip"), 77)


def words_of(tokenizer: Tokenizer, sentence: str) -> list[str]:
    """The tokens between beginning and end."""
    ids, mask = tokenizer(sentence)
    return tokenizer.backend.convert_ids_to_tokens(ids[mask.astype(bool)])[1:-1]


def published_sentences(shared) -> list[str]:
    """Every thousandth of the distinct sentences in the published annotations."""
    sentences = set()
    for path in sorted((shared / "annotations").glob("*/test.json")):
        for record in json.loads(path.read_text()):
            for value in record["prompts"].values():
                sentences |= {value} if isinstance(value, str) else set(value)
    return sorted(sentences)[::23]


@pytest.mark.parametrize("word", sorted({*vocabulary(), *PAPER_WORDS.split()}))
def test_the_samples_and_the_papers_words_are_whole_tokens(builtin, word):
    assert words_of(builtin, word) == [word]


def test_the_papers_sentences_have_no_unknown_words(builtin, shared):
    for sentence in published_sentences(shared):
        assert "[UNK]" not in words_of(builtin, sentence)


def test_punctuation_and_capitals_do_not_hide_a_word(builtin):
    assert words_of(builtin, "One POLYP, located (left).") == ["one", "polyp", ",", "located", "(", "left", ")", "."]


def test_words_that_it_has_never_seen_stay_apart(builtin):
    first, second = (words_of(builtin, word) for word in ("cardiomegaly", "cardiomyopathy"))
    assert "".join(first).replace("##", "") == "cardiomegaly"
    assert first != second


def test_sentences_have_a_fixed_length(builtin):
    for sentence in ("", "polyp", "one small polyp " * 40):
        ids, mask = builtin(sentence)
        assert (ids.shape, mask.shape, ids.dtype, mask.dtype) == ((16,), (16,), np.int32, np.int32)
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert (ids[mask == 0] == builtin.backend.pad_token_id).all()


@pytest.mark.parametrize("sentence", ["", "polyp", "one small polyp " * 40])
def test_every_sentence_ends_with_the_end_token(builtin, sentence):
    ids, mask = builtin(sentence)
    assert ids[mask.sum() - 1] == builtin.backend.eos_token_id
    assert (ids == builtin.backend.eos_token_id).sum() == 1


def test_clip_keeps_the_end_token_when_it_cuts(clip):
    ids, mask = clip("polyp " * 200)
    assert (ids[0], ids[-1], mask.sum()) == (49406, 49407, 77)
    assert ids[-2] != 49407


def test_clip_is_transformers_clip_tokenizer(clip, shared):
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(shared / "tokenizers" / "clip")
    sentences = published_sentences(shared)
    assert len(sentences) > 200
    for sentence in [*sentences, "", "  Two   SPACES ", "naïve café 息肉 🙂 isn't 3.5x"]:
        expected = reference(sentence, padding="max_length", truncation=True, max_length=77)
        ids, mask = clip(sentence)
        assert ids.tolist() == expected["input_ids"], sentence
        assert mask.tolist() == expected["attention_mask"], sentence


def test_clip_gives_the_originals_tokens(clip, parity):
    golden = np.load(parity / "clipseg" / "golden.npz")
    prompts = json.loads((parity / "clipseg" / "meta.json").read_text())["prompts"]
    ids, masks = zip(*map(clip, prompts), strict=True)
    np.testing.assert_array_equal(ids, golden["input_ids"])
    np.testing.assert_array_equal(masks, golden["attention_mask"])


def test_a_saved_tokenizer_gives_the_same_tokens(builtin, tmp_path):
    builtin.save(tmp_path)
    again = load_tokenizer(str(tmp_path), 16)
    for sentence in ("", "one small polyp", "cardiomegaly"):
        np.testing.assert_array_equal(again(sentence), builtin(sentence))
    again.check(len(builtin.backend), builtin.backend.eos_token_id)


def test_repeated_sentences_are_tokenised_once(builtin):
    assert builtin("one polyp")[0] is builtin("one polyp")[0]


def test_threads_that_count_and_cut_at_once_get_their_own_lengths():
    tokenizer = load_tokenizer("builtin", 8)  # which keeps the options that it was last given
    sentences = [f"one small polyp number {i} at the top of the image" for i in range(400)]
    tokenizer.is_cut_said = True

    def encode(i: int) -> tuple[int, ...] | None:
        if i % 2:
            return tuple(len(x) for x in tokenizer(sentences[i]))
        assert tokenizer.count_tokens(sentences[i]) > 8
        return None

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(encode, range(len(sentences))))
    assert found == {None, (8, 8)}


def test_the_tiny_preset_fits_the_built_in_tokenizer():
    config = PRESETS["clipseg_tiny"][1]
    load_tokenizer(config.tokenizer, config.text.context_length).check(config.text.vocab_size, config.text.eos_token_id)


def test_the_full_preset_fits_clips_tokenizer(clip):
    clip.check(PRESETS["clipseg"][1].text.vocab_size, PRESETS["clipseg"][1].text.eos_token_id)


@pytest.mark.parametrize(("vocab_size", "end"), [(100, 2), (49408, 49407)])
def test_a_tokenizer_of_another_vocabulary_is_refused(builtin, vocab_size, end):
    with pytest.raises(
        UserError, match=rf"does not fit the model \(vocabulary {vocab_size}, end token {end}\)"
    ) as error:
        builtin.check(vocab_size, end)
    assert "--config.tokenizer" in str(error.value)


@pytest.mark.parametrize("files", [{}, {"tokenizer.json": "{"}, {"notes.txt": "hello"}])
def test_a_folder_without_a_tokenizer_names_the_flag(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        load_tokenizer(str(tmp_path), 77)
    assert f"cannot load the tokenizer {str(tmp_path)!r}: pass --config.tokenizer=FOLDER" in str(error.value)


@pytest.mark.parametrize("broken", [{"vocab.json": "{"}, {"vocab.json": None, "merges.txt": None}])
def test_a_broken_clip_folder_is_an_error(shared, tmp_path, broken):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        content = broken.get(name, (shared / "tokenizers" / "clip" / name).read_text())
        if content is not None:
            (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(str(tmp_path), 77)


def test_a_hub_id_without_network_is_an_error_that_names_the_files():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UserError, match=r"'nobody/nothing'.*vocab\.json, merges\.txt"):
        load_tokenizer("nobody/nothing", 77)


def test_another_padding_takes_the_place_of_the_tokenizers_own():
    own, zero = load_tokenizer("builtin", 8), load_tokenizer("builtin", 8, 7)
    (ids, mask), (replaced, same_mask) = own("one polyp"), zero("one polyp")
    np.testing.assert_array_equal(mask, same_mask)
    np.testing.assert_array_equal(replaced, np.where(mask > 0, ids, 7))


def test_clips_end_token_pads_until_another_padding_is_asked_for(shared):
    folder = str(shared / "tokenizers" / "clip")
    (ids, mask), (replaced, _) = load_tokenizer(folder, 12)("one polyp"), load_tokenizer(folder, 12, 0)("one polyp")
    assert set(ids[mask == 0]) == {49407}
    assert set(replaced[mask == 0]) == {0}


def test_an_encoder_that_looks_for_no_end_token_takes_any_that_fits_its_vocabulary(builtin):
    builtin.check(1024, None)
    with pytest.raises(UserError, match="does not fit"):
        builtin.check(100, None)


def test_the_first_sentence_that_is_cut_is_said(capsys):
    tokenizer = load_tokenizer("builtin", 16)
    tokenizer("small " * 14 + "polyp")
    tokenizer("small " * 14 + "ulcer")
    said = capsys.readouterr().out
    assert said.count("warning: 1 of 1 sentences are cut, for the network reads 16 tokens: the longest has 17") == 1
    assert said.count("warning") == 1


def test_all_sentences_that_are_cut_are_counted_once(capsys):
    tokenizer = load_tokenizer("builtin", 16)
    long = [f"{'small ' * count}polyp" for count in (3, 13, 14, 15)]
    tokenizer.say_cut([*long, *long])
    assert "warning: 2 of 4 sentences are cut" in capsys.readouterr().out
    tokenizer(long[-1])
    load_tokenizer("builtin", 77).say_cut(long)
    assert capsys.readouterr().out == ""
