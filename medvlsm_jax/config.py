"""The fields of a run's config, and how a config string overrides them."""

import dataclasses
import difflib
import json
import math
import re
from typing import Any

import jax
import ml_collections
from ml_collections import config_dict

from medvlsm_jax.errors import UserError


def base_config() -> ml_collections.ConfigDict:
    """Every field that `medvlsm_jax.train` reads, with defaults that suit a first run."""
    config = ml_collections.ConfigDict()

    # What is trained on what.
    config.data_dir = "data"  # holds one folder per dataset
    config.dataset = ""  # a name, a pool, several names joined by +, or the path of a card (TOML)
    config.prompt = "p6"  # p0 … p9, random, "attributes:size,class", or "text:A SENTENCE"
    config.model = "clipseg"  # a preset
    config.init = ""  # a converted checkpoint to start from; empty starts from random weights
    config.tokenizer = ""  # a hub id or a folder; empty takes the checkpoint's or the preset's
    config.image_size = 0  # side of the square input; 0 takes the model's
    config.zero_prompt = False  # replace the text embedding by zeros
    config.model_options = ""  # further fields of the model's config as json: {"extract_layers": [3, 6, 9]}
    config.target = ""  # train on the records of this class alone (`myocardium`); empty takes all
    config.data_num = ""  # share or number of each dataset's training images, or json: {"isic": 0.5, "busi": 100}
    # How often each dataset of a pool is drawn: json of shares, {"isic": 2, "busi": 1}; or by a temperature, where 1 is
    # each record once an epoch and larger ones favour small datasets (data/reading/pools.py).
    config.pool = ml_collections.ConfigDict({"weights": "", "temperature": 1.0})
    config.freeze_encoder = config_dict.placeholder(bool)  # None: frozen when `init` brings pretrained towers
    config.freeze_decoder = False
    config.resume = ""  # another run's workdir, whose newest checkpoint is continued here; it is only read

    # How it is trained.
    config.seed = 42
    config.batch_size = 32  # of all devices together
    config.accumulation = 1  # parts of a batch that are worked through one after another
    config.num_epochs = 100
    config.max_steps = 0  # stop there as if interrupted; 0: no bound
    config.loss = "dice"  # or "dice_bce", or "dice_nonempty", which leaves out images with an empty mask
    config.learning_rate = 1e-3
    config.schedule = "constant"  # or "cosine", down to 0 over all steps
    config.warmup_steps = 0
    config.weight_decay = 1e-3
    config.max_grad_norm = 0.5  # the gradient is clipped to it; 0: not at all
    config.plateau = ml_collections.ConfigDict({"factor": 0.1, "patience": 5, "threshold": 1e-4})
    config.early_stopping = ml_collections.ConfigDict({"patience": 20, "min_delta": 1e-4, "min_epochs": 10})
    config.ema = 0.0  # decay of a moving average of the parameters, which is then validated and loaded; 0: none

    # On which devices.
    config.dtype = "auto"  # of the computation: float32, bfloat16, or auto (bfloat16 on accelerators)
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1})  # -1 takes what the other axis leaves
    config.remat = "none"  # of encoder blocks: none, dots (keeps matrix products), or full (keeps their inputs alone)
    config.attention = "auto"  # xla, pallas (TPUs), cudnn (GPUs), or auto: the platform's where it can serve
    # Processes are found in the environment (TPU pod, GKE, SLURM, MPI); these stand above it (parallel/distributed.py).
    config.distributed = ml_collections.ConfigDict(
        {"coordinator": "", "num_processes": 0, "process_id": -1, "local_device_ids": ""}
    )
    config.compilation_cache = "auto"  # a folder, none, or auto: the user's cache folder, on accelerators
    config.deterministic = False  # have XLA choose deterministic kernels on GPUs, too

    # How it reads and reports.
    # Worker processes (0: this one alone) and threads in each; a cache of decoded images: none, memory, auto (memory if
    # there is plenty), or a folder; whether a broken file or record is an error or is skipped ("skip") and listed.
    config.data = ml_collections.ConfigDict({"num_workers": 0, "num_threads": 4, "cache": "auto", "on_bad": "error"})
    # Outputs of a frozen encoder, computed once: none, memory (as much as fits), auto (memory if all fits there, else
    # none), or a folder; at most so many GiB of them (0: half of the room there, which a job's memory limit bounds).
    config.features = ml_collections.ConfigDict({"cache": "auto", "limit_gib": 0.0})
    config.log_every_steps = 10
    config.checkpoint_every_steps = 0  # besides the end of each epoch
    config.writers = "tensorboard"  # besides console and metrics.jsonl: csv, tensorboard, wandb, mlflow, joined by +
    config.project = "medvlsm-jax"  # of W&B, and the experiment of MLflow
    config.num_overlays = 4  # validation cases drawn after each epoch
    config.profile = ""  # steps START:STOP that the profiler traces, "100:105"
    return config


