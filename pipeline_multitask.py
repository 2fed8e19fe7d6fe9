"""A pipeline that answers every task at once: `pipeline("multitask", model=repo, trust_remote_code=True)`.

It is registered in a saved model's config.json (`custom_pipelines`), so this file travels with the model, and with
transformers, so that `pipeline("multitask", model=model)` takes a model that is open already.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transformers import AutoModel, Pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from .answers_multitask import one_word
from .rows_multitask import check_container, check_rows, count_rows, windows_of

ROWS_PER_WINDOW = 4096  # rows of a generator that are read, answered and handed out together


class MultiTaskPipeline(Pipeline):
    """
    Embedding and every task's answer for a sentence, a pair, a list of either, a `datasets` column or a generator.

    Args of a call (`head`, `batch_size` and `abstain` may be given to `pipeline` for all calls):
        inputs: a string; a pair `(str, str)` or `{"text": str, "text_pair": str}`; or any iterable of one of these.
        head: name of the task to answer, or a list of names; `None` answers every task of the given kind (single or
            pair).
        batch_size: at most so many sentences a batch; `None` leaves it to a token budget.
        num_workers: part of every pipeline's signature, without effect on the result. Sentences are tokenized in one
            thread beside the computation, whatever it says.
        tasks: the same as `head`, as older code spells it.
        abstain: when a classification gives no label, as in `predict`: `None` for what the configuration says, `False`
            for never, `{"confidence": 0.8}` for where it is less sure.

    Returns a dictionary per input (a generator of them for a generator), all in Python's own types, so that
    `json.dumps` takes it: `embedding` (a list of `embedding_dim` numbers, or two of them for a pair), and by task
    `label` and `score`, the list of `labels` (multi-label), or `score` (regression: `value`), with `scores` by label
    for classification; the label is `None` where a task abstains.
    """

    _load_tokenizer = None  # the model has one of its own; there is none to load where a model is given that is open

    def _sanitize_parameters(
        self, head: Any = None, batch_size: int | None = None, tasks: Any = None, abstain: Any = None, **kwargs
    ) -> tuple:
        if kwargs:
            raise TypeError(f"Unknown arguments {sorted(kwargs)}. Known: head, batch_size, abstain, num_workers.")
        return {}, {"head": one_word(head, tasks, "tasks"), "batch_size": batch_size, "abstain": abstain}, {}

    def __call__(
        self,
        inputs: Any,
        head: Any = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        tasks: Any = None,
        abstain: dict[str, float] | bool | None = None,
    ) -> Any:
        given = {"head": one_word(head, tasks, "tasks"), "batch_size": batch_size, "abstain": abstain}
        # What this call says goes before what was said for all calls.
        options = {**self._forward_params, "batch_size": self._batch_size}
        options.update((name, value) for name, value in given.items() if value is not None)
        if isinstance(inputs, (str, tuple, Mapping)):
            return next(self._answer_rows([inputs], options))
        check_container(inputs)
        answers = self._answer_rows(inputs, options)
        return list(answers) if count_rows(inputs) is not None else answers

    def _answer_rows(self, inputs: Iterable[Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        is_pair = False
        for start, window in windows_of(inputs, ROWS_PER_WINDOW):
            rows = [self.preprocess(row, place=place) for place, row in enumerate(window, start)]
            is_pair = is_pair if start else isinstance(rows[0], tuple)
            check_rows(rows, is_pair, start)  # `predict` would count from the window's first row, and take its kind
            yield from self.postprocess(self.forward(rows, **options))

    def preprocess(self, input_: Any, place: int = 0) -> str | tuple[str, str]:
        """One input as a string or a pair of strings."""
        if isinstance(input_, Mapping):
            is_text = all(isinstance(text, str) for text in input_.values())
            if not is_text or not {"text"} <= set(input_) <= {"text", "text_pair"}:
                raise TypeError(
                    f"Row {place} is {dict(input_)!r}, but should be {{'text': str}} or "
                    "{'text': str, 'text_pair': str}. Give several texts as a list."
                )
            return (input_["text"], input_["text_pair"]) if "text_pair" in input_ else input_["text"]
        return tuple(input_) if isinstance(input_, list) else input_

    def forward(self, model_inputs: list, **forward_params) -> list[dict[str, Any]]:
        return self._forward(model_inputs, **forward_params)

    def _forward(
        self, input_tensors: list, head: Any = None, batch_size: int | None = None, abstain: Any = None
    ) -> list[dict[str, Any]]:
        options = {} if abstain is None else {"abstain": abstain}  # which the predict of an older model does not take
        return self.model.predict(input_tensors, head, batch_size, as_list=True, embeddings=True, **options)

    def postprocess(self, model_outputs: list[dict[str, Any]], **kwargs) -> list[dict[str, Any]]:
        return model_outputs


# The copy of this file that was read last answers for models that are open; a folder brings its own.
PIPELINE_REGISTRY.supported_tasks.pop("multitask", None)
PIPELINE_REGISTRY.register_pipeline("multitask", MultiTaskPipeline, pt_model=AutoModel, type="text")

__all__ = ["MultiTaskPipeline"]
