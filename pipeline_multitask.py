"""A pipeline that answers every task at once: `pipeline("multitask", model=repo, trust_remote_code=True)`.

It is registered in a saved model's config.json (`custom_pipelines`), so this file travels with the model.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from transformers import Pipeline

ROWS_PER_WINDOW = 4096  # rows of a generator that are read, answered and handed out together


class MultiTaskPipeline(Pipeline):
    """
    Embedding and every task's answer for a sentence, a pair, a list of either, a `datasets` column or a generator.

    Args of a call (`tasks` and `batch_size` may be given to `pipeline` for all calls):
        inputs: a string; a pair `(str, str)` or `{"text": str, "text_pair": str}`; or any iterable of one of these.
        tasks: names of the tasks to answer; `None` answers every task of the given kind (single or pair).
        batch_size: at most so many sentences a batch; `None` leaves it to a token budget.

    Returns a dictionary per input (a generator of them for a generator): `embedding` (`(embedding_dim,)`, or
    `(2, embedding_dim)` for a pair), and by task `label` and `score`, the list of `labels` (multi-label), or `score`
    (regression: `value`), with `scores` by label for classification.
    """

    _load_tokenizer = True

    def _sanitize_parameters(self, tasks: Any = None, batch_size: int | None = None, **kwargs) -> tuple:
        if kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)}. Known: tasks, batch_size.")
        return {}, {"tasks": tasks, "batch_size": batch_size}, {}

    def __call__(self, inputs: Any, tasks: Any = None, batch_size: int | None = None) -> Any:
        tasks = self._forward_params.get("tasks") if tasks is None else tasks
        batch_size = self._batch_size if batch_size is None else batch_size
        if isinstance(inputs, (str, tuple, dict)):
            return next(self._answer_rows([inputs], tasks, batch_size))
        answers = self._answer_rows(inputs, tasks, batch_size)
        return answers if isinstance(inputs, Iterator) else list(answers)

    def _answer_rows(self, inputs: Iterable[Any], tasks: Any, batch_size: int | None) -> Iterator[dict[str, Any]]:
        rows = map(self.preprocess, inputs)
        while window := list(itertools.islice(rows, ROWS_PER_WINDOW)):
            yield from self.postprocess(self.forward(window, tasks=tasks, batch_size=batch_size))

    def preprocess(self, input_: Any, **kwargs) -> str | tuple[str, str]:
        """One input as a string or a pair of strings."""
        if isinstance(input_, dict):
            return (input_["text"], input_["text_pair"]) if "text_pair" in input_ else input_["text"]
        return tuple(input_) if isinstance(input_, list) else input_

    def forward(self, model_inputs: list, **forward_params) -> dict[str, Any]:
        return self._forward(model_inputs, **forward_params)

    def _forward(self, input_tensors: list, tasks: Any = None, batch_size: int | None = None) -> dict[str, Any]:
        embeddings, answers = self.model.embed_and_predict(input_tensors, tasks, batch_size)
        return {"embeddings": embeddings, "answers": answers}

    def postprocess(self, model_outputs: dict[str, Any], **kwargs) -> list[dict[str, Any]]:
        """Columns to rows."""
        rows = []
        for row, embedding in enumerate(model_outputs["embeddings"]):
            answer: dict[str, Any] = {"embedding": embedding}
            for task, columns in model_outputs["answers"].items():
                answer[task] = self._one_answer(task, {key: values[row] for key, values in columns.items()})
            rows.append(answer)
        return rows

    def _one_answer(self, task: str, values: dict[str, Any]) -> dict[str, Any]:
        if "labels" not in values:
            return {"value" if "values" in values else "score": float(next(iter(values.values())))}
        labels = self.model.config.tasks[task]["labels"]
        scores = dict(zip(labels, values["probabilities"].tolist(), strict=True))
        if isinstance(values["labels"], list):
            return {"labels": values["labels"], "scores": scores}
        return {"label": values["labels"], "score": scores[values["labels"]], "scores": scores}
