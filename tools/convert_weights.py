r"""Turns a PyTorch checkpoint into a model folder that every program here reads, and back.

    python tools/convert_weights.py --model=clipseg --source=CIDAS/clipseg-rd64-refined --output=checkpoints/clipseg
    python tools/convert_weights.py --model=biomedclipseg_d --source=open_clip_pytorch_model.bin \
        --decoder_source=CIDAS/clipseg-rd64-refined --output=checkpoints/biomedclipseg_d
    python tools/convert_weights.py --to_torch --source=checkpoints/clipseg --output=FILE_OR_FOLDER
    python tools/convert_weights.py --describe --source=checkpoints/clipseg

A PyTorch source is a .safetensors, .bin, .pt, .pth, Lightning .ckpt or TorchScript file, one of several shards, a
folder that holds one, or a hub id; PyTorch itself is not needed. A tokenizer that lies beside the weights is taken
along, so that later runs need no hub, and what a config there says of the network holds, or is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from flax import nnx

from medvlsm_jax import atomic, from_torch, load, to_torch, weights
from medvlsm_jax.checkpoints.model_folder import load_model_tokenizer, read_description, save_model, tokenizer_of
from medvlsm_jax.command_line import run_program
from medvlsm_jax.data.language.tokenizers import Tokenizer, load_tokenizer
from medvlsm_jax.errors import UserError
from medvlsm_jax.folders import local_folder
from medvlsm_jax.models import abstract_model, network_of, preset
from medvlsm_jax.models.clipseg import CLIPSeg
from medvlsm_jax.models.network import Network, NetworkConfig
from medvlsm_jax.models.parameters import count, split_model
from medvlsm_jax.models.summary import model_table
from medvlsm_jax.training.freezing import split_trained
from medvlsm_jax.weights.convert import DECODER, is_encoder_alone, torch_leaf, with_decoder
from medvlsm_jax.weights.names import fit_names
from medvlsm_jax.weights.reference.clipseg import check_huggingface, huggingface_config, huggingface_pixels
from medvlsm_jax.weights.source_configs import decoder_overrides, describe_overrides, source_overrides

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")
NEEDS_DECODER = ("biomedclipseg_d", "biomedclipseg_d_tiny")  # that it is CLIPSeg's makes them what they are


def convert(
    model: str,
    source: str,
    output: str,
    *,
    entry: str = "",
    decoder_source: str = "",
    tokenizer: str = "",
    classes: Sequence[str] = (),
) -> str:
    """Writes the model folder and says what it holds."""
    checkpoint = weights.read_checkpoint(source, entry)
    network, folder = preset(model)[0], checkpoint.source.folder
    fitted = fit_names(checkpoint.state_dict, network)
    report, state_dict = [checkpoint.taken, fitted.report()], fitted.arrays
    overrides = source_overrides(model, folder, state_dict)
    if decoder_source:
        if network != "biomedclipseg":
            raise UserError(f"--decoder_source is for biomedclipseg_d: a {network} takes its decoder from --source")
        decoder = weights.read_checkpoint(decoder_source)
        report.append(decoder.taken)
        state_dict = with_decoder(state_dict, decoder.state_dict)
        overrides |= decoder_overrides(decoder.source.folder)
    elif model in NEEDS_DECODER and not any(DECODER in name for name in state_dict):
        raise UserError(f"{model} starts with CLIPSeg's decoder: give its checkpoint with --decoder_source")
    report.append(describe_overrides(model, overrides, state_dict))
    overrides |= {"classes": tuple(classes)} if classes else {}
    converted = from_torch(model, state_dict, **overrides)
    found = find_tokenizer(source, tokenizer, converted.config)
    save_model(output, converted, found)
    _, params, _ = split_model(converted)
    report += [f"{model}, {count(params) / 1e6:.2f} M parameters in {len(params)} arrays, written to {output}"]
    if is_encoder_alone(model, state_dict):
        report.append(report_random(converted))
    if found is None and converted.config.text is not None:
        report.append(
            f"no tokenizer lay beside the weights: give --tokenizer, or runs fetch {converted.config.tokenizer}"
        )
    return "\n".join(filter(None, report))


def report_random(model: Network) -> str:
    """What a pretrained encoder alone left random, and whether freezing the encoder would keep some of it so."""
    table = weights.TABLES[network_of(model.config)]
    random = [
        path for path, _ in nnx.to_flat_state(nnx.state(model)) if torch_leaf(table, path)[0].startswith(table.head)
    ]
    report = "the file holds the pretrained encoder alone; random: " + ", ".join(table.head)
    if any(path[0] in model.encoder for path in random):
        report += "\na part of that lies in the encoder: train with --config.freeze_encoder=false"
    return report


def find_tokenizer(source: str, tokenizer: str, config: NetworkConfig) -> Tokenizer | None:
    """The tokenizer that is asked for, else the one that lies beside the weights, else none."""
    if config.text is None:
        return None
    if tokenizer:
        return load_model_tokenizer(tokenizer, config)
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.exists() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    name = str(folder) if path.exists() else source
    try:
        found = load_tokenizer(name, config.text.context_length, config.text.pad_token_id)
    except UserError:
        return None
    found.check(config.text.vocab_size, config.text.eos_token_id)
    return found


def write_back(source: str, output: str) -> str:
    """Writes a model folder's weights, of a workdir the best checkpoint's, as PyTorch names them.

    The output is a file, or a folder that receives model.safetensors; a CLIPSeg's has what Hugging Face's
    `from_pretrained` needs besides, of the model, of its images and of its tokenizer.

    Raises:
        UserError: a folder is asked for, and Hugging Face has no such CLIPSeg.
    """
    model, path = load(source), Path(output)
    file = path if path.suffix else path / "model.safetensors"
    report = f"{network_of(model.config)} in PyTorch's names and layouts, written to {file}"
    if path.suffix or type(model) is not CLIPSeg:
        weights.write_state_dict(file, to_torch(model))
        return report
    check_huggingface(model.config)
    weights.write_state_dict(file, to_torch(model))
    huggingface_config(model.config).save_pretrained(path)
    pixels = json.dumps(huggingface_pixels(model.config), indent=2)
    atomic.write_text(path / "preprocessor_config.json", pixels + "\n")
    try:
        name, text = tokenizer_of(Path(source), model.config), model.config.text
        load_tokenizer(name, text.context_length, text.pad_token_id).save(path)
    except UserError as error:
        report += f", without a tokenizer: {error}"
    return report


def network_text(model: str, source: str) -> str:
    """The table of a preset, or of a model folder, as it is trained when nothing is frozen and when its encoder is."""
    config = read_description(Path(source))[1] if source else preset(model)[1]
    abstract = abstract_model(config)
    _, params, _ = split_model(abstract)
    trained, _ = split_trained(abstract, params, freeze_encoder=False, freeze_decoder=False)
    decoder, _ = split_trained(abstract, params, freeze_encoder=True, freeze_decoder=False)
    return f"{model_table(abstract, trained)}\nwith freeze_encoder {count(decoder):,} parameters are trained"


def main(_: list[str]) -> None:
    """Runs the command line."""
    args = flags.FLAGS
    if args.describe:
        if not (args.model or args.source):
            raise UserError("--describe needs --model=PRESET or --source=MODEL_FOLDER")
        print(network_text(args.model, args.source))
        return
    missing = [name for name in ("source", "output") if not args[name].value]
    missing += ["model"] if not args.to_torch and not args.model else []
    if missing:
        raise UserError("give " + " and ".join(f"--{name}" for name in missing))
    output = str(local_folder("--output", args.output))
    if args.to_torch:
        print(write_back(args.source, output))
        return
    print(
        convert(
            args.model,
            args.source,
            output,
            entry=args.entry,
            decoder_source=args.decoder_source,
            tokenizer=args.tokenizer,
            classes=args.classes,
        )
    )


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "A preset: clipseg, biomedclipseg, biomedclipseg_d, cris, unet, unetplusplus, …")
    flags.DEFINE_string("source", "", "A checkpoint file, a folder that holds one, or a hub id; else a model folder.")
    flags.DEFINE_string("entry", "", "Of a source that holds several state dicts, the one to take: state_dict_ema, …")
    flags.DEFINE_string("decoder_source", "", "For biomedclipseg_d: the CLIPSeg checkpoint that gives the decoder.")
    flags.DEFINE_string(
        "output", "", "The model folder to write, replacing an older one; with --to_torch file or folder."
    )
    flags.DEFINE_string("tokenizer", "", "A hub id or a folder; by default what lies beside the weights.")
    flags.DEFINE_list("classes", [], "For an image-only network: one output for each of these, separated by commas.")
    flags.DEFINE_bool("to_torch", False, "Write a model folder's weights as PyTorch names them.")
    flags.DEFINE_bool("describe", False, "Print modules, parameters and cost of a preset or a model folder.")
    run_program(main)
