"""The page of one evaluation: which words a model reacts to."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medvlsm_jax import atomic
from medvlsm_jax.evaluation.probes import SIGNIFICANT, is_used
from medvlsm_jax.reporting.page import Html, Plate, Section, cell, document, paragraph, table

PROBE_NAMES = {"none": "missing sentence", "shuffled": "shuffled words", "other_image": "another image's sentence"}
PROBE_DEFINITIONS = (
    "Drop: mean Dice with the right sentence minus mean Dice with the changed one, over the records whose sentence the "
    "change alters; intervals are 95 % bootstrap intervals over images or patients, p values of Wilcoxon's signed-rank "
    "test, corrected by Holm's method over the perturbations of a dataset and prompt type.",
    "Language use: mean over the images of Dice with the right sentence minus Dice with the sentence of another image "
    "of the same dataset. The sentences are the same, only their pairing with the images is broken: it is 0 for a "
    "model that does not use them.",
    f"A model reacts to an attribute when its drop is above 0 with corrected p < {SIGNIFICANT:g} and an interval above "
    "0. No reaction shown does not prove that there is none: few records or a wide interval may hide it.",
)


def probe_name(name: str) -> str:
    """A perturbation as people read it: `wrong_location` is wrong location."""
    return PROBE_NAMES.get(name, name.replace("_", " "))


def reacts(probe: Mapping[str, Any]) -> bool:
    """Whether a drop is shown to be above 0."""
    return is_used(probe["low"], probe.get("p_holm", probe["p"]))


def improves(probe: Mapping[str, Any]) -> bool:
    """Whether a drop is shown to be below 0."""
    return probe["high"] is not None and is_used(-probe["high"], probe["p_holm"])


def probe_finding(found: Mapping[str, Any]) -> str:
    """What the probes of a dataset and prompt type show, in words."""

    def names(chosen: Iterable[str]) -> str:
        return ", ".join(probe_name(name) for name in chosen)

    probes = found["probes"]
    reacting = [name for name in probes if reacts(probes[name])]
    better = [name for name in probes if improves(probes[name])]
    silent = [name for name in probes if name not in (*reacting, *better)]
    texts = [f"The model reacts to: {names(reacting)}"] if reacting else ["No reaction shown to any change"]
    texts += [f"better with: {names(better)}"] if better else []
    texts += [f"no reaction shown to: {names(silent)}"] if silent and (reacting or better) else []
    return f"{'; '.join(texts)}."


def signed(value: float) -> str:
    """A difference of Dice in percentage points."""
    return f"{100 * value:+.2f}".replace("-", "−")


def p_text(p: float) -> str:
    """A p value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def probe_table(found: Mapping[str, Any], caption: str) -> Html:
    """Language use and every drop, with their tests."""
    dice = f"{100 * found['dice']:.2f}"
    rows = [["right sentence", "", "", "", dice, "", "", "", ""]]
    for name, one in found["probes"].items():
        counts = [str(one[key]) for key in ("n", "unchanged", "clusters")]
        rows.append([probe_name(name), *counts, f"{100 * one['dice']:.2f}", *drop_cells(one, "drop")])
    if use := found["language_use"]:
        rows.append(["language use", str(use["n"]), "", str(use["clusters"]), "", *drop_cells(use, "mean")])
    header = ["sentence", "n", "unchanged", "clusters", "Dice, %", "drop, points", "95 % interval", "p", "p (Holm)"]
    return table(header, rows, caption)


def drop_cells(one: Mapping[str, Any], key: str) -> list[str]:
    """A drop, bold where it is shown to be above 0, its interval and its p values."""
    interval = "–" if one["low"] is None else f"[{signed(one['low'])}, {signed(one['high'])}]"
    tests = [p_text(one["p"]), p_text(one["p_holm"]) if "p_holm" in one else ""]
    return [cell(signed(one[key]), is_best=reacts(one)), interval, *tests]


def write_probe_page(path: Path, probe: Mapping[str, Any], title: str) -> None:
    """Writes the page that says which attributes a model reacts to.

    Args:
        path: of the HTML file.
        probe: what probe.json holds, dataset -> prompt -> language use and drops.
        title: of the page, such as the checkpoint's name.
    """
    sections = [
        Section(name, f"Mean Dice {100 * found['dice']:.2f} % with the right sentences.", probe_body(name, found))
        for dataset, prompts in probe.items()
        for prompt, found in prompts.items()
        for name in [f"{dataset}, {prompt}"]
    ]
    introduction = [paragraph(text, "definition") for text in PROBE_DEFINITIONS]
    text = document(title, "Which parts of the sentence the model reacts to", sections, introduction)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, text)


def probe_body(name: str, found: Mapping[str, Any]) -> list[Html | Plate]:
    """Finding, chart and table of a dataset and prompt type."""
    from medvlsm_jax.reporting import figures

    if not found["probes"]:
        return [paragraph("No sentence could be changed.", "finding")]
    caption = f"Drop in Dice, {name}, with 95 % intervals; filled bars with an asterisk are shown to be above 0."
    chart = figures.bars({name: {name: drop_bars(found)}}, [name], "drop in Dice, percentage points")
    finding = paragraph(probe_finding(found), "finding")
    return [finding, Plate("probes", chart, caption), probe_table(found, f"All perturbations, {name}.")]


def drop_bars(found: Mapping[str, Any]) -> dict[str, Any]:
    """Perturbation, as people read it -> its drop as a bar."""
    return {probe_name(name): drop_bar(one, "drop") for name, one in found["probes"].items()}


def drop_bar(one: Mapping[str, Any], key: str) -> Any:
    """A drop as a bar, in percentage points."""
    from medvlsm_jax.reporting.figures import Bar

    low, high = (None if one[end] is None else 100 * one[end] for end in ("low", "high"))
    return Bar(100 * one[key], low, high, reacts(one))
