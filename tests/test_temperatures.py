"""Temperatures: fitted to what is known, and to hand-worked values; thresholds that move along."""

import math

import numpy as np
import pytest
from scipy.special import expit, softmax

from multitask_sentence.training.calibration.temperatures import fit_temperature, fit_temperatures, moved_thresholds


def test_fit_recovers_the_temperature_that_logits_were_multiplied_with() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(scale=2, size=(20_000, 4))
    labels = np.array([random.choice(4, p=row) for row in softmax(logits, axis=-1)])
    for temperature in (0.4, 1.0, 2.5):
        assert fit_temperature((temperature * logits).astype(np.float32), labels) == pytest.approx(
            temperature, rel=0.04
        )


def test_fit_makes_two_logits_as_probable_as_their_share_of_right_rows() -> None:
    # 3 of 4 rows are right; the further row makes that 750.5 of 1001: sigmoid(2 / temperature) equals it.
    labels = np.array([0, 0, 0, 1] * 250)
    expected = 2 / math.log(750.5 / 250.5)
    assert fit_temperature(np.tile([2.0, 0.0], (1000, 1)), labels) == pytest.approx(expected, rel=1e-5)


def test_fit_of_rows_that_are_all_right_keeps_room_for_an_error() -> None:
    temperature = fit_temperature(np.tile([2.0, 0.0], (199, 1)), np.zeros(199, dtype=int))
    assert expit(2 / temperature) == pytest.approx(199.5 / 200, rel=1e-5)


@pytest.mark.parametrize("rows", [0, 99])
def test_too_few_rows_give_no_temperature(rows: int) -> None:
    logits, labels = np.tile([2.0, 0.0], (rows, 1)), (np.arange(rows) % 4 == 3).astype(int)  # 3 of 4 are right
    assert fit_temperature(logits, labels) is None
    assert fit_temperatures(logits, np.stack([labels, 1 - labels], axis=1), [0.5, 0.5]) is None


def test_logits_worse_than_chance_give_no_temperature() -> None:
    assert fit_temperature(np.tile([2.0, 0.0], (200, 1)), np.ones(200, dtype=int)) is None


def test_each_label_has_the_temperature_of_its_own_rows() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(scale=2, size=(20_000, 3))
    labels = (random.random(logits.shape) < expit(logits)).astype(float)
    labels[:, 2] = np.arange(20_000) < 9  # a label that too few rows have
    found = fit_temperatures(logits * [2.0, 0.5, 1.0], labels, [0.5, 0.5, 0.5])
    assert found == pytest.approx([2.0, 0.5, 1.0], rel=0.04)
    assert found[2] == 1.0


def test_no_temperature_takes_a_threshold_to_where_float32_ends() -> None:
    # All rows are right, which makes 0.26 likeliest; but logit(threshold) = 4.6 must not become more than 10.
    logits = np.where(np.arange(1000) % 2, 2.0, -2.0)[:, None]
    threshold = float(expit(4.6))
    (temperature,) = fit_temperatures(logits, (logits > 0).astype(float), [threshold])
    assert temperature == pytest.approx(0.46)


def test_moved_thresholds_choose_the_same_labels() -> None:
    logits = np.random.default_rng(2).normal(scale=3, size=(5000, 3))
    thresholds, temperatures = [0.5, 0.03, 0.96], [2.0, 0.7, 3.0]
    moved = moved_thresholds(thresholds, temperatures)
    assert moved[0] == 0.5
    np.testing.assert_array_equal(expit(logits / temperatures) >= moved, expit(logits) >= thresholds)
