"""One pass of the backbone, padded or packed, and the vectors that come of it.

divide         the parts by length in which a CPU computes a padded batch
BackbonePass   the model's part: passes for `forward` and for `encode`, and whether they run without padding
"""

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from .heads_multitask import POOLING_FUNCTIONS
from .padding_free_multitask import (
    cannot_pack,
    cannot_pack_on_gpu,
    check_token_ids,
    install,
    is_installed,
    pack,
    packed_pass,
    pool_row,
    row_states,
    tokens_explained,
)
from .prepacked_multitask import can_prepack, computed_rows, prepacked
from .turns_multitask import evaluating

logger = logging.get_logger(__name__)

PARTS = 4  # of a padded batch on a CPU, by length
LEAST_ROWS = 16  # of a batch that is divided
LEAST_SAVED = 0.2  # of its places


def is_graph() -> bool:
    """Whether the pass is traced, exported or compiled."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling()  # exporting is compiling, too


def divide(attention_mask: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
    """
    The parts of a padded batch that a CPU computes faster one after another than all at once.

    Args:
        attention_mask: `(batch, sequence)`, 0 for padding.

    Returns for each part the numbers of its rows, shortest first, and the length that holds them; nothing where a
    division saves little.
    """
    batch, sequence = attention_mask.shape
    if batch < LEAST_ROWS:
        return []
    ends = (attention_mask.bool() * torch.arange(1, sequence + 1)).amax(dim=1).clamp(min=1)
    parts = [(rows, int(ends[rows].max())) for rows in ends.argsort(stable=True).chunk(PARTS)]
    computed = sum(len(rows) * length for rows, length in parts)
    return parts if computed <= (1 - LEAST_SAVED) * batch * sequence else []


class BackbonePass:
    """Passes of a model with `config`, `backbone` and `projection`; mixed into [`MultiTaskModel`]."""

    def _adopt_backbone(self) -> None:
        """Leave out BERT's own pooler, which nothing reads, and let padding-free batches in where the backbone can."""
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None
        self._padding_free: bool | None = None  # what was asked for
        if cannot_pack(self.backbone) is None:
            install(self.backbone)

    @property
    def padding_free(self) -> bool:
        """
        Whether `encode` and `predict` run without padding, as the model is now; the log says why where they do not.

        Set it to `False` for padded passes, to `True` for passes without padding on a GPU as well, and to `None`, as
        it is in the beginning, for what was measured to be faster: without padding on a CPU. On a GPU a pass with
        gradients is always padded.

        Raises:
            ValueError: `True` was set where this model cannot run without padding; the message says why.
        """
        return self._why_padded() is None

    @padding_free.setter
    def padding_free(self, wanted: bool | None) -> None:
        if wanted is not None and not isinstance(wanted, bool):
            raise TypeError(f"padding_free is {wanted!r}, but should be True, False or None.")
        if wanted:
            reason = cannot_pack(self.backbone)
            if reason is None and self.device.type != "cpu":
                reason = cannot_pack_on_gpu(self.backbone)
            if reason:
                raise ValueError(
                    f"model.padding_free = True: this model cannot run without padding, because {reason}. "
                    "None, the default, leaves the choice to the model."
                )
            install(self.backbone)
        self._padding_free = wanted

    def _why_padded(self) -> str | None:
        """Why passes are padded; `None` where they are not."""
        if self._padding_free is False:
            return "model.padding_free is False"
        if not is_installed(self.backbone):
            return cannot_pack(self.backbone) or "another attention was chosen with set_attn_implementation"
        if self.device.type == "cpu":
            return None
        if not self._padding_free:
            return f"packed passes were measured on CPUs only (model.padding_free = True runs them on {self.device})"
        return cannot_pack_on_gpu(self.backbone)

    @property
    def _input_device(self) -> torch.device:
        """Where inputs are made. The weights of an offloaded model are nowhere until its hooks bring them in."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    @property
    def _takes_token_types(self) -> bool:
        return bool(getattr(self.config.backbone_config, "type_vocab_size", 0))

    def _recorded(
        self, output_attentions: bool | None = None, output_hidden_states: bool | list[int] | None = None
    ) -> dict[str, Any]:
        """What the backbone is asked to hand out beside its last states; arguments win over the configuration."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        return {name: value for name, value in asked.items() if value}

    def _backbone_pass(
        self, attention_mask: torch.Tensor, inputs: dict[str, torch.Tensor], recorded: dict[str, Any] | None = None
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        """The backbone's output with what is to be `recorded` of it, and pooled vectors `(batch, hidden)`."""
        recorded = recorded or {}
        can_pack = not recorded and set(inputs) <= {"input_ids", "token_type_ids"} and attention_mask.dim() == 2
        if can_pack and self._packs():
            states, pooled = packed_pass(self.backbone, self.config.pooling, attention_mask=attention_mask, **inputs)
            return BaseModelOutput(last_hidden_state=states), pooled
        if can_pack and self._divides() and (parts := divide(attention_mask)):
            return self._pass_in_parts(parts, attention_mask, inputs)
        if is_graph():  # graphs do not catch errors
            output = self.backbone(attention_mask=attention_mask, **inputs, **recorded)
        else:
            with tokens_explained(self.backbone, inputs.get("input_ids"), attention_mask.shape[-1]):
                output = self.backbone(attention_mask=attention_mask, **inputs, **recorded)
        states = output.last_hidden_state
        # An offloaded backbone leaves its states on the device that it was computed on.
        return output, POOLING_FUNCTIONS[self.config.pooling](states, attention_mask.to(states.device))

    def _divides(self) -> bool:
        """Whether a padded batch may go through the backbone in parts, which takes less padding than the whole."""
        return self.device.type == "cpu" and self._padding_free is not False and not is_graph()

    def _pass_in_parts(
        self,
        parts: list[tuple[torch.Tensor, int]],
        attention_mask: torch.Tensor,
        inputs: dict[str, torch.Tensor],
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        """As `_backbone_pass`, from one pass for each part that `divide` makes of the batch."""
        states, pooled = [], []
        for rows, length in parts:
            seen, given = attention_mask[rows, :length], {name: ids[rows, :length] for name, ids in inputs.items()}
            with tokens_explained(self.backbone, given.get("input_ids"), length):
                found = self.backbone(attention_mask=seen, **given).last_hidden_state
            pooled.append(POOLING_FUNCTIONS[self.config.pooling](found, seen))
            states.append(F.pad(found, (0, 0, 0, attention_mask.shape[1] - length)))
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return BaseModelOutput(last_hidden_state=torch.cat(states)[order]), torch.cat(pooled)[order]

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        """The embedding `(batch, embedding_dim)` before normalisation, from pooled vectors `(batch, hidden)`."""
        return self.projection(pooled) if self.projection is not None else pooled

    def _packs(self) -> bool:
        """
        Whether this pass runs without padding; which way passes go, and why, is logged once.

        A graph that is traced, exported or compiled is a padded one: a packed pass depends on the lengths in a batch.
        """
        if is_graph():
            return False
        reason = self._why_padded()
        if reason is None and self.device.type != "cpu" and (torch.is_grad_enabled() or self.backbone.training):
            reason = (
                "variable-length attention has no dropout, and gradients are computed or the model is in training mode"
            )
        if reason is None:
            logger.info_once("Passes run without padding (model.padding_free = False pads them).")
            return True
        logger.info_once(f"Passes are padded: {reason}.")
        return False

    def _prepacks(self) -> bool:
        """Whether weights are packed: bfloat16 is up to 1.2 times as fast so, float32 no faster (docs/speed.md)."""
        return self._compiled_call_impl is None and self.dtype is torch.bfloat16 and can_prepack()

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Eval mode, and packed weights where they pay; a compiled model brings code of its own."""
        with evaluating(self) as modules, prepacked(modules if self._prepacks() else ()):
            yield

    def _embed_batch(self, token_ids: list[list[int]]) -> torch.Tensor:
        """
        Embeddings `(batch, embedding_dim)`, not normalised, of sentences sorted by length.

        A model that was compiled (`model.compile()`) or has hooks is called as a whole, with a padded batch.
        """
        if self._compiled_call_impl is None and not self._forward_hooks and not self._forward_pre_hooks:
            return self._project(self._pooled_batch(token_ids))
        inputs = self._padded_batch(token_ids)
        return self(**inputs, head="embedding", normalize=False, return_dict=True).sentence_embedding

    def _pooled_batch(self, token_ids: list[list[int]]) -> torch.Tensor:
        """Pooled vectors `(batch, hidden)` of sentences sorted by length, from one pass of the backbone."""
        if self._packs():
            tokens = sum(map(len, token_ids))
            fills = self.device.type == "cpu" and self._prepacks()
            # One-token sentences fill the row up, here once instead of in every layer.
            filler = [[0]] * (computed_rows(tokens) - tokens if fills else 0)
            row = pack(self.backbone, [*token_ids, *filler])
            pooled = pool_row(row_states(self.backbone, row), row.length_groups, self.config.pooling)
            return pooled[: len(token_ids)]
        inputs = self._padded_batch(token_ids)
        return self._backbone_pass(inputs.pop("attention_mask"), inputs)[1]

    def _padded_batch(self, token_ids: list[list[int]]) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask`, each `(batch, sequence)`."""
        check_token_ids(self.backbone, max(chain.from_iterable(token_ids), default=0))
        longest = max(map(len, token_ids))
        pad_id = self.tokenizer.pad_token_id or 0
        input_ids = [ids + [pad_id] * (longest - len(ids)) for ids in token_ids]
        attention_mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in token_ids]
        return {
            "input_ids": torch.tensor(input_ids, dtype=torch.long, device=self._input_device),
            "attention_mask": torch.tensor(attention_mask, dtype=torch.long, device=self._input_device),
        }


__all__ = ["BackbonePass"]
