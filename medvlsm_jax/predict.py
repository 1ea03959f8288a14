"""Segments what a sentence names.

    python -m medvlsm_jax.predict --checkpoint=DIR --image=FILE_OR_FOLDER --prompt="one small polyp" --output=DIR

Reads pictures, files of several pages, DICOM, and NIfTI, MetaImage and NRRD volumes slice by slice (docs/images.md). A
picture gets NAME_mask.png, NAME_probability.png and NAME_overlay.png at its own size, a volume NIfTI files with its
geometry, DICOM a DICOM SEG. Several --prompt ask several sentences of each image, which is encoded once. An image-only
network needs no prompt; one with an output for each of several classes takes names of classes. The same command goes on
where it was interrupted.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.scans.opening import NAMED, find_images, open_scans
from medvlsm_jax.data.scans.scan import Scan, View
from medvlsm_jax.data.scans.windows import parse_window
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import local_folder, output_folder
from medvlsm_jax.lease import holding
from medvlsm_jax.predicting.folder import PredictionFolder
from medvlsm_jax.predicting.outputs import representable
from medvlsm_jax.predicting.pipeline import segment_all
from medvlsm_jax.predicting.segmenter import Segmenter
from medvlsm_jax.text import listed


def predict(
    checkpoint: str | Path,
    images: Sequence[Path],
    prompt: str | Sequence[str] | None,
    output: str | Path,
    *,
    tokenizer: str = "",
    threshold: float | None = None,
    batch_size: int = 0,
    dtype: str = "float32",
    view: View = View(),  # noqa: B008
    save_json: bool = False,
) -> list[Path]:
    """Segments every slice of every image with each sentence, and returns the paths of the masks.

    Args:
        checkpoint: a converted model folder, or the workdir of a training run.
        images: files that `open_scans` reads; DICOM files of a series become one scan.
        prompt: a sentence, or several; for a network with several classes, of these.
        output: a folder for the predictions.
        tokenizer: a hub id or a folder; empty takes the checkpoint's.
        threshold: a probability; None takes the model's.
        batch_size: slices that go through the model at once, at most; 0 takes what fits.
        dtype: of the computation, as in an evaluation float32 whatever the training computed in; or bfloat16.
        view: of volumes.
        save_json: writes what the masks cover in NAME_masks.json, too.

    Raises:
        UserError: the checkpoint is broken, a prompt is missing or no class, `output` is in use or holds files of
            others under the names of the predictions; or some images cannot be read, and the others are written all
            the same.
    """
    prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
    output, failures = output_folder("--output", output), list[str]()
    with holding("--output", output):
        scans = representable(open_scans(images, view, failures), failures)
        if not scans:
            raise left_out(failures, len(failures))
        unreadable = len(failures)
        folder = PredictionFolder(output, scans, prompts, save_json=save_json)
        count = sum(len(scan) for scan in scans)
        segmenter = Segmenter(
            checkpoint,
            tokenizer=tokenizer,
            threshold=threshold,
            dtype=dtype,
            batch_size=min(batch_size or count, count),
        )
        questions = segmenter.ask(prompts)
        asked = {"checkpoint": segmenter.fingerprint, "prompts": prompts, "threshold": segmenter.threshold}
        asked |= {"dtype": dtype, "tokenizer": tokenizer, "window": view.window, "axis": view.axis}
        left = folder.left(asked)
        if len(left) < len(scans):
            print(f"{len(scans) - len(left)} of {len(scans)} were segmented before and are left as they are")
        segment_all(segmenter, questions, left, folder, failures)
        for note, names in notes_of(scans).items():
            print(f"{note}: {listed(names, NAMED)}")
    if failures:
        raise left_out(failures, unreadable + len(scans))
    return [output / name for scan in folder.outputs for name in scan.masks]


def left_out(failures: Sequence[str], count: int) -> UserError:
    """What is said of images that have no predictions, out of so many."""
    return UserError(f"{len(failures)} of {count} images are left out: " + "; ".join(failures))


def notes_of(scans: Sequence[Scan]) -> dict[str, list[str]]:
    """What a person should know of scans, each note with the names of those that it is about."""
    notes: dict[str, list[str]] = {}
    for scan in scans:
        for note in scan.notes:
            notes.setdefault(note, []).append(scan.path.name)
    return notes


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    written = predict(
        local_folder("--checkpoint", args.checkpoint),
        find_images(local_folder("--image", args.image)),
        args.prompt or None,
        args.output,
        tokenizer=args.tokenizer,
        threshold=args.threshold,
        dtype=args.dtype,
        view=View(parse_window(args.window) if args.window else None, args.axis),
        save_json=args.save_json,
    )
    print(f"{len(set(written))} masks, and their probabilities and overlays, are in {args.output}")


if __name__ == "__main__":
    flags.DEFINE_string("checkpoint", None, "A converted model folder, or the workdir of a training run.")
    flags.DEFINE_string("image", None, "An image, a volume or a DICOM file, or a folder of such.")
    flags.DEFINE_multi_string(
        "prompt", [], "The sentence that names what is segmented; of a multi-class CNN, the class. May be given again."
    )
    flags.DEFINE_string("output", None, "A folder for the masks, probabilities and overlays.")
    flags.DEFINE_string("tokenizer", "", "A hub id or a folder, where the checkpoint brings no tokenizer.")
    flags.DEFINE_float(
        "threshold", None, "A probability; the model's own when not given.", lower_bound=0, upper_bound=1
    )
    flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "Of the computation.")
    flags.DEFINE_string("window", "", "Of volumes and DICOM: CENTER:WIDTH, or a name such as lung (docs/images.md).")
    flags.DEFINE_integer("axis", 2, "Of a volume's array, along which its slices lie.", lower_bound=0, upper_bound=2)
    flags.DEFINE_bool("save_json", False, "Also write what the masks cover: areas, boxes, components, probabilities.")
    flags.mark_flags_as_required(["checkpoint", "image", "output"])
    run_program(main)
