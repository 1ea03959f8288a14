"""tools/make_prompts.py: writes annotations, or compares its words with the published ones."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import make_prompts
import numpy as np
import pytest
from PIL import Image
from processes import run_here

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.preparing.annotate import describe_records

CARD = Card("mine", targets=("polyp",))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here("tools/make_prompts.py", "--num_workers=1", *arguments)


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """A dataset "mine" of 24 small polyps at the top left, of which the published words are partly others."""
    folder = tmp_path / "mine"
    for kind in ("images", "masks", "anns"):
        (folder / kind).mkdir(parents=True)
    entries = []
    for i in range(24):
        mask = np.zeros((30, 30), np.uint8)
        mask[:6, :6] = 255
        for kind in ("images", "masks"):
            Image.fromarray(mask).save(folder / kind / f"{i:02}.png")
        noun = f"small white {'square' if i < 2 else 'oval'} polyp"
        prompts = {f"p{n}": " ".join(noun.split()[-n:]) for n in (1, 2, 3, 4)}
        prompts |= {"p5": f"one {noun}", "p6": f"one {noun}, located in top left of the image"}
        entries.append({"img_name": f"{i:02}.png", "mask_name": f"{i:02}.png", "prompts": prompts})
    (folder / "anns" / "test.json").write_text(json.dumps(entries))
    (tmp_path / "mine.toml").write_text('name = "mine"\ntargets = ["polyp"]\n')
    return tmp_path


def test_prompts_are_written_with_a_users_words_and_descriptions(data_dir):
    (data_dir / "words.csv").write_text("image,color\n00.png,gold\n")
    (data_dir / "texts.json").write_text(json.dumps(["a dot"]))
    done = run(
        f"--dataset={data_dir / 'mine.toml'}",
        f"--data_dir={data_dir}",
        f"--attributes={data_dir / 'words.csv'}",
        f"--descriptions={data_dir / 'texts.json'}",
        "--keep=shape",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"train 0, val 0, test 24 records written to {data_dir / 'mine' / 'anns'}" in done.stdout
    assert "anns.published" in done.stdout
    first, *_, last = json.loads((data_dir / "mine" / "anns" / "test.json").read_text())
    assert first["prompts"]["p8"] == ["one small gold square polyp which is a dot"]
    assert last["prompts"]["p3"] == "white oval polyp"


def test_a_class_that_the_card_does_not_know_is_refused(data_dir):
    (data_dir / "words.csv").write_text("image,class\n00.png,polyp\n01.png,ulcer\n")
    arguments = [f"--data_dir={data_dir}", f"--attributes={data_dir / 'words.csv'}"]
    done = run(f"--dataset={data_dir / 'mine.toml'}", *arguments)
    assert done.returncode == 2
    assert "01.png is of the class 'ulcer', which is none of the targets of the card mine (polyp)" in done.stderr
    (data_dir / "mine.toml").write_text('name = "mine"\ntargets = ["polyp", "ulcer"]\n')
    assert run(f"--dataset={data_dir / 'mine.toml'}", *arguments).returncode == 0
    entries = json.loads((data_dir / "mine" / "anns" / "test.json").read_text())
    assert [entry["attributes"]["class"] for entry in entries[:3]] == ["polyp", "ulcer", "polyp"]


def test_a_comparison_writes_nothing_but_its_csv(data_dir):
    before = {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file()}
    output = data_dir / "new" / "differences.csv"
    done = run(f"--dataset={data_dir / 'mine.toml'}", f"--data_dir={data_dir}", "--compare", f"--output={output}")
    assert done.returncode == 0
    assert {path: path.read_bytes() for path in data_dir.rglob("*") if path.is_file() and path != output} == before
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["number", "24", "24", "100.0"] in table
    assert ["location", "24", "24", "100.0"] in table
    assert ["shape", "24", "2", "8.3"] in table
    assert done.stdout.count("shape of ") == 20
    assert "shape of 02.png: 'square', published 'oval'" in done.stdout
    assert "shape: 2 more" in done.stdout
    with output.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 22
    assert lines[0] == {
        "attribute": "shape",
        "image": "02.png",
        "mask": "02.png",
        "measured": "square",
        "published": "oval",
    }


def test_a_word_on_one_side_alone_differs(data_dir):
    path = data_dir / "mine" / "anns" / "test.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps([entries[0] | {"prompts": {"p1": "polyp", "p2": "square polyp"}}]))
    pairs = make_prompts.find_pairs(describe_records(data_dir / "mine", CARD), CARD)
    assert [(pair.attribute, pair.published) for pair in pairs if pair.measured != pair.published] == [
        ("number", ""),
        ("size", ""),
        ("location", ""),
        ("color", ""),
    ]


def test_attributes_that_the_grammar_does_not_tell_are_not_compared(data_dir):
    card = Card("mine", targets=("polyp",), grammar="camus")
    pairs = make_prompts.find_pairs(describe_records(data_dir / "mine", card), card)
    assert {pair.attribute for pair in pairs} == {"shape"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=gone"], "gone does not exist"),
        (["--dataset=pooled_all"], "--dataset=pooled_all is a pool"),
        (["--dataset=mine", "--keep=shape,weight"], "--keep=weight: choose among number, size, "),
        (["--dataset=mine", "--attributes=gone.csv"], "gone.csv cannot be read"),
        (["--dataset=mine", "--descriptions=gone.json"], "--descriptions=gone.json does not exist"),
        (["--dataset=bare", "--compare"], "--compare: bare has no published annotations"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(data_dir, arguments, message):
    for kind in ("images", "masks"):
        shutil.copytree(data_dir / "mine" / kind, data_dir / "bare" / kind)
    (data_dir / "bare" / "records.csv").write_text("image,mask,split,group,target\n00.png,00.png,test,,polyp\n")
    done = run(f"--data_dir={data_dir}", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "clinicdb_polyp", "busi"])
def test_real_samples_agree_in_number_size_and_location(shared, dataset):
    done = run(f"--dataset={dataset}", f"--data_dir={shared / 'realdata'}", "--compare")
    assert done.returncode == 0
    agreement = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[2:7] if line}
    assert [agreement[name] for name in ("number", "size", "location")] == ["100.0"] * 3
