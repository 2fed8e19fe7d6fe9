"""The model behind the server, opened once: with torch, or as an export without it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..answers_multitask import plain_answers
from ..runtime.model import MultiTaskRuntime
from ..tasks_multitask import TaskConfig
from .batching import Abstain, Row


class Engine(Protocol):
    """
    What the routes ask of a model.

    Attributes:
        name: what callers see of where it was opened from.
        kind: what computes.
        tasks: their settings, by name.
        embedding_dim: size of an embedding.
    """

    name: str
    kind: str
    tasks: dict[str, TaskConfig]
    embedding_dim: int

    def answer(self, rows: list[Row], tasks: list[str], embeddings: bool, abstain: Abstain) -> list[dict[str, Any]]:
        """For each row, by task what `predict(as_list=True)` gives; with `embeddings` also `embedding`, an array."""

    def count_tokens(self, sentences: Sequence[str]) -> int:
        """Tokens that the model reads of the sentences, special ones included."""


def _answers_by_row(
    model: Any, tasks: dict[str, Any], rows: list[Row], names: list[str], embeddings: bool, abstain: Abstain
) -> list[dict[str, Any]]:
    """What `Engine.answer` gives, of anything with `predict`."""
    if not embeddings:
        return model.predict(rows, head=names, as_list=True, show_progress=False, abstain=abstain)
    answers = model.predict(rows, head=names, embeddings=True, show_progress=False, abstain=abstain)
    vectors = answers.pop("embedding")
    listed = plain_answers(tasks, answers, len(rows))
    return [{"embedding": vector, **row} for vector, row in zip(vectors, listed, strict=True)]


class TorchEngine:
    """
    A model in this process.

    Args:
        source: a folder or Hub id.
        revision: a commit, branch or tag of the Hub.
        dtype: of the weights, such as `bfloat16`; float32 by default.
        device: such as `cuda`; by default a GPU if there is one.

    Raises:
        ValueError: torch does not compute with this device here.
        OSError: there is no such model.
    """

    kind = "torch"

    def __init__(self, source: str, revision: str | None = None, dtype: str | None = None, device: str | None = None):
        import torch

        from ..configuration_multitask import public_name
        from ..modeling_multitask import MultiTaskModel

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            torch.zeros(1, device=device).tolist()
        except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
            usable = "cpu or cuda" if torch.cuda.is_available() else "cpu"
            raise ValueError(
                f"device is {device!r}, but should be one that torch computes with here, such as {usable} "
                f"({str(error).partition('. ')[0]})."
            ) from error
        self.model = MultiTaskModel.from_pretrained(
            source, revision=revision, dtype=dtype or "float32", trust_remote_code=True
        ).eval()
        self.model.to(device)
        self.name = public_name(source)
        self.tasks = self.model.config.tasks
        self.embedding_dim = self.model.config.embedding_dim

    def answer(self, rows: list[Row], tasks: list[str], embeddings: bool, abstain: Abstain) -> list[dict[str, Any]]:
        return _answers_by_row(self.model, self.model.config.tasks, rows, tasks, embeddings, abstain)

    def count_tokens(self, sentences: Sequence[str]) -> int:
        options = {"truncation": True, "max_length": self.model.config.max_length}
        return sum(map(len, self.model.tokenizer(list(sentences), **options)["input_ids"]))


class RuntimeEngine:
    """
    An exported model, without torch.

    Args:
        source: an exported folder or Hub id.
        kind: `onnx` or `openvino`.
        revision: a commit, branch or tag of the Hub.
        precision: `float32`, `int8` where it was exported, or `bfloat16` (OpenVINO).
    """

    def __init__(self, source: str, kind: str, revision: str | None = None, precision: str | None = None):
        self.kind = kind
        # shares_cores: half the processor time of a request, as measured with callers on the same cores.
        self.model = MultiTaskRuntime.from_pretrained(
            source, kind, precision or "float32", revision=revision, shares_cores=True
        )
        self.name = f"./{Path(source).resolve().name}" if Path(source).is_dir() else source
        self.tasks = self.model.tasks
        self.embedding_dim = self.model.config["embedding_dim"]

    def answer(self, rows: list[Row], tasks: list[str], embeddings: bool, abstain: Abstain) -> list[dict[str, Any]]:
        return _answers_by_row(self.model, self.model.tasks, rows, tasks, embeddings, abstain)

    def count_tokens(self, sentences: Sequence[str]) -> int:
        return sum(map(len, self.model.tokenize(list(sentences))))


__all__ = ["Engine", "RuntimeEngine", "TorchEngine"]
