"""What the checks of user settings let through, and what they say of the rest."""

from typing import Any

import numpy as np
import pytest

from multitask_sentence.checks_multitask import (
    check_choice,
    check_count,
    check_flag,
    check_keys,
    check_mapping,
    is_number,
    suggest,
)


def test_suggest_is_silent_without_a_near_name() -> None:
    assert suggest("xyz", ("mean", "cls")) == ""
    assert suggest(None, ("mean", "cls")) == ""
    assert suggest("maen", ("mean", "cls")) == " Did you mean 'mean'?"


def test_suggest_overlooks_upper_and_lower_case() -> None:
    assert suggest("MEAN", ("mean", "cls")) == " Did you mean 'mean'?"
    assert suggest("positiv", ("Positive", "Negative")) == " Did you mean 'Positive'?"


def test_unknown_key_is_named_with_the_nearest_and_the_known_ones() -> None:
    check_keys("head", {"dropout": 1}, ("dropout", "activation"))
    with pytest.raises(ValueError) as error:
        check_keys("head", {"dropuot": 1}, ("dropout", "activation"))
    assert str(error.value) == "head: unknown key 'dropuot'. Did you mean 'dropout'? Known keys: dropout, activation."


def test_hint_stands_in_place_of_the_known_keys() -> None:
    with pytest.raises(ValueError) as error:
        check_keys("head", {"x": 1}, ("dropout", "activation"), "See --help.")
    assert str(error.value) == "head: unknown key 'x'. See --help."


@pytest.mark.parametrize("found", ["mena", None, ["mean"], {"mean": 1}])
@pytest.mark.parametrize("known", [("mean", "cls"), {"mean": 1, "cls": 2}])
def test_choice_is_one_of_the_known_values(found: Any, known: Any) -> None:
    check_choice("pooling", "cls", known)
    with pytest.raises(ValueError, match=r"^pooling is .*, but should be one of mean, cls\."):
        check_choice("pooling", found, known)


def test_of_many_known_values_twelve_are_listed() -> None:
    known = [f"value{number}" for number in range(17)]
    with pytest.raises(ValueError, match=r"one of value0, .*, value11 or 5 others\."):
        check_choice("where", "xyz", known)
    with pytest.raises(ValueError, match=r"one of value0, .*, value15\."):
        check_choice("where", "xyz", known[:16])


@pytest.mark.parametrize("found", [0, -1, 1.0, True, "1", None])
def test_count_is_a_whole_number_of_at_least_1(found: Any) -> None:
    check_count("max_length", 1)
    with pytest.raises(ValueError, match=r"^max_length is .*, but should be a whole number of at least 1\.$"):
        check_count("max_length", found)


@pytest.mark.parametrize("found", [0, 1, "true", None])
def test_flag_is_true_or_false(found: Any) -> None:
    check_flag("normalize", False)
    with pytest.raises(ValueError, match=r"^normalize is .*, but should be true or false\.$"):
        check_flag("normalize", found)


@pytest.mark.parametrize("found", [[], "text", None, 1])
def test_mapping_is_a_dictionary(found: Any) -> None:
    check_mapping("strategy", {})
    with pytest.raises(ValueError, match=r"^strategy is .*, but should be a mapping"):
        check_mapping("strategy", found)


@pytest.mark.parametrize("value", [0, -1, 0.5, np.float32(1), np.float64(1), np.int64(1)])
def test_finite_numbers_are_numbers(value: Any) -> None:
    assert is_number(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, True, "1", None, [1]])
def test_undefined_values_bools_and_text_are_no_numbers(value: Any) -> None:
    assert not is_number(value)
