"""Does a model use the language? The same images with the right sentence and with sentences that are wrong.

Language use is the mean over records of the Dice under the right sentence minus the Dice under a sentence of another
image of the same dataset. The sentences are the same in both; only which belongs to which image is broken. So it is 0
in the mean for a model that does not read them, or that is merely disturbed by any sentence.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medvlsm_jax.evaluation.cases import Cases
from medvlsm_jax.evaluation.statistics import holm, paired
from medvlsm_jax.text import interval, percent, table

OTHER_IMAGE = "other_image"
MARK = "/"  # between the prompt type and the perturbation, in the name of a condition
SIGNIFICANT = 0.05

Probes = dict[str, dict[str, dict[str, Any]]]  # dataset -> prompt type -> what it shows


def probed_name(prompt: str, perturbation: str) -> str:
    """The name of a condition: a prompt type whose sentences are perturbed."""
    return f"{prompt}{MARK}{perturbation}"


def summarise_probes(cases: Cases, prompts: Sequence[str]) -> Probes:
    """What probe.json holds, for these prompt types: the drop of the Dice under each perturbation.

    `drop` is `dice_right` minus `dice` over the `n` records whose sentence it changes, with the standard deviation of
    the records' drops (`std`), the bootstrap 95 % interval (`low`, `high`) and the p value of Wilcoxon's signed-rank
    test, as it is and corrected by Holm's method over all perturbations of this dataset and prompt type; `unchanged`
    counts the other records. Where no record has a sentence there is nothing to perturb, and no entry; where none has
    another than the others, `language_use` is null.
    """
    by_condition = cases.by("dataset", "prompt")
    found: Probes = {}
    for (dataset, prompt), rows in by_condition.items():
        if prompt not in prompts:
            continue
        perturbed = {
            name.removeprefix(probed_name(prompt, "")): others
            for (other_dataset, name), others in by_condition.items()
            if other_dataset == dataset and name.startswith(probed_name(prompt, ""))
        }
        if not perturbed:
            continue
        probes = {name: compare(cases, rows, others) for name, others in perturbed.items()}
        for probe, p in zip(probes.values(), holm([probe["p"] for probe in probes.values()]), strict=True):
            probe["p_holm"] = p
        use = probes.get(OTHER_IMAGE)
        found.setdefault(dataset, {})[prompt] = {
            "dice": float(cases.numbers["dice"][rows].mean()),
            "language_use": use
            and {"mean": use["drop"]} | {key: use[key] for key in ("n", "clusters", "std", "low", "high", "p")},
            "probes": probes,
        }
    return found


def compare(cases: Cases, rows: Sequence[int], others: Sequence[int]) -> dict[str, Any]:
    """The drop of the Dice from the lines `rows` to those of the same records among them in `others`."""
    of_record = {cases.texts["record"][i]: i for i in rows}
    pairs = np.array([(of_record[cases.texts["record"][i]], i) for i in others])
    right, wrong = cases.numbers["dice"][pairs.T]
    found = paired(right, wrong, [cases.texts["cluster"][i] for i in others])
    return {
        "n": found.n,
        "unchanged": len(rows) - found.n,
        "clusters": found.clusters,
        "dice_right": float(right.mean()),
        "dice": float(wrong.mean()),
        "drop": found.mean,
        "std": found.std,
        "low": found.low,
        "high": found.high,
        "p": found.p,
    }


def is_used(low: float | None, p: float) -> bool:
    """Whether a drop is shown: its interval lies above 0, and so does the test say."""
    return low is not None and low > 0 and p < SIGNIFICANT


def probe_table(probes: Probes) -> str:
    """The content of probe.json as a table, in percent."""
    rows = [["dataset / prompt, sentence", "n", "Dice", "drop", "95 % interval", "p (Holm)"]]
    for dataset, prompts in probes.items():
        for prompt, row in prompts.items():
            rows.append([f"{dataset} / {prompt}", "", percent(row["dice"]), "", "", ""])
            for name, probe in row["probes"].items():
                values = (percent(probe["dice"]), percent(probe["drop"]), interval(probe["low"], probe["high"]))
                rows.append([f"  {name}", str(probe["n"]), *values, f"{probe['p_holm']:.2g}"])
            if use := row["language_use"]:
                values = ("", percent(use["mean"]), interval(use["low"], use["high"]), f"{use['p']:.2g}")
                rows.append(["  language use", str(use["n"]), *values])
    return table(rows)
