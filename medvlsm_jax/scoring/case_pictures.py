"""Pictures of the best, the median and the worst cases of an evaluation."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.images import open_image, read_mask, to_rgb
from medvlsm_jax.data.language.conditions import Variant, sentence_of
from medvlsm_jax.data.reading.pipeline import Loader
from medvlsm_jax.evaluation.cases import Cases
from medvlsm_jax.evaluation.file_names import KINDS
from medvlsm_jax.evaluation.original import mask_overlap
from medvlsm_jax.evaluation.pictures import captioned_sheet, file_name, overlay, resize_probability
from medvlsm_jax.models.parameters import Arrays
from medvlsm_jax.parallel.first_process import cannot_write
from medvlsm_jax.scoring.joined_log import raise_together
from medvlsm_jax.scoring.scorer import Scorer
from medvlsm_jax.text import percent

SIDE = 320  # of a picture, in pixels


def choose_drawn(cases: Cases, prompts: Sequence[str], count: int) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Dataset -> prompt type -> best, median and worst -> records to draw, `count` of each, by their Dice."""
    chosen: dict[str, dict[str, dict[str, list[int]]]] = {}
    for (dataset, prompt), rows in cases.by("dataset", "prompt").items():
        if prompt in prompts:
            order = np.argsort(-cases.numbers["dice"][rows], kind="stable").tolist()
            middle = max(0, (len(order) - count) // 2)
            parts = (order[:count], order[middle : middle + count], order[::-1][:count])
            chosen.setdefault(dataset, {})[prompt] = dict(zip(KINDS, parts, strict=True))
    return chosen


def draw_cases(
    scorer: Scorer,
    arrays: Arrays,
    loaders: Mapping[str, Loader],
    chosen: Mapping[str, Mapping[str, Mapping[str, Sequence[int]]]],
    folder: Path,
) -> None:
    """Draws the chosen records below `folder`; each process those of its own rows.

    Raises:
        UserError: on all processes, when one cannot write; not before all are done, for they compute together.
    """
    trouble = None
    for dataset, by_prompt in chosen.items():
        loader = loaders[dataset]
        names: dict[tuple[str, int], list[str]] = {}  # of the pictures of a record; of few records it is best and worst
        for prompt, kinds in by_prompt.items():
            for kind, indices in kinds.items():
                for n, index in enumerate(indices):
                    names.setdefault((prompt, index), []).append(f"{kind}_{n}.jpg")
        indices = sorted({index for _, index in names})
        part = select_records(loader, indices, list(by_prompt))
        for answer in scorer.segment(arrays, part) if indices else ():
            prompt, maps = answer.condition, answer.maps()
            for row in np.flatnonzero(answer.batch["valid"]).tolist():
                index = indices[answer.batch["index"][row]]
                for name in names.get((prompt, index), ()):
                    path = folder / dataset / file_name(prompt) / name
                    sentence = sentence_of(loader.variants[prompt], index) if loader.variants else ""
                    picture = draw_case(loader.records[index], maps[row], scorer.segmenter.threshold, sentence)
                    try:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        picture.save(path, quality=88)
                    except OSError as error:
                        trouble = cannot_write(f"--output={folder}", error)
    raise_together(trouble, scorer.mesh)


def select_records(loader: Loader, indices: Sequence[int], names: Sequence[str]) -> Loader:
    """A loader of some of the records, under some of the conditions."""

    def select(variant: Variant) -> Variant:
        sentences, weights = ([values[i] for i in indices] for values in (variant.sentences, variant.weights))
        return dataclasses.replace(variant, sentences=sentences, weights=weights)

    variants = {name: [select(variant) for variant in (loader.variants or {})[name]] for name in names}
    return dataclasses.replace(loader, records=[loader.records[i] for i in indices], variants=variants)


def draw_case(record: Record, probability: np.ndarray, threshold: float, sentence: str) -> Image.Image:
    """An image beside its overlay, with its name, its Dice at its own size and its sentence."""
    image, truth = to_rgb(open_image(record.image)), read_mask(record.mask) > 0
    prediction = resize_probability(probability, image.size) > threshold
    drawn = Image.fromarray(overlay(np.asarray(image), prediction, truth))
    dice = percent(mask_overlap(prediction, truth)["dice"])
    return captioned_sheet([[(image, record.name), (drawn, f"Dice {dice}: {sentence or 'no sentence'}")]], SIDE)
