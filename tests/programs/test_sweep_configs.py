"""Which runs a sweep has, and what is said about one that cannot be."""

from pathlib import Path
from typing import Any

import pytest
import sweep as program

from configs.sweeps import SWEEPS, get_sweep
from medvlsm_jax.config import base_config
from medvlsm_jax.errors import UserError
from medvlsm_jax.sweeping.runs import EXTRA, training_config

ROOT = Path(__file__).parents[2]


def runs_of(arg: str) -> dict[str, Any]:
    return {config.name: config for config in get_sweep(arg)}


@pytest.mark.parametrize(
    ("sweep", "count"),
    [
        ("zero_shot", 3 * 11),
        # Three polyp sets, skin and ulcers with ten prompt types, CAMUS with eight, BUSI and CheXlocalize with seven;
        # image-only networks for one class of six of them, three of CAMUS, ten of CheXlocalize.
        ("individual", 4 * (5 * 10 + 8 + 7 + 7) + 3 * (5 + 1 + 3 + 10)),
        ("endoscopy", 4 * 10 + 3),
        ("pooled", 4 + 3),
        ("cross_dataset", 3 * (4 * 10 + 3)),
        ("prompts", 4 * (5 * 10 + 8 + 7 + 7)),
        ("freezing", 4 * 8 * 2),
        ("fractions", 7 * 8 * 4),
        ("seeds", 7 * 8 * 3),
        ("grid", 1),
        ("search", 1),
    ],
)
def test_the_papers_experiments_have_a_run_for_each_network_dataset_and_prompt_type(sweep, count):
    runs = list(get_sweep(f"{sweep},checkpoints=converted"))
    assert len(runs) == len({run.name for run in runs}) == count
    assert all(run.init == f"converted/{run.model}" for run in runs)
    assert {run.is_trained for run in runs} == {sweep != "zero_shot"}


def test_every_sweep_is_counted():
    parametrized = test_the_papers_experiments_have_a_run_for_each_network_dataset_and_prompt_type.pytestmark[0]
    assert {sweep for sweep, _ in parametrized.args[1]} == set(SWEEPS)


def test_runs_of_one_name_in_several_sweeps_are_the_same_run():
    individual, prompts = runs_of("individual"), runs_of("prompts")
    assert set(prompts) < set(individual)
    assert all(individual[name] == config for name, config in prompts.items())
    others = [runs_of(f"{name},checkpoints=c") for name in SWEEPS if name not in ("individual", "prompts", "search")]
    names = [name for runs in [individual, *others] for name in runs]
    assert len(names) == len(set(names))


def test_a_run_is_a_training_config_with_what_is_scored_afterwards():
    for config in get_sweep("individual"):
        assert set(training_config(config)) == set(base_config())
        assert set(config) - set(base_config()) == set(EXTRA)
        assert config.evaluation.datasets == config.dataset


def test_networks_keep_their_own_recipe():
    runs = runs_of("pooled")
    assert (runs["cris-pooled_all-random"].batch_size, runs["cris-pooled_all-random"].learning_rate) == (32, 2e-5)
    assert runs["clipseg-pooled_all-random"].batch_size == 128
    unet = runs["unet-pooled_all-p0"]
    assert (unet.loss, unet.prompt, unet.target, unet.freeze_encoder) == ("dice_nonempty", "p0", "", False)
    assert runs_of("grid,models=biomedclipseg_d_tiny")["biomedclipseg_d_tiny"].file == "configs/biomedclipseg_d.py"


def test_a_zero_shot_run_scores_a_checkpoint_with_all_prompt_types_of_a_dataset():
    runs = runs_of("zero_shot,checkpoints=c")
    camus = runs["clipseg-camus-zero_shot"]
    assert camus.evaluation.prompts == "p0+p1+p2+p3+p4+p5+p6+p7"
    assert runs["clipseg-etis_polyp-zero_shot"].evaluation.prompts.endswith("+p9")
    assert not any(name.startswith("biomedclipseg-") for name in runs)


def test_what_one_endoscopy_set_taught_is_scored_on_all_six():
    run = runs_of("cross_dataset")["clipseg-bkai_polyp-p6-cross"]
    assert (run.dataset, run.evaluation.datasets) == ("bkai_polyp", "pooled_polyp")


def test_an_image_only_network_is_trained_alone_on_each_class():
    runs = [run for run in get_sweep("individual,models=unet,datasets=camus+isic")]
    assert [(run.dataset, run.target) for run in runs] == [
        ("camus", "left ventricular cavity"),
        ("camus", "myocardium"),
        ("camus", "left atrium cavity"),
        ("isic", ""),
    ]
    assert runs[1].name == "unet-camus-p0-myocardium"


