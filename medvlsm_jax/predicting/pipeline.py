"""From slices to files: read ahead in threads, segmented in batches, written in threads."""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from medvlsm_jax.data.images import resize_image
from medvlsm_jax.errors import UserError
from medvlsm_jax.predicting.folder import PredictionFolder
from medvlsm_jax.predicting.in_order import in_order
from medvlsm_jax.predicting.outputs import Answer, NotRepresented, Output
from medvlsm_jax.predicting.segmenter import Question, Segmenter

THREADS = min(8, os.cpu_count() or 1)
MOST_HELD = 512 << 20  # bytes of the decoded slices of a batch


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice on its way.

    Attributes:
        output: of its scan.
        index: its place there.
        error: why it cannot be read.
        image: decoded, until it is not needed any more.
        pixels: of the network's size; None where it cannot be read.
        probabilities: (H, W) at the network's size, of each question.
        answers: to each of them.
    """

    output: Output
    index: int
    error: str = ""
    image: Image.Image | None = None
    pixels: np.ndarray | None = None
    probabilities: Sequence[np.ndarray] = ()
    answers: Sequence[Answer] = ()


def segment_all(
    segmenter: Segmenter,
    questions: Sequence[Question],
    outputs: Sequence[Output],
    folder: PredictionFolder,
    failures: list[str],
) -> None:
    """Segments and writes scans, one after another; a line in `failures` for each that cannot be read, or written.

    Raises:
        UserError: probabilities are not finite, or the folder cannot be written.
    """

    def read(part: Slice) -> Slice:
        try:
            image = part.output.scan.read(part.index)
        except UserError as error:
            return dataclasses.replace(part, error=str(error))
        return dataclasses.replace(part, image=image, pixels=resize_image(image, segmenter.config.image_size))

    def keep(part: Slice) -> Slice:
        if part.image is None:
            return part
        where, size = str(part.output.scan.path), part.image.size
        found = zip(questions, part.probabilities, strict=True)
        answers = [part.output.keep(segmenter.answer(question, values, size, where)) for question, values in found]
        if len(part.output.scan) > 1:
            return dataclasses.replace(part, answers=answers, image=None)
        return dataclasses.replace(part, error=write(part.output, [answers], part.image), image=None)

    def write(output: Output, slices: Sequence[Sequence[Answer]], picture: Image.Image | None = None) -> str:
        try:
            with folder.written.adding() as staged:
                output.write(staged, slices, picture, segmenter.threshold)
            folder.finish(output)
        except NotRepresented as error:
            return str(error)
        return ""

    parts = (Slice(output, index) for output in outputs for index in range(len(output.scan)))
    segmented = segment_slices(segmenter, questions, in_order(read, parts, THREADS))
    scan: list[Slice] = []
    with tqdm(total=sum(len(output.scan) for output in outputs), unit="slice", disable=None) as bar:
        for part in in_order(keep, segmented, THREADS):
            bar.update()
            scan.append(part)
            if len(scan) < len(part.output.scan):
                continue
            errors = [done.error for done in scan if done.error]
            if len(scan) > 1 and not errors:
                errors = [error for error in [write(part.output, [done.answers for done in scan])] if error]
            failures += errors[:1]
            part.output.scan.close()
            scan = []


def segment_slices(segmenter: Segmenter, questions: Sequence[Question], parts: Iterable[Slice]) -> Iterator[Slice]:
    """The slices with their probabilities, those that cannot be read as they are; a batch is computed ahead."""
    before: tuple[list[Slice], list] = ([], [])
    for batch in batches(parts, segmenter.rows):
        readable = [part.pixels for part in batch if part.pixels is not None]
        found = segmenter.probabilities(np.stack(readable), questions) if readable else []
        yield from with_probabilities(*before)
        before = (batch, found)
    yield from with_probabilities(*before)


def with_probabilities(batch: Sequence[Slice], found: Sequence) -> Iterator[Slice]:
    """The slices of a batch with the rows that belong to them."""
    columns = [np.asarray(values) for values in found]
    row = 0
    for part in batch:
        if part.pixels is None:
            yield part
        else:
            yield dataclasses.replace(part, probabilities=[values[row] for values in columns])
            row += 1


def batches(parts: Iterable[Slice], rows: int) -> Iterator[list[Slice]]:
    """Consecutive slices, as many as go through the network at once, fewer where they take much memory."""
    batch, held = list[Slice](), 0
    for part in parts:
        batch.append(part)
        held += 3 * part.image.width * part.image.height if part.image else 0
        if len(batch) == rows or held > MOST_HELD:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
