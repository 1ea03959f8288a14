"""The first run: draws a sample, finetunes a tiny CLIPSeg on it, and shows that it listens to the sentence.

make quickstart          (or: python tools/quickstart.py --output=runs/quickstart)
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from configs.quickstart import get_config
from medvlsm_jax import atomic
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.loading import load_records
from medvlsm_jax.data.synthetic import SAMPLE, write_sample
from medvlsm_jax.evaluate import default_config, evaluate
from medvlsm_jax.evaluation.file_names import PROBE
from medvlsm_jax.evaluation.pictures import captioned_sheet
from medvlsm_jax.evaluation.probes import Probes
from medvlsm_jax.folders import output_folder
from medvlsm_jax.lease import holding
from medvlsm_jax.predict import predict
from medvlsm_jax.text import interval, percent, table
from medvlsm_jax.train import train

# What metrics.json calls each condition, the prompt type of the sample that makes it, and what the table says.
CONDITIONS = {
    "right_prompt": ("p6", "the sentence that names the object"),
    "no_prompt": ("p0", "an empty sentence"),
    "other_prompt": ("other", "a sentence that names another object of the image"),
}
NEXT = """What to do next with real data (the README has more):
  python tools/convert_weights.py --model=clipseg --source=CIDAS/clipseg-rd64-refined --output=checkpoints/clipseg
  python tools/prepare_data.py --dataset=kvasir_polyp --raw=DOWNLOAD --data_dir=DATA
  python -m medvlsm_jax.train --config=configs/clipseg.py:dataset=kvasir_polyp,prompt=p6 --workdir=runs/kvasir_p6 \\
      --config.data_dir=DATA --config.init=checkpoints/clipseg
  python -m medvlsm_jax.evaluate --checkpoint=runs/kvasir_p6 --config.data_dir=DATA --dataset=kvasir_polyp \\
      --prompt=p6,p0 --output=runs/kvasir_p6/test"""


def quickstart(output: Path, num_images: int, overrides: str) -> tuple[dict[str, dict[str, Any]], Probes]:
    """Draws, trains, evaluates and predicts below `output`; returns the three conditions' scores, and the probe's."""
    data_dir = output / "data"
    print(f"1/4 drawing {num_images} images ...")
    write_sample(data_dir, num_images=num_images)

    print("2/4 finetuning clipseg_tiny from random weights ...")
    config = get_config(overrides)
    config.data_dir = str(data_dir)
    train(config, output)

    print("3/4 scoring the test split with three sentences an object ...")
    evaluation = default_config()
    evaluation.data_dir = str(data_dir)
    prompts = [prompt for prompt, _ in CONDITIONS.values()]
    scores = evaluate(evaluation, output, [SAMPLE], prompts, output / "evaluation")[SAMPLE]
    results = {name: scores[prompt] for name, (prompt, _) in CONDITIONS.items()}
    atomic.write_text(output / "metrics.json", json.dumps(results, indent=1) + "\n")
    probe = {"probe": True, "original_size": False, "num_pictures": 0}
    evaluate(evaluation, output, [SAMPLE], [prompts[0]], output / "probe", **probe)

    print("4/4 segmenting a few test images ...")
    draw_predictions(data_dir, output)
    return results, json.loads((output / "probe" / PROBE).read_text("utf-8"))


def draw_predictions(data_dir: Path, output: Path) -> None:
    """Overlays of two objects of a test image of each modality, and a sheet of them with their sentences."""
    sentences: dict[Path, list[str]] = {}
    for record in load_records(data_dir, SAMPLE, "test"):
        sentences.setdefault(data_dir / SAMPLE / "images" / record.image.name, []).append(str(record.prompts["p6"]))
    of_modality = {image.name.split("_")[0]: image for image in reversed(sentences)}
    columns = []
    for modality, image in of_modality.items():
        column = [(Image.open(image), modality)]
        for i, sentence in enumerate(sentences[image][:2]):
            folder = output / "predictions" / modality / f"object_{i}"
            predict(output, [image], sentence, folder, batch_size=1)
            column.append((Image.open(folder / f"{image.stem}_overlay.png"), sentence))
        columns.append(column)
    captioned_sheet(list(zip(*columns, strict=True))).save(output / "predictions" / "sheet.png")


def main(_: list[str]) -> None:
    """Runs the command line."""
    start, args = time.monotonic(), flags.FLAGS
    output = output_folder("--output", args.output)
    with holding("--output", output):
        results, probes = quickstart(output, args.num_images, args.overrides)
    rows = [["the model is given", "Dice", "IoU", "n"]]
    for name, (_prompt, label) in CONDITIONS.items():
        dice, iou, n = (results[name][key] for key in ("dice_mean", "iou_mean", "n"))
        rows.append([label, percent(dice), percent(iou), str(int(n))])
    use = next(iter(probes[SAMPLE].values()))["language_use"]
    print(f"\n{table(rows)}\n")
    print(
        f"Dice that is lost with the sentence of another image: {percent(use['mean'])} (95 % interval "
        f"{interval(use['low'], use['high'])});\nprobe/probe.html says which words the model reacts to\n"
    )
    print(f"{(time.monotonic() - start) / 60:.1f} minutes; everything lies in {output}:")
    print("  metrics.json          the table above            predictions/sheet.png   images and overlays")
    print("  evaluation/cases.csv  every test object          metrics.jsonl, tensorboard/   the run")
    print(f"\n{NEXT}")


if __name__ == "__main__":
    flags.DEFINE_string("output", "runs/quickstart", "Where everything goes; an unfinished run there is continued.")
    flags.DEFINE_integer("num_images", 2000, "Images of the sample.", lower_bound=10)
    flags.DEFINE_string("overrides", "", "Fields of configs/quickstart.py to change: num_epochs=1,batch_size=16")
    run_program(main)
