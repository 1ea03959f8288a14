"""BiomedParseData: `train` and `test` with a folder of masks each, and json files with a sentence for each mask."""

import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from medvlsm_jax.data.cards import Card
from medvlsm_jax.data.files import read_json
from medvlsm_jax.data.preparing.importers.classes import choose_classes, with_modality
from medvlsm_jax.data.preparing.importers.formats.class_masks import Named, read_objects
from medvlsm_jax.data.preparing.importers.item import Found, Options, Source, written_name
from medvlsm_jax.data.preparing.importers.layout import find_inside, find_parent, list_images, lonely
from medvlsm_jax.errors import UserError

PARTS = {"train": "", "test": "test"}  # the training images are divided
MASKS = "{}_mask"
RULE = "nonzero"  # of its masks: pixels other than 0 are the object


class Target(NamedTuple):
    """What the name of a mask says, IMAGE_MODALITY_SITE_TARGET.png."""

    image: str
    modality: str
    site: str
    target: str


def find(raw: Path, card: Card, options: Options) -> Found:
    """The targets of each image, with the sentences that the dataset has."""
    parent = find_parent(raw, card, ["train", "test"], ["train_mask", "test_mask"])
    named: dict[str, list[Named]] = defaultdict(list)
    modalities = set[str]()
    for part, split in PARTS.items():
        images, masks = find_inside(parent, [part]), find_inside(parent, [MASKS.format(part)])
        if images is None or masks is None:
            continue
        found, sentences = list_images(images), read_sentences(parent / f"{part}.json")
        parsed = {path: parse_stem(stem) for stem, path in list_images(masks).items()}
        if extra := [path.name for path, target in parsed.items() if target.image not in found]:
            raise lonely(f"{images} has no image IMAGE_MODALITY_SITE.png for masks of {masks}", extra)
        for path, target in parsed.items():
            image = found[target.image]
            name = written_name(f"{part}/{image.name}")
            given = tuple(sentences.get(path.name, ()))
            named[name].append(Named(image, name, path, target.target, split, given=given))
            modalities.add(target.modality)
    classes, card = choose_classes(card, dict.fromkeys(one.label for several in named.values() for one in several))
    sources = []
    for name, several in named.items():
        wanted = tuple(one._replace(label=classes[one.label]) for one in several if one.label in classes)
        if wanted:
            sources.append(Source(name, functools.partial(read_objects, wanted, card.mask or RULE)))
    return Found(sources, with_modality(card, modalities))


def parse_stem(stem: str) -> Target:
    """What the name of a mask says; raises UserError for a name of another form."""
    image, _, target = stem.rpartition("_")
    parts = image.split("_")
    if len(parts) < 3 or not target:
        raise UserError(f"the mask {stem}.png is not called IMAGE_MODALITY_SITE_TARGET.png")
    return Target(image, parts[-2], parts[-1], target)


def read_sentences(path: Path) -> Mapping[str, list[str]]:
    """Mask -> its sentences; empty where there is no such json file.

    Raises:
        UserError: it is of another form.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    try:
        return {
            entry["mask_file"]: [checked(sentence["sent"]) for sentence in entry["sentences"]]
            for entry in content["annotations"]
        }
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} has no annotations with mask_file and sentences ({error!r}): make it anew") from error


def checked(sentence: str) -> str:
    """A sentence in one line; raises TypeError for what is no text."""
    if not isinstance(sentence, str):
        raise TypeError(f"{sentence!r} is no sentence")
    return " ".join(sentence.split())
