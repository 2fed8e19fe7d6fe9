"""Forecasts in bins, the expected calibration error and the Brier score, on numbers worked by hand."""

import numpy as np
import pytest

from multitask_sentence.training.evaluation.reliability import (
    brier_score,
    calibration_error,
    count_forecasts,
    describe_forecasts,
)

PROBABILITIES = np.array([[0.75, 0.25], [0.25, 0.75], [0.75, 0.25], [1.0, 0.0]])
LABELS = np.array([0, 1, 1, 0])


def test_calibration_error_weighs_the_gap_of_each_bin_by_its_rows() -> None:
    # Three forecasts of 0.75, two of them right: a gap of 1/12. One of 1, right: no gap.
    bins = count_forecasts(PROBABILITIES, LABELS)
    assert calibration_error(bins) == pytest.approx(3 / 4 * (0.75 - 2 / 3))


def test_brier_score_sums_over_classes() -> None:
    # 2 * 0.25**2 where right, 2 * 0.75**2 where wrong, 0 for the last.
    assert brier_score(count_forecasts(PROBABILITIES, LABELS)) == pytest.approx((2 * 0.125 + 1.125) / 4)


def test_every_label_of_a_multi_label_row_is_a_forecast() -> None:
    bins = count_forecasts(np.array([[0.9, 0.2], [0.9, 0.2]]), np.array([[1, 1], [0, 1]]))
    assert bins[:, 0].sum() == 4
    assert calibration_error(bins) == pytest.approx((2 * 0.4 + 2 * 0.8) / 4), "one gap is no other's gain"
    assert brier_score(bins) == pytest.approx((0.01 + 0.81 + 0.64 + 0.64) / 4)


def test_bins_of_batches_add_up() -> None:
    halves = count_forecasts(PROBABILITIES[:2], LABELS[:2]) + count_forecasts(PROBABILITIES[2:], LABELS[2:])
    np.testing.assert_array_equal(halves, count_forecasts(PROBABILITIES, LABELS))


def test_description_leaves_empty_bins_empty() -> None:
    found = describe_forecasts(count_forecasts(PROBABILITIES, LABELS))
    assert found["forecasts"] == [0] * 11 + [3, 0, 0, 1]
    assert found["mean_forecast"] == [None] * 11 + [0.75, None, None, 1.0]
    assert found["came_true"] == [None] * 11 + [0.666667, None, None, 1.0]
    assert found["expected_calibration_error"] == 0.0625