def reader_options(data: Any) -> dict[str, Any]:
    """The fields of `config.data` that say who reads."""
    return {name: data[name] for name in ("num_workers", "num_threads")}


def published_config(model: str, *, batch_size: int, learning_rate: float) -> ml_collections.ConfigDict:
    """The paper's recipe (MIDL 2024, naamiinepal/medvlsm) for a network; what its networks share stands here."""
    config = base_config()
    config.model = model
    config.dataset = "kvasir_polyp"
    config.prompt = "p6"
    config.loss = "dice"
    config.batch_size = batch_size
    config.num_epochs = 1000
    config.learning_rate = learning_rate
    config.weight_decay = 1e-3
    config.max_grad_norm = 0.5
    config.seed = 42
    return config


def published_cnn_config(model: str) -> ml_collections.ConfigDict:
    """The paper's recipe for its image-only networks: Adam, everything trained, empty masks left out.

    The batch size is ours: the paper does not give theirs.
    """
    config = published_config(model, batch_size=32, learning_rate=1e-3)
    config.loss = "dice_nonempty"
    config.weight_decay = 0.0
    config.freeze_encoder = False
    return config


def apply_overrides(config: ml_collections.ConfigDict, arg: str | None) -> ml_collections.ConfigDict:
    """Sets fields from `name=value,name=value` (`mesh.fsdp=8` reaches into a group); types are those of the defaults.

    Raises:
        UserError: a field does not exist or a value is not of its type.
    """
    for item in split_items(arg or ""):
        name, separator, text = item.partition("=")
        *groups, field = name.split(".")
        target: Any = config
        for group in groups:
            target = target.get(group, {}) if isinstance(target, ml_collections.ConfigDict) else {}
        is_field = field in target and target.get_type(field) is not ml_collections.ConfigDict
        if not separator or not is_field:
            raise UserError(
                f"config string: {item!r} is not FIELD=VALUE with a field of the config{hint(arg, name, config)}"
            )
        target[field] = parse_value(name, text, target.get_type(field))
    return config


def hint(arg: str | None, name: str, config: ml_collections.ConfigDict) -> str:
    """What was meant, perhaps, by a name that is no field."""
    if name in config:
        return f": give {name}{'.FIELD' if isinstance(config[name], ml_collections.ConfigDict) else ''}=VALUE"
    if alike := difflib.get_close_matches(name, config, 1, 0.7):
        return f": did you mean {alike[0]}?"
    if "prompt=text:" in (arg or ""):
        return ": a sentence with a comma and = in it goes into --config.prompt='text:A SENTENCE'"
    return f": {', '.join(config)}"


PROMPTS = re.compile(r"(\w+\.)?prompts?=")  # of a config, and of a sweep: prompts=, evaluation.prompts=


