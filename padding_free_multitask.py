"""Padding-free backbone passes: sentences run one after another as one row of real tokens.

    cannot_pack           why a backbone takes padded batches only
    cannot_pack_on_gpu    why it does so on a GPU
    install               lets its attention read packed rows, beside padded batches
    pack                  token ids to one row
    row_states, pool_row  the backbone's states of a row, and one vector per sentence from them
    packed_pass           padded batch in, padded states and pooled vectors out, no work spent on padding in between

Linear layers, norms and dropout see `(1, tokens, hidden)` without padding. In a row, sentences of equal length stand
together: attention runs over such groups and needs no padding mask, and pooling is a reduction of a view. On a GPU one
kernel of PyTorch takes all lengths at once. Attention is plugged in through transformers' attention interface; an
architecture is listed here once its results were compared with the padded pass.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from zlib import crc32

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .backbone_multitask import longest_input

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # of an older torch
    varlen_attn = None

ATTENTION_PREFIX = "multitask_padding_free_"
# Of this copy of the file: another model's remote code, maybe of another version, registers its own.
ATTENTION_NAME = f"{ATTENTION_PREFIX}{crc32(__name__.encode()):08x}"
VARIABLE_LENGTH_DEVICE = "cuda"  # where PyTorch's variable-length attention has a kernel
# Positions count from 0, or (RoBERTa and its relatives) from `pad_token_id + 1`.
MODEL_TYPES = ("bert", "distilbert", "electra", "modernbert")
OFFSET_MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
# Kinds of layers whose masks of `(1, 1, tokens, tokens)` these would build from nothing; they take none by name.
LAYER_TYPES = {"modernbert": ("full_attention", "sliding_attention")}


@dataclass
class PackedRow:
    """
    Sentences one after another without padding, those of equal length together.

    Attributes:
        input_ids: `(tokens,)`.
        position_ids: `(tokens,)`, beginning anew with each sentence.
        length_groups: `(length, sentences)` for each run of equally long sentences; a length may be 0.
        token_type_ids: `(tokens,)`, or `None`.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    length_groups: list[tuple[int, int]]
    token_type_ids: torch.Tensor | None = None


