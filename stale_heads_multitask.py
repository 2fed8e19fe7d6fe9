"""Whether a model's heads belong to its encoder, or were left behind when something else trained it.

    fingerprint   what tells weights from others: a hash of samples, in each precision
    HeadsOrigin   the models' part: what the heads were trained on, written to config.json and asked for at opening

SetFit, sentence-transformers and others move backbone and projection and save the heads as they were. Such heads give
wrong labels in silence. config.json names the encoder that the heads belong to, and apart from it that of heads which
belong to another one: those that stayed as they were while the encoder changed. Heads that were frozen on purpose
follow the encoder.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SAMPLES = 64  # of each tensor, evenly spaced: training moves nearly all weights
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
HASH_LENGTH = 16


def fingerprint(tensors: dict[str, torch.Tensor]) -> tuple[str, ...] | None:
    """
    A hash of samples for each of `PRECISIONS`; `None` where weights are quantised, sharded or not there.

    A model that is saved or opened in half precision is known by the hash of that precision.

    Args:
        tensors: weights of any shapes by name; whole numbers are left out.
    """
    samples = []
    for _, tensor in sorted(tensors.items()):
        if tensor.dtype in (torch.int64, torch.bool):
            continue
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
        if not is_plain or not tensor.numel() or tensor.dtype not in (*PRECISIONS, torch.float64):
            return None
        flat = tensor.detach().reshape(-1)
        samples.append(flat[:: max(flat.numel() // SAMPLES, 1)][:SAMPLES].float().cpu())
    values = torch.cat(samples) if samples else torch.empty(0, dtype=torch.float32, device="cpu")
    return tuple(
        hashlib.sha256(values.to(precision).view(torch.uint8).numpy().tobytes()).hexdigest()[:HASH_LENGTH]
        for precision in PRECISIONS
    )


def _is_same(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> bool:
    """Whether fingerprints are of the same weights, in any precision; also where one is unknown."""
    return first is None or second is None or any(a == b for a, b in zip(first, second, strict=False))


@dataclass(frozen=True)
class Origin:
    """Fingerprints of a model as it was opened, started or last saved."""

    encoder: tuple[str, ...] | None
    heads: dict[str, tuple[str, ...] | None]  # by task
    belongs_to: dict[str, tuple[str, ...] | None]  # by task, the encoder that the head was trained on

    @property
    def stale(self) -> dict[str, tuple[str, ...] | None]:
        """By task whose head belongs to another encoder, that encoder."""
        return {task: belongs for task, belongs in self.belongs_to.items() if not _is_same(belongs, self.encoder)}


class HeadsOrigin:
    """What the heads were trained on; expects `config`, and `base_model` with `heads` and `_origin`."""

    def adopt_heads(self) -> None:
        """Say that the heads belong to the encoder as it is, also where it was trained and they were not."""
        self.base_model._origin = None

    def resize_token_embeddings(self, *args, **kwargs) -> torch.nn.Module:
        """As of any transformers model; texts of known tokens have the same embeddings, so that heads still fit."""
        with self._same_embedding():
            return super().resize_token_embeddings(*args, **kwargs)

    def _find_origin(self, state_dict: dict[str, torch.Tensor] | None = None) -> Origin:
        """The model as it is, or as `state_dict` has it where weights are gathered elsewhere."""
        prefix = "" if self.base_model is self else f"{self.base_model_prefix}."
        weights = self.state_dict() if state_dict is None else state_dict
        weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        encoder = {name: weight for name, weight in weights.items() if name.startswith(("backbone.", "projection."))}
        encoder = fingerprint(encoder)
        heads = {
            task: fingerprint({name: weight for name, weight in weights.items() if name.startswith(f"heads.{task}.")})
            for task in self.base_model.heads
        }
        return Origin(encoder, heads, belongs_to=dict.fromkeys(heads, encoder))

    def _note_origin(self, name_or_path: str | os.PathLike | None = None) -> None:
        """Remember the model as it was opened or started; warn where heads belong to another encoder."""
        origin = self._find_origin()
        if self.config.encoder_fingerprint:  # of no model that was saved before there were any
            stored = dict.fromkeys(origin.heads, self.config.encoder_fingerprint) | (self.config.stale_heads or {})
            stored = {task: tuple(stored[task].split("-")) for task in origin.heads}
            origin.belongs_to.update(replace(origin, belongs_to=stored).stale)
        self.base_model._origin = origin
        if origin.stale:
            logger.warning(
                f"{name_or_path}: the heads ({', '.join(origin.stale)}) belong to another backbone. It was trained "
                "after them by something that leaves heads as they are, such as sentence-transformers, SetFit, or the "
                "view of another head. Embeddings are right, but what these heads answer is not to be trusted. Train "
                f"them again, with a recipe that has continue_from: {name_or_path}, or remove them: "
                "model.remove_task(...)."
            )

    def _settle_origin(self, state_dict: dict[str, torch.Tensor] | None = None) -> Origin:
        """
        Find out which encoder each head belongs to by now, and put it into the configuration.

        To the present one, unless the head stayed as it was while the encoder changed. A head that is frozen does so
        on purpose.
        """
        before, now = self.base_model._origin, self._find_origin(state_dict)
        if before is not None:
            place = PRECISIONS.index(self.dtype) if self.dtype in PRECISIONS else 0
            for task, belongs in replace(before, encoder=now.encoder).stale.items():
                was, found = before.heads[task], now.heads.get(task)
                if was is None or found is None or was[place] != found[place]:
                    continue
                can_train = any(weight.requires_grad for weight in self.base_model.heads[task].parameters())
                if can_train or task in before.stale:
                    now.belongs_to[task] = belongs
        self.base_model._origin = now
        if now.encoder is not None:  # else quantised, say: what is known stays
            kept = [belongs for task, belongs in now.belongs_to.items() if task not in now.stale]
            common = next(iter([*kept, *now.stale.values()]), None)
            stale = {task: "-".join(found) for task, found in now.stale.items() if not _is_same(found, common)}
            self.config.encoder_fingerprint = "-".join(common) if common else None
            self.config.stale_heads = stale or None
        return now

    @contextlib.contextmanager
    def _same_embedding(self) -> Iterator[None]:
        """Inside, the encoder may be written in other weights that compute the same."""
        before = self._settle_origin()
        yield
        now = self._find_origin()
        now.belongs_to.update(before.stale)
        self.base_model._origin = now


__all__ = ["HeadsOrigin", "Origin"]
