"""From attributes to sentences and back, in the wording of the paper's published prompts.

A grammar composes a sentence from any of the 14 attributes that an object has; the prompt types p1, p2, … are choices
of them. What an object lacks is left out. One with an empty mask has the number "no", and its sentence says just that.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from medvlsm_jax.data.annotations import Record
from medvlsm_jax.data.language.attributes import NONE
from medvlsm_jax.errors import UserError

ATTRIBUTES = (
    *("class", "shape", "color", "size", "number", "location", "general"),
    *("view", "pathology", "cycle", "sex", "age", "quality", "tumor_type", "organ"),
)
GENERAL = "general"  # a description of the class, not a word of one object
ALIASES = {"colour": "color", "tumour_type": "tumor_type", "plane": "view"}
DESCRIBED = ("p7", "p8")  # prompt types that tell a class with its description, of one grammar or another
MARK = "\0"  # stands for an unknown word

Words = Mapping[str, str]  # attribute -> word
Prompts = Mapping[str, str | Sequence[str]]  # prompt type -> a sentence or several phrasings


@dataclasses.dataclass(frozen=True)
class Grammar:
    """How the sentences of a group of datasets are made.

    Attributes:
        types: prompt type -> the attributes that it tells.
        compose: gives the phrasings for some words and general descriptions, which may be none.
    """

    types: Mapping[str, tuple[str, ...]]
    compose: Callable[[Words, Sequence[str]], list[str]]

    @property
    def attributes(self) -> tuple[str, ...]:
        """All that its sentences can tell."""
        told = {name for names in self.types.values() for name in names}
        return tuple(name for name in ATTRIBUTES if name in told)


# --- The grammars ----------------------------------------------------------------------------------------------------


def part(form: str, word: str | None) -> str:
    """A word in its phrase, as "oval" in "of {} shape"; empty without a word."""
    return form.format(word) if word else ""


def join(*parts: str | None) -> str:
    """Those of the parts that are not empty, between single spaces."""
    return " ".join(filter(None, parts))


def sentence(*parts: str | None) -> str:
    """A whole sentence of the parts: a capital in front, a full stop behind."""
    text = join(*parts)
    return f"{text[:1].upper()}{text[1:]}."


def subject(words: Words) -> str:
    """The class; of an empty mask the class with its "no"."""
    return join(NONE if words.get("number") == NONE else "", words.get("class"))


def compose_object(words: Words, descriptions: Sequence[str]) -> list[str]:
    """Polyps, skin and wounds: "one small pink round polyp, located in center of the image"."""
    noun = join(*(words.get(attribute) for attribute in ("number", "size", "color", "shape", "class")))
    place = part("located in {} of the image", words.get("location"))
    if not descriptions:
        return [", ".join(filter(None, (noun, place)))]
    return [join(noun, "which is" if noun else "", description, place) for description in descriptions]


def compose_camus(words: Words, _: Sequence[str]) -> list[str]:
    """Heart structures: "Myocardium of oval shape in two-chamber view of the heart …", and in the ultrasound."""
    structure = join(subject(words), part("of {} shape", words.get("shape")), part("in {} view", words.get("view")))
    details = (
        part("at end of the {} cycle", words.get("cycle")),
        part("of a {}", join(words.get("age"), words.get("sex"))),  # also "a eighty-year-old", as published
        part("with {} image quality", words.get("quality")),
    )
    return [sentence(structure, place, *details) for place in ("of the heart", "in the cardiac ultrasound")]


def compose_busi(words: Words, _: Sequence[str]) -> list[str]:
    """Breast tumours: "One small oval-shaped benign tumor at the top …"; a second phrasing calls benign regular."""
    is_many = words.get("number", "one") not in ("one", NONE)
    noun = part("{}s" if is_many else "{}", words.get("class"))
    before = (words.get("number"), words.get("size"), part("{}-shaped", words.get("shape")))
    after = (part("at the {}", words.get("location")), "in the breast ultrasound image")
    kinds = [words.get("tumor_type", "")]
    if regularity := {"benign": "regular", "malignant": "irregular"}.get(kinds[0]):
        kinds.append(regularity if words.get("shape") else f"{regularity}-shaped")
    return [sentence(*before, kind, noun, *after) for kind in kinds]


def compose_chexlocalize(words: Words, _: Sequence[str]) -> list[str]:
    """Chest findings: "Edema of shape oval, and located in left of the frontal view of a Chest Xray."."""
    finding = join(subject(words).title(), part("of shape {}", words.get("shape")))
    place = part("located in {} of", words.get("location"))
    place = f"{finding}, and {place}" if finding and place else join(finding, place or "in")
    is_class_alone = set(words) <= {"class", "number"}
    image = join(part("the {} view of", words.get("view")), "a chest Xray" if is_class_alone else "a Chest Xray")
    others = part("{} are present.", words.get("pathology"))
    # The published p6, which has no view, ends with a space.
    return [join(sentence(place, image), others) + (" " if others and not words.get("view") else "")]


def compose_radiology(words: Words, descriptions: Sequence[str], image: str) -> list[str]:
    """CT, MR, X-ray, ultrasound: "one small tumor in the liver in axial view, located in center of the CT image"."""
    noun = join(*(words.get(attribute) for attribute in ("number", "size", "shape", "class")))
    inside = join(part("in the {}", words.get("organ")), part("in {} view", words.get("view")))
    place = part(f"located in {{}} of the {image}", words.get("location"))
    whole = join(noun, inside)
    if not descriptions:
        return [", ".join(filter(None, (whole, place)))]
    return [", ".join(filter(None, (join(whole, "which is" if whole else "", text), place))) for text in descriptions]


OBJECT = ("number", "size", "color", "shape", "class")
GRAMMARS = {
    "object": Grammar(
        {
            **{f"p{i}": OBJECT[-i:] for i in range(1, 6)},
            "p6": (*OBJECT, "location"),
            "p7": ("class", GENERAL),
            "p8": (*OBJECT, GENERAL),
            "p9": (*OBJECT, GENERAL, "location"),
        },
        compose_object,
    ),
    "camus": Grammar(
        {f"p{i}": ("class", "view", "cycle", "sex", "age", "quality", "shape")[:i] for i in range(1, 8)},
        compose_camus,
    ),
    "busi": Grammar(
        {f"p{i}": ("class", "tumor_type", "number", "size", "location", "shape")[:i] for i in range(1, 7)},
        compose_busi,
    ),
    "chexlocalize": Grammar(
        {
            **{f"p{i}": ("class", "view", "shape", "location", "pathology")[:i] for i in range(1, 6)},
            "p6": ("class", "pathology"),
        },
        compose_chexlocalize,
    ),
}
RADIOLOGY = ("class", "size", "number", "view", "organ", "location", "shape")
# What grey images (`cards.GREY`) are called in their sentences.
IMAGES = {"ct": "CT image", "mr": "MR image", "xray": "X-ray image", "ultrasound": "ultrasound image"}
GRAMMARS |= {
    name: Grammar(
        {
            **{f"p{i}": RADIOLOGY[:i] for i in range(1, 8)},
            "p8": ("class", GENERAL),
            "p9": (*RADIOLOGY, GENERAL),
        },
        functools.partial(compose_radiology, image=image),
    )
    for name, image in IMAGES.items()
}


def named_grammar(grammar: str) -> Grammar:
    """A grammar by its name; raises UserError when there is none of that name."""
    if grammar not in GRAMMARS:
        raise UserError(f"unknown grammar {grammar!r}: a card's grammar is one of {', '.join(GRAMMARS)}")
    return GRAMMARS[grammar]


# --- Sentences from attributes ---------------------------------------------------------------------------------------


def compose(grammar: str, attributes: Words, names: Sequence[str], descriptions: Sequence[str]) -> list[str]:
    """The phrasings of a sentence that tells some attributes of an object.

    Args:
        grammar: a key of GRAMMARS.
        attributes: the words of the object, also others.
        names: the attributes to tell, in any order; with "general" there is one phrasing for each description.
        descriptions: of the object's class.
    """
    if attributes.get("number") == NONE:
        names, descriptions = ("number", "class"), ()
    words = {attribute: attributes[attribute] for attribute in names if attributes.get(attribute)}
    return named_grammar(grammar).compose(words, descriptions if GENERAL in names else ())


def make_prompts(grammar: str, attributes: Words, descriptions: Sequence[str]) -> dict[str, str | list[str]]:
    """The prompts of an object as the annotation files have them: prompt type -> a sentence, or a list of phrasings.

    Args:
        grammar: a key of GRAMMARS.
        attributes: the words of the object.
        descriptions: of its class; without any, the types with a description are left out.
    """
    prompts: dict[str, str | list[str]] = {"p0": ""}
    for kind, names in named_grammar(grammar).types.items():
        if GENERAL in names and not descriptions:
            continue
        phrasings = compose(grammar, attributes, names, descriptions)
        prompts[kind] = phrasings if GENERAL in names or len(phrasings) > 1 else phrasings[0]
    return prompts


# --- Attributes from sentences ---------------------------------------------------------------------------------------


def read_attributes(grammar: str, prompts: Prompts) -> dict[str, str]:
    """The words in the prompts of an object, the inverse of `make_prompts`.

    Each prompt type gives the word that it tells and the types before do not; a type in other words gives none.
    """
    found, told = named_grammar(grammar), {GENERAL}
    if not prompts.get("p1"):
        return {}
    words = read_none(found, prompts)
    for kind, names in found.types.items():
        new = [attribute for attribute in names if attribute not in told]
        told.update(names)
        if len(new) == 1 and GENERAL not in names and words.get("number") != NONE:
            known = {attribute: words[attribute] for attribute in names if attribute in words}
            words |= read_word(found, known, new[0], first(prompts.get(kind)))
    return words


def read_none(grammar: Grammar, prompts: Prompts) -> dict[str, str]:
    """Class and number of an object with an empty mask, nothing of others."""
    number = {"number": NONE}
    found = read_word(grammar, number, "class", first(prompts.get("p1")))
    return found | number if found else {}


def read_word(grammar: Grammar, known: Words, attribute: str, text: str) -> dict[str, str]:
    """The word of an attribute in a sentence that otherwise tells what is known; nothing if the rest is different."""
    before, _, after = tell(grammar, known, attribute, MARK).partition(MARK)
    found = text.removeprefix(before).removesuffix(after)
    # A capital may belong to the sentence, not to the word; and one tumor is not "tumors", as any other number is.
    words = [word for word in (found.lower(), found, "one") if word and tell(grammar, known, attribute, word) == text]
    return {attribute: words[0]} if words else {}


def tell(grammar: Grammar, known: Words, attribute: str, word: str) -> str:
    """The sentence that tells what is known, and a word for one attribute more."""
    return grammar.compose({**known, attribute: word}, ())[0]


def read_descriptions(prompts: Prompts) -> tuple[str, ...]:
    """The general descriptions in the prompts of an object; empty when they have none."""
    known = first(prompts.get("p1"))
    before = f"{known} which is "
    for kind in DESCRIBED if known else ():
        phrasings = prompts.get(kind, ())
        texts = (phrasings,) if isinstance(phrasings, str) else phrasings
        if found := tuple(text.removeprefix(before) for text in texts if text.startswith(before)):
            return found
    return ()


def first(phrasings: str | Sequence[str] | None) -> str:
    """The first phrasing of a prompt type, empty where there is none."""
    return phrasings if isinstance(phrasings, str) else phrasings[0] if phrasings else ""


@functools.lru_cache(maxsize=1 << 16)
def _read(grammar: str, prompts: tuple[tuple[str, str | tuple[str, ...]], ...]) -> Words:
    return read_attributes(grammar, dict(prompts))


def attributes_of(record: Record) -> Words:
    """The words of a record: those of its annotation file, or else read from its prompts; and its class."""
    words = record.attributes or _read(record.card.grammar, tuple(record.prompts.items()))
    return {"class": record.target, **words} if record.target else words


def descriptions_of(record: Record) -> tuple[str, ...]:
    """The general descriptions of a record's class: those of its prompts, or else of its dataset's card."""
    return read_descriptions(record.prompts) or record.card.descriptions
