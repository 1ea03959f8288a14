"""Segments what a sentence names.

    python -m medvlsm_jax.predict --checkpoint=DIR --image=FILE_OR_FOLDER --prompt="one small polyp" --output=DIR

An image-only network needs no prompt; one with an output for each of several classes takes the name of a class.

Writes NAME_mask.png, NAME_probability.png and NAME_overlay.png at each image's own size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, load_pretrained
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.images import image_endings, open_image, resize_image, to_rgb
from medvlsm_jax.data.language.prompts import RANDOM, is_numbered
from medvlsm_jax.data.language.tokenizers import Tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.file_names import PREDICTIONS, unique_names
from medvlsm_jax.evaluation.pictures import write_prediction
from medvlsm_jax.folders import local_folder, output_folder
from medvlsm_jax.lease import holding
from medvlsm_jax.models import check_number
from medvlsm_jax.models.apply import NOT_FINITE, forward
from medvlsm_jax.models.layers import AnyArray
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.written import Written

NAMED = 5  # files that are left out, in a line


def predict(
    checkpoint: str | Path,
    images: Sequence[Path],
    prompt: str | None,
    output: str | Path,
    *,
    tokenizer: str = "",
    threshold: float | None = None,
    batch_size: int = 8,
    dtype: str = "float32",
) -> list[Path]:
    """Segments every image with one sentence, and returns the paths of the masks.

    Args:
        checkpoint: a converted model folder, or the workdir of a training run.
        images: files that Pillow reads, 8 or 16 bits a channel.
        prompt: the sentence; for a network with several classes, one of them.
        output: a folder for three pictures an image.
        tokenizer: a hub id or a folder; empty takes the checkpoint's.
        threshold: a probability; None takes the model's.
        batch_size: images that go through the model at once.
        dtype: of the computation, as in an evaluation float32 whatever the training computed in; or bfloat16.

    Raises:
        UserError: the checkpoint is broken, the prompt is missing or no class, `output` is in use or holds files of
            others under the names of the pictures; or some images cannot be read, and the others are written all the
            same.
    """
    output = output_folder("--output", output)
    with holding("--output", output):
        names, record = output_names(images), Written("--output", output)
        record.check(f"{name}_{kind}.png" for name in names.values() for kind in PREDICTIONS)
        source = load_pretrained(checkpoint, dtype=dtype)
        model, config = source.model(), source.config
        request = make_request(config, load_model_tokenizer(tokenizer or source.tokenizer, config), prompt)
        threshold = config.threshold if threshold is None else threshold
        check_number("threshold", threshold)
        failures: list[str] = []
        for path, image, probability in segment_images(model, images, request, batch_size, failures):
            if not np.isfinite(probability).all():
                raise UserError(f"{path}: its probabilities are {NOT_FINITE}")
            with record.adding() as staged:
                write_prediction(staged, names[path], image, probability, threshold)
    if failures:
        raise UserError(f"{len(failures)} of {len(images)} images are left out: " + "; ".join(failures))
    return [output / f"{names[path]}_mask.png" for path in images]


def segment_images(
    model: Network,
    images: Sequence[Path],
    request: Mapping[str, np.ndarray],
    batch_size: int,
    failures: list[str],
) -> Iterator[tuple[Path, Image.Image, np.ndarray]]:
    """Each image that can be read, with its probabilities (H, W) at the network's size; a line in `failures` else."""
    batch_size = min(batch_size, len(images))
    for batch in chunks(tqdm(images, unit="img", disable=None), batch_size):
        readable = [(path, image) for path in batch if (image := try_open(path, failures)) is not None]
        if readable:
            pixels = np.stack([resize_image(image, model.config.image_size) for _, image in readable])
            padded = np.concatenate([pixels, np.repeat(pixels[:1], batch_size - len(pixels), axis=0)])
            probabilities = np.asarray(segment(model, padded, request))
            for (path, image), probability in zip(readable, probabilities, strict=False):
                yield path, image, probability[..., 0]


