"""A trained folder as estimators of scikit-learn, for pipelines, searches and cross validation.

    SentenceEmbedder    a transformer: texts in, embeddings out
    TaskClassifier      a classifier: texts in, labels of one task out

    cross_val_score(make_pipeline(SentenceEmbedder("runs/quickstart"), LogisticRegression()), texts, labels)

Neither trains: `fit` checks its input. The model is opened when it is first needed. Estimators on the same folder
share it within a process, and neither clones nor pickles hold it.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_consistent_length

from .modeling_multitask import MultiTaskModel
from .rows_multitask import check_container
from .tasks_multitask import TaskConfig

LABELS_SHOWN = 10


@lru_cache(maxsize=2)
def _open(folder: str, device: str | None, changed: int | None) -> MultiTaskModel:
    """The model of a folder or Hub id; `changed` tells apart what stood in the folder at two times."""
    model = MultiTaskModel.from_pretrained(folder).eval()
    return model if device is None else model.to(device)


def _rows(sentences: Any) -> list[Any]:
    """Texts, or pairs of texts, as a list, from a list, an array, a Series or a table of one column or two."""
    if isinstance(sentences, (str, bytes)):
        raise ValueError(f"The estimator was given one text, {sentences[:40]!r}, but should be given a list of texts.")
    if getattr(sentences, "ndim", 1) == 2:
        cells = np.asarray(sentences, dtype=object)
        return list(cells[:, 0]) if cells.shape[1] == 1 else [tuple(row) for row in cells]
    check_container(sentences)
    return list(sentences)


class _FolderEstimator(BaseEstimator):
    """What both estimators have: a folder, and the model in it."""

    folder: str | os.PathLike
    device: str | None

    @property
    def _model(self) -> MultiTaskModel:
        config = os.path.join(self.folder, "config.json")
        changed = os.stat(config).st_mtime_ns if os.path.isfile(config) else None
        return _open(os.fspath(self.folder), self.device, changed)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # the folder is

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.target_tags.required = False
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags


class SentenceEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _FolderEstimator):
    """
    Texts to sentence embeddings, with the encoder of a trained folder.

    Args:
        folder: of a trained model, or a Hub id.
        normalize: whether embeddings have length 1; `None` for what the model's configuration says.
        batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
        device: such as `cuda`; `None` for the CPU.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        normalize: bool | None = None,
        batch_size: int | None = None,
        device: str | None = None,
    ):
        self.folder = folder
        self.normalize = normalize
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Any, y: Any = None) -> "SentenceEmbedder":
        """Open the model; nothing is trained."""
        _rows(X)
        _ = self._model
        return self

    def transform(self, X: Any) -> np.ndarray:
        """
        Embeddings `(texts, embedding_dim)`, float32.

        Args:
            X: texts: a list, an array, a Series, or a table of one column.

        Raises:
            TypeError: something in it is no string.
            ValueError: it is one string.
        """
        rows = _rows(X)
        found = self._model.encode(rows, batch_size=self.batch_size, normalize=self.normalize, show_progress=False)
        return np.asarray(found)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # texts have none
        return tags

    @property
    def _n_features_out(self) -> int:  # names of `get_feature_names_out` count up to here
        return self._model.config.embedding_dim


class TaskClassifier(ClassifierMixin, _FolderEstimator):
    """
    Texts to the labels of one task, with the head of a trained folder.

    `fit` trains nothing and checks that the labels are the task's: `cross_val_score` measures the trained head on each
    part. To train a head of your own, put a classifier behind a [`SentenceEmbedder`].

    A label is always given, whether the task would abstain or not.

    Args:
        folder: of a trained model, or a Hub id.
        task: name of a classification task. A multi-label task answers with 0 and 1 for each of its labels.
        batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
        device: such as `cuda`; `None` for the CPU.
    """

    def __init__(self, folder: str | os.PathLike, task: str, batch_size: int | None = None, device: str | None = None):
        self.folder = folder
        self.task = task
        self.batch_size = batch_size
        self.device = device

    @property
    def _settings(self) -> TaskConfig:
        model = self._model
        model._check_tasks([self.task])
        settings = model.config.tasks[self.task]
        if not settings.kind.has_labels:
            known = ", ".join(name for name, each in model.config.tasks.items() if each.kind.has_labels) or "none"
            raise ValueError(
                f"Task {self.task!r} ({settings.problem_type}) has no labels. Classification tasks here: {known}."
            )
        return settings

    @property
    def classes_(self) -> np.ndarray:
        """The task's labels in alphabetical order, in which scorers of scikit-learn expect probabilities."""
        return np.array(sorted(self._settings.labels))

    def fit(self, X: Any, y: Any = None) -> "TaskClassifier":
        """
        Check that labels are those of the task; nothing is trained.

        Raises:
            ValueError: `y` holds a label that the task does not have, or has another length or shape.
        """
        rows, labels = _rows(X), self._settings.labels
        if y is None:
            return self
        check_consistent_length(rows, y)
        if self._settings.kind.is_multi_label:
            if np.shape(y)[1:] != (len(labels),):
                raise ValueError(
                    f"y has the shape {np.shape(y)}, but task {self.task!r} has {len(labels)} labels: give 0 or 1 for "
                    "each of classes_, as sklearn.preprocessing.MultiLabelBinarizer does."
                )
            return self
        unknown = [label for label in dict.fromkeys(np.asarray(y).tolist()) if label not in labels]
        if unknown:
            found, known = (", ".join(map(repr, each[:LABELS_SHOWN])) for each in (unknown, labels))
            raise ValueError(f"y holds {found}, but the labels of task {self.task!r} are the texts {known}.")
        return self

    def _answer(self, X: Any) -> dict[str, Any]:
        _ = self._settings
        rows, task = _rows(X), self.task
        return self._model.predict(rows, task, batch_size=self.batch_size, show_progress=False, abstain=False)[task]

    def predict(self, X: Any) -> np.ndarray:
        """
        Labels `(texts,)`, or of a multi-label task 0 and 1 `(texts, num_labels)` in the order of `classes_`.

        Args:
            X: texts; of a task that reads pairs, pairs, or a table of two columns.

        Raises:
            TypeError: something in it is no text or pair.
            ValueError: it is one string, or the task reads the other kind.
        """
        labels: Sequence[Any] = self._answer(X)["labels"]
        if self._settings.kind.is_multi_label:
            given = [[label in own for label in self.classes_] for own in map(set, labels)]
            return np.array(given, dtype=int).reshape(-1, len(self.classes_))
        return np.array(labels, dtype=self.classes_.dtype)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `(texts, num_labels)` in the order of `classes_`; errors are those of `predict`."""
        places = np.argsort(self._settings.labels)
        return self._answer(X)["probabilities"][:, places]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


__all__ = ["SentenceEmbedder", "TaskClassifier"]