def split_items(arg: str) -> list[str]:
    """The items between commas; in a prompt (`prompt=attributes:size,class`) and in json they belong to the value."""
    items: list[str] = []
    for part in filter(None, arg.split(",")):
        if items and "=" not in part and (PROMPTS.match(items[-1]) or "={" in items[-1]):
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def parse_value(name: str, text: str, kind: type) -> Any:
    """A value of the config string as the field's type."""
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UserError(f"config string: {name}={text} should be true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"config string: {name}={text} should be of type {kind.__name__}") from error


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a number may be.

    Attributes:
        least: the smallest.
        most: the largest.
        is_above: whether it has to be larger than `least`.
        is_below: whether it has to be smaller than `most`.
        hint: what else to say.
    """

    least: float = 0
    most: float = math.inf
    is_above: bool = False
    is_below: bool = False
    hint: str = ""

    def holds(self, value: float) -> bool:
        """Whether a number lies within; none that is not finite does."""
        is_low = value <= self.least if self.is_above else value < self.least
        is_high = value >= self.most if self.is_below else value > self.most
        return math.isfinite(value) and not is_low and not is_high

    def __str__(self) -> str:
        low = f"above {self.least}" if self.is_above else f"from {self.least}"
        high = f" {'and below' if self.is_below else 'to'} {self.most}" if math.isfinite(self.most) else " on"
        return f"{low}{'' if self.is_above and not math.isfinite(self.most) else high}{self.hint}"


POSITIVE, COUNT = Bounds(is_above=True), Bounds()
NUMBERS = {
    "image_size": Bounds(hint=", 0 for the model's"),
    "seed": Bounds(0, 2**31 - 1),
    "batch_size": Bounds(1),
    "accumulation": Bounds(1),
    "num_epochs": Bounds(1),
    "max_steps": COUNT,
    "learning_rate": POSITIVE,
    "warmup_steps": COUNT,
    "weight_decay": COUNT,
    "max_grad_norm": Bounds(hint=", 0 for no clipping"),
    "plateau.factor": Bounds(0, 1, is_above=True),
    "plateau.patience": COUNT,
    "plateau.threshold": Bounds(0, 1, is_below=True),
    "early_stopping.patience": COUNT,
    "early_stopping.min_delta": COUNT,
    "early_stopping.min_epochs": COUNT,
    "ema": Bounds(0, 1, is_below=True, hint=", 0 for none, or a decay such as 0.999"),
    "pool.temperature": Bounds(1),
    "mesh.data": Bounds(-1),
    "mesh.fsdp": Bounds(-1),
    "data.num_workers": COUNT,
    "data.num_threads": COUNT,
    "features.limit_gib": Bounds(hint=", 0 for half of what is free"),
    "log_every_steps": Bounds(1),
    "checkpoint_every_steps": COUNT,
    "num_overlays": COUNT,
}


def check_numbers(config: Any) -> None:
    """Raises UserError when a number in the config of a run, or of an evaluation, makes no sense."""
    fields = flattened(config)
    for name, bounds in NUMBERS.items():
        value = fields.get(name)
        if value is not None and not bounds.holds(value):
            raise UserError(f"config.{name}={value}: give a number {bounds}")


def flattened(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted names of all fields, those of groups among them, and their values."""
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            fields |= {f"{name}.{inner}": found for inner, found in flattened(value).items()}
        else:
            fields[name] = value
    return fields


def model_overrides(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The model's fields that a run or an evaluation may set."""
    try:
        overrides: dict[str, Any] = json.loads(config.model_options or "{}") | {"dtype": resolve_dtype(config.dtype)}
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"config.model_options={config.model_options!r} is no json object: {error}") from error
    if "attention" in config:
        overrides["attention"] = config.attention
    if "remat" in config:
        overrides["remat"] = config.remat
    if config.image_size:
        overrides["image_size"] = config.image_size
    if config.zero_prompt:
        overrides["zero_prompt"] = True
    return overrides


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 on accelerators and float32 on CPU; raises UserError for an unknown name."""
    if dtype == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype={dtype!r}: choose float32, bfloat16 or auto")
    return dtype


def as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """A config as json values."""
    return json.loads(config.to_json_best_effort())
