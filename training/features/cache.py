"""Pooled vectors kept on disk, so that a frozen backbone reads each distinct sentence once, whatever the run.

    can_cache_features   whether a model's pooled vectors are the same in every epoch: the one place for that decision
    open_features        the cache that belongs to a model's backbone, tokenizer, pooling and maximum length
    FeatureCache         shards on disk: which sentences they hold, their vectors, and writing new ones
    fill_cache           compute what a cache does not hold yet, window by window, on all processes
    cache_sentences      the same for the sentences that a model encodes
    embed_cached         sentence embeddings from cached vectors

A cache is a folder below `datasets`' own cache. Its name is a hash of all that a pooled vector depends on besides the
text. In it stand Arrow files (data/cache/shards.py): 128-bit hashes of sentences and their vectors before the
projection, so that a trainable projection reads them too. What was damaged is found and encoded again. Vectors are
read through a memory map. In memory stand 24 bytes for each sentence of the cache.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import xxhash
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from ...data.cache.shards import open_shard, write_shard
from ...data.text.tokens import tokenizer_state
from ...encoding_multitask import pooled_vectors
from ...modeling_multitask import MultiTaskModel
from ...turns_multitask import evaluating

FORMAT_VERSION = 2  # of the shards and of the way in which sentences are encoded: another number, another folder
SENTENCES_PER_SHARD = 16384  # encoded together and then written; an interrupted run loses no more than these
HASH_BYTES = 16
Windows = Callable[[], Iterable[Sequence[Any]]]  # gives the same items in the same order, as often as asked


def can_cache_features(model: MultiTaskModel) -> bool:
    """
    Whether a sentence has the same pooled vector in every epoch: no parameter of the backbone is trained.

    A backbone without trainable parameters also runs without dropout (see `MultiTaskModel.train`). The Trainer asks
    when training starts and at each evaluation. What lets a parameter of the backbone learn later in the same run
    has to make this `False` from the start, because batches are laid out for vectors or for tokens, not for both.
    """
    return not any(parameter.requires_grad for parameter in model.backbone.parameters())


# ---- what a cache belongs to ----


def add_weights(hashed: xxhash.xxh3_128, weights: dict[str, torch.Tensor]) -> None:
    """Add names, types, shapes and values of weights to a hash."""
    for name, tensor in sorted(weights.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def features_key(model: MultiTaskModel, precision: str = "no") -> str:
    """
    A hash of all that a pooled vector depends on besides the text, as 32 hexadecimal digits.

    That is: the backbone's class, configuration, weights and their dtype; tokenizer; pooling; `max_length`; precision.

    Args:
        model: the model.
        precision: how matrix products are computed, such as `Accelerator.mixed_precision`.
    """
    config = model.config
    settings = {
        name: value
        for name, value in model.backbone.config.to_dict().items()
        if not name.startswith("_") and name not in ("transformers_version", "architectures", "dtype")
    }
    parts = [FORMAT_VERSION, type(model.backbone).__name__, settings, config.pooling, config.max_length, precision]
    hashed = xxhash.xxh3_128(json.dumps(parts, sort_keys=True, default=str).encode())
    hashed.update(tokenizer_state(model.tokenizer))
    add_weights(hashed, model.backbone.state_dict())
    return hashed.hexdigest()


def open_features(
    model: MultiTaskModel, precision: str = "no", opened: "FeatureCache | None" = None
) -> "FeatureCache":
    """The cache that belongs to the model as it is now; `opened` itself where that is the one."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "multitask_features" / features_key(model, precision)
    if opened is not None and opened.folder == folder:
        return opened
    return FeatureCache(folder, model.config.backbone_config.hidden_size)


# ---- the shards ----


def text_hashes(sentences: Iterable[str]) -> np.ndarray:
    """Sentences to `(sentences,)` hashes of 16 bytes, which compare and sort like numbers."""
    return np.frombuffer(b"".join(xxhash.xxh3_128_digest(text.encode()) for text in sentences), f"S{HASH_BYTES}")


