"""An exported model without torch: `encode`, `predict` and `similarity` on ONNX Runtime or OpenVINO."""

import logging
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ..answers_multitask import ANSWER_CONVERSIONS, farthest_labelled, hand_out, labelled_near, one_word, read_question
from ..checks_multitask import check_choice
from ..rows_multitask import (
    SENTENCES_FOR_PROGRESS,
    check_batch_size,
    check_container,
    count_rows,
    length_sorted_batches,
    sentence_windows,
    tokenized_ahead,
    windows_of,
)
from ..tasks_multitask import TaskConfig
from .graphs import GRAPHS, open_graph
from .hub import download
from .logits import answer, scaled
from .record import (
    EXPORT_IT,
    RECORD_FILE,
    check_content,
    check_record,
    check_sizes,
    hash_weights,
    read_json,
    truncation_side,
)
from .scopes import out_of_scope, read_scopes

logger = logging.getLogger(__name__)
PRECISIONS = ("float32", "bfloat16", "int8")
CONVERSIONS = ("numpy", "tensor")
PAIRS_PER_BATCH = 4096


def _is_embedding(row: Any) -> bool:
    """Whether a row of `similarity` is numbers in a row, not text, nor a list of texts."""
    numbers = isinstance(row, list) and not any(isinstance(value, (str, bytes)) for value in row)
    return numbers or hasattr(row, "__array__")


