"""A model to be asked: an image is encoded once, and decoded with as many sentences as are asked of it."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image

from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, load_pretrained
from medvlsm_jax.data.images import resize_image
from medvlsm_jax.data.language.prompts import RANDOM, is_numbered
from medvlsm_jax.data.scans.opening import open_scans
from medvlsm_jax.data.scans.scan import View
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.pictures import resize_probability
from medvlsm_jax.models import abstract_model, check_number
from medvlsm_jax.models.apply import NOT_FINITE, own_class
from medvlsm_jax.models.apply import encode as run_encoder
from medvlsm_jax.models.network import NetworkConfig
from medvlsm_jax.models.parameters import Arrays, merge_model
from medvlsm_jax.parallel.sharding import AXES, batch_sharding, replicated, with_mesh

MOST_ROWS = 64  # images that go through a model at once on a device: beyond, it gets no faster
ROWS_ON_HOST = 8  # of a device that does not say how much memory it has
SHARE = 0.5  # of a device's free memory, for what a batch takes: a compiler's figure is not all of it


class Question(NamedTuple):
    """What is asked of images, ready for the devices.

    Attributes:
        prompt: a sentence or the name of a class; None for a network that reads neither.
        text: what the network makes of a sentence, with one row; None where it reads none.
        class_index: of a network with several outputs, the one that is meant.
    """

    prompt: str | None
    text: Any
    class_index: Array | None


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """The answer to one question, at the image's own size.

    Attributes:
        prompt: what was asked.
        probability: of each pixel, 0 to 1.
        mask: where it exceeds the threshold.
    """

    prompt: str | None
    probability: Float[np.ndarray, "height width"]
    mask: Bool[np.ndarray, "height width"]


class Programs(NamedTuple):
    """What is compiled for a network; one that is made for a checkpoint serves all others of its network.

    Attributes:
        encode_text: (arrays, input_ids (1, T), attention_mask (1, T)) -> features of one row, on every device.
        encode: (arrays, uint8 images (B, S, S, 3)) -> features.
        decode: (arrays, features, text, class_index) -> probabilities (B, S, S).
    """

    encode_text: Any  # jitted, as are the others
    encode: Any
    decode: Any


class Segmenter:
    """A checkpoint that segments what sentences name.

        segmenter = Segmenter("runs/kvasir_p6")
        segmentation = segmenter("photo.jpg", "one small polyp")

    Attributes:
        config: of the network.
        threshold: a probability; what exceeds it is the mask.
        rows: images that go through the network at once.
        fingerprint: changes with the files of the checkpoint.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        tokenizer: str = "",
        threshold: float | None = None,
        dtype: str = "float32",
        batch_size: int = 0,
    ):
        """Loads the model onto all devices, or as many as there are rows in a batch.

        Args:
            checkpoint: a converted model folder, or the workdir of a training run.
            tokenizer: a hub id or a folder; empty takes the checkpoint's.
            threshold: a probability; None takes the model's.
            dtype: of the computation, as in an evaluation float32 whatever the training computed in; or bfloat16.
            batch_size: images that go through the network at once, at most; 0 takes what fits.

        Raises:
            UserError: the checkpoint or its tokenizer is broken, or the threshold is no probability.
        """
        devices = jax.local_devices()
        devices = devices[: min(batch_size, len(devices)) or None]
        self.mesh = Mesh(np.array(devices).reshape(-1, 1), AXES)
        source = load_pretrained(checkpoint, self.mesh, dtype=dtype)
        self.config, self.arrays, self.fingerprint = source.config, source.arrays, source.fingerprint
        self.tokenizer = load_model_tokenizer(tokenizer or source.tokenizer, self.config)
        self.threshold = self.config.threshold if threshold is None else threshold
        check_number("threshold", self.threshold)
        self.programs = make_programs(self.config, self.mesh)
        most = -(-batch_size // len(devices)) if batch_size else MOST_ROWS
        rows = 1 if most == 1 else min(most, self.rows_that_fit())  # one is tried whatever memory there is
        self.rows = rows * len(devices)

    def rows_that_fit(self) -> int:
        """Images that a device's free memory has room for at once, by what the compiler says of a few."""
        stats = self.mesh.local_devices[0].memory_stats()
        if not stats or "bytes_limit" not in stats:
            return ROWS_ON_HOST
        shape = (ROWS_ON_HOST * self.mesh.size, *(2 * [self.config.image_size]), 3)
        images = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=batch_sharding(self.mesh))
        needed = self.programs.encode.lower(self.arrays, images).compile().memory_analysis().temp_size_in_bytes
        free = SHARE * (stats["bytes_limit"] - stats["bytes_in_use"])
        fitting = int(free * ROWS_ON_HOST / max(1, needed))
        return 1 << (min(MOST_ROWS, max(1, fitting)).bit_length() - 1)

    def ask(self, prompts: Sequence[str | None]) -> list[Question]:
        """Encodes what will be asked of any number of images.

        Args:
            prompts: sentences, or names of the network's classes; one None for a network that reads neither.

        Raises:
            UserError: a sentence is needed and missing, one is given twice, or a prompt is none of the classes.
        """
        if twice := [prompt for prompt in prompts if prompts.count(prompt) > 1]:
            raise UserError(f"--prompt={twice[0]!r} is given twice")
        return [self._ask(prompt) for prompt in prompts]

    def _ask(self, prompt: str | None) -> Question:
        if self.tokenizer is not None:
            if not prompt:
                raise UserError("this network segments what a sentence names: give one with --prompt")
            if is_numbered(prompt) or prompt == RANDOM:
                raise UserError(
                    f"--prompt={prompt} stands for the sentences of a dataset's records: give a sentence itself"
                )
            input_ids, attention_mask = self.tokenizer(prompt)
            return Question(prompt, self.programs.encode_text(self.arrays, input_ids[None], attention_mask[None]), None)
        classes = self.config.classes
        if not classes:
            return Question(None, None, None)
        if prompt not in classes:
            raise UserError(f"--prompt={prompt!r}: this network reads no sentence; name one of {', '.join(classes)}")
        return Question(prompt, None, jnp.asarray([classes.index(prompt)], jnp.int32))

    def probabilities(
        self, images: UInt8[np.ndarray, "n s s 3"], questions: Sequence[Question]
    ) -> list[Float[Array, "rows s s"]]:
        """For each question the probabilities of up to `rows` images, which are still being computed.

        Args:
            images: of the network's size; copies of the last one fill up the batch.
            questions: of `ask`.
        """
        padded = np.concatenate([images, np.repeat(images[-1:], self.rows - len(images), axis=0)])
        features = self.programs.encode(self.arrays, jax.device_put(padded, batch_sharding(self.mesh)))
        return [self.programs.decode(self.arrays, features, q.text, q.class_index) for q in questions]

    def __call__(self, image: str | Path | Image.Image | np.ndarray, prompt: str | Sequence[str] | None = None) -> Any:
        """The answer to a sentence, or a list of answers to several.

        Args:
            image: a file of one slice, a picture, or an array (height, width) or (height, width, 3) of uint8.
            prompt: a sentence, several, or the name of a class; none for a network that reads none.

        Raises:
            UserError: the image cannot be read, or `ask` does.
        """
        questions = self.ask([prompt] if prompt is None or isinstance(prompt, str) else list(prompt))
        picture = one_picture(image)
        found = self.probabilities(resize_image(picture, self.config.image_size)[None], questions)
        answers = [self.answer(q, np.asarray(p[0]), picture.size) for q, p in zip(questions, found, strict=True)]
        return answers[0] if prompt is None or isinstance(prompt, str) else answers

    def answer(
        self, question: Question, probability: Float[np.ndarray, "s s"], size: tuple[int, int], where: str = "the image"
    ) -> Segmentation:
        """Probabilities at the size of an image, (width, height), and their mask.

        Raises:
            UserError: they are not finite; it names the image by `where`.
        """
        if not np.isfinite(probability).all():
            raise UserError(f"{where}: its probabilities are {NOT_FINITE}")
        full = resize_probability(probability, size)
        return Segmentation(question.prompt, full, full > self.threshold)


