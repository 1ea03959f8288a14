"""What the terminal is told of many things."""

from medvlsm_jax.text import listed


def test_a_few_of_many_are_named_and_the_others_are_counted():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert listed(iter([0, 1, 2]), 2, "values") == "0, 1 and 1 more values"
    assert listed([], 2) == ""
