"""Names of classes as files have them become words that a sentence can hold."""

import pytest

from medvlsm_jax.data.language.class_names import readable_class


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adrenal_gland_left", "left adrenal gland"),
        ("adrenal-gland-left", "left adrenal gland"),
        ("AdrenalGlandLeft", "left adrenal gland"),
        ("lung_upper_lobe_left", "left upper lung lobe"),
        ("kidney-R", "right kidney"),
        ("L_kidney", "left kidney"),
        ("kidneyRight", "right kidney"),
        ("vena_cava_inferior", "inferior vena cava"),
        ("RV_cavity", "right ventricle cavity"),
        ("RVCavity", "right ventricle cavity"),
        ("LV", "left ventricle"),
        ("vertebrae_T12", "vertebrae T12"),
        ("CT_artifact", "CT artifact"),
        ("LIVER", "liver"),
        ("Myocardium", "myocardium"),
        ("liver_mask", "liver"),
        ("mask", "mask"),
        ("l", "l"),
        ("left", "left"),
        ("non-neoplastic_polyp", "non-neoplastic polyp"),
        ("non-neoplastic", "non-neoplastic"),
        ("left ventricular cavity", "left ventricular cavity"),
        ("Non-enhancing Tumor Core", "Non-enhancing Tumor Core"),
        ("  pleural   effusion ", "pleural effusion"),
        ("", ""),
    ],
)
def test_a_name_in_words(name, words):
    assert readable_class(name) == words
    assert readable_class(words) == words or " " not in words
