r"""The paper's experiments, and grids of your own, as lists of training configs.

    python tools/sweep.py --sweep=configs/sweeps.py:individual,data_dir=DATA,checkpoints=checkpoints --output=runs
    python tools/sweep.py --output=runs \
        --sweep=configs/sweeps.py:grid,models=clipseg+unet,datasets=isic+busi,prompts=p0+p6,data_dir=DATA
    python tools/sweep.py --output=found --trials=20 --sweep=configs/sweeps.py:search,models=cris,data_dir=DATA

What follows the sweep's name are axes (`models=`, `datasets=`, `prompts=`, `fractions=`, `freeze=`, `seeds=`), whose
values are joined by `+` and replace those below; `checkpoints=DIR`, where the run of a model starts from DIR/MODEL; and
fields of the config, which are then the same in all runs (`num_epochs=10`, `evaluation.probe=true` and other options of
`medvlsm_jax.evaluate`).

Image-only networks read no sentence: of them one run stands for all prompt types, with p0. Their checkpoint needs an
output for each class of `pooled_all`: `convert_weights.py --classes=…`.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from configs import biomedclipseg, biomedclipseg_d, clipseg, cris, deeplabv3plus, unet, unetplusplus
from medvlsm_jax.config import apply_overrides, base_config, split_items
from medvlsm_jax.data.cards import CARDS, Card, named_card, split_members
from medvlsm_jax.data.language.grammars import GENERAL, named_grammar
from medvlsm_jax.data.language.prompts import SUBSET, is_numbered, parse_attributes, split_prompts
from medvlsm_jax.errors import UserError
from medvlsm_jax.models import preset
from medvlsm_jax.scoring.plan import Options, check_options

Axes = dict[str, tuple[str, ...]]

# The config file of a network; that of `clipseg_tiny` is clipseg's.
FILES = {
    "clipseg": clipseg,
    "cris": cris,
    "biomedclipseg": biomedclipseg,
    "biomedclipseg_d": biomedclipseg_d,
    "unet": unet,
    "unetplusplus": unetplusplus,
    "deeplabv3plus": deeplabv3plus,
}
CNNS = ("unet", "unetplusplus", "deeplabv3plus")
VLSMS = ("clipseg", "cris", "biomedclipseg", "biomedclipseg_d")
MODELS = VLSMS + CNNS
TRAINED = CARDS["pooled_all"].members["train"]  # the eight datasets that have a training split
TESTED = CARDS["pooled_all"].members["test"]  # all eleven
POLYPS = CARDS["pooled_polyp"].members["train"]

# What each axis sets; an axis that a sweep lacks keeps the config's own value.
FIELDS = {
    "models": "model",
    "datasets": "dataset",
    "prompts": "prompt",
    "fractions": "data_num",
    "freeze": "freeze_encoder",
    "seeds": "seed",
}
CHECKPOINTS = "checkpoints"
OWN = ("own",)  # prompt types: all that the dataset's sentences have, from p0 on
SWEEPS: dict[str, Axes] = {
    # A checkpoint as it is; without biomedclipseg, whose decoder is random before it is trained.
    "zero_shot": {"models": ("clipseg", "cris", "biomedclipseg_d"), "datasets": TESTED, "prompts": OWN},
    # Trained on one dataset; an image-only network once for each of its classes.
    "individual": {"models": MODELS, "datasets": TRAINED, "prompts": OWN},
    # Trained on three endoscopy sets, tested on all six.
    "endoscopy": {"models": MODELS, "datasets": ("pooled_polyp",), "prompts": OWN},
    # Trained on eight datasets, tested on all eleven.
    "pooled": {"models": MODELS, "datasets": ("pooled_all",), "prompts": ("random",)},
    # Trained on one endoscopy set, tested on all six.
    "cross_dataset": {"models": MODELS, "datasets": POLYPS, "prompts": OWN},
    "prompts": {"models": VLSMS, "datasets": TRAINED, "prompts": OWN},
    "freezing": {"models": VLSMS, "datasets": TRAINED, "prompts": ("p6",), "freeze": ("true", "false")},
    "fractions": {
        "models": MODELS,
        "datasets": TRAINED,
        "prompts": ("p6",),
        "fractions": ("0.1", "0.25", "0.5", "1.0"),
    },
    "seeds": {"models": MODELS, "datasets": TRAINED, "prompts": ("p6",), "seeds": ("41", "42", "43")},
    # Every combination of the axes that are given; `search` is one of them.
    "grid": {"models": ("clipseg",)},
    "search": {"models": ("clipseg",)},
}


def get_sweep(arg: str | None = None) -> Iterator[ml_collections.ConfigDict]:
    """The runs of a sweep.

    Args:
        arg: `NAME,FIELD=VALUE,…` as above.

    Yields:
        Training configs, and in each `name` (of its folder), `file` (of its network), `is_trained` (false: the
        checkpoint `init` is scored as it is) and `evaluation`: what is scored afterwards.

    Raises:
        UserError: there is no such sweep, axis, field or model, or two runs have the same name.
    """
    sweep, axes, fields = parse(arg or "")
    names = set()
    target = next((item.partition("=")[2] for item in fields if item.startswith("target=")), "")
    for point in points(sweep, axes, target):
        config = make_config(sweep, point, fields)
        if config.name in names:
            raise UserError(
                f"--sweep: two runs have the name {config.name}: change one of their values, or leave it out"
            )
        names.add(config.name)
        yield config


def suggest(trial: Any, config: Any) -> None:
    """Chooses what a search varies, around the network's recipe.

    Args:
        trial: an `optuna.Trial`.
        config: of the run, which is changed.
    """
    rate, size = config.learning_rate, config.batch_size
    config.learning_rate = trial.suggest_float("learning_rate", rate / 30, rate * 10, log=True)
    config.weight_decay = trial.suggest_float("weight_decay", 1e-6, 1e-1, log=True)
    config.batch_size = trial.suggest_categorical("batch_size", sorted({max(1, size // 4), size}))
    config.loss = trial.suggest_categorical("loss", sorted({config.loss, "dice_bce"}))
    config.schedule = trial.suggest_categorical("schedule", ["constant", "cosine"])


# --- From the command line to runs -----------------------------------------------------------------------------------


def parse(arg: str) -> tuple[str, Axes, list[str]]:
    """The sweep's name, its axes, and the fields `NAME=VALUE` of all its runs."""
    sweep, *items = split_items(arg) or [""]
    if sweep not in SWEEPS:
        raise UserError(f"--sweep: there is no sweep {sweep!r}, but {', '.join(SWEEPS)}")
    axes = dict(SWEEPS[sweep])
    fields = []
    for item in items:
        axis, _, text = item.partition("=")
        if axis not in FIELDS:
            check_field(axis)
            fields.append(item)
        elif values := tuple(filter(None, text.split("+"))):
            axes[axis] = values
        else:
            raise UserError(f"--sweep: {item!r} has no value: give {axis}=A+B")
    varied = {FIELDS[axis]: axis for axis in axes}
    for item in fields:
        if axis := varied.get(item.partition("=")[0]):
            raise UserError(f"--sweep: {item!r} is what the axis {axis} sets: give {axis}=A+B")
    return sweep, axes, fields


