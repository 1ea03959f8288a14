"""Cards: what the package knows, what a user writes, and what a name stands for."""

import dataclasses

import pytest

from medvlsm_jax.data.cards import CARDS, SPLITS, Card, find_folder, named_card, read_card, split_members
from medvlsm_jax.errors import UserError

POOLS = ("pooled_polyp", "pooled_all")
# Of the paper's table of datasets: records in train, val and test.
COUNTS = {
    "kvasir_polyp": (800, 100, 100),
    "bkai_polyp": (800, 100, 100),
    "clinicdb_polyp": (490, 61, 61),
    "cvc300_polyp": (0, 0, 60),
    "colondb_polyp": (20, 0, 360),
    "etis_polyp": (20, 0, 176),
    "isic": (810, 90, 379),
    "dfu": (1600, 200, 200),
    "camus": (4800, 600, 600),
    "busi": (624, 78, 78),
    "chexlocalize": (1279, 446, 452),
}
MINE = """
name = "my_wounds"
modality = "photograph"
targets = ["wound"]
descriptions = ["an open sore"]
[counts]
train = 8
"""


@pytest.fixture
def card_file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", COUNTS)
def test_each_dataset_of_the_paper_has_a_full_card(name):
    card = CARDS[name]
    assert tuple(card.counts[split] for split in SPLITS) == COUNTS[name]
    texts = (card.title, card.modality, card.licence, card.citation, card.download, card.layout)
    assert all(texts)
    assert card.targets


def test_a_cards_file_has_its_name():
    assert all(card.name == name for name, card in CARDS.items())
    assert set(CARDS) == {*COUNTS, *POOLS, "sample"}


def test_the_papers_pools():
    names = {pool: {split: [c.name for c in split_members(pool, split)] for split in SPLITS} for pool in POOLS}
    trained = ["kvasir_polyp", "clinicdb_polyp", "bkai_polyp"]
    assert names["pooled_polyp"]["train"] == names["pooled_polyp"]["val"] == trained
    assert set(names["pooled_polyp"]["test"]) == {name for name in COUNTS if name.endswith("_polyp")}
    assert set(names["pooled_all"]["train"]) == {*trained, "dfu", "isic", "camus", "busi", "chexlocalize"}
    assert set(names["pooled_all"]["test"]) == set(COUNTS)
    assert len(CARDS["pooled_all"].targets) == 17


def test_a_pool_may_be_put_together_by_names():
    assert [card.name for card in split_members("isic+pooled_polyp", "train")] == [
        "isic",
        "kvasir_polyp",
        "clinicdb_polyp",
        "bkai_polyp",
    ]


def test_a_users_card_lies_where_they_like(card_file):
    path = card_file(MINE)
    card = named_card(path)
    assert (card.name, card.targets, card.descriptions) == ("my_wounds", ("wound",), ("an open sore",))
    assert card.counts == {"train": 8}
    assert split_members(f"isic+{path}", "val") == [CARDS["isic"], card]


def test_a_dataset_that_a_pool_names_twice_comes_once():
    names = [card.name for card in split_members("isic+pooled_polyp+kvasir_polyp+isic", "train")]
    assert names == ["isic", "kvasir_polyp", "clinicdb_polyp", "bkai_polyp"]


def test_two_cards_of_one_name_are_an_error(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "isic"\nmodality = "endoscopy"\n')
    assert split_members(str(path), "train")[0].modality == "endoscopy"  # a user's card comes before ours
    with pytest.raises(UserError, match="two cards have the name 'isic'"):
        split_members(f"isic+{path}", "train")


def test_a_folder_needs_no_card(tmp_path):
    (tmp_path / "mine" / "anns").mkdir(parents=True)
    assert named_card("mine") == Card("mine")
    assert find_folder(tmp_path, Card("mine")) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not valid TOML"),
        ("modality = 'x'", "name must be the name of a folder in data_dir, not None"),
        ("name = '../x'", "name must be the name of a folder"),
        ("name = 'a+b'", "name must be the name of a folder"),
        ("name = 'a'\nlicense = 'x'", "unknown field license; the fields are name, title"),
        ("name = 'a'\ntargets = 'polyp'", "targets must be a list of strings, not 'polyp'"),
        ("name = 'a'\nsubfolder = '../b'", "subfolder must be the name of a folder below images, not '../b'"),
        ("name = 'a'\ntitle = 3", "title must be a string, not 3"),
        ("name = 'a'\n[counts]\ntraining = 3", "counts must be a table of train, val, test with counts"),
        ("name = 'a'\n[counts]\ntrain = -3", "counts must be a table"),
        ("name = 'a'\n[members]\ntrain = 'isic'", "members must be a table of train, val, test with lists of datasets"),
    ],
)
def test_a_card_with_a_slip_is_named(card_file, text, message):
    path = card_file(text)
    with pytest.raises(UserError) as error:
        read_card(path)
    assert path in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["../other/mine", "/data/mine", "a/../../b"])
def test_a_dataset_outside_of_the_data_folder_is_refused_for_its_outputs_would_lie_outside_of_theirs(name):
    with pytest.raises(UserError, match=f"dataset '{name}' leads out of data_dir"):
        named_card(name)


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.toml cannot be read \(No such file"):
        named_card(str(tmp_path / "gone.toml"))


def test_cards_are_values():
    assert dataclasses.replace(CARDS["isic"]) == CARDS["isic"]
