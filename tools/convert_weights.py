"""Turns a PyTorch checkpoint into a model folder that every program here reads.

    python tools/convert_weights.py --model=clipseg --source=CIDAS/clipseg-rd64-refined --output=checkpoints/clipseg

The source is a .safetensors, .bin, .pt, .pth or Lightning .ckpt file, a folder that holds one, or a hub id. A tokenizer
that lies beside the weights is taken along, so that later runs need no hub.
"""

from pathlib import Path

from absl import flags

from medvlsm_jax import from_torch, weights
from medvlsm_jax.data.tokenizers import Tokenizer, load_tokenizer
from medvlsm_jax.errors import UserError, run_program
from medvlsm_jax.models.parameters import count, split_model
from medvlsm_jax.training.checkpoints import save_model

TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def convert(model: str, source: str, output: str, tokenizer: str = "") -> str:
    """Writes the model folder and says what it holds."""
    converted = from_torch(model, weights.read_state_dict(source))
    found = find_tokenizer(source, tokenizer, converted.config.text.context_length)
    if found is not None:
        found.check(converted.config.text.vocab_size, converted.config.text.eos_token_id)
    save_model(output, converted, found)
    _, params, _ = split_model(converted)
    report = f"{model}, {count(params) / 1e6:.2f} M parameters in {len(params)} arrays, written to {output}"
    if found is None:
        report += f"\nno tokenizer lay beside the weights: give --tokenizer, or runs fetch {converted.config.tokenizer}"
    return report


def find_tokenizer(source: str, tokenizer: str, context_length: int) -> Tokenizer | None:
    """The tokenizer that is asked for, else the one that lies beside the weights, else none."""
    if tokenizer:
        return load_tokenizer(tokenizer, context_length)
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.exists() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return load_tokenizer(str(folder) if path.exists() else source, context_length)
    except UserError:
        return None


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    print(convert(args.model, args.source, args.output, args.tokenizer))


if __name__ == "__main__":
    flags.DEFINE_string("model", None, "The network: clipseg.")
    flags.DEFINE_string("source", None, "A checkpoint file, a folder that holds one, or a hub id.")
    flags.DEFINE_string("output", None, "The model folder to write; an older model folder there is replaced.")
    flags.DEFINE_string("tokenizer", "", "A hub id or a folder; by default what lies beside the weights.")
    flags.mark_flags_as_required(["model", "source", "output"])
    run_program(main)