class MultiTaskRuntime:
    """
    An exported model, opened with [`MultiTaskRuntime.from_pretrained`].

    Attributes:
        folder: where it was opened, or downloaded to.
        record: the content of export.json.
        config: the content of config.json, `embedding_dim` added.
        tasks: task settings by name, in their order.
        tokenizer: of the `tokenizers` library, truncating at `max_length`.
        engine: `onnx` or `openvino`.
        precision: `float32`, `bfloat16` or `int8`.
        scopes: by task that knows its scope, the buffers of its `Scope`.
        embedding_output: the output of the sentence graph that heads read.
    """

    def __init__(
        self,
        folder: Path,
        engine: str,
        precision: str,
        threads: int | None,
        weights: dict[str, str] | None,
        verify: bool = False,
        shares_cores: bool = False,
    ):
        self.engine, self.precision, where = engine, precision, folder / engine
        self.folder = folder
        self.record = record = read_json(where / RECORD_FILE)
        self.config = read_json(folder / "config.json")
        self.config["embedding_dim"] = record["embedding_dim"]
        saved = self.config.get("tasks") or {}
        order = [name for name in self.config.get("task_order") or () if name in saved]
        self.tasks = {
            name: TaskConfig(**saved[name], where=f"tasks.{name}") for name in dict.fromkeys([*order, *saved])
        }
        graph = record["graphs"].get("int8" if precision == "int8" else "float32")
        if graph is None:
            raise ValueError(
                f"{where} holds no {precision} graph, only {', '.join(record['graphs'])}. Export one: "
                "multitask-sentence export FOLDER --int8."
            )
        check_sizes(where, record)
        if verify:
            check_content(folder, where, record)
        with ThreadPoolExecutor(max_workers=1) as thread:  # beside the reading of the graphs
            hashed = thread.submit(lambda: hash_weights(folder) if weights is None else weights)
            self._sentences = open_graph(engine, where / graph, precision, threads, shares_cores)
            pairs = record["graphs"].get("pairs")
            self._pairs = open_graph(engine, where / pairs, precision, threads, shares_cores) if pairs else None
            check_record(str(where), record, self.config, hashed.result())
        self.scopes = read_scopes(where / record["scopes"]) if "scopes" in record else {}
        for name in [name for name, task in self.tasks.items() if task.out_of_scope and name not in self.scopes]:
            logger.warning(
                f"{where} was exported by an older version of this code, which left out what tells task {name!r} its "
                "scope, so that it answers without out_of_scope. Export again: multitask-sentence export FOLDER."
            )
            self.tasks[name] = replace(self.tasks[name], out_of_scope=False)
        self.tokenizer = self._read_tokenizer(folder / "tokenizer.json")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.config["max_length"], direction=truncation_side(folder, record))
        self._pad_id = record["tokenizer"]["pad_token_id"]
        self.embedding_output = "unnormalized_embedding" if self.config["normalize"] else "sentence_embedding"

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        engine: str | None = None,
        precision: str = "float32",
        threads: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike | None = None,
        verify: bool = False,
        shares_cores: bool = False,
    ) -> "MultiTaskRuntime":
        """
        Open an exported folder or Hub repository.

        Args:
            source: the folder, or the id of the repository.
            engine: `onnx` or `openvino`; `None` takes the first of them that was exported.
            precision: `float32`, `int8` where it was exported, or `bfloat16` (OpenVINO on CPUs that have it).
            threads: that compute; `None` leaves it to the engine.
            revision: a commit, branch or tag of the Hub.
            token: for a private repository; `None` takes the one that `hf auth login` stored.
            cache_dir: where downloads are kept, if not where huggingface_hub keeps them.
            verify: whether the sha256 of every file that is read is compared with that of the export.
            shares_cores: whether others need the cores while this model has nothing to do, as the callers of a server
                on the same machine do: ONNX Runtime's threads then sleep, and do not spin.

        Raises:
            ValueError: there is no export, it has no such precision, it does not belong to weights or config.json
                beside it, or a file of it is damaged.
            ImportError: the engine is not installed.
            OSError: a file is missing, or the Hub cannot be reached.
        """
        check_choice("precision", precision, PRECISIONS)
        if engine is not None:
            check_choice("engine", engine, tuple(GRAPHS))
        if precision == "bfloat16":
            engine = engine or "openvino"
            if engine == "onnx":
                raise ValueError("ONNX Runtime has no bfloat16 on CPUs. Take engine='openvino', or precision='int8'.")
        weights = None
        if os.path.isdir(source):
            folder = Path(source)
            found = [name for name in GRAPHS if (folder / name / RECORD_FILE).is_file()]
            engine = engine or (found or ["onnx"])[0]
            if engine not in found:
                raise ValueError(f"{folder} holds no {engine}/{RECORD_FILE}, so it was not exported. {EXPORT_IT}")
        elif os.fspath(source).startswith((".", "/", "~")) or os.fspath(source).count("/") > 1:
            raise ValueError(f"There is no folder {source}. Give an exported folder or the id of a Hub repository.")
        else:
            options = {"revision": revision, "token": token, "cache_dir": cache_dir}
            folder, engine, weights = download(os.fspath(source), engine, precision, verify, **options)
        try:
            return cls(folder, engine, precision, threads, weights, verify, shares_cores)
        except ImportError as error:
            package = GRAPHS[engine].package
            raise ImportError(
                f"{package} is not installed, which computes {folder / engine}: pip install {package}."
            ) from error
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder}: config.json or {engine}/{RECORD_FILE} is damaged, or of another version "
                f"({type(error).__name__}: {error}). Download them, or export, again."
            ) from error

    @staticmethod
    def _read_tokenizer(path: Path) -> Tokenizer:
        try:
            return Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # the library has no class of its own for it
            raise ValueError(f"{path} holds no tokenizer ({error}). Download it, or export, again.") from error

    def tokenize(self, sentences: list[str]) -> list[list[int]]:
        """Token ids of sentences, at most `max_length` of each."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(sentences)]

    @staticmethod
    def _progress(total: int | None, show: bool | None) -> Any:
        """A bar, where one is shown."""
        if not (show if show is not None else (total or 0) >= SENTENCES_FOR_PROGRESS):
            return nullcontext()
        from tqdm.auto import tqdm  # comes with tokenizers

        return tqdm(total=total, unit="sentence", desc="Encoding")

    def inputs(self, token_ids: list[list[int]]) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask`, each `(batch, sequence)`."""
        shape = len(token_ids), max(1, *map(len, token_ids))
        input_ids, attention_mask = np.full(shape, self._pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for row, ids in enumerate(token_ids):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _no_output(self, name: str, rows: int) -> np.ndarray:
        """Room for an output of so many rows."""
        labels = self.tasks[name.removeprefix("logits.")].labels if name.startswith("logits.") else None
        size = [len(labels)] if labels else [] if name.startswith("logits.") else [self.config["embedding_dim"]]
        return np.empty((rows, *size), dtype=np.float32)

    def compute(
        self, token_ids: list[list[int]], outputs: list[str], batch_size: int | None = None, bar: Any = None
    ) -> dict[str, np.ndarray]:
        """The named outputs of the sentence graph, in the sentences' order: each `(sentences, ...)`."""
        found = {name: self._no_output(name, len(token_ids)) for name in outputs}
        if not outputs:
            return found
        lengths = [len(ids) for ids in token_ids]
        graph = self._sentences
        for batch in length_sorted_batches(lengths, batch_size, graph.tokens_per_pass, graph.most_padding):
            values = graph(self.inputs([token_ids[index] for index in batch]), outputs)
            for name, value in zip(outputs, values, strict=True):
                found[name][batch] = value
            if bar is not None:
                bar.update(len(batch))
        return found

    def _embed(
        self,
        sentences: Iterable[str],
        batch_size: int | None = None,
        show_progress: bool | None = None,
        normalize: bool = False,
    ) -> np.ndarray:
        """Embeddings as the heads read them, or of length 1: `(sentences, embedding_dim)`, float32."""
        check_batch_size(batch_size)
        windows = sentence_windows(sentences)
        found = [self._no_output("sentence_embedding", 0)]
        with self._progress(count_rows(sentences), show_progress) as bar:
            for window, _ in tokenized_ahead(self.tokenize, windows):
                found.append(self.compute(window, [self.embedding_output], batch_size, bar)[self.embedding_output])
        embeddings = np.concatenate(found)
        return scaled(embeddings) if normalize else embeddings

    def encode(
        self,
        sentences: str | Iterable[str],
        batch_size: int | None = None,
        normalize: bool | None = None,
        convert_to: str = "numpy",
        show_progress: bool | None = None,
    ) -> Any:
        """
        Sentence embeddings in the caller's order; as `MultiTaskModel.encode`, `"tensor"` needing torch.

        Returns float32 of shape `(sentences, embedding_dim)`, or `(embedding_dim,)` for one string.

        Raises:
            TypeError: something is not a string; the message gives its place.
            ValueError: `convert_to` is unknown.
        """
        check_choice("convert_to", convert_to, CONVERSIONS)
        is_single = isinstance(sentences, str)
        normalize = self.config["normalize"] if normalize is None else normalize
        embeddings = self._embed([sentences] if is_single else sentences, batch_size, show_progress, normalize)
        return self._converted(embeddings[0] if is_single else embeddings, convert_to)

    @staticmethod
    def _converted(found: np.ndarray, convert_to: str, keep_dtype: bool = True) -> Any:
        """An array as the caller wants it; a tensor needs torch. Both are float32."""
        if convert_to == "numpy":
            return found
        import torch

        return torch.from_numpy(np.ascontiguousarray(found))

    def predict(
        self,
        sentences: str | tuple[str, str] | Iterable[str] | Iterable[tuple[str, str]],
        head: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
        as_list: bool = False,
        embeddings: bool = False,
        convert_to: str = "numpy",
        tasks: str | Sequence[str] | None = None,
        abstain: dict[str, float] | bool | None = None,
    ) -> Any:
        """
        Every task's answer, and the embedding on request, from one pass.

        Arguments, answers and errors are those of `MultiTaskModel.predict`; tensors are float32.
        """
        check_choice("convert_to", convert_to, ANSWER_CONVERSIONS)
        rows = [sentences] if isinstance(sentences, (str, tuple)) else sentences
        head = one_word(head, tasks, "tasks")
        count, answers = self._answer_rows(rows, head, batch_size, show_progress, embeddings, abstain)
        return hand_out(self.tasks, answers, count, sentences, as_list, convert_to, self._converted)

    def _answer_rows(
        self,
        rows: Iterable[Any],
        head: str | Sequence[str] | None,
        batch_size: int | None,
        show_progress: bool | None,
        keep_embeddings: bool,
        abstain: dict[str, float] | bool | None,
    ) -> tuple[int, dict[str, Any]]:
        """How many rows there were, and the answers, with `embedding` if it is kept."""
        check_batch_size(batch_size)
        asked, count = read_question(self.tasks, rows, head, abstain, keep_embeddings), 0
        farthest = farthest_labelled(self.tasks, asked.names, abstain)
        is_pair, outputs = asked.is_pair, [f"logits.{name}" for name in asked.names]
        beyond = {name: [np.empty(0, np.float32)] for name in asked.names if self.tasks[name].out_of_scope}
        embeddings = [np.empty((0, *([2] if is_pair else []), self.config["embedding_dim"]), dtype=np.float32)]
        logits = {name: [self._no_output(name, 0)] for name in outputs}
        with self._progress(asked.total, show_progress) as bar:
            for sentences, places in tokenized_ahead(self.tokenize, asked.windows):
                index = np.array(places, dtype=np.int64)
                index = index.reshape(-1, 2) if is_pair else index
                needs_embeddings = is_pair or keep_embeddings or beyond
                wanted = [*([self.embedding_output] if needs_embeddings else []), *([] if is_pair else outputs)]
                window = self.compute(sentences, wanted, batch_size, bar)
                count += len(index)
                if keep_embeddings:
                    embeddings.append(window[self.embedding_output][index])
                found = self.compare(window[self.embedding_output], index, outputs) if is_pair else window
                for name in outputs:
                    logits[name].append(found[name] if is_pair else found[name][index])
                for name, chunks in beyond.items():
                    chunks.append(out_of_scope(self.scopes[name], window[self.embedding_output])[index])
                if bar is not None:
                    bar.update(index.size - len(sentences))  # some stood there twice
        answers: dict[str, Any] = {}
        if keep_embeddings:
            found = np.concatenate(embeddings)
            answers["embedding"] = scaled(found) if self.config["normalize"] else found
        for name in asked.names:
            found = np.concatenate(logits[f"logits.{name}"])
            answers[name] = answer(self.tasks[name], found, asked.least_confidence.get(name))
            if name in beyond:
                found = answers[name]["out_of_scope"] = np.concatenate(beyond[name])
                if name in farthest:
                    answers[name]["labels"] = labelled_near(answers[name]["labels"], found.tolist(), farthest[name])
        return count, answers

    def compare(self, embeddings: np.ndarray, index: np.ndarray, outputs: list[str]) -> dict[str, np.ndarray]:
        """The named outputs of the pair graph for `embeddings (sentences, embedding_dim)` and `index (rows, 2)`."""
        found = {name: [self._no_output(name, 0)] for name in outputs}
        if self._pairs is None or not outputs:
            return {name: self._no_output(name, 0) for name in outputs}
        for start in range(0, len(index), PAIRS_PER_BATCH):
            places = index[start : start + PAIRS_PER_BATCH]
            sides = {"embedding1": embeddings[places[:, 0]], "embedding2": embeddings[places[:, 1]]}
            for name, value in zip(outputs, self._pairs(sides, outputs), strict=True):
                found[name].append(value)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def similarity(self, a: Any, b: Any, convert_to: str = "numpy") -> Any:
        """
        Cosine of every sentence (or embedding) of `a` with every one of `b`: float32 of shape `(len(a), len(b))`.

        Raises:
            TypeError: a side holds neither only sentences nor only embeddings.
            ValueError: embeddings have another size, or `convert_to` is unknown.
        """
        check_choice("convert_to", convert_to, CONVERSIONS)
        first, second = (scaled(self._embeddings_of(side)) for side in (a, b))
        return self._converted(first @ second.T, convert_to)

    def _embeddings_of(self, side: Any) -> np.ndarray:
        """Embeddings `(n, embedding_dim)` of one side of `similarity`."""
        size = self.config["embedding_dim"]
        if hasattr(side, "__array__") and np.asarray(side).dtype.kind in "fiub":
            side = np.asarray(side, dtype=np.float32)
        else:
            if not isinstance(side, str):
                check_container(side)
                side = list(chain.from_iterable(window for _, window in windows_of(side)))
            if isinstance(side, str) or not all(_is_embedding(row) for row in side):
                side = self.encode([side] if isinstance(side, str) else side)
            else:
                side = np.array([np.asarray(row, dtype=np.float32) for row in side], dtype=np.float32)
        if side.size and side.shape[-1] != size:
            raise ValueError(
                f"similarity: embeddings of shape {tuple(side.shape)}, but the last size should be the model's "
                f"embedding_dim, {size}."
            )
        return side.reshape(-1, size)


__all__ = ["MultiTaskRuntime"]
