"""Names of classes as files have them, in words: `adrenal_gland_left` is a left adrenal gland."""

import re

# Where a name is parted: separators; a small letter before a capital (kidneyRight); the last capital of several before
# a small one (RVCavity). A prefix keeps its hyphen (non-neoplastic), a letter its digits (T12).
PARTS = re.compile(
    r"(?<!\bnon)(?<!\bpre)(?<!\bpost)(?<!\bx)-+|[_+.\s/]+|(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})"
)
# What stands in front of a noun in English, in this order; the letters are what files write for it.
SIDES = {"left": "left", "right": "right", "bilateral": "bilateral"}
PLACES = {"upper": "upper", "middle": "middle", "lower": "lower", "superior": "superior", "inferior": "inferior"}
PLACES |= {"anterior": "anterior", "posterior": "posterior", "medial": "medial", "lateral": "lateral"}
LETTERS = {"l": "left", "lt": "left", "r": "right", "rt": "right"}  # at an end of a name alone: `kidney-R`
# Short forms that stand for themselves in anatomy and radiology, and how they are written.
SHORT = {
    **{"lv": "left ventricle", "rv": "right ventricle", "la": "left atrium", "ra": "right atrium"},
    **{"myo": "myocardium", "lvc": "left ventricle cavity", "rvc": "right ventricle cavity"},
    **{"ivc": "inferior vena cava", "svc": "superior vena cava", "gtv": "gross tumor volume"},
    **{"csf": "cerebrospinal fluid", "gm": "grey matter", "wm": "white matter"},
}
LONGEST = 4  # letters of an abbreviation; longer words in capitals are just that
NOISE = ("mask", "seg", "segmentation", "label")  # at the end of a name: `liver_mask`


def readable_class(name: str) -> str:
    """A class in words: parts of its name apart, sides and places in front, short forms written out.

    A name that is in words already, as "left ventricular cavity", stays as it is.
    """
    if " " in name.strip() and "_" not in name:
        return " ".join(name.split())
    words = [word for word in PARTS.split(name.strip()) if word]
    if len(words) > 1 and words[-1].lower() in NOISE:
        words = words[:-1]
    words = [word if is_abbreviation(word) else word.lower() for word in words]
    if len(words) > 1:
        words = [LETTERS.get(w.lower(), w) if i in (0, len(words) - 1) else w for i, w in enumerate(words)]
    sides, places = (next((w for w in words if w.lower() in known), "") for known in (SIDES, PLACES))
    rest = [SHORT.get(word.lower(), word) for word in words if word not in (sides, places)]
    if not rest:
        return " ".join(words)
    return " ".join(filter(None, [sides, places, *rest]))


def is_abbreviation(word: str) -> bool:
    """Whether a word is a short one in capitals, as CT or T12, or GTVp."""
    return len(word) <= LONGEST and (word.isupper() or sum(map(str.isupper, word)) > 1)