def one_picture(image: str | Path | Image.Image | np.ndarray) -> Image.Image:
    """A file of one slice, a picture or an array as a picture; raises UserError for other files and arrays."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(f"an image is uint8 (height, width) or (height, width, 3), not {image.dtype} {image.shape}")
        return Image.fromarray(image)
    failures: list[str] = []
    scans = open_scans([Path(image)], View(), failures)
    if failures:
        raise UserError(failures[0])
    if len(scans[0]) != 1:
        raise UserError(f"{image} has {len(scans[0])} slices: medvlsm_jax.predict segments all of them")
    return scans[0].read(0)


@functools.lru_cache(maxsize=8)
def make_programs(config: NetworkConfig, mesh: Mesh) -> Programs:
    """The programs of a network, the same for the same network; nothing is compiled yet."""
    graphdef = nnx.graphdef(abstract_model(config))
    by_rows = batch_sharding(mesh)

    def encode_text(arrays: Arrays, input_ids: Array, attention_mask: Array) -> Any:
        return run_encoder(merge_model(graphdef, arrays), "text", input_ids, attention_mask)

    def encode(arrays: Arrays, images: UInt8[Array, "b h w 3"]) -> Any:
        return run_encoder(merge_model(graphdef, arrays), "image", images)

    def decode(arrays: Arrays, features: Any, text: Any, class_index: Array | None) -> Float[Array, "b h w"]:
        rows = jax.tree.leaves(features)[0].shape[0]
        text, class_index = jax.tree.map(lambda x: jnp.repeat(x, rows, axis=0), (text, class_index))
        logits = merge_model(graphdef, arrays).decode(features, text, (config.image_size, config.image_size))
        return jax.nn.sigmoid(own_class(logits, class_index))[..., 0]

    return Programs(
        jax.jit(with_mesh(mesh, encode_text), out_shardings=replicated(mesh)),
        jax.jit(with_mesh(mesh, encode), out_shardings=by_rows),
        jax.jit(with_mesh(mesh, decode), out_shardings=by_rows),
    )
