"""The confidence from which a risk is kept: its bound, what is chosen, that it holds; and labels withheld below it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.labelling.answers import answer_table
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.calibration.abstention import (
    choose_confidence,
    describe_answered,
    risk_bound,
    risk_coverage,
)
from multitask_sentence.training.calibration.settling import settle_abstain
from multitask_sentence.training.evaluation.scores import TaskAnswers
from multitask_sentence.training.report.abstention import describe_abstention, format_abstention

SENTENCES = ["the cat sat on the mat", "a dog ran", "good film", "", "bad news today"]


def test_bound_of_no_error_is_where_such_luck_has_five_per_cent() -> None:
    assert risk_bound(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))


def test_bound_of_some_errors_is_that_of_the_binomial_tail() -> None:
    bound = float(risk_bound(3, 100))
    assert binom.cdf(3, 100, bound) == pytest.approx(0.05)


def test_bound_of_errors_alone_is_one() -> None:
    assert risk_bound(4, 4) == 1


def test_chosen_confidence_answers_the_rows_that_were_right() -> None:
    # The upper half is right throughout, the lower half wrong throughout.
    confidences = np.linspace(1, 0.001, 1000)
    is_wrong = np.arange(1000) >= 500
    found = choose_confidence(confidences, is_wrong, risk=0.05)
    # 50 errors among 550 rows, the next candidate, are too many.
    assert found.coverage == 0.5
    assert found.risk == 0
    assert confidences[500] < found.confidence < confidences[499]


def test_risk_that_nothing_reaches_names_the_lowest() -> None:
    confidences = np.linspace(1, 0.001, 100)
    found = choose_confidence(confidences, np.zeros(100, dtype=bool), risk=0.01)
    assert found.confidence is None
    assert found.lowest_risk == pytest.approx(1 - 0.0025 ** (1 / 100))
    assert choose_confidence(confidences, np.zeros(100, dtype=bool), found.lowest_risk).coverage == 1


def test_rows_as_confident_as_the_last_one_are_counted() -> None:
    # The candidate of 600 rows would have no error, but 20 rows that are wrong are just as confident.
    confidences = np.r_[np.full(620, 0.9), np.full(380, 0.4)]
    is_wrong = np.r_[np.zeros(600, dtype=bool), np.ones(400, dtype=bool)]
    assert choose_confidence(confidences, is_wrong, risk=0.02).confidence is None
    found = choose_confidence(confidences, is_wrong, risk=0.1)
    assert (found.coverage, found.risk, found.confidence) == (0.62, 20 / 620, pytest.approx(0.65))


def test_promise_holds_in_at_least_95_of_100_draws() -> None:
    # A row of confidence c is wrong with the probability 0.4 * (1 - c), so that from t on the risk is 0.2 * (1 - t).
    broken, chosen = 0, 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        confidences = random.random(2000)
        found = choose_confidence(confidences, random.random(2000) < 0.4 * (1 - confidences), risk=0.1)
        if found.confidence is not None:
            chosen += 1
            broken += 0.2 * (1 - found.confidence) > 0.1
    assert chosen > 280
    assert broken <= 0.05 * chosen


def test_curve_ends_with_the_risk_of_all_rows() -> None:
    curve = risk_coverage(np.array([0.2, 0.9, 0.5, 0.7]), np.array([True, False, True, False]))
    assert curve == {"coverage": [0.25, 0.5, 0.75, 1.0], "risk": [0.0, 0.0, pytest.approx(1 / 3, abs=1e-6), 0.5]}


def test_answered_rows_are_those_from_the_confidence_on() -> None:
    confidences, is_wrong = np.array([0.9, 0.8, 0.3]), np.array([False, True, True])
    assert describe_answered(confidences, is_wrong, 0.8) == {
        "rows": 3,
        "answered": 2,
        "wrong": 1,
        "coverage": pytest.approx(2 / 3, abs=1e-6),
        "risk": 0.5,
    }
    assert describe_answered(confidences, is_wrong, None)["risk"] is None


# Labels that are withheld


def between(values: np.ndarray) -> float:
    """A number that some of the values are below and some are not."""
    ordered = np.sort(values)
    return float(ordered[1] + ordered[2]) / 2


def test_label_is_none_below_the_confidence_and_probabilities_stay(tiny_model: MultiTaskModel) -> None:
    before = tiny_model.predict(SENTENCES)["mood"]
    least = between(before["probabilities"].max(axis=1))
    tiny_model.config.change_task("mood", abstain={"confidence": least})
    after = tiny_model.predict(SENTENCES)
    kept = before["probabilities"].max(axis=1) >= least
    assert 0 < kept.sum() < len(SENTENCES)
    assert after["mood"]["labels"] == [
        label if keep else None for label, keep in zip(before["labels"], kept, strict=True)
    ]
    np.testing.assert_array_equal(after["mood"]["probabilities"], before["probabilities"])
    assert None not in after["tags"]["labels"]
    assert tiny_model.predict(SENTENCES, abstain=False)["mood"]["labels"] == before["labels"]


def test_multi_label_row_is_as_sure_as_its_least_sure_decision(tiny_model: MultiTaskModel) -> None:
    tiny_model.config.change_task("tags", thresholds=[0.3, 0.7, 0.7, 0.7])  # one label given, three not
    before = tiny_model.predict(SENTENCES)["tags"]
    sure = np.where([True, False, False, False], before["probabilities"], 1 - before["probabilities"]).min(axis=1)
    least = between(sure)
    found = tiny_model.predict(SENTENCES, abstain={"confidence": least})["tags"]["labels"]
    assert found == [["animal"] if keep else None for keep in sure >= least]
    assert None in found


def test_rows_as_plain_dictionaries_keep_the_score_of_the_label_that_is_withheld(tiny_model: MultiTaskModel) -> None:
    sure, unsure = (
        tiny_model.predict("good film", as_list=True, abstain=given) for given in (False, {"confidence": 1})
    )
    assert unsure["mood"] == {**sure["mood"], "label": None}
    assert unsure["tags"] == {**sure["tags"], "labels": None}
    assert unsure["rating"] == sure["rating"]
    assert tiny_model.predict("good film", abstain={"confidence": 1})["mood"]["labels"] is None


def test_risk_that_no_confidence_was_chosen_for_gives_no_label(tiny_model: MultiTaskModel) -> None:
    tiny_model.config.change_task("mood", abstain={"risk": 0.05})
    assert tiny_model.predict(SENTENCES)["mood"]["labels"] == [None] * 5


def test_labelled_files_have_empty_cells_where_a_task_abstains(tiny_model: MultiTaskModel) -> None:
    for task in ("mood", "tags"):
        tiny_model.config.change_task(task, abstain={"risk": 0.05})
    table = answer_table(tiny_model, SENTENCES, ["mood", "tags"], embeddings=False, pairs=False)
    for column in ("mood_label", "tags_labels", "tags_probabilities"):
        assert table[column].null_count == 5
    assert table["mood_probability"].null_count == 0


def test_when_to_abstain_is_saved_with_the_model(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.config.change_task("mood", abstain={"risk": 0.05, "confidence": 0.75})
    tiny_model.save_pretrained(tmp_path)
    tasks = MultiTaskConfig.from_pretrained(tmp_path).tasks
    assert tasks["mood"].abstain.to_dict() == {"risk": 0.05, "confidence": 0.75}
    assert tasks["tags"].abstain is None and "abstain" not in tasks["tags"].to_dict()
    tiny_model.add_labels("mood", ["mixed"])
    assert tiny_model.config.tasks["mood"].abstain.confidence is None, "chosen for other labels"


@pytest.mark.parametrize(
    ("task", "abstain", "message"),
    [
        ("mood", {}, r"tasks\.mood\.abstain is empty, but should be like \{risk: 0\.05\}"),
        ("mood", 0.8, r"tasks\.mood\.abstain is 0\.8, but should be like"),
        ("mood", {"risk": 5}, r"tasks\.mood\.abstain\.risk is 5, but should be above 0 and below 1"),
        ("mood", {"confidence": 80}, r"tasks\.mood\.abstain\.confidence is 80, but should be a probability"),
        ("mood", {"confidense": 0.8}, r"unknown key 'confidense'\. Did you mean 'confidence'\?"),
        ("rating", {"risk": 0.05}, r"tasks\.rating\.abstain has no meaning for problem_type regression"),
    ],
)
def test_wrong_abstention_is_refused(all_tasks: dict[str, Any], task: str, abstain: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(tasks={task: {**all_tasks[task], "abstain": abstain}})


def test_risk_for_one_call_is_refused_with_where_it_belongs(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(ValueError, match=r"the confidence for a risk is chosen on validation data\. Put it into"):
        tiny_model.predict(SENTENCES, abstain={"risk": 0.05})


# Choosing and reporting


def test_settled_confidence_is_that_of_calibrated_probabilities() -> None:
    task = MultiTaskConfig(
        tasks={
            "topic": {
                "problem_type": "single_label_classification",
                "labels": ["a", "b"],
                "temperatures": [2.0],
                "abstain": {"risk": 0.05},
            }
        }
    ).tasks["topic"]
    # The surer half, with the logits 4 and 0, is right throughout; of the other, with 1 and 0, half is.
    logits = torch.tensor([[4.0, 0.0]] * 500 + [[1.0, 0.0]] * 500)
    labels = torch.tensor([0] * 500 + [0, 1] * 250)
    settled = settle_abstain(task, logits, labels)
    sigmoids = [float(torch.tensor(value).sigmoid()) for value in (2.0, 0.5)]
    assert settled.to_dict() == {"risk": 0.05, "confidence": pytest.approx(sum(sigmoids) / 2, abs=1e-6)}


def test_risk_is_that_of_rows_in_scope() -> None:
    labels = {"problem_type": "single_label_classification", "labels": ["a", "b"]}
    task = MultiTaskConfig(tasks={"topic": {**labels, "abstain": {"risk": 0.05, "out_of_scope": 90}}}).tasks["topic"]
    # A quarter is sure and wrong, and out of scope; the others are less sure and right.
    logits = torch.tensor([[6.0, 0.0]] * 100 + [[3.0, 0.0]] * 300)
    labels = torch.tensor([1] * 100 + [0] * 300)
    is_near = np.arange(400) >= 100
    assert settle_abstain(task, logits, labels).confidence is None, "premise"
    chosen = settle_abstain(task, logits, labels, is_near).confidence
    assert chosen == pytest.approx(float(torch.tensor(3.0).sigmoid()) / 2, abs=1e-6)
    assert settle_abstain(task, logits, labels, np.zeros(400, dtype=bool)).confidence is None


def answers_of(confidences: np.ndarray, is_wrong: np.ndarray) -> TaskAnswers:
    rows = torch.arange(len(confidences))[:, None]
    return TaskAnswers(rows, is_wrong.astype(int), np.zeros(len(is_wrong), dtype=int), 0.0, confidences=confidences)


def test_report_says_what_the_promise_came_to_on_test_and_which_is_not_reached() -> None:
    labels = {"problem_type": "single_label_classification", "labels": ["a", "b"]}
    tasks = MultiTaskConfig(
        tasks={
            "kept": {**labels, "abstain": {"risk": 0.1, "confidence": 0.5}},
            "broken": {**labels, "abstain": {"risk": 0.01}},
            "always": labels,
        }
    ).tasks
    confidences = np.linspace(0.99, 0.01, 200)
    by_task = {
        split: {name: answers_of(confidences, confidences < bound) for name in tasks}
        for split, bound in (("validation", 0.5), ("test", 0.6))
    }
    found = describe_abstention(tasks, by_task)
    assert list(found) == ["kept", "broken"]
    assert found["kept"]["splits"]["validation"] == {
        "rows": 200, "answered": 100, "wrong": 0, "coverage": 0.5, "risk": 0.0
    }  # fmt: skip
    wrong = int(((confidences >= 0.5) & (confidences < 0.6)).sum())
    assert found["kept"]["splits"]["test"]["risk"] == wrong / 100
    assert found["kept"]["curve"]["risk"][-1] == (confidences < 0.6).mean()
    assert found["broken"]["splits"]["test"]["answered"] == 0
    assert found["broken"]["lowest_risk"] == pytest.approx(1 - 0.0025 ** (1 / 100), abs=1e-6)
    text = format_abstention(found)
    assert "broken: no confidence keeps the risk within 0.01 at 95% certainty, so that it gives no label." in text
    assert "The lowest risk that one keeps is 0.0582;" in text


@pytest.mark.parametrize("abstain", [0.05, True, "x"])
@pytest.mark.parametrize("pair", [False, True])
def test_abstain_that_is_no_mapping_is_named(abstain: Any, pair: bool) -> None:
    settings = {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": pair}
    with pytest.raises(ValueError, match=rf"tasks\.entails\.abstain is {abstain!r}, but should be like"):
        complete_task("entails", {**settings, "abstain": abstain})
