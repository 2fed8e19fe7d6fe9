"""Teachers' answers: asked once for each text, found again after a kill, never about what is measured on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from helpers import trainer as helpers
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.distillation import answers as answers_module
from multitask_sentence.training.distillation import units as units_module
from multitask_sentence.training.distillation.answers import HeldOut, answer_rows, question_hashes
from multitask_sentence.training.distillation.settings import Distillation
from multitask_sentence.training.distillation.teachers import Teacher
from multitask_sentence.training.distillation.units import fit_line

CPU = torch.device("cpu")
TASKS = {name: complete_task(name, task) for name, task in helpers.TASKS.items()}
TASKS["closeness"] = complete_task("closeness", {"problem_type": "regression", "pair": True})


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "datasets" / "multitask_teachers"


class Scholar:
    """A teacher whose answers follow from the text, and who remembers what it was asked."""

    def __init__(self, name: str, size: int, compares: bool = False, order: list[int] | None = None):
        self.asked: list[Any] = []
        self.size, self.compares = size, compares
        self.teacher = Teacher(name, name, compares, size, order, self.ask, torch.nn.Identity())

    def knows(self, item: Any) -> np.ndarray:
        seed = sum(map(ord, f"{self.teacher.name}{item}"))
        found = np.random.default_rng(seed).normal(size=self.size).astype(np.float32)
        return found / np.linalg.norm(found) if self.compares else found

    def ask(self, items: Sequence[Any], bar: Any) -> np.ndarray:
        self.asked += [item if isinstance(item, str) else tuple(item) for item in items]
        bar.update(len(items))
        return np.stack([self.knows(item) for item in items])


def two_sets() -> list[LabelledSet]:
    """Single sentences with two tasks, of which one labels some, and pairs."""
    sentences = helpers.make_set(["sentiment", "rating"], {"sentiment": 0.6}, train=12, validation=4)
    return [sentences, helpers.make_set(["pairs"], seed=100, train=6, validation=3)]


def answer(teachers: dict[str, list[Scholar]], sets: list[LabelledSet], **settings: Any):
    distillation = Distillation({"any": ()}, **settings)
    opened = {task: [scholar.teacher for scholar in scholars] for task, scholars in teachers.items()}
    rows = [entry.splits["train"] for entry in sets]
    kept_back = list(map(HeldOut(sets).find, rows))
    return answer_rows(distillation, opened, TASKS, rows, kept_back, CPU, show_progress=False)


def test_answers_of_several_teachers_are_averaged_at_the_temperature_in_the_tasks_order():
    first, second = Scholar("first", 3, order=[2, 0, 1]), Scholar("second", 3, order=[0, 1, 2])
    (rows, _), targets = answer({"sentiment": [first, second]}, two_sets(), temperature=2.0)
    found = targets["sentiment"](rows["teacher_sentiment"][:])
    for row, sentence in enumerate(rows["sentences"]):
        sides = [torch.from_numpy(scholar.knows(sentence)) for scholar in (first, second)]
        expected = ((sides[0][[2, 0, 1]] / 2).softmax(dim=-1) + (sides[1] / 2).softmax(dim=-1)) / 2
        torch.testing.assert_close(found[row], expected)


def test_multi_label_and_values_are_averaged_too():
    sets = [helpers.make_set(["tags", "rating"], train=5)]
    tags, values = Scholar("t", 2, order=[1, 0]), [Scholar("a", 1), Scholar("b", 1)]
    (rows,), targets = answer({"tags": [tags], "rating": values}, sets)
    for row, sentence in enumerate(rows["sentences"]):
        expected = torch.from_numpy(tags.knows(sentence))[[1, 0]].sigmoid()
        torch.testing.assert_close(targets["tags"](rows["teacher_tags"][row : row + 1])[0], expected)
        expected = sum(scholar.knows(sentence)[0] for scholar in values) / 2
        assert targets["rating"](rows["teacher_rating"][row : row + 1]).item() == pytest.approx(expected)


def test_products_of_similarity_targets_are_the_mean_of_the_teachers_cosines():
    first, second = Scholar("first", 5, compares=True), Scholar("second", 8, compares=True)
    (_, rows), targets = answer({"pairs": [first, second]}, two_sets())
    vectors = targets["pairs"](rows["teacher_pairs"][:])  # (rows, 2, 13)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(6, 2))
    for row, (one, other) in enumerate(rows["sentences"]):
        expected = sum(scholar.knows(one) @ scholar.knows(other) for scholar in (first, second)) / 2
        assert (vectors[row, 0] @ vectors[row, 1]).item() == pytest.approx(expected, abs=1e-5)


def test_cosines_are_brought_to_the_values_of_a_regression_task_by_least_squares():
    scholar, exact = Scholar("st", 4, compares=True), Scholar("value", 1)
    pairs = helpers.make_rows(["pairs"], 9, 0)["sentences"][:]
    cosines = [float(scholar.knows(one) @ scholar.knows(other)) for one, other in pairs]
    rows = datasets.Dataset.from_dict(
        {"sentences": pairs, "label_closeness": [3 * cosine - 1 if n else None for n, cosine in enumerate(cosines)]}
    )
    (found,), targets = answer({"closeness": [scholar, exact]}, [LabelledSet(["closeness"], {"train": rows})])
    values = targets["closeness"](found["teacher_closeness"][:])
    for row, (pair, cosine) in enumerate(zip(pairs, cosines, strict=True)):
        assert values[row].item() == pytest.approx((3 * cosine - 1 + exact.knows(pair)[0]) / 2, abs=1e-4)
    assert fit_line(np.ones(3), np.array([1.0, 2.0, 3.0])) == (0.0, 2.0)


def answers_to_ratings(scholar: Scholar, label_of: Any, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """What a scholar knows of rows, and what the task makes of it where labels follow from that."""
    sentences = [[f"word{number}"] for number in range(count)]
    known = np.array([scholar.knows(row)[0] for row in sentences])
    rows = datasets.Dataset.from_dict({"sentences": sentences, "label_rating": list(map(label_of, known))})
    (found,), targets = answer({"rating": [scholar]}, [LabelledSet(["rating"], {"train": rows})])
    return known, targets["rating"](found["teacher_rating"][:]).numpy()


def test_values_in_other_units_are_brought_to_the_tasks_and_values_in_its_units_stay(caplog, monkeypatch):
    monkeypatch.setattr(units_module.logger, "propagate", True)
    caplog.set_level("INFO")
    known, found = answers_to_ratings(Scholar("logit", 1), lambda value: float(2.5 + 1.5 * np.tanh(value)))
    expected = np.polyval(np.polyfit(known, 2.5 + 1.5 * np.tanh(known), 1), known)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert "the values of logit are in other units than those of task 'rating'" in caplog.text
    known, found = answers_to_ratings(Scholar("shares", 1), lambda value: 100 * float(value))
    np.testing.assert_allclose(found, 100 * known, rtol=1e-5)
    # In the task's units, better or worse, an answer is what the teacher says, to the last bit.
    noise = iter(np.random.default_rng(0).normal(size=80))
    for label_of in (lambda value: float(value + 0.3 * next(noise)), lambda value: float(0.3 * next(noise))):
        known, found = answers_to_ratings(Scholar("value", 1), label_of)
        np.testing.assert_array_equal(found, known)
    assert "the values of value hardly fit the labels of task 'rating'" in caplog.text  # the last ones


def test_cosines_without_a_labelled_row_to_bring_them_to_values_are_refused():
    pairs = helpers.make_rows(["pairs"], 4, 0)["sentences"][:]
    rows = datasets.Dataset.from_dict({"sentences": pairs, "label_closeness": [0.1, 0.2, 0.3, 0.4]})
    more = datasets.Dataset.from_dict({"sentences": [["word1", "word2"]]})
    sets = [LabelledSet(["closeness"], {"train": rows, "test": rows}), LabelledSet([], {"train": more})]
    with pytest.raises(ValueError, match="no labelled training row of task 'closeness' is left to bring the cosines"):
        answer({"closeness": [Scholar("st", 4, compares=True)]}, sets)


@pytest.mark.parametrize("rows", ["all", "own"])
def test_every_row_of_a_tasks_kind_is_answered_or_its_own_alone(rows):
    sets = [helpers.make_set(["sentiment"], train=5), helpers.make_set(["rating"], seed=50, train=4), two_sets()[1]]
    opinion = Scholar("s", 3, order=[0, 1, 2])
    found, _ = answer({"sentiment": [opinion], "pairs": [Scholar("p", 4, compares=True)]}, sets, rows=rows)
    answered = [
        [None not in rows[name][:] if name in rows.column_names else False for rows in found]
        for name in ("teacher_sentiment", "teacher_pairs")
    ]
    assert answered == [[True, rows == "all", False], [False, False, True]]
    assert len(opinion.asked) == (9 if rows == "all" else 5)


def test_own_rows_are_those_with_a_label():
    sets = two_sets()
    (rows, _), _ = answer({"sentiment": [Scholar("s", 3, order=[0, 1, 2])]}, sets, rows="own")
    labels = rows["label_sentiment"][:]
    assert None in labels, "premise: some rows are labelled for the other task alone"
    assert [places is None for places in rows["teacher_sentiment"]] == [label is None for label in labels]


def test_contrastive_rows_with_negatives_are_answered_sentence_by_sentence():
    sets = [helpers.make_set(["search"], train=4), two_sets()[1]]
    scholar = Scholar("st", 4, compares=True)
    (rows, pairs), targets = answer({"search": [scholar]}, sets)
    vectors = targets["search"](rows["teacher_search"][:])
    assert vectors.shape == (4, 3, 4)
    assert "teacher_search" not in pairs.column_names, "rows of two sentences fit in no batch beside rows of three"
    np.testing.assert_allclose(vectors[2, 1].numpy(), scholar.knows(rows["sentences"][2][1]), atol=1e-6)


def test_unlabelled_text_is_answered_also_where_only_own_rows_are():
    more = datasets.Dataset.from_dict({"sentences": [["word1 word2"], ["word3"]]})
    sets = [*two_sets(), LabelledSet([], {"train": more})]
    found, _ = answer({"sentiment": [Scholar("s", 3, order=[0, 1, 2])]}, sets, rows="own")
    assert None not in found[2]["teacher_sentiment"][:]


# ---- what is never asked ----


def test_no_text_of_validation_and_test_is_asked_about_or_answered():
    sets = two_sets()
    measured = [row for entry in sets for row in entry.splits["validation"]["sentences"]]
    train = sets[0].splits["train"].to_dict()
    train["sentences"][3] = [f"  {measured[0][0].upper()}"]  # equal but for case and white space
    train["sentences"][5] = [measured[-1][1]]  # one sentence of a measured pair
    pairs = sets[1].splits["train"].to_dict()
    pairs["sentences"][2] = measured[-1][::-1]
    sets[0].splits["train"], sets[1].splits["train"] = map(datasets.Dataset.from_dict, (train, pairs))
    opinion, likeness = Scholar("s", 3, order=[0, 1, 2]), Scholar("p", 4, compares=True)
    found, _ = answer({"sentiment": [opinion], "pairs": [likeness]}, sets)
    unanswered = [
        [row for row, places in enumerate(rows[name]) if places is None]
        for rows, name in zip(found, ("teacher_sentiment", "teacher_pairs"), strict=True)
    ]
    assert unanswered == [[3, 5], [2]]
    asked = {text.strip().lower() for item in opinion.asked for text in item}
    assert asked and not asked & {text.lower() for row in measured for text in row}
    assert not {item.lower() for item in likeness.asked} & {measured[-1][0].lower(), measured[-1][1].lower()}


def test_contrastive_row_whose_negative_is_measured_is_not_asked_about():
    search, sentences = helpers.make_set(["search"], train=5), two_sets()[0]
    measured = sentences.splits["validation"]["sentences"][1][0]
    train = search.splits["train"].to_dict()
    train["sentences"][1][2] = f" {measured.upper()} "
    train["sentences"][3][1] = measured  # a positive makes another row, as a half of a pair does
    search.splits["train"] = datasets.Dataset.from_dict(train)
    scholar = Scholar("st", 4, compares=True)
    (rows, _), _ = answer({"search": [scholar]}, [search, sentences])
    assert [row for row, places in enumerate(rows["teacher_search"]) if places is None] == [1]
    assert measured.upper() not in {text.strip() for text in scholar.asked}


def test_held_out_rows_are_found_as_text_is_compared_everywhere_and_kept_as_hashes():
    sets = two_sets()
    held_out = HeldOut(sets)
    single, (one, other) = (entry.splits["validation"]["sentences"][0] for entry in sets)
    rows = [[f"{single[0]}  "], [one.upper()], ["word"]]
    assert held_out.find(datasets.Dataset.from_dict({"sentences": rows})).tolist() == [True, True, False]
    rows = [[other, one], [one, "word"], [single[0], single[0]]]
    assert held_out.find(datasets.Dataset.from_dict({"sentences": rows})).tolist() == [True, False, False]
    assert held_out.rows.dtype == held_out.sentences.dtype == np.int64


# ---- on disk ----


def test_each_distinct_text_is_asked_once_and_a_later_run_asks_nothing(cache_folder):
    sets = two_sets()
    train = sets[0].splits["train"].to_dict()
    train["sentences"][1] = train["sentences"][0]
    sets[0].splits["train"] = datasets.Dataset.from_dict(train)
    scholar = Scholar("s", 3, order=[0, 1, 2])
    first, targets = answer({"sentiment": [scholar]}, sets)
    assert len(scholar.asked) == len(set(scholar.asked)) == 11
    again = Scholar("s", 3, order=[0, 1, 2])
    second, same = answer({"sentiment": [again]}, sets)
    assert again.asked == []
    places = [rows["teacher_sentiment"][:] for rows in (first[0], second[0])]
    assert torch.equal(targets["sentiment"](places[0]), same["sentiment"](places[1]))
    other = Scholar("another", 3, order=[0, 1, 2])
    answer({"sentiment": [other]}, sets)
    assert len(other.asked) == 11
    assert len(list(cache_folder.iterdir())) == 2


@pytest.mark.parametrize("show_progress", [True, False])
def test_progress_is_shown_while_a_teacher_answers(show_progress, capsys):
    sets, scholar = two_sets(), Scholar("wise one", 3, order=[0, 1, 2])
    rows = [entry.splits["train"] for entry in sets]
    kept_back = list(map(HeldOut(sets).find, rows))
    settings = Distillation({"sentiment": ()})
    answer_rows(settings, {"sentiment": [scholar.teacher]}, TASKS, rows, kept_back, CPU, show_progress=show_progress)
    assert ("Asking wise one: 100%" in capsys.readouterr().err) == show_progress


def test_precision_has_a_folder_of_its_own():
    teacher = Scholar("s", 3).teacher
    folders = {answers_module.answer_folder(teacher, precision) for precision in ("no", "bf16")}
    assert len(folders) == 2


def test_run_that_was_killed_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr(answers_module, "ANSWERS_PER_SHARD", 4)
    scholar = Scholar("s", 3, order=[0, 1, 2])
    plain, calls = scholar.ask, []

    def killed(items: Sequence[Any], bar: Any) -> np.ndarray:
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(items, bar)

    scholar.teacher.ask = killed
    with pytest.raises(KeyboardInterrupt):
        answer({"sentiment": [scholar]}, two_sets())
    assert calls == [4, 4, 4]
    later = Scholar("s", 3, order=[0, 1, 2])
    (rows, _), targets = answer({"sentiment": [later]}, two_sets())
    assert len(later.asked) == 4
    found = targets["sentiment"](rows["teacher_sentiment"][:])
    expected = [torch.from_numpy(later.knows(row)).softmax(dim=-1) for row in rows["sentences"]]
    torch.testing.assert_close(found, torch.stack(expected))


def test_damaged_answers_are_asked_for_again(cache_folder):
    answer({"sentiment": [Scholar("s", 3, order=[0, 1, 2])]}, two_sets())
    (shard,) = cache_folder.rglob("*.arrow")
    content = bytearray(shard.read_bytes())
    content[-40] ^= 1
    shard.write_bytes(content)
    again = Scholar("s", 3, order=[0, 1, 2])
    answer({"sentiment": [again]}, two_sets())
    assert len(again.asked) == 12


def test_rows_with_the_same_words_cut_elsewhere_have_other_hashes():
    rows = [["a", "b c"], ["a b", "c"], ["a b c"], ["5 a b c"], ["1 a b c"]]
    assert len(set(question_hashes(rows).tolist())) == 5


def test_targets_of_no_row_have_the_tasks_shape():
    teachers = {
        "sentiment": [Scholar("s", 3, order=[0, 1, 2])],
        "rating": [Scholar("r", 1)],
        "pairs": [Scholar("p", 4, compares=True)],
    }
    _, targets = answer(teachers, two_sets())
    shapes = {task: tuple(found([]).shape) for task, found in targets.items()}
    assert shapes == {"sentiment": (0, 3), "rating": (0,), "pairs": (0, 2, 1)}
    assert F.cross_entropy(torch.empty(0, 3), targets["sentiment"]([]), reduction="sum") == 0


def test_task_without_any_answer_is_told_of(caplog, monkeypatch):
    monkeypatch.setattr(answers_module.logger, "propagate", True)
    rows = helpers.make_rows(["rating"], 4, 0)
    sets = [LabelledSet(["rating"], {"train": rows, "validation": rows})]
    scholar = Scholar("r", 1)
    (found,), _ = answer({"rating": [scholar]}, sets)
    assert "teacher_rating" not in found.column_names
    assert scholar.asked == []
    assert "no training row of task 'rating' is answered" in caplog.text