def make_request(config: NetworkConfig, tokenizer: Tokenizer | None, prompt: str | None) -> dict[str, np.ndarray]:
    """What the network is asked for besides the image, without a batch axis: tokens, or the index of a class.

    Raises:
        UserError: a sentence is needed and missing, or the prompt is none of the network's classes.
    """
    if tokenizer is not None:
        if prompt is None:
            raise UserError("this network segments what a sentence names: give one with --prompt")
        if is_numbered(prompt) or prompt == RANDOM:
            raise UserError(
                f"--prompt={prompt} stands for the sentences of a dataset's records: give a sentence itself"
            )
        input_ids, attention_mask = tokenizer(prompt)
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    if not config.classes:
        return {}
    if prompt not in config.classes:
        raise UserError(f"--prompt={prompt!r}: this network reads no sentence; name one of {', '.join(config.classes)}")
    return {"class_index": np.asarray(config.classes.index(prompt), np.int32)}


@nnx.jit
def segment(model: Network, images: AnyArray, request: Mapping[str, AnyArray]) -> jax.Array:
    """Probabilities (B, H, W, 1) for uint8 images (B, H, W, 3) and one request for all of them."""
    repeated = {name: jnp.repeat(jnp.asarray(x)[None], images.shape[0], axis=0) for name, x in request.items()}
    return jax.nn.sigmoid(forward(model, {"image": jnp.asarray(images), **repeated}))


def try_open(path: Path, failures: list[str]) -> Image.Image | None:
    """The image as RGB; None, and a line in `failures`, if it cannot be read."""
    try:
        return to_rgb(open_image(path))
    except UserError as error:
        failures.append(str(error))
        return None


def find_images(path: Path) -> list[Path]:
    """The file itself, or the images of a folder by their endings, but for what an earlier run has put there.

    Raises:
        UserError: there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"--image={path} does not exist: give an image or a folder of images")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    endings = image_endings()
    written = Written("--image", path).digests
    images = [file for file in files if file.suffix.lower() in endings and file.name not in written]
    made = [file.name for file in files if file.name in written]
    others = [file.name for file in files if file.suffix.lower() not in endings]
    if not images:
        found = f", but {listed(made + others)}" if made or others else ""
        raise UserError(f"--image={path} holds no images that Pillow reads{found}")
    if others:
        print(f"left out, for Pillow reads no image of such a name: {listed(others)}")
    if made:
        print(f"left out, for they are predictions: {listed(made)}")
    return images


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def output_names(images: Sequence[Path]) -> dict[Path, str]:
    """What the outputs of each image are called: its stem, or its whole name if any two share a stem.

    Images of the same name, in several folders, are told apart by these.
    """
    is_shared = len({path.stem for path in images}) < len(set(images))
    names = [path.name if is_shared else path.stem for path in images]
    return dict(zip(images, unique_names(names, [f"{path.parent.name}_{path.name}" for path in images]), strict=True))


def chunks(paths: Iterable[Path], size: int) -> Iterator[list[Path]]:
    """Consecutive lists of up to `size` paths."""
    chunk: list[Path] = []
    for path in paths:
        chunk.append(path)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    images = find_images(local_folder("--image", args.image))
    written = predict(
        local_folder("--checkpoint", args.checkpoint),
        images,
        args.prompt,
        args.output,
        tokenizer=args.tokenizer,
        threshold=args.threshold,
        dtype=args.dtype,
    )
    print(f"{len(written)} masks, probabilities and overlays written to {args.output}")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A converted model folder, or the workdir of a training run.")
    flags.DEFINE_string("image", None, "An image, or a folder of images.")
    flags.DEFINE_string("prompt", None, "The sentence that names what is segmented; of a multi-class CNN, the class.")
    flags.DEFINE_string("output", None, "A folder for the masks, probabilities and overlays.")
    flags.DEFINE_string("tokenizer", "", "A hub id or a folder, where the checkpoint brings no tokenizer.")
    flags.DEFINE_float(
        "threshold", None, "A probability; the model's own when not given.", lower_bound=0, upper_bound=1
    )
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the computation.")
    flags.mark_flags_as_required(["checkpoint", "image", "output"])
    run_program(main)