def check_field(name: str) -> None:
    """Raises UserError when an item of the config string is neither an axis nor a field."""
    known = [*base_config(), "evaluation", CHECKPOINTS]
    if name.partition(".")[0] not in known:
        raise UserError(
            f"--sweep: {name!r} is neither an axis ({', '.join(FIELDS)}) nor a field of the config ({', '.join(known)})"
        )


def points(sweep: str, axes: Axes, target: str = "") -> Iterator[dict[str, str]]:
    """The fields of each run that the axes set, and `target` where an image-only network sees one class alone.

    Args:
        sweep: its name.
        axes: name -> values.
        target: the only class of all runs, or empty.
    """
    for model, dataset in itertools.product(axes["models"], axes.get("datasets", ("",))):
        is_blind = preset(model)[1].text is None
        types = axes.get("prompts", ("",))
        types = prompt_types(dataset) if types == OWN else types
        if is_blind:
            types = ("p0",)
        elif sweep == "zero_shot":
            types = ("+".join(types),)
        targets = own_classes(dataset, target) if is_blind and sweep == "individual" else ("",)
        others = [axis for axis in ("fractions", "freeze", "seeds") if axis in axes]
        for prompt, own in itertools.product(types, targets):
            for values in itertools.product(*(axes[axis] for axis in others)):
                point = {"model": model, "dataset": dataset, "prompt": prompt, "target": own}
                point |= {FIELDS[axis]: value for axis, value in zip(others, values, strict=True)}
                yield {field: value for field, value in point.items() if value}