def attention_weights(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    is_seen: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """Who attends to whom, after dropout: `(sentences, heads, length, head_dim)` give `(..., length, length)`."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query * scaling) @ key.transpose(-1, -2)  # (sentences, heads, length, length)
    if is_seen is not None:
        scores = scores.masked_fill(~is_seen, torch.finfo(scores.dtype).min)  # not -inf: a token may see nothing
    weights = scores.softmax(dim=-1)
    # The module's own dropout, where it has one: a trainer may have put a faster one in its place.
    own = next((child for child in module.children() if isinstance(child, nn.Dropout)), None)
    return own(weights) if own is not None and own.p == dropout else F.dropout(weights, dropout)


def attention_with_dropout(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    is_seen: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
) -> torch.Tensor:
    """
    `scaled_dot_product_attention` with dropout of the weights, in a quarter of its steps.

    PyTorch's own has no fused kernel with dropout on a CPU, and what it does instead is dear where groups of sentences
    are many and small: those of a training batch. Arguments and result are `(sentences, heads, length, head_dim)`.
    """
    return attention_weights(module, query, key, is_seen, dropout, scaling) @ value


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    length_groups: list[tuple[int, int]] | None = None,
    cumulative_lengths: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    Attention within each sentence of a packed row; a padded batch (no `length_groups`) goes to transformers' own.

    Args:
        module: the attention module, part of the interface.
        query, key, value: `(1, heads, tokens, head_dim)`, the sentences of a `PackedRow`.
        attention_mask: of a padded batch.
        scaling: of the scores.
        dropout: probability for attention weights.
        length_groups: `(length, sentences)` for each run of equally long sentences, no length being 0.
        cumulative_lengths: where sentences begin, `(sentences + 1,)`, for PyTorch's variable-length attention; `None`
            attends group by group.
        sliding_window: two tokens see each other where their distance is below it; `None` for any distance.

    Returns `(1, tokens, heads, head_dim)` and no weights, except of a padded batch with `output_attentions`:
    `(batch, heads, sequence, sequence)`.
    """
    if length_groups is None and kwargs.get("output_attentions"):
        weights = attention_weights(module, query, key, attention_mask, dropout, scaling)
        return (weights @ value).transpose(1, 2).contiguous(), weights
    if length_groups is None:
        kwargs.update(dropout=dropout, scaling=scaling, sliding_window=sliding_window)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if cumulative_lengths is not None:
        longest = max(length for length, _ in length_groups)
        reach = -1 if sliding_window is None else sliding_window - 1
        attended = varlen_attn(
            *(states.squeeze(0).transpose(0, 1) for states in (query, key, value)),  # (tokens, heads, head_dim) each
            *(cumulative_lengths, cumulative_lengths),
            *(longest, longest),
            scale=scaling,
            window_size=(reach, reach),
        )
        return attended.unsqueeze(0), None
    heads, head_dim = query.shape[1], query.shape[-1]
    # One split, not a slice for each group: the gradient of a slice is as large as the whole row.
    sizes = [length * sentences for length, sentences in length_groups]
    parts = (states[0].split(sizes, dim=1) for states in (query, key, value))
    outputs = []
    for (length, sentences), *group in zip(length_groups, *parts, strict=True):
        group = (states.view(heads, sentences, length, head_dim).transpose(0, 1) for states in group)
        is_seen = None
        if sliding_window is not None and length > sliding_window:
            places = torch.arange(length, device=query.device)
            is_seen = (places[:, None] - places).abs() < sliding_window  # (length, length)
        if dropout:
            attended = attention_with_dropout(module, *group, is_seen, dropout, scaling)
        else:
            attended = F.scaled_dot_product_attention(*group, attn_mask=is_seen, scale=scaling)
        outputs.append(attended.transpose(1, 2).reshape(length * sentences, heads, head_dim))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


AttentionInterface.register(ATTENTION_NAME, grouped_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def cannot_pack(backbone: nn.Module) -> str | None:
    """Why the architecture, or the attention that somebody chose, takes padded batches only; `None` where it packs."""
    config = backbone.config
    if config.model_type not in (*MODEL_TYPES, *OFFSET_MODEL_TYPES):
        return f"{config.model_type} is no architecture whose packed pass was compared with the padded one"
    attention = config._attn_implementation  # also that of another copy of this file, where a config comes from there
    if attention != "sdpa" and not str(attention).startswith(ATTENTION_PREFIX):
        return f"the attention is {attention!r}, not 'sdpa'"
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        return f"the positions are {config.position_embedding_type!r}, not 'absolute'"
    return None


def cannot_pack_on_gpu(backbone: nn.Module) -> str | None:
    """Why a backbone on a GPU takes padded batches only: what PyTorch's variable-length attention does not do."""
    if backbone.device.type != VARIABLE_LENGTH_DEVICE:
        return f"variable-length attention runs on cuda, and the model is on {backbone.device.type}"
    if varlen_attn is None or "window_size" not in inspect.signature(varlen_attn).parameters:
        return f"torch {torch.__version__} has no variable-length attention, or an older one"
    if torch.version.hip or not torch.backends.cuda.is_flash_attention_available():
        return "variable-length attention needs a torch that was built for CUDA with flash attention"
    if torch.cuda.get_device_capability(backbone.device) < (8, 0):
        return "variable-length attention needs a GPU of compute capability 8.0 or higher"
    if backbone.dtype not in (torch.float16, torch.bfloat16):
        return f"variable-length attention needs float16 or bfloat16, and the model is {backbone.dtype}"
    head_dim = backbone.config.hidden_size / backbone.config.num_attention_heads
    if head_dim % 8 or head_dim > 256:
        return f"variable-length attention needs head sizes that are multiples of 8 up to 256, not {head_dim:g}"
    return None


def install(backbone: nn.Module) -> None:
    """Let the backbone's attention read packed rows; padded batches give what they gave before."""
    backbone.config._attn_implementation = ATTENTION_NAME


def is_installed(backbone: nn.Module) -> bool:
    """Whether packed rows can be read: not after `set_attn_implementation` chose another attention."""
    return backbone.config._attn_implementation == ATTENTION_NAME


def pack(backbone: nn.Module, token_ids: list[list[int]]) -> PackedRow:
    """Token ids of sentences, sorted by length (either way), as one row on the backbone's device."""
    check_token_ids(backbone, max(chain.from_iterable(token_ids), default=0))
    groups = [(length, len(list(run))) for length, run in groupby(map(len, token_ids))]
    input_ids = torch.tensor(list(chain.from_iterable(token_ids)), dtype=torch.long, device=backbone.device)
    positions, start = [], 0
    for length, sentences in groups:
        stop = start + length * sentences
        positions.append(position_ids(backbone, input_ids[start:stop].view(sentences, length)).reshape(-1))
        start = stop
    return PackedRow(input_ids, torch.cat(positions), groups)


def position_ids(backbone: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Positions as the architecture counts them, of the shape of `input_ids (sentences, length)`."""
    if backbone.config.model_type in OFFSET_MODEL_TYPES:
        pad_id = backbone.config.pad_token_id
        is_counted = (input_ids != pad_id).long()  # by the id, whatever an attention mask says
        return is_counted.cumsum(dim=1) * is_counted + pad_id
    return torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)


def cumulate(length_groups: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """Where each sentence of a packed row begins, and where the last one ends: `(sentences + 1,)`, int32."""
    lengths = chain.from_iterable([length] * sentences for length, sentences in length_groups)
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)


def row_states(backbone: nn.Module, row: PackedRow) -> torch.Tensor:
    """The backbone's last hidden states of a row: `(tokens, hidden)`."""
    if not len(row.input_ids):
        return torch.zeros(0, backbone.config.hidden_size, dtype=backbone.dtype, device=backbone.device)
    inputs = {"input_ids": row.input_ids[None], "position_ids": row.position_ids[None]}  # (1, tokens) each
    if row.token_type_ids is not None:
        inputs["token_type_ids"] = row.token_type_ids[None]
    if backbone.config.model_type in LAYER_TYPES:
        inputs["attention_mask"] = dict.fromkeys(LAYER_TYPES[backbone.config.model_type])
    groups = [(length, sentences) for length, sentences in row.length_groups if length]
    cumulative = cumulate(groups, backbone.device) if backbone.device.type == VARIABLE_LENGTH_DEVICE else None
    longest = max((length for length, _ in groups), default=0)
    with tokens_explained(backbone, row.input_ids, longest):
        return backbone(**inputs, length_groups=groups, cumulative_lengths=cumulative).last_hidden_state[0]


def check_token_ids(backbone: nn.Module, highest: int) -> None:
    """A ValueError where the highest id has no embedding; a GPU says nothing of use, and computes nothing after it."""
    rows = backbone.get_input_embeddings().weight.shape[0]
    if highest >= rows:
        raise ValueError(
            f"The text has a token with the id {highest}, but the model has embeddings for {rows} tokens only. Where "
            "tokens were added to the tokenizer, give them embeddings and train: "
            "model.resize_token_embeddings(len(model.tokenizer))."
        )


@contextlib.contextmanager
def tokens_explained(backbone: nn.Module, input_ids: torch.Tensor | None, longest: int) -> Iterator[None]:
    """Turn the error of a token without embedding, or of a text beyond all positions, into one that says so."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        limit = longest_input(backbone.config)
        if limit and longest > limit:
            raise ValueError(
                f"A text has {longest} tokens, but the backbone has positions for {limit}. Let longer texts be cut: "
                f"model.config.max_length = {limit}, in sentence-transformers model.max_seq_length."
            ) from error
        if isinstance(error, IndexError) and input_ids is not None:
            check_token_ids(backbone, int(input_ids.max()))
        raise


def pool_row(states: torch.Tensor, length_groups: list[tuple[int, int]], pooling: str) -> torch.Tensor:
    """
    One vector per sentence, in the row's order; zeros for a sentence without tokens.

    Args:
        states: `(tokens, hidden)`.
        length_groups: as in `PackedRow`.
        pooling: `mean`, `cls` or `max`.

    Returns `(sentences, hidden)`.
    """
    # One split, not a slice for each group: the gradient of a slice is as large as the whole row.
    groups = states.split([length * sentences for length, sentences in length_groups])
    pooled = []
    for (length, sentences), group in zip(length_groups, groups, strict=True):
        group = group.view(sentences, length, states.shape[-1])
        if not length:
            pooled.append(states.new_zeros(sentences, states.shape[-1]))
        elif pooling == "cls":
            pooled.append(group[:, 0])
        else:
            pooled.append(group.mean(dim=1) if pooling == "mean" else group.amax(dim=1))
    return torch.cat(pooled)


def packed_pass(
    backbone: nn.Module,
    pooling: str,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A padded batch, computed without padding: token states, and one vector per sentence.

    Args:
        backbone: one that was `install`ed.
        pooling: `mean`, `cls` or `max`.
        input_ids: `(batch, sequence)`.
        attention_mask: `(batch, sequence)`, 0 for padding.
        token_type_ids: `(batch, sequence)`.

    Returns `(batch, sequence, hidden)`, zeros where the input was padding, and `(batch, hidden)`.
    """
    batch, sequence = input_ids.shape
    is_token = attention_mask.bool()
    lengths, order = is_token.sum(dim=1).sort(stable=True)
    runs = (found.tolist() for found in lengths.unique_consecutive(return_counts=True))
    places = torch.arange(batch * sequence, device=input_ids.device).view(batch, sequence)
    places = places[order][is_token[order]]  # (tokens,): where each packed token stands in the padded batch
    row = PackedRow(
        input_ids=input_ids.reshape(-1)[places],
        position_ids=position_ids(backbone, input_ids).reshape(-1)[places],
        length_groups=list(zip(*runs, strict=True)),
        token_type_ids=None if token_type_ids is None else token_type_ids.reshape(-1)[places],
    )
    states = row_states(backbone, row)  # (tokens, hidden)
    pooled = pool_row(states, row.length_groups, pooling)  # (batch, hidden), shortest sentence first
    padded = states.new_zeros(batch * sequence, states.shape[-1])
    return padded.index_copy(0, places, states).view(batch, sequence, -1), pooled[order.argsort()]
