"""Wrong sentences: exactly one thing is wrong, in all four grammars and with the published annotations."""

import json
from collections import Counter
from pathlib import Path

import pytest

from medvlsm_jax.data.annotations import Record, parse_record
from medvlsm_jax.data.cards import CARDS, Card
from medvlsm_jax.data.language.grammars import GENERAL, GRAMMARS, attributes_of, make_prompts
from medvlsm_jax.data.language.perturbations import perturb
from medvlsm_jax.data.language.prompts import choose_prompt
from medvlsm_jax.data.loading import load_records

POLYP = {"class": "polyp", "shape": "oval", "color": "pink", "size": "small", "number": "one", "location": "top left"}
LESION = POLYP | {"shape": "square", "color": "brown", "size": "medium", "number": "two", "location": "center"}
TUMOR = {"class": "tumor", "tumor_type": "benign", "number": "one", "size": "small", "location": "top", "shape": "oval"}
DESCRIPTIONS = ("a growth of the bowel", "a mound")


def make(*words: dict[str, str], grammar: str = "object", card: Card | None = None) -> list[Record]:
    """A record for each set of words, each of an image of its own."""
    card = card or Card("mine", grammar=grammar, descriptions=DESCRIPTIONS if grammar == "object" else ())
    made = [make_prompts(grammar, item, card.descriptions) for item in words]
    prompts = [{kind: text if isinstance(text, str) else tuple(text) for kind, text in item.items()} for item in made]
    return [Record(card, Path(f"{i}.png"), Path(f"{i}_mask.png"), item) for i, item in enumerate(prompts)]


def with_sentences(*sentences: str, images: str = "") -> list[Record]:
    names = images or [str(i) for i in range(len(sentences))]
    pairs = zip(names, sentences, strict=True)
    return [Record(Card("mine"), Path(f"{name}.png"), Path("m.png"), {"p1": text}) for name, text in pairs]


def published(shared: Path, dataset: str) -> list[Record]:
    path = shared / "annotations" / dataset / "test.json"
    return [parse_record(entry, CARDS[dataset], path.parent, "here") for entry in json.loads(path.read_text())]


# --- All words -------------------------------------------------------------------------------------------------------


def test_none_is_the_empty_sentence_and_p0_has_nothing_to_perturb():
    assert perturb(make(POLYP, LESION), "p6")["none"] == ["", ""]
    assert perturb(make(POLYP, LESION), "p0") == {}
    assert perturb([], "p6") == {}


def test_shuffled_sentences_have_the_same_words_in_another_order():
    records = make(*[POLYP] * 50)
    for prompt in ("p2", "p6"):  # p2 has two words, which have one other order
        shuffled = perturb(records, prompt)["shuffled"]
        right = choose_prompt(records[0], prompt)
        assert right not in shuffled
        assert {tuple(sorted(text.split())) for text in shuffled} == {tuple(sorted(right.split()))}
        assert len(set(shuffled)) > (prompt == "p6")


def test_one_word_cannot_be_shuffled():
    assert "shuffled" not in perturb(make(POLYP, LESION), "p1")
    assert perturb(with_sentences("a a a", "b c"), "p1")["shuffled"] == [None, "c b"]


def test_a_given_sentence_can_only_be_left_out_or_shuffled():
    found = perturb(make(POLYP, LESION), "text:one polyp in the center")
    assert list(found) == ["none", "shuffled"]


# --- The pairing -----------------------------------------------------------------------------------------------------


def check_partners(records: list[Record], prompt: str, found: list[str | None]) -> None:
    """Who has one has the sentence of another image, not its own; and those given are those taken away."""
    right = [choose_prompt(record, prompt) for record in records]
    for record, own, text in zip(records, right, found, strict=True):
        assert text != own
        if text is not None:
            assert text in [s for other, s in zip(records, right, strict=True) if other.image != record.image]
    assert Counter(filter(None, found)) == Counter(own for own, text in zip(right, found, strict=True) if text)


@pytest.mark.parametrize("seed", range(20))
def test_sentences_of_other_images_are_all_used_once(seed):
    records = with_sentences(*"aabbbccdef", images="0123345678")
    found = perturb(records, "p1", seed)["other_image"]
    check_partners(records, "p1", found)
    assert sorted(found) == list("aabbbccdef")


def pairs(records, prompt="p1", seed=0) -> list[tuple[str, str]]:
    """The own and the given sentences of those records that have a partner."""
    found = perturb(records, prompt, seed).get("other_image", [None] * len(records))
    return [(choose_prompt(record, prompt), text) for record, text in zip(records, found, strict=True) if text]


def test_a_sentence_that_most_records_have_is_exchanged_as_often_as_there_are_others():
    found = pairs(with_sentences(*"a" * 12, "b", "c", "d"))
    assert Counter(own for own, _ in found) == {"a": 3, "b": 1, "c": 1, "d": 1}
    assert Counter(given for _, given in found) == Counter(own for own, _ in found)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize(("sentences", "images"), [("abc", "001"), ("abb", "001"), ("aabbcd", "000012")])