def test_the_one_class_that_is_asked_for_is_the_only_one():
    runs = runs_of("individual,models=unet,datasets=camus+isic,target=myocardium")
    assert {name: run.target for name, run in runs.items()} == {
        "unet-camus-p0-myocardium": "myocardium",
        "unet-isic-p0": "myocardium",
    }


def test_a_grid_has_every_combination_of_the_axes_that_are_given():
    runs = runs_of(
        "grid,models=clipseg_tiny+unet_tiny,datasets=isic+busi,prompts=p0+attributes:size,class,seeds=1+2,"
        "fractions=0.5,freeze=true,data_dir=D,num_epochs=3,mesh.fsdp=2,evaluation.probe=true,evaluation.prompts=p1"
    )
    assert len(runs) == 2 * 2 * 2 + 2 * 2  # a network that reads no sentence once for all prompt types
    run = runs["clipseg_tiny-busi-attributes_size_class-data0.5-freeze_true-seed2"]
    assert (run.model, run.dataset, run.prompt, run.seed) == ("clipseg_tiny", "busi", "attributes:size,class", 2)
    assert (run.data_num, run.freeze_encoder, run.data_dir, run.num_epochs, run.mesh.fsdp) == ("0.5", True, "D", 3, 2)
    options = {"split": "test", "probe": True, "curves": False}
    assert run.evaluation.to_dict().items() >= ({"datasets": "busi", "prompts": "p1"} | options).items()
    assert runs_of("grid,dataset=isic+busi")["clipseg"].evaluation.datasets == "isic+busi"


def test_a_dataset_may_be_a_card_of_ones_own(tmp_path):
    (tmp_path / "wounds.toml").write_text('name = "my_wounds"\ngrammar = "busi"\n')
    run = runs_of(f"grid,datasets={tmp_path}/wounds.toml,prompts=p6")["clipseg-wounds-p6"]
    assert run.evaluation.datasets == f"{tmp_path}/wounds.toml"
    with pytest.raises(UserError, match=r"my_wounds has no prompt type p99, but p0, p1, .*, p6$"):
        runs_of(f"grid,datasets={tmp_path}/wounds.toml,prompts=p99")
    assert list(runs_of("grid,datasets=unheard_of,prompts=p99"))  # whose annotations may have it


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("colours", r"there is no sweep 'colours', but zero_shot, individual, .*, search"),
        ("", r"there is no sweep ''"),
        ("grid,colours=red", r"'colours' is neither an axis \(models, .*\) nor a field of the config \(.*data_dir.*\)"),
        ("grid,models=unet3", "unknown model 'unet3': choose one of .*unet_tiny"),
        ("grid,models=", "'models=' has no value: give models=A"),
        ("individual,dataset=isic", r"'dataset=isic' is what the axis datasets sets: give datasets=A\+B"),
        ("grid,seeds=one", "seed=one should be of type int"),
        ("grid,prompts=text:a b+text:a.b+text:a b", "two runs have the name clipseg-text_a_b"),
        ("zero_shot", "give checkpoints=DIR"),
        (
            "individual,models=unet,datasets=camus,target=heart",
            "target=heart: camus has no such class, but left ventric",
        ),
        ("grid,evaluation.tolerance=-1", "--tolerance"),
        ("grid,evaluation.ensemble=sentence", "--ensemble=sentence: 'sentence' is not known"),
        ("grid,evaluation.probe=true,evaluation.ensemble=flips", "--probe compares single sentences"),
        ("grid,evaluation.split=valid", "unknown split 'valid': choose one of train, val, test"),
        ("grid,evaluation.datasets=busi+none.toml", "card none.toml cannot be read"),
        ("grid,datasets=busi,prompts=p9", "busi has no prompt type p9, but p0, p1, .*, p6$"),
        ("grid,evaluation.prompts=attributes:colors", "'colors' is no attribute"),
        ("grid,evaluation.prompts=p6+", "'' is not one prompt type: give p0"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(arg, message):
    with pytest.raises(UserError, match=message):
        list(get_sweep(arg))


def test_a_file_that_is_no_sweep_is_named(tmp_path):
    (tmp_path / "other.py").write_text("x = 1\n")
    for text, message in ((f"{tmp_path}/other.py:grid", "no function get_sweep"), ("none.py:grid", "does not exist")):
        with pytest.raises(UserError, match=message):
            program.load_sweep(text)
    names, runs = program.load_sweep(f"{ROOT}/configs/sweeps.py:grid,seeds=1+2")
    assert [run.name for run in runs] == ["clipseg-seed1", "clipseg-seed2"]
    assert "suggest" in names
