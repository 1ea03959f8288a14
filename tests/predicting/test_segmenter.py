"""An image is encoded once, whatever is asked of it, and answered at its own size."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from small_network import SMALLEST

from medvlsm_jax.checkpoints.model_folder import save_model
from medvlsm_jax.data.language.tokenizers import load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.models.apply import forward
from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.predicting import segmenter as module
from medvlsm_jax.predicting.segmenter import MOST_ROWS, ROWS_ON_HOST, Segmenter

RNG = np.random.default_rng(0)
SENTENCES = ["one small polyp", "two large polyps on the left"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "small"
    save_model(folder, CLIPSeg(SMALLEST, rngs=nnx.Rngs(0)), load_tokenizer("builtin", SMALLEST.text.context_length))
    return folder


def test_probabilities_are_those_of_the_whole_network(checkpoint):
    segmenter = Segmenter(checkpoint, batch_size=3)
    size = segmenter.config.image_size
    images = RNG.integers(0, 255, (3, size, size, 3), np.uint8)
    model = nnx.merge(*nnx.split(CLIPSeg(SMALLEST, rngs=nnx.Rngs(0))))
    for sentence, found in zip(SENTENCES, segmenter.probabilities(images, segmenter.ask(SENTENCES)), strict=True):
        ids, mask = (np.repeat(x[None], 3, axis=0) for x in segmenter.tokenizer(sentence))
        logits = forward(model, {"image": images, "input_ids": ids, "attention_mask": mask})
        np.testing.assert_allclose(found, jax.nn.sigmoid(logits)[..., 0], atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_it_takes_no_more_devices_than_there_are_rows(checkpoint, batch_size):
    segmenter = Segmenter(checkpoint, batch_size=batch_size)
    assert segmenter.mesh.size == min(batch_size, jax.local_device_count())
    assert segmenter.rows % segmenter.mesh.size == 0
    assert segmenter.rows >= batch_size
    assert segmenter.rows - batch_size < segmenter.mesh.size


def test_an_image_is_encoded_once_for_several_sentences(checkpoint, monkeypatch):
    segmenter, encoded = Segmenter(checkpoint, batch_size=1), []

    def encode(*args):
        encoded.append(1)
        return segmenter_encode(*args)

    segmenter_encode = segmenter.programs.encode
    segmenter.programs = segmenter.programs._replace(encode=encode)
    answers = segmenter(Image.new("RGB", (50, 40)), SENTENCES)
    assert [answer.prompt for answer in answers] == SENTENCES
    assert len(encoded) == 1


def test_a_file_a_picture_and_an_array_are_answered_alike_at_their_own_size(checkpoint, tmp_path):
    pixels = RNG.integers(0, 255, (30, 50, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    segmenter = Segmenter(checkpoint, threshold=0.4, batch_size=1)
    first, *others = (segmenter(x, SENTENCES[0]) for x in (tmp_path / "a.png", pixels, Image.fromarray(pixels)))
    assert first.probability.shape == (30, 50)
    np.testing.assert_array_equal(first.mask, first.probability > 0.4)
    for other in others:
        np.testing.assert_array_equal(other.probability, first.probability)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), np.float32), np.zeros(8, np.uint8)])
def test_an_array_of_another_kind_is_refused(checkpoint, array):
    with pytest.raises(UserError, match="an image is uint8"):
        Segmenter(checkpoint, batch_size=1)(array, SENTENCES[0])


def test_a_sentence_that_is_asked_twice_is_refused(checkpoint):
    with pytest.raises(UserError, match="--prompt='one small polyp' is given twice"):
        Segmenter(checkpoint, batch_size=1).ask([SENTENCES[0], SENTENCES[0]])


class Memory:
    """A device's memory as a GPU tells of it."""

    def __init__(self, free: float):
        self.free = free

    def memory_stats(self):
        return {"bytes_limit": 10 + self.free, "bytes_in_use": 10}


class Compiled:
    """What the compiler says of a batch of ROWS_ON_HOST rows."""

    temp_size_in_bytes = 100 * ROWS_ON_HOST

    def lower(self, *_):
        return self

    compile = memory_analysis = lower


@pytest.mark.parametrize(
    ("free", "rows"), [(1, 1), (100 / module.SHARE, 1), (1100 / module.SHARE, 8), (1e9, MOST_ROWS)]
)
def test_a_batch_is_as_large_as_memory_allows(checkpoint, monkeypatch, free, rows):
    segmenter = Segmenter(checkpoint, batch_size=1)
    segmenter.programs = segmenter.programs._replace(encode=Compiled())
    segmenter.mesh = type("Mesh", (), {"size": 1, "local_devices": [Memory(free)]})
    monkeypatch.setattr(module, "batch_sharding", lambda mesh: None)
    assert segmenter.rows_that_fit() == rows
