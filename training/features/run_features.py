"""The feature cache of one run: whether there is one, and what a trainer does with it."""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import datasets
import numpy as np
from accelerate import Accelerator
from transformers import TrainingArguments

from ...modeling_multitask import MultiTaskModel
from .batches import describe_features
from .cache import FeatureCache, cache_sentences, can_cache_features, open_features

logger = logging.getLogger(__name__)


class RunFeatures:
    """
    The pooled vectors of a run whose backbone stays as it is.

    Args:
        args: of the run.
        accelerator: gives the precision of the vectors.
        trains_backbone: whether any part of the backbone ever trains, now or in a later stage.
        is_streamed: whether texts of training rows are not kept, and so no vectors of them either.
    """

    def __init__(
        self, args: TrainingArguments, accelerator: Accelerator, trains_backbone: bool, is_streamed: bool = False
    ):
        self.args, self.accelerator, self.trains_backbone = args, accelerator, trains_backbone
        self.is_streamed = is_streamed
        self._opened: FeatureCache | None = None  # its shards are read once

    def can_cache(self, model: MultiTaskModel) -> bool:
        """Whether every sentence has the same vector in the whole run."""
        return not self.trains_backbone and can_cache_features(model)

    @property
    def precision(self) -> str:
        """How matrix products are computed, which vectors depend on."""
        return f"{self.accelerator.mixed_precision}{' tf32' if self.args.tf32 else ''}"

    @property
    def _needs_text(self) -> str | None:
        """Why batches of vectors alone would not do."""
        if self.is_streamed:
            return "training rows are streamed"
        return "tokens are counted" if self.args.include_num_input_tokens_seen != "no" else None

    def without_workers(self) -> dict[str, Any]:
        """The options of a DataLoader of cached vectors: none, and a word where others were asked for."""
        if workers := self.args.dataloader_num_workers:
            logger.info(
                f"dataloader_num_workers is {workers}, but batches of cached vectors need no loader processes: "
                "there is nothing to tokenize"
            )
        return {}

    def open(self, model: MultiTaskModel) -> FeatureCache | None:
        """The cache that belongs to the model as it is now; nothing where it is off or vectors change."""
        if self._needs_text or not (self.args.feature_cache and self.can_cache(model)):
            return None
        self._opened = open_features(model, self.precision, self._opened)
        return self._opened

    def places(
        self, cache: FeatureCache, model: MultiTaskModel, sentences: Callable[[], Iterable[Sequence[str]]]
    ) -> np.ndarray:
        """Where sentences stand in a cache, after those that it did not hold were encoded; see `cache_sentences`."""
        with self.accelerator.autocast():
            return cache_sentences(cache, model, sentences, show_progress=not self.args.disable_tqdm)

    def describe(self, model: MultiTaskModel, rows: Sequence[datasets.Dataset]) -> str | None:
        """What the cache holds of some rows, as one line; nothing where the backbone is trained."""
        if not self.can_cache(model):
            return None
        if self._needs_text and self.args.feature_cache:
            return f"off, because {self._needs_text}"
        return "off" if (cache := self.open(model)) is None else describe_features(cache, rows)
