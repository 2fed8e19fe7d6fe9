"""Padding-free backbone passes: a padded batch runs as one row of its real tokens.

    takes_padding_free   whether a backbone can
    install              lets its attention read such rows, beside padded batches
    packed_states        padded batch in, padded states out, no work spent on padding in between

Linear layers, norms and dropout see `(1, tokens, hidden)` without padding. Attention runs over groups of sentences of
equal length, so it needs no mask. It is plugged in through transformers' attention interface; an architecture is
listed here once its results were compared with the padded pass.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "multitask_padding_free"
# Positions count from 0, or (RoBERTa and its relatives) from `pad_token_id + 1`.
MODEL_TYPES = ("bert", "distilbert", "electra")
OFFSET_MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    length_groups: list[tuple[int, int]] | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attention within each sentence of a packed row; a padded batch (no `length_groups`) goes to transformers' own.

    Args:
        module: the attention module, part of the interface.
        query, key, value: `(1, heads, tokens, head_dim)`, sentences one after another, sorted by length.
        attention_mask: of a padded batch.
        scaling: of the scores.
        dropout: probability for attention weights.
        length_groups: `(length, sentences)` for each run of equally long sentences.

    Returns `(1, tokens, heads, head_dim)` and no weights.
    """
    if length_groups is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    heads, head_dim = query.shape[1], query.shape[-1]
    outputs, start = [], 0
    for length, sentences in length_groups:
        stop = start + length * sentences
        group = (
            states[0, :, start:stop].view(heads, sentences, length, head_dim).transpose(0, 1)
            for states in (query, key, value)
        )  # (sentences, heads, length, head_dim) each
        attended = F.scaled_dot_product_attention(*group, dropout_p=dropout, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(stop - start, heads, head_dim))
        start = stop
    return torch.cat(outputs).unsqueeze(0), None


AttentionInterface.register(ATTENTION_NAME, grouped_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def takes_padding_free(backbone: nn.Module) -> bool:
    """Whether the architecture is known to give the same results, and nobody asked for another attention."""
    config = backbone.config
    return (
        config.model_type in (*MODEL_TYPES, *OFFSET_MODEL_TYPES)
        and config._attn_implementation in ("sdpa", ATTENTION_NAME)
        and getattr(config, "position_embedding_type", "absolute") == "absolute"
    )


def install(backbone: nn.Module) -> None:
    """Let the backbone's attention read packed rows; padded batches give what they gave before."""
    backbone.config._attn_implementation = ATTENTION_NAME


def is_installed(backbone: nn.Module) -> bool:
    """Whether packed rows can be read: not after `set_attn_implementation` chose another attention."""
    return backbone.config._attn_implementation == ATTENTION_NAME


def packed_states(
    backbone: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    The backbone's last hidden states of a padded batch, computed without padding.

    Args:
        backbone: one that was `install`ed.
        input_ids: `(batch, sequence)`.
        attention_mask: `(batch, sequence)`, 0 for padding.
        token_type_ids: `(batch, sequence)`.

    Returns `(batch, sequence, hidden)`, zeros where the input was padding.
    """
    batch, sequence = input_ids.shape
    is_token = attention_mask.bool()
    lengths, order = is_token.sum(dim=1).sort(stable=True)
    places = torch.arange(batch * sequence, device=input_ids.device).view(batch, sequence)
    places = places[order][is_token[order]]  # (tokens,): where each packed token stands in the padded batch
    groups = [
        (length, count)
        for length, count in zip(*(t.tolist() for t in lengths.unique_consecutive(return_counts=True)), strict=True)
        if length
    ]

    if backbone.config.model_type in OFFSET_MODEL_TYPES:
        is_counted = (input_ids != backbone.config.pad_token_id).long()  # by the id, as these architectures do
        positions = (is_counted.cumsum(dim=1) * is_counted).view(-1)[places] + backbone.config.pad_token_id
    else:
        positions = places % sequence
    inputs = {"input_ids": input_ids.reshape(-1)[places][None], "position_ids": positions[None]}  # (1, tokens) each
    if token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids.reshape(-1)[places][None]
    states = backbone(**inputs, length_groups=groups).last_hidden_state[0]  # (tokens, hidden)
    padded = states.new_zeros(batch * sequence, states.shape[-1])
    return padded.index_copy(0, places, states).view(batch, sequence, -1)
