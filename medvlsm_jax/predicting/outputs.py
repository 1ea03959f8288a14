"""What is written of a scan: masks in the format that keeps their geometry, probabilities, a picture, and numbers.

A picture gets NAME_mask.png, NAME_probability.png and NAME_overlay.png; several pages get TIFFs of as many; a volume
gets NIfTI files; DICOM gets a DICOM SEG in place of masks. Of several slices the overlay is a sheet of a few. With
several sentences each has files of its own, named NAME_SENTENCE_…, but for the one SEG.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

import medvlsm_jax
from medvlsm_jax import atomic
from medvlsm_jax.data.scans import volumes
from medvlsm_jax.data.scans.dicom import Series
from medvlsm_jax.data.scans.dicom_seg import check_representable, segmentation_files, write_segmentation
from medvlsm_jax.data.scans.scan import Scan
from medvlsm_jax.data.scans.volumes import Volume
from medvlsm_jax.errors import UserError
from medvlsm_jax.evaluation.file_names import unique_names
from medvlsm_jax.evaluation.pictures import captioned_sheet, overlay, save_png
from medvlsm_jax.predicting.measures import measure, total
from medvlsm_jax.predicting.segmenter import Segmentation

MOST_LETTERS = 60  # of a sentence in a file name
SHEET, COLUMNS, SIDE = 12, 4, 320  # slices of an overlay, how many stand in a row, and their side in pixels


class NotRepresented(UserError):
    """The format of a scan cannot hold its mask."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """A `Segmentation` of a slice as it is written.

    Attributes:
        mask: 0 or 1.
        probability: 0 to 255.
        measures: of `measure`; None where they are not asked for.
    """

    mask: UInt8[np.ndarray, "h w"]
    probability: UInt8[np.ndarray, "h w"]
    measures: dict[str, Any] | None


class Output:
    """The files of a scan.

    Attributes:
        scan: what is segmented.
        prompts: what is asked of it.
        labels: how the files of each prompt begin.
        masks: the file of each prompt's mask; of a DICOM SEG the same for all.
        files: all names that are written, below the output's folder.
    """

    def __init__(self, scan: Scan, name: str, prompts: Sequence[str | None], *, save_json: bool):
        self.scan, self.prompts, self.name = scan, prompts, name
        self.labels = [name] if len(prompts) == 1 else [f"{name}_{words}" for words in in_file_names(prompts)]
        self.json = f"{name}_masks.json" if save_json else ""
        several = len(scan) > 1
        ending, masks = (".tif" if several else ".png"), list[list[str]]()
        if isinstance(scan, Series):
            masks = [segmentation_files(scan, f"{name}_seg.dcm")] * len(prompts)
        elif isinstance(scan, Volume):
            ending = ".nii.gz"
            masks = [volumes.mask_files(scan, f"{label}_mask.nii.gz") for label in self.labels]
        else:
            masks = [[f"{label}_mask{ending}"] for label in self.labels]
        self.masks = [names[0] for names in masks]
        self.probabilities = [f"{label}_probability{ending}" for label in self.labels]
        self.overlays = [f"{label}_overlay.png" for label in self.labels]
        written = dict.fromkeys([file for names in masks for file in names])
        self.files = [*written, *self.probabilities, *self.overlays, *([self.json] if save_json else [])]

    def keep(self, segmentation: Segmentation) -> Answer:
        """What is kept of the answer for a slice until all are there."""
        numbers = measure(segmentation.mask, segmentation.probability, self.scan.spacing) if self.json else None
        probability = np.rint(segmentation.probability * 255).astype(np.uint8)
        return Answer(segmentation.mask.view(np.uint8), probability, numbers)

    def write(
        self, folder: Path, slices: Sequence[Sequence[Answer]], picture: Image.Image | None, threshold: float
    ) -> None:
        """Writes all files.

        Args:
            folder: where.
            slices: the answers to each prompt, for each slice.
            picture: the slice as it was segmented, where it is the only one.
            threshold: of the masks.

        Raises:
            NotRepresented: the masks cannot be written in the format of the scan.
            OSError: the disk is full.
        """
        by_prompt = list(zip(*slices, strict=True))
        self.write_masks(folder, [[answer.mask for answer in answers] for answers in by_prompt])
        for name, answers in zip(self.probabilities, by_prompt, strict=True):
            self.write_probability(folder / name, [answer.probability for answer in answers])
        for name, prompt, answers in zip(self.overlays, self.prompts, by_prompt, strict=True):
            save_png(folder / name, self.overlay(prompt, answers, picture))
        if self.json:
            atomic.write_text(folder / self.json, json.dumps(self.numbers(by_prompt, threshold), indent=1) + "\n")

    def write_masks(self, folder: Path, masks: Sequence[Sequence[np.ndarray]]) -> None:
        """Writes the mask of each prompt, slice by slice, in the format of the scan."""
        if isinstance(self.scan, Series):
            stacks = {prompt or "": np.stack(stack) for prompt, stack in zip(self.prompts, masks, strict=True)}
            version = medvlsm_jax.__version__
            try:
                write_segmentation(folder / self.masks[0], self.scan, stacks, model="medvlsm-jax", version=version)
            except UserError as error:
                raise NotRepresented(str(error)) from error
            return
        for name, stack in zip(self.masks, masks, strict=True):
            if isinstance(self.scan, Volume):
                volumes.write_mask(folder / name, self.scan, np.stack(stack))
            else:
                save_pages(folder / name, (mask * np.uint8(255) for mask in stack))

    def write_probability(self, path: Path, slices: Sequence[np.ndarray]) -> None:
        """Writes probabilities, 0 to 255."""
        if isinstance(self.scan, Volume):
            volumes.write_probability(path, self.scan, np.stack(slices))
        else:
            save_pages(path, iter(slices))

    def overlay(self, prompt: str | None, answers: Sequence[Answer], picture: Image.Image | None) -> Image.Image:
        """The picture with its mask; of several slices, a sheet of some that have one."""
        if picture is not None:
            return Image.fromarray(overlay(np.asarray(picture), answers[0].mask.view(bool)))
        found = [i for i, answer in enumerate(answers) if answer.mask.any()] or list(range(len(answers)))
        shown = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, SHEET).round().astype(int))]
        cells = []
        for i in shown:
            drawn = overlay(np.asarray(self.scan.read(i)), answers[i].mask.view(bool))
            cells.append((Image.fromarray(drawn), f"{i + 1} of {len(answers)}: {prompt or self.name}"))
        return captioned_sheet([cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)], SIDE)

    def numbers(self, by_prompt: Sequence[Sequence[Answer]], threshold: float) -> dict[str, Any]:
        """What the json says."""
        scan = self.scan
        return {
            "image": scan.path.name,
            "slices": len(scan),
            "spacing_mm": scan.spacing,
            "slice_distance_mm": scan.distance,
            "notes": scan.notes,
            "threshold": threshold,
            "masks": [
                {"prompt": prompt, "mask": mask, "probability": probability} | self.measures(answers)
                for prompt, mask, probability, answers in zip(
                    self.prompts, self.masks, self.probabilities, by_prompt, strict=True
                )
            ],
        }

    def measures(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """Those of one mask: of the one slice, or in all and of each slice that has some of it, from 0."""
        found = {i: answer.measures for i, answer in enumerate(answers) if answer.measures is not None}
        if len(answers) == 1:
            return found[0]
        found = {i: values for i, values in found.items() if values["area_px"]}
        listed = [{"slice": i} | values for i, values in found.items()]
        return total(found, self.scan.distance) | {"slices_with_mask": listed}


def representable(scans: Sequence[Scan], failures: list[str]) -> list[Scan]:
    """The scans whose masks their formats can hold; a line in `failures` for each other."""
    kept = []
    for scan in scans:
        try:
            if isinstance(scan, Series):
                check_representable(scan)
            kept.append(scan)
        except UserError as error:
            failures.append(str(error))
    return kept


def in_file_names(prompts: Sequence[str | None]) -> list[str]:
    """Prompts as parts of file names, no two alike."""
    words = [re.sub(r"\W+", "-", prompt or "").strip("-")[:MOST_LETTERS] or "prompt" for prompt in prompts]
    return unique_names(words, words)


def save_pages(path: Path, pages: Iterator[np.ndarray]) -> None:
    """Writes a PNG of one page, or a TIFF of several; (h, w) uint8."""
    first = Image.fromarray(next(pages))
    if path.suffix == ".png":
        save_png(path, first)
    else:
        others = (Image.fromarray(page) for page in pages)
        first.save(path, "TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=others)