def test_the_sentences_that_are_given_are_those_that_are_taken_away(sentences, images, seed):
    """Else a model that has better results with some sentences, whatever the image, would seem to read them."""
    found = pairs(with_sentences(*sentences, images=images), seed=seed)
    assert found
    assert all(own != given for own, given in found)
    assert Counter(given for _, given in found) == Counter(own for own, _ in found)


def test_records_that_are_all_alike_or_of_one_image_have_no_partner():
    assert "other_image" not in perturb(with_sentences("a", "a"), "p1")
    assert "other_image" not in perturb(with_sentences("a", "b", images="00"), "p1")


def test_of_many_records_each_sentence_is_used_once_though_most_are_of_few_kinds():
    records = make(*[POLYP | {"color": color} for color in ("white", "pink", "pink", "red") for _ in range(150)])
    found = perturb(records, "p3")["other_image"]
    check_partners(records, "p3", found)
    assert Counter(found) == Counter(choose_prompt(record, "p3") for record in records)


# --- One word --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["p6", "p9", "attributes:location"])
@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        ("top left", {"bottom right"}),
        ("left", {"right"}),
        ("bottom, right", {"top, left"}),
        ("center", {"top left", "top right", "bottom left", "bottom right"}),
        ("left, right", {"bottom"}),  # mirrored they were the same: a place that others have
    ],
)
def test_a_wrong_location_is_the_opposite(prompt, place, wrong):
    records = make(*[POLYP | {"location": place}] * 40, POLYP | {"location": "bottom"}, POLYP | {"location": "right"})
    right, found = choose_prompt(records[0], prompt), perturb(records, prompt)["wrong_location"]
    assert set(found[:40]) == {right.replace(place, word) for word in wrong}


@pytest.mark.parametrize(
    ("attribute", "wrong"), [("shape", "square"), ("color", "brown"), ("size", "medium"), ("number", "two")]
)
@pytest.mark.parametrize("prompt", ["p5", "p6", "p8", "p9", "random", "attributes:size,number,color,shape,class"])
def test_another_word_is_one_that_occurs_and_all_else_stays(prompt, attribute, wrong):
    records = make(POLYP, LESION)
    right, found = choose_prompt(records[0], prompt), perturb(records, prompt)[f"wrong_{attribute}"]
    assert found[0] == right.replace(POLYP[attribute], wrong)
    assert found[1] == choose_prompt(records[1], prompt).replace(wrong, POLYP[attribute])


def test_only_what_a_sentence_tells_can_be_wrong():
    records = make(POLYP, LESION)
    assert set(perturb(records, "p3")) == {
        *("none", "shuffled", "other_image", "wrong_class", "wrong_shape", "wrong_color"),
    }
    assert set(perturb(records, "p7")) == {"none", "shuffled", "wrong_class"}


def test_without_another_word_there_is_no_wrong_one():
    found = perturb(make(POLYP, POLYP), "p6")
    assert set(found) == {"none", "shuffled", "wrong_class", "wrong_number", "wrong_location"}
    assert set(found["wrong_number"]) == {"two small pink oval polyp, located in top left of the image"}


def test_words_that_say_the_same_are_not_wrong():
    circles = [POLYP | {"shape": shape} for shape in ("circle", "round", "circular", "a circle")]
    assert "wrong_shape" not in perturb(make(*circles[:3]), "p2")
    assert set(perturb(make(*circles, POLYP), "p2")["wrong_shape"][:4]) == {"oval polyp"}
    sizes = [POLYP | {"size": size} for size in ("small", "tiny, small", "large")]
    assert perturb(make(*sizes), "p4")["wrong_size"][0] == "large pink oval polyp"
    places = [POLYP | {"location": place} for place in ("left, right", "right, left")]
    assert "wrong_location" not in perturb(make(*places), "p6")


def test_wrong_words_come_as_often_as_they_occur():
    records = make(*[POLYP] * 300, *[LESION] * 30, *[POLYP | {"color": "red"}] * 10)
    found = Counter(text.split()[0] for text in perturb(records, "p3")["wrong_color"][:300])
    assert set(found) == {"brown", "red"}
    assert found["brown"] == pytest.approx(225, abs=30)


def test_a_wrong_class_is_of_the_records_or_the_card_or_another_dataset():
    camus = make({"class": "myocardium"}, {"class": "left atrium cavity"}, grammar="camus", card=CARDS["camus"])
    assert perturb(camus, "p1")["wrong_class"] == ["Left atrium cavity of the heart.", "Myocardium of the heart."]
    found = perturb(camus[:1] * 50, "p1")["wrong_class"]
    assert set(found) == {"Left atrium cavity of the heart.", "Left ventricular cavity of the heart."}
    assert perturb(make(POLYP, POLYP), "p1")["wrong_class"] == ["tumor", "tumor"]
    assert set(perturb(make(TUMOR, grammar="busi", card=CARDS["busi"]), "p1")["wrong_class"]) == {
        "Polyp in the breast ultrasound image."
    }
    part = make({"class": "neoplastic polyp"}, card=CARDS["bkai_polyp"])
    assert perturb(part, "p1")["wrong_class"] == ["tumor"]  # not the polyp that it is


