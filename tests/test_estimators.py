"""The estimators of scikit-learn: its own checks, pipelines, searches, scorers, clones and pickles."""

import pickle
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MultiLabelBinarizer
from sklearn.utils import estimator_checks, validation
from sklearn.utils.multiclass import check_classification_targets

from multitask_sentence import MultiTaskModel, SentenceEmbedder, TaskClassifier
from multitask_sentence.estimators import _open

TEXTS = ["the cat sat", "good film !", "bad news today", "a dog ran in the park", "", "fine story"] * 4
needs_tags = pytest.mark.skipif(
    not hasattr(estimator_checks, "check_valid_tag_types"), reason="scikit-learn before 1.6 has other tags"
)
# Of scikit-learn's checks those that need no rows; all others feed numbers, and none runs by itself for texts.
WITHOUT_ROWS = [
    name
    for name in (
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_get_params_invariance",
        "check_set_params",
        "check_parameters_default_constructible",
        "check_mixin_order",
        "check_valid_tag_types",
        "check_estimator_tags_renamed",
    )
    if hasattr(estimator_checks, name)
]


@pytest.fixture(scope="module")
def folder(tiny_backbone: str, all_tasks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose labels are in no alphabetical order. Read only."""
    tasks = {name: all_tasks[name] for name in ("mood", "tags", "entails", "rating")}
    tasks["mood"] = {**tasks["mood"], "labels": ["positive", "neutral", "negative"], "abstain": {"confidence": 1.0}}
    path = tmp_path_factory.mktemp("estimators") / "model"
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(folder: str) -> MultiTaskModel:
    return MultiTaskModel.from_pretrained(folder)


# ---- scikit-learn's own checks ----


@needs_tags
@pytest.mark.parametrize("estimator", [SentenceEmbedder("folder"), TaskClassifier("folder", "mood")])
@pytest.mark.parametrize("check", WITHOUT_ROWS)
def test_checks_without_rows_pass(estimator: Any, check: str) -> None:
    getattr(estimator_checks, check)(type(estimator).__name__, estimator)


def words_of(numbers: np.ndarray) -> list[str]:
    """Texts for scikit-learn's checks, which feed numbers: of each row its numbers as words."""
    words = ["cat", "dog", "bird", "sat", "ran", "sang", "good", "bad", "film", "news"]
    return [" ".join(words[int(abs(number) * 7) % len(words)] for number in row[:12]) for row in numbers]


def numbers_instead_of_texts(tags: Any) -> Any:
    tags.input_tags.string, tags.input_tags.two_d_array = False, True
    return tags


class EmbedderOfNumbers(SentenceEmbedder):
    """The embedder behind `words_of`."""

    def fit(self, X: Any, y: Any = None) -> "EmbedderOfNumbers":
        super().fit(words_of(validation.validate_data(self, X)))
        return self

    def transform(self, X: Any) -> np.ndarray:
        return super().transform(words_of(validation.validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        return numbers_instead_of_texts(super().__sklearn_tags__())


class ClassifierOfNumbers(TaskClassifier):
    """The classifier behind `words_of`, with the checks' own classes in place of the task's first labels."""

    def fit(self, X: Any, y: Any = None) -> "ClassifierOfNumbers":
        X, y = validation.validate_data(self, X, y)
        check_classification_targets(y)
        self.own_ = np.unique(y)
        labels = super().classes_
        super().fit(words_of(X), labels[np.searchsorted(self.own_, y) % len(labels)])
        return self

    @property
    def classes_(self) -> np.ndarray:
        return self.own_

    def predict(self, X: Any) -> np.ndarray:
        return self.own_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        found = super().predict_proba(words_of(validation.validate_data(self, X, reset=False)))[:, : len(self.own_)]
        return found / found.sum(axis=1, keepdims=True)

    def __sklearn_tags__(self) -> Any:
        tags = numbers_instead_of_texts(super().__sklearn_tags__())
        tags.target_tags.required, tags.classifier_tags.multi_label = True, False
        return tags


@needs_tags
@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        (EmbedderOfNumbers, (), {}),
        (
            ClassifierOfNumbers,
            ("mood",),
            {"check_classifiers_train": "the head is trained already, and learns nothing"},
        ),
    ],
)
def test_checks_with_rows_pass(folder: str, kind: Any, arguments: Any, expected: dict[str, str]) -> None:
    found = estimator_checks.check_estimator(
        kind(folder, *arguments), on_fail=None, on_skip=None, expected_failed_checks=expected
    )
    assert len(found) > 40, "premise: checks with rows are run"
    assert {each["check_name"]: each["exception"] for each in found if each["status"] == "failed"} == {}
    assert {each["check_name"] for each in found if each["status"] == "xfail"} == expected.keys()


# ---- the embedder ----


def test_embedder_gives_what_encode_gives_and_names_it(folder: str, model: MultiTaskModel) -> None:
    embedder = SentenceEmbedder(folder).fit(TEXTS)
    np.testing.assert_array_equal(embedder.transform(TEXTS), model.encode(TEXTS))
    unit = SentenceEmbedder(folder, normalize=True).transform(np.array(TEXTS))
    np.testing.assert_array_equal(unit, model.encode(TEXTS, normalize=True))
    names = embedder.get_feature_names_out()
    assert (names[0], names[-1], len(names)) == ("sentenceembedder0", "sentenceembedder31", 32)
    table = pd.DataFrame({"text": TEXTS}, index=range(5, 29))  # of a Series, scikit-learn 1.4 takes no index
    frame = embedder.set_output(transform="pandas").transform(table)
    assert list(frame) == list(names) and frame.index[0] == 5


def test_embedder_trains_in_pipelines_searches_and_column_transformers(folder: str) -> None:
    labels = ["animal" if "cat" in text or "dog" in text else "other" for text in TEXTS]
    pipeline = make_pipeline(SentenceEmbedder(folder), LogisticRegression(max_iter=1000, C=100))
    assert cross_val_score(pipeline, TEXTS, labels, cv=3).mean() == 1
    search = GridSearchCV(pipeline, {"sentenceembedder__normalize": [False, True]}, cv=2).fit(TEXTS, labels)
    assert list(search.predict(["the cat sat"])) == ["animal"]
    table = pd.DataFrame({"text": TEXTS, "length": [len(text) for text in TEXTS]})
    for column in ("text", ["text"]):
        mixed = ColumnTransformer([("text", SentenceEmbedder(folder), column)], remainder="passthrough")
        assert mixed.fit_transform(table).shape == (24, 33)


def test_clones_and_pickles_hold_no_model_and_share_an_opened_one(folder: str) -> None:
    _open.cache_clear()
    embedder = SentenceEmbedder(folder).fit(TEXTS)
    assert len(pickle.dumps(embedder)) < 1000
    opened = pickle.loads(pickle.dumps(embedder))
    np.testing.assert_array_equal(clone(opened).transform(TEXTS), embedder.transform(TEXTS))
    TaskClassifier(folder, "mood").predict(TEXTS)
    assert _open.cache_info().misses == 1


def test_folder_that_was_trained_anew_is_opened_anew(folder: str, model: MultiTaskModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    embedder = SentenceEmbedder(str(tmp_path))
    before = embedder.transform(TEXTS)
    changed = MultiTaskModel.from_pretrained(folder)
    changed.backbone.embeddings.word_embeddings.weight.data += 1
    changed.save_pretrained(tmp_path)
    assert not np.allclose(embedder.transform(TEXTS), before)


# ---- the classifier ----


def test_classifier_answers_with_the_head_in_the_order_of_its_classes(folder: str, model: MultiTaskModel) -> None:
    classifier = TaskClassifier(folder, "mood")
    expected = model.predict(TEXTS, abstain=False)["mood"]
    assert list(classifier.classes_) == ["negative", "neutral", "positive"]
    np.testing.assert_array_equal(classifier.predict_proba(TEXTS), expected["probabilities"][:, ::-1])
    assert list(classifier.predict(TEXTS)) == expected["labels"], "labels that the task would not give are given"
    labels = np.array(["positive", "neutral", "negative"] * 8)
    own = [{"positive": 0, "neutral": 1, "negative": 2}[label] for label in labels]
    loss = -np.log(expected["probabilities"][range(24), own]).mean()
    scores = cross_val_score(classifier, TEXTS, labels, cv=4, scoring="neg_log_loss")
    assert scores.mean() == pytest.approx(-loss, rel=1e-5)
    assert log_loss(labels, classifier.predict_proba(TEXTS)) == pytest.approx(loss, rel=1e-5)


def test_classifier_of_several_labels_answers_as_a_binarizer_reads(folder: str, model: MultiTaskModel) -> None:
    classifier = TaskClassifier(folder, "tags")
    expected = model.predict(TEXTS)["tags"]["labels"]
    binarizer = MultiLabelBinarizer(classes=list(classifier.classes_)).fit([])
    found = classifier.fit(TEXTS, binarizer.transform(expected)).predict(TEXTS)
    np.testing.assert_array_equal(found, binarizer.transform(expected))
    assert 0 < found.mean() < 1
    assert classifier.score(TEXTS, found) == 1


def test_classifier_of_pairs_reads_tables_of_two_columns(folder: str, model: MultiTaskModel) -> None:
    pairs = list(pairwise(TEXTS))
    expected = model.predict(pairs)["entails"]["labels"]
    for given in (pairs, pd.DataFrame(pairs), np.array(pairs)):
        assert list(TaskClassifier(folder, "entails").predict(given)) == expected


def test_example_of_the_page_runs(folder: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "SentenceEmbedder" in code]
    *lines, last = example.replace("runs/notebook", folder).strip().splitlines()
    found: dict[str, Any] = {}
    exec("\n".join([*lines, f"found = {last}"]), found)
    assert found["found"].shape == (20, 3)


@pytest.mark.parametrize(
    ("task", "call", "message"),
    [
        (
            "mood",
            lambda it: it.fit(TEXTS, ["positive", "great"] * 12),
            "y holds 'great', but the labels of task",
        ),
        (
            "mood",
            lambda it: it.fit(TEXTS, [0, 1] * 12),
            "y holds 0, 1, but .* are the texts",
        ),
        ("mood", lambda it: it.fit(TEXTS, ["positive"]), "inconsistent numbers of samples"),
        ("mood", lambda it: it.predict("good"), "was given one text, 'good', but should be given a list"),
        ("tags", lambda it: it.fit(TEXTS, ["animal"] * 24), r"task 'tags' has 4 labels: give 0 or 1 for each"),
        ("rating", lambda it: it.predict(TEXTS), r"'rating' \(regression\) has no labels\. .* mood, tags, entails"),
        ("mod", lambda it: it.predict(TEXTS), "There is no task 'mod'"),
        ("entails", lambda it: it.predict(TEXTS), "'entails' reads pairs"),
    ],
)
def test_mistakes_are_told(folder: str, task: str, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(TaskClassifier(folder, task))


@pytest.mark.parametrize(
    ("sentences", "message"),
    [({"a": 1, "b": 2}, "are a dict.*a mapping"), ({"the cat", "a dog"}, "are a set.*which has no order")],
)
def test_what_has_no_rows_is_refused(folder: str, sentences: Any, message: str) -> None:
    for estimator in (SentenceEmbedder(folder).transform, TaskClassifier(folder, "mood").predict):
        with pytest.raises(TypeError, match=message):
            estimator(sentences)
