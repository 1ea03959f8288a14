"""Folders as evaluations leave them, from drawn numbers: what a report is made of."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medvlsm_jax.evaluation.cases import COUNTS, CaseLog, Cases, columns
from medvlsm_jax.evaluation.curves import COUNTS_SHAPE, summarise_curves
from medvlsm_jax.evaluation.probes import probed_name, summarise_probes
from medvlsm_jax.evaluation.report import summarise

GROUPS = ("class", "sex")
METRICS = ("dice", "iou", "precision", "recall", "dice_original", "iou_original", "precision_original")
DROPS = {"none": 0.2, "shuffled": 0.0, "other_image": 0.05, "wrong_location": 0.1}  # of the Dice, when probed


@dataclasses.dataclass
class Run:
    """What is drawn: Dice around `mean` for each dataset and prompt type."""

    trained: dict[str, Any] | None = None
    model: str = "clipseg"
    network: str = "clipseg"
    datasets: Sequence[str] = ("busi",)
    prompts: Sequence[str] = ("p6",)
    mean: float = 0.7
    n: int = 12
    is_probed: bool = False
    has_curves: bool = False
    has_pictures: bool = False
    classes: Sequence[str] = ("benign", "malignant")
    sentence: str = "one round tumor"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def training(dataset: str, prompt: str = "p6", **more: Any) -> dict[str, Any]:
    """Fields of a run's config.json."""
    fields = {"dataset": dataset, "prompt": prompt, "model": "clipseg", "data_num": "", "seed": 42, "target": ""}
    return fields | {"freeze_encoder": None, "init": "/weights/clipseg"} | more


def write_evaluation(folder: Path, run: Run) -> None:
    """Writes the files of a finished evaluation."""
    rng = np.random.default_rng(sum(map(ord, folder.parent.name + folder.name)))
    log = CaseLog(folder, columns(GROUPS), {})
    prompts = [name for prompt in run.prompts for name in conditions(prompt, run)]
    for dataset in run.datasets:
        ease = rng.normal(run.mean, 0.1, run.n)
        for i in range(run.n):
            log.append([case(dataset, prompt, i, ease[i], run, rng) for prompt in prompts])
    cases = log.read()
    write_json(folder / "metrics.json", summarise(cases))
    if run.has_curves:
        write_json(folder / "curves.json", draw_curves(cases, folder / COUNTS))
    if run.is_probed:
        write_json(folder / "probe.json", summarise_probes(cases, run.prompts))
    if run.has_pictures:
        draw_pictures(folder, run)
    log.finish()
    settings = {"checkpoint": "/weights", "model": run.model, "network": run.network, "split": "test"}
    settings |= {"datasets": list(run.datasets), "prompts": list(run.prompts), "probe": run.is_probed, "ensemble": ""}
    settings |= {"threshold": 0.5, "tolerance": 2.0, "image_size": 352, "parameters": 150_747_746}
    write_json(folder / "evaluation.json", settings | {"trained": run.trained, "workdir": None} | run.settings)


def conditions(prompt: str, run: Run) -> list[str]:
    """A prompt type, and its perturbations."""
    return [prompt, *(probed_name(prompt, name) for name in DROPS if run.is_probed)]


def case(dataset: str, prompt: str, i: int, ease: float, run: Run, rng: np.random.Generator) -> dict[str, Any]:
    """A line of cases.csv."""
    dice = float(np.clip(ease - DROPS.get(prompt.partition("/")[2], 0.0) + rng.normal(0, 0.02), 0, 1))
    texts = {"dataset": dataset, "prompt": prompt, "image": f"{i}.png", "mask": f"{i}.png"}
    texts |= {"record": str(i), "sentence": run.sentence, "class": run.classes[i % len(run.classes)], "sex": ""}
    texts |= {"unit": "px", "one_empty": "1" if i == 0 else "0", "cluster": f"{dataset}/{i // 2}"}
    return texts | {name: dice for name in METRICS} | {"recall_original": dice, "hd95": 20 * (1 - dice), "nsd": dice}


def draw_curves(cases: Cases, path: Path) -> dict[str, Any]:
    """The content of curves.json, of pixels whose probabilities are about right."""
    shares = np.linspace(0.005, 0.995, COUNTS_SHAPE[1])
    counts = np.stack([100 * (1 - shares), 100 * shares, 100 * shares]).astype(np.float32)
    np.tile(counts, (len(cases), 1, 1)).tofile(path)
    return summarise_curves(cases, path)


def draw_pictures(folder: Path, run: Run) -> None:
    """Nine pictures for each dataset and prompt type."""
    for dataset in run.datasets:
        for prompt in run.prompts:
            place = folder / "pictures" / dataset / prompt
            place.mkdir(parents=True)
            for kind in ("best", "median", "worst"):
                for i in range(3):
                    Image.new("RGB", (32, 16), (40 * i, 90, 120)).save(place / f"{kind}_{i}.jpg")


def write_history(workdir: Path, steps: int = 20) -> None:
    """The numbers of a training run, the last line cut off as if it had been killed."""
    workdir.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "name": "train/loss", "value": 1 / step})
        lines += [{"step": step, "name": "val/dice", "value": 1 - 1 / step}] if step % 5 == 0 else []
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "na'
    (workdir / "metrics.jsonl").write_text(text)
    write_json(workdir / "config.json", {"dataset": "busi"})


def write_json(path: Path, content: Any) -> None:
    """Writes a json file."""
    path.write_text(json.dumps(content))