def test_a_word_may_change_its_neighbours():
    records = make(TUMOR, TUMOR | {"number": "three", "tumor_type": "malignant"}, grammar="busi")
    found = perturb(records, "p6")
    assert found["wrong_number"] == [
        "Three small oval-shaped benign tumors at the top in the breast ultrasound image.",
        "One small oval-shaped malignant tumor at the top in the breast ultrasound image.",
    ]
    assert found["wrong_tumor_type"][1].startswith("Three small oval-shaped benign tumors")


def test_an_empty_mask_has_a_class_and_a_number_to_be_wrong():
    records = make({"class": "tumor", "number": "no", "tumor_type": "normal"}, TUMOR, grammar="busi")
    found = perturb(records, "p6")
    assert found["wrong_number"][0] == "One tumor in the breast ultrasound image."
    assert found["wrong_number"][1].startswith("Two small")  # not "no", which would change all else
    assert found["wrong_class"][0] == "No polyp in the breast ultrasound image."
    assert {name for name, texts in found.items() if texts[0] is None} == {
        *("wrong_size", "wrong_location", "wrong_shape"),
    } & set(found)


@pytest.mark.parametrize(
    ("sentence", "wrong"),
    [
        ("A polyp, small, is to be seen.", {"wrong_size": "A polyp, medium, is to be seen."}),
        ("Small polyp here", {"wrong_size": "Medium polyp here"}),
        ("The Polyp", {"wrong_class": "The Tumor"}),
        ("small and small", {}),  # which of the two is not known
        ("a smallish thing in two-chamber view", {}),
    ],
)
def test_in_other_sentences_a_whole_word_is_replaced_in_its_case(sentence, wrong):
    records = [
        Record(Card("mine"), Path(f"{i}.png"), Path("m.png"), {"p6": text}, "", words)
        for i, (text, words) in enumerate([(sentence, POLYP), ("no such word", LESION)])
    ]
    found = perturb(records, "p6")
    made = {name: texts[0] for name, texts in found.items() if name.startswith("wrong_") and texts[0]}
    assert {name: made.get(name) for name in wrong} == wrong
    assert bool(made) == bool(wrong)


def test_a_name_in_capitals_is_replaced_by_one_in_capitals():
    card = Card("mine", targets=("lung lesion", "support devices"), grammar="chexlocalize")
    prompts = {"p1": "The Lung Lesion, see there"}
    record = Record(card, Path("a.png"), Path("m.png"), prompts, "lung lesion", {"class": "lung lesion"})
    assert perturb([record], "p1")["wrong_class"] == ["The Support Devices, see there"]


# --- Seeds, and whole datasets ---------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_and_another_others():
    records = make(*[POLYP | {"color": f"color{i}", "location": "center"} for i in range(30)])
    first, again, other = (perturb(records, "p6", seed) for seed in (3, 3, 4))
    assert first == again
    for name in ("shuffled", "other_image", "wrong_color", "wrong_location"):
        assert first[name] != other[name]


def words_in(text: str) -> Counter[str]:
    return Counter(text.lower().replace(",", " ").replace(".", " ").replace("-shaped", " ").split())


@pytest.mark.parametrize("dataset", ["kvasir_polyp", "isic", "busi", "camus", "chexlocalize"])
def test_in_published_sentences_of_every_type_one_word_is_wrong(shared, dataset):
    records = published(shared, dataset)[::7]
    for prompt, names in GRAMMARS[CARDS[dataset].grammar].types.items():
        right, found = [choose_prompt(record, prompt) for record in records], perturb(records, prompt)
        if "other_image" in found:
            check_partners(records, prompt, found["other_image"])
        for name in (name for name in names if name != GENERAL):
            for record, own, text in zip(records, right, found[f"wrong_{name}"], strict=True):
                words = attributes_of(record)
                if words["number" if "number" in words else name] == "no" and name not in ("number", "class"):
                    assert text is None
                    continue
                gone = set(words_in(own) - words_in(text or ""))
                assert gone <= {*words_in(words[name]), "tumor", "tumors"}  # "tumors" follows its number
                assert gone or name in ("location", "pathology")  # of several, one may be added


def test_the_drawn_sample_has_all_but_a_general_description(sample):
    records = load_records(sample, "sample", "train")
    found = perturb(records, "p6")
    assert set(found) == {
        *("none", "shuffled", "other_image", "wrong_class", "wrong_shape", "wrong_color", "wrong_size"),
        *("wrong_number", "wrong_location"),
    }
    assert all(None not in texts for texts in found.values())
    check_partners(records, "p6", found["other_image"])
    assert all(text.startswith("two ") for text in found["wrong_number"])
    assert set(perturb(records, "other")) >= {"none", "shuffled", "other_image"}