def own_classes(dataset: str, target: str) -> tuple[str, ...]:
    """The classes of a dataset with several, each of which has a run of its own; all or the one that is asked for."""
    classes = named_card(dataset).targets
    if len(classes) < 2:
        return ("",)
    if target and target not in classes:
        raise UserError(f"--sweep: target={target}: {dataset} has no such class, but {', '.join(classes)}")
    return (target,) if target else classes


def prompt_types(dataset: str) -> tuple[str, ...]:
    """All numbered prompt types of a dataset's sentences; those with a description only where there are some."""
    cards = split_members(dataset, "test")
    has_descriptions = all(card.descriptions for card in cards)
    grammars = [named_grammar(card.grammar).types for card in cards]
    shared = [kind for kind in grammars[0] if all(kind in types for types in grammars)]
    return ("p0", *(kind for kind in shared if has_descriptions or GENERAL not in grammars[0][kind]))


def make_config(sweep: str, point: dict[str, str], fields: list[str]) -> ml_collections.ConfigDict:
    """The config of one run."""
    point = dict(point)
    file = config_file(point["model"])
    config: Any = FILES[file].get_config()
    config.name = run_name(sweep, point)
    config.file = f"configs/{file}.py"
    config.is_trained = sweep != "zero_shot"
    config.evaluation = ml_collections.ConfigDict({"datasets": "", "prompts": "", **dataclasses.asdict(Options())})
    tested = "pooled_polyp" if sweep == "cross_dataset" else ""
    if not config.is_trained:
        config.evaluation.prompts = point.pop("prompt")
    for item in [*fields, *(f"{field}={value}" for field, value in point.items())]:
        if item.startswith(f"{CHECKPOINTS}="):
            item = f"init={Path(item.partition('=')[2]) / point['model']}"
        apply_overrides(config, item)
    config.evaluation.datasets = config.evaluation.datasets or tested or config.dataset
    config.evaluation.prompts = config.evaluation.prompts or config.prompt
    if not config.is_trained and not config.init:
        raise UserError("--sweep: zero_shot scores converted checkpoints: give checkpoints=DIR, which holds DIR/MODEL")
    check_evaluation(config.evaluation)
    return config


def check_evaluation(evaluation: Any) -> None:
    """Raises UserError when what a run is to score can be seen to be wrong before it is trained.

    Whether a dataset or prompt type of the user's own is there is found in the annotations, when the run starts.
    """
    options = evaluation.to_dict()
    datasets, prompts = options.pop("datasets"), options.pop("prompts")
    check_options(Options(**options))
    cards = split_members(datasets, options["split"])
    if not cards:
        raise UserError(f"--sweep: {datasets} has no dataset for evaluation.split={options['split']}")
    for prompt in prompts.split("+"):
        if split_prompts(prompt) != [prompt]:
            raise UserError(f"--sweep: evaluation.prompts={prompts}: {prompt!r} is not one prompt type: give p0+p6")
        if prompt.startswith(SUBSET):
            parse_attributes(prompt)
        for card in cards if is_numbered(prompt) and prompt != "p0" else ():
            check_numbered(prompt, card)


def check_numbered(prompt: str, card: Card) -> None:
    """Raises UserError when the sentences of a dataset whose card is known have no such numbered prompt type."""
    types = named_grammar(card.grammar).types
    if card != Card(card.name) and prompt not in types:
        raise UserError(f"--sweep: {card.name} has no prompt type {prompt}, but p0, {', '.join(types)}")


def config_file(model: str) -> str:
    """The name of the config file for a preset; raises UserError when there is no such preset."""
    preset(model)
    return max((name for name in FILES if f"{model}_".startswith(f"{name}_")), key=len)


def run_name(sweep: str, point: dict[str, str]) -> str:
    """The folder of a run: what makes it differ from the other runs of all sweeps."""
    parts = [point["model"]]
    if "dataset" in point:
        parts.append(Path(point["dataset"]).stem if point["dataset"].endswith(".toml") else point["dataset"])
    parts.append("zero_shot" if sweep == "zero_shot" else point.get("prompt", ""))
    parts += [point.get("target", ""), "cross" if sweep == "cross_dataset" else ""]
    forms = {"data_num": "data{}", "freeze_encoder": "freeze_{}", "seed": "seed{}"}
    parts += [form.format(point[field]) for field, form in forms.items() if field in point]
    return "-".join(re.sub(r"[^a-zA-Z0-9_.]+", "_", part)[:60] for part in parts if part)
