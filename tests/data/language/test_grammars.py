"""Sentences from attributes in the published wording, and attributes from sentences."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.cards import CARDS, GREY, Card
from medvlsm_jax.data.language.grammars import (
    ATTRIBUTES,
    GENERAL,
    GRAMMARS,
    attributes_of,
    compose,
    descriptions_of,
    make_prompts,
    read_attributes,
    read_descriptions,
)
from medvlsm_jax.errors import UserError

POLYP = {
    **{"class": "polyp", "shape": "round", "color": "pink"},
    **{"size": "tiny, small", "number": "two", "location": "top, center"},
}
SHORT = ("a lump", "a bump of tissue")
HEART = {
    **{"class": "left atrium cavity", "view": "four-chamber", "cycle": "systole", "sex": "male"},
    **{"age": "eighty-one-year-old", "quality": "poor", "shape": "oval"},
}
TUMOR = {
    **{"class": "tumor", "tumor_type": "malignant", "number": "one"},
    **{"size": "medium", "location": "top right", "shape": "circle"},
}
CHEST = {
    **{"class": "pleural effusion", "view": "lateral", "shape": "oval"},
    **{"location": "left, bottom left", "pathology": "Edema, Pleural Effusion"},
}
TUMOR_IN_CT = {
    **{"class": "tumor", "size": "small", "number": "one", "view": "axial"},
    **{"organ": "liver", "location": "top left", "shape": "round"},
}
EXAMPLES = {"object": POLYP, "camus": HEART, "busi": TUMOR, "chexlocalize": CHEST} | dict.fromkeys(GREY, TUMOR_IN_CT)


def record_of(prompts, grammar: str = "object", attributes=None, target: str = "", descriptions=()) -> Record:
    card = Card("mine", grammar=grammar, descriptions=descriptions)
    return Record(card, Path("a.png"), Path("b.png"), prompts, target, attributes or {})


# --- Prompts ---------------------------------------------------------------------------------------------------------


def test_there_are_the_papers_14_attributes_and_organs_and_each_has_its_place():
    assert len(ATTRIBUTES) == 15
    assert ATTRIBUTES[-1] == "organ"
    assert {name for grammar in GRAMMARS.values() for name in grammar.attributes} == set(ATTRIBUTES)


def test_prompts_of_a_polyp():
    noun = "two tiny, small pink round polyp"
    assert make_prompts("object", POLYP, SHORT) == {
        "p0": "",
        "p1": "polyp",
        "p2": "round polyp",
        "p3": "pink round polyp",
        "p4": "tiny, small pink round polyp",
        "p5": noun,
        "p6": f"{noun}, located in top, center of the image",
        "p7": ["polyp which is a lump", "polyp which is a bump of tissue"],
        "p8": [f"{noun} which is a lump", f"{noun} which is a bump of tissue"],
        "p9": [f"{noun} which is {text} located in top, center of the image" for text in SHORT],
    }


def test_prompts_of_a_heart_have_two_phrasings():
    prompts = make_prompts("camus", HEART, ())
    assert list(prompts) == [f"p{i}" for i in range(8)]
    assert prompts["p1"] == ["Left atrium cavity of the heart.", "Left atrium cavity in the cardiac ultrasound."]
    tail = "at end of the systole cycle of a eighty-one-year-old male with poor image quality."
    assert prompts["p7"] == [
        f"Left atrium cavity of oval shape in four-chamber view of the heart {tail}",
        f"Left atrium cavity of oval shape in four-chamber view in the cardiac ultrasound {tail}",
    ]
    assert prompts["p4"][0].endswith("of the heart at end of the systole cycle of a male.")


def test_prompts_of_a_breast_tumour_call_malignant_irregular_too():
    prompts = make_prompts("busi", TUMOR, ())
    assert list(prompts) == [f"p{i}" for i in range(7)]
    assert prompts["p1"] == "Tumor in the breast ultrasound image."
    assert prompts["p2"] == [
        "Malignant tumor in the breast ultrasound image.",
        "Irregular-shaped tumor in the breast ultrasound image.",
    ]
    assert prompts["p5"][1] == ("One medium irregular-shaped tumor at the top right in the breast ultrasound image.")
    assert prompts["p6"] == [
        f"One medium circle-shaped {kind} tumor at the top right in the breast ultrasound image."
        for kind in ("malignant", "irregular")
    ]


def test_several_tumours_have_a_plural_once_they_are_counted():
    prompts = make_prompts("busi", TUMOR | {"number": "three", "tumor_type": "benign"}, ())
    assert prompts["p2"][0] == "Benign tumor in the breast ultrasound image."
    assert prompts["p3"] == [
        "Three benign tumors in the breast ultrasound image.",
        "Three regular-shaped tumors in the breast ultrasound image.",
    ]


def test_prompts_of_a_chest_finding():
    assert make_prompts("chexlocalize", CHEST, ()) == {
        "p0": "",
        "p1": "Pleural Effusion in a chest Xray.",
        "p2": "Pleural Effusion in the lateral view of a Chest Xray.",
        "p3": "Pleural Effusion of shape oval in the lateral view of a Chest Xray.",
        "p4": "Pleural Effusion of shape oval, and located in left, bottom left of the lateral view of a Chest Xray.",
        "p5": "Pleural Effusion of shape oval, and located in left, bottom left of the lateral view of a Chest Xray. "
        "Edema, Pleural Effusion are present.",
        "p6": "Pleural Effusion in a Chest Xray. Edema, Pleural Effusion are present. ",
    }


@pytest.mark.parametrize(
    ("grammar", "first", "last"),
    [
        ("object", "no polyp", ["no polyp"]),
        ("camus", *[["No polyp of the heart.", "No polyp in the cardiac ultrasound."]] * 2),
        ("busi", *["No polyp in the breast ultrasound image."] * 2),
        ("chexlocalize", *["No Polyp in a chest Xray."] * 2),
        ("mr", "no polyp", ["no polyp"]),
    ],
)
def test_every_prompt_of_an_empty_mask_says_so(grammar, first, last):
    prompts = make_prompts(grammar, {"class": "polyp", "number": "no", "tumor_type": "normal"}, SHORT)
    types = [kind for kind in GRAMMARS[grammar].types if kind < "p7" or grammar not in ("object", "mr")]
    assert [prompts[kind] for kind in types] == [first] * len(types)
    assert prompts[list(GRAMMARS[grammar].types)[-1]] == last
    assert list(prompts) == ["p0", *GRAMMARS[grammar].types]


def test_what_an_object_lacks_is_left_out():
    prompts = make_prompts("object", {"class": "ulcer", "size": "small", "color": ""}, SHORT)
    assert [prompts[f"p{i}"] for i in (2, 3, 4, 6)] == ["ulcer", "ulcer", "small ulcer", "small ulcer"]
    assert prompts["p9"] == ["small ulcer which is a lump", "small ulcer which is a bump of tissue"]
    assert make_prompts("busi", {"class": "tumor"}, ())["p6"] == "Tumor in the breast ultrasound image."
    assert make_prompts("camus", {"class": "myocardium", "age": "ten-year-old"}, ())["p6"] == [
        "Myocardium of the heart of a ten-year-old.",
        "Myocardium in the cardiac ultrasound of a ten-year-old.",
    ]
    assert make_prompts("chexlocalize", {"class": "edema"}, ())["p6"] == "Edema in a chest Xray."


def test_without_descriptions_there_are_no_types_of_them():
    assert list(make_prompts("object", POLYP, ())) == [f"p{i}" for i in range(7)]


# --- Any subset ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grammar", "names", "sentence"),
    [
        ("object", ("size", "number", "class"), "two tiny, small polyp"),
        ("object", ("location",), "located in top, center of the image"),
        ("object", ("location", "class"), "polyp, located in top, center of the image"),
        ("object", ("color",), "pink"),
        ("object", (GENERAL,), "a lump"),
        ("object", (GENERAL, "location"), "a lump located in top, center of the image"),
        ("object", ("sex",), ""),
        ("camus", ("quality", "class"), "Left atrium cavity of the heart with poor image quality."),
        ("camus", ("view",), "In four-chamber view of the heart."),
        ("busi", ("location", "class"), "Tumor at the top right in the breast ultrasound image."),
        ("busi", ("shape", "class", "number"), "One circle-shaped tumor in the breast ultrasound image."),
        ("chexlocalize", ("class", "location"), "Pleural Effusion, and located in left, bottom left of a Chest Xray."),
        ("chexlocalize", ("location", "view"), "Located in left, bottom left of the lateral view of a Chest Xray."),
        ("chexlocalize", ("shape",), "Of shape oval in a Chest Xray."),
        ("ct", ("organ", "class"), "tumor in the liver"),
        ("xray", ("location",), "located in top left of the X-ray image"),
        ("mr", (GENERAL,), "a lump"),
    ],
)
def test_any_attributes_make_a_sentence_in_the_grammars_order(grammar, names, sentence):
    assert compose(grammar, EXAMPLES[grammar], names, SHORT)[0] == sentence
    assert compose(grammar, EXAMPLES[grammar], names[::-1], SHORT)[0] == sentence


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_prompt_types_are_subsets(grammar):
    prompts = make_prompts(grammar, EXAMPLES[grammar], SHORT)
    for kind, names in GRAMMARS[grammar].types.items():
        composed = compose(grammar, EXAMPLES[grammar], names, SHORT)
        assert composed == (prompts[kind] if isinstance(prompts[kind], list) else [prompts[kind]])


def test_an_empty_mask_has_one_sentence_for_any_subset():
    attributes = {"class": "polyp", "number": "no"}
    for names in (("size",), ("class", GENERAL), ("number", "class")):
        assert compose("object", attributes, names, SHORT) == ["no polyp"]


def test_an_unknown_grammar_is_named():
    with pytest.raises(UserError, match=r"unknown grammar 'poem'.*object, camus, busi, chexlocalize"):
        make_prompts("poem", POLYP, ())


def test_every_card_has_a_grammar():
    assert {card.grammar for card in CARDS.values()} | set(GREY) == set(GRAMMARS)


@pytest.mark.parametrize(
    ("modality", "grammar"),
    [
        ("CT", "ct"),
        ("abdominal CT", "ct"),
        ("computed tomography", "ct"),
        ("MRI", "mr"),
        ("FLAIR", "mr"),
        ("magnetic resonance", "mr"),
        ("chest X-ray", "xray"),
        ("radiography", "xray"),
        ("breast ultrasound", "ultrasound"),
        ("US", "ultrasound"),
        ("endoscopy", "object"),
        ("photograph", "object"),
        ("OCT", "object"),
        ("unknown", "object"),
        ("CT and MR", "object"),
    ],
)
def test_the_modality_of_a_card_gives_its_grammar(modality, grammar):
    assert Card("mine", modality=modality).grammar == grammar
    assert Card("mine", modality=modality, grammar="camus").grammar == "camus"


def test_prompts_of_radiology_name_planes_and_organs_and_no_colours():
    prompts = make_prompts("ct", TUMOR_IN_CT | {"color": "gray"}, ("a lump",))
    assert prompts == {
        "p0": "",
        "p1": "tumor",
        "p2": "small tumor",
        "p3": "one small tumor",
        "p4": "one small tumor in axial view",
        "p5": "one small tumor in the liver in axial view",
        "p6": "one small tumor in the liver in axial view, located in top left of the CT image",
        "p7": "one small round tumor in the liver in axial view, located in top left of the CT image",
        "p8": ["tumor which is a lump"],
        "p9": ["one small round tumor in the liver in axial view which is a lump, located in top left of the CT image"],
    }


# --- Back again ------------------------------------------------------------------------------------------------------

# What begins with one of these reads as a number.
WORDS = st.from_regex(r"[a-z]{2,8}([ -][a-z]{2,8})?", fullmatch=True).filter(
    lambda word: word.split(" ")[0] not in ("no", "one")
)


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(data=st.data())
def test_attributes_come_back_from_their_prompts(grammar, data):
    names = [name for name in GRAMMARS[grammar].attributes if name not in (GENERAL, "class")]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True))
    attributes = {name: data.draw(WORDS) for name in ("class", *chosen)}
    prompts = make_prompts(grammar, attributes, SHORT)
    assert read_attributes(grammar, prompts) == attributes
    assert read_descriptions(prompts) == (SHORT if grammar in ("object", *GREY) else ())


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_the_number_of_an_empty_mask_comes_back(grammar):
    attributes = {"class": "polyp", "number": "no"}
    prompts = make_prompts(grammar, attributes, SHORT)
    assert read_attributes(grammar, prompts) == attributes
    assert read_descriptions(prompts) == ()


def test_one_and_capitals_come_back():
    assert read_attributes("busi", make_prompts("busi", TUMOR, ())) == TUMOR
    ours = {"class": "CT lesion", "shape": "T-shaped"}
    assert read_attributes("object", make_prompts("object", ours, ())) == ours


def test_sentences_of_another_wording_give_no_words():
    prompts = {"p1": "polyp", "p2": "a polyp, which is round", "p3": "the pink one", "p4": ["small polyp", "x"]}
    assert read_attributes("object", prompts) == {"class": "polyp", "size": "small"}
    assert read_attributes("busi", prompts) == {}
    assert read_attributes("object", {"other": "x", "p2": "round polyp"}) == {}


def test_a_record_has_the_words_of_its_file_else_of_its_prompts():
    prompts = {"p1": "polyp", "p2": "round polyp", "p7": ("polyp which is a lump",)}
    assert attributes_of(record_of(prompts)) == {"class": "polyp", "shape": "round"}
    assert attributes_of(record_of(prompts, attributes={"class": "ulcer"})) == {"class": "ulcer"}
    assert attributes_of(record_of({"p2": "x"}, target="ulcer")) == {"class": "ulcer"}
    assert descriptions_of(record_of(prompts, descriptions=SHORT)) == ("a lump",)
    assert descriptions_of(record_of({"p1": "polyp"}, descriptions=SHORT)) == SHORT


@pytest.mark.parametrize("dataset", sorted(set(CARDS) - {"pooled_all", "pooled_polyp", "sample"}))
def test_every_published_prompt_comes_out_of_its_own_words(shared, dataset):
    entries = [
        entry
        for path in sorted((shared / "annotations" / dataset).glob("*.json"))
        for entry in json.loads(path.read_text())
    ]
    assert len(entries) >= 196
    grammar = CARDS[dataset].grammar
    # The few records without a polyp have no descriptions of their own.
    descriptions = next((texts for entry in entries if (texts := read_descriptions(entry["prompts"]))), ())
    for prompts in map(json.loads, sorted({json.dumps(entry["prompts"]) for entry in entries})):
        attributes = read_attributes(grammar, prompts)
        assert make_prompts(grammar, attributes, descriptions) == prompts
        missing = set(GRAMMARS[grammar].attributes) - set(attributes) - {GENERAL}
        assert not missing or attributes["number"] == "no"