class FeatureCache:
    """
    Sentences' pooled vectors on disk. A sentence has a place, its running number over all shards; -1 means unknown.

    Args:
        folder: where the shards are; made when the first one is written.
        hidden_size: length of a vector.
    """

    def __init__(self, folder: Path, hidden_size: int):
        self._begin(folder, hidden_size)
        self.reload()

    def _begin(self, folder: Path, hidden_size: int) -> None:
        """Without a shard."""
        self.folder = folder
        self.hidden_size = hidden_size
        self.features = Features(
            {
                "text_hash": List(Value("uint8"), length=HASH_BYTES),
                "pooled": List(Value("float32"), length=hidden_size),
            }
        )
        self.shards: dict[str, Dataset] = {}  # by file name, memory-mapped, in the order of places
        self._vectors: list[np.ndarray] = []  # views of the shards, (sentences, hidden) each
        self._starts = np.zeros(1, np.int64)
        self._hashes = np.empty(0, f"S{HASH_BYTES}")  # sorted
        self._places = np.empty(0, np.int64)  # of the sorted hashes

    def __getstate__(self) -> dict[str, Any]:
        """What another process maps the same shards by; their vectors would go by value."""
        return {"folder": self.folder, "hidden_size": self.hidden_size, "shards": list(self.shards)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._begin(state["folder"], state["hidden_size"])
        self._add_shards((name, Dataset.from_file(str(self.folder / name))) for name in state["shards"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def reload(self) -> None:
        """Read shards that are there now and were not before; places stay what they were."""
        new = (path for path in sorted(self.folder.glob("*.arrow")) if path.name not in self.shards)
        self._add_shards((path.name, shard) for path in new if (shard := open_shard(path)) is not None)

    def _add_shards(self, opened: Iterable[tuple[str, Dataset]]) -> None:
        hashes, places = [self._hashes], [self._places]
        for name, shard in opened:
            columns = (shard.data.column(column).chunk(0).flatten().to_numpy() for column in self.features)
            shard_hashes, vectors = next(columns).view(f"S{HASH_BYTES}"), next(columns).reshape(-1, self.hidden_size)
            self.shards[name] = shard
            hashes.append(shard_hashes)
            places.append(len(self) + np.arange(len(shard_hashes)))
            self._vectors.append(vectors)
            self._starts = np.append(self._starts, len(self) + len(shard_hashes))
        if len(hashes) > 1:
            # Of a sentence that two processes encoded at the same time, `searchsorted` finds the first.
            joined = np.concatenate(hashes)
            order = joined.argsort(kind="stable")
            self._hashes, self._places = joined[order], np.concatenate(places)[order]

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Places `(sentences,)` of hashed sentences, -1 for those that no shard holds."""
        if not len(self):
            return np.full(len(hashes), -1)
        nearest = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        return np.where(self._hashes[nearest] == hashes, self._places[nearest], -1)

    def missing(self, hashes: np.ndarray) -> np.ndarray:
        """Numbers of the sentences that no shard holds, ascending; of equal sentences the first."""
        distinct, first = np.unique(hashes, return_index=True)
        return np.sort(first[self.find(distinct) < 0])

    def gather(self, places: np.ndarray) -> torch.Tensor:
        """Vectors `(places, hidden)`, float32, copied from the memory map; every place must be known."""
        gathered = np.empty((len(places), self.hidden_size), np.float32)
        shard_of = np.searchsorted(self._starts, places, side="right") - 1
        for which in np.unique(shard_of):
            chosen = shard_of == which
            gathered[chosen] = self._vectors[which][places[chosen] - self._starts[which]]
        return torch.from_numpy(gathered)

    def add(self, hashes: np.ndarray, vectors: np.ndarray) -> None:
        """Write a shard of hashed sentences `(sentences,)` and their vectors `(sentences, hidden)`, float32."""
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(hashes.view(np.uint8)), HASH_BYTES),
            pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), self.hidden_size),
        ]
        write_shard(self.folder, pa.RecordBatch.from_arrays(columns, schema=self.features.arrow_schema))


# ---- filling and reading ----


def _picked(
    windows: Iterable[Sequence[Any]], numbers: np.ndarray, size: int
) -> Iterator[tuple[np.ndarray, list[Any]]]:
    """The items with the given running numbers (ascending), so many at a time, each time with their numbers."""
    items: list[Any] = []
    start = done = 0
    for window in windows:
        stop = start + len(window)
        first, last = np.searchsorted(numbers, (start, stop))
        items += [window[number - start] for number in numbers[first:last]]
        start = stop
        while len(items) >= size:
            yield numbers[done : done + size], items[:size]
            items, done = items[size:], done + size
    if items:
        yield numbers[done:], items


def _write_missing(
    cache: FeatureCache,
    windows: Windows,
    hashes: np.ndarray,
    numbers: np.ndarray,
    encode: Callable[[list[Any], tqdm], np.ndarray],
    bar_options: dict[str, Any],
    items_per_shard: int,
    remedy: str,
) -> None:
    """Compute the vectors of the items with the given running numbers and write them, a shard at a time."""
    if not len(numbers):
        return
    cache.folder.mkdir(parents=True, exist_ok=True)
    needed, free = len(numbers) * (4 * cache.hidden_size + HASH_BYTES), shutil.disk_usage(cache.folder).free
    if needed > free:
        raise OSError(
            f"{cache.folder}: the vectors of {len(numbers):,} {bar_options['unit']}s need {needed / 1e9:.1f} GB, but "
            f"only {free / 1e9:.1f} GB are free. Set HF_DATASETS_CACHE to a folder with more room{remedy}."
        )
    with tqdm(total=len(numbers), **bar_options) as bar:
        for chosen, items in _picked(windows(), numbers, items_per_shard):
            cache.add(hashes[chosen], encode(items, bar))


def fill_cache(
    cache: FeatureCache,
    windows: Windows,
    hash_items: Callable[[Sequence[Any]], np.ndarray],
    encode: Callable[[list[Any], tqdm], np.ndarray],
    *,
    show_progress: bool = True,
    description: str = "Encoding",
    unit: str = "sentence",
    items_per_shard: int = SENTENCES_PER_SHARD,
    remedy: str = "",
) -> np.ndarray:
    """
    Places `(items,)` in a cache, after the vectors that it did not hold were computed.

    Every process has to call this with the same items; each computes its share. What was written stays, so that an
    interrupted run goes on where it stopped.

    Args:
        cache: where the vectors go.
        windows: gives the items (sentences, or what else has a vector) in windows of any size; called up to three
            times.
        hash_items: items to `(items,)` hashes of 16 bytes.
        encode: items to vectors `(items, hidden)`, float32; updates the bar as it goes on.
        show_progress: whether the main process shows a bar where something is computed.
        description: what the bar begins with.
        unit: what it counts.
        items_per_shard: computed together and then written.
        remedy: what else to do where there is no room, the end of a sentence.

    Raises:
        OSError: there is no room for the vectors, or what was written cannot be read.
    """
    state = PartialState()
    options = {"unit": unit, "desc": description, "disable": not (show_progress and state.is_main_process)}
    hashes = np.concatenate([np.empty(0, f"S{HASH_BYTES}"), *map(hash_items, windows())])
    missing = cache.missing(hashes)
    state.wait_for_everyone()  # nobody writes before everybody has looked
    share = missing[state.process_index :: state.num_processes]
    _write_missing(cache, windows, hashes, share, encode, options, items_per_shard, remedy)
    state.wait_for_everyone()
    cache.reload()
    # Machines without a common disk do not see each other's shares.
    _write_missing(cache, windows, hashes, cache.missing(hashes), encode, options, items_per_shard, remedy)
    cache.reload()
    places = cache.find(hashes)
    if (places < 0).any():
        raise OSError(f"{cache.folder}: shards that were just written cannot be read back. Check the disk.")
    return places


def cache_sentences(
    cache: FeatureCache, model: MultiTaskModel, sentences: Windows, show_progress: bool = True
) -> np.ndarray:
    """
    Places `(sentences,)` of sentences in the cache, after those that it did not hold were encoded; see `fill_cache`.

    Args:
        cache: that of the model as it is now.
        model: gives the vectors of unknown sentences, in the precision that is in force.
        sentences: gives the sentences in windows of any size; called up to three times.
        show_progress: whether the main process shows a bar where it encodes.

    Raises:
        OSError: there is no room for the vectors, or what was written cannot be read.
    """
    return fill_cache(
        cache,
        sentences,
        text_hashes,
        partial(pooled_vectors, model),
        show_progress=show_progress,
        items_per_shard=SENTENCES_PER_SHARD,
        remedy=", or train without the cache: feature_cache: false",
    )


@torch.no_grad()
def embed_cached(model: MultiTaskModel, cache: FeatureCache, places: np.ndarray) -> torch.Tensor:
    """Not normalised embeddings from cached vectors: `(places, embedding_dim)`, float32, on the CPU."""
    embeddings = torch.empty(len(places), model.config.embedding_dim)
    with evaluating(model):
        for start in range(0, len(places), SENTENCES_PER_SHARD):
            pooled = cache.gather(places[start : start + SENTENCES_PER_SHARD]).to(model.device, model.dtype)
            found = model(pooled=pooled, head="embedding", normalize=False, return_dict=True)
            embeddings[start : start + len(pooled)] = found.sentence_embedding.float().cpu()
    return embeddings
