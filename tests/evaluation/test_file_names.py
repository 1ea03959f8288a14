"""Names that tell things apart."""

from medvlsm_jax.evaluation.file_names import unique_names


def test_only_those_that_are_alike_get_longer_names():
    assert unique_names(["a", "b", "a"], ["a_1", "b_1", "a_2"]) == ["a_1", "b", "a_2"]


def test_the_case_of_letters_tells_nothing_apart():
    assert unique_names(["A", "a"], ["A_1", "a_2"]) == ["A_1", "a_2"]


def test_what_is_alike_in_all_gets_numbers_and_no_name_that_another_has():
    assert unique_names(["a", "a", "a", "a_2"], ["a", "a", "a", "a_2"]) == ["a", "a_3", "a_4", "a_2"]
    assert len(set(unique_names(["x"] * 3 + ["x_y"], ["x_y"] * 3 + ["z"]))) == 4
