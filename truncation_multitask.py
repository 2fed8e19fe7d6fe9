"""Tokens beyond `max_length`: `forward` leaves out those that the tokenizer would have left out.

    tokens_kept_at_start   how a tokenizer cuts: so many tokens stay at the start, the others at the end
    truncate_batch         a batch of tensors, cut in that way

`encode`, `predict` and sentence-transformers let the tokenizer cut. Pipelines of transformers and many scripts do not.
What they hand over is cut here, so that every door gives the same answer.
"""

import torch
from transformers import PreTrainedTokenizerBase


def tokens_kept_at_start(tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> int:
    """
    How many tokens of a text that is too long the tokenizer keeps from its start; what else it keeps ends the text.

    BERT's tokenizer keeps all but one there, and ends with `[SEP]`. A tokenizer that cuts at the left keeps `[CLS]`.
    Without a tokenizer, all come from the start.
    """
    if tokenizer is None:
        return max_length
    is_special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    if tokenizer.truncation_side == "left":
        return is_special.index(0) if 0 in is_special else 0
    return max_length - (is_special[::-1].index(0) if 0 in is_special else 0)


def truncate_batch(
    tensors: dict[str, torch.Tensor], attention_mask: torch.Tensor, max_length: int, kept_at_start: int
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Cut a batch whose sequences are longer than `max_length`; shorter texts in it keep all their tokens.

    Args:
        tensors: each `(batch, sequence)` or `(batch, sequence, size)`.
        attention_mask: `(batch, sequence)`, 0 for padding, which may stand on either side.
        max_length: so many tokens are kept of a text.
        kept_at_start: so many of them from its start, see `tokens_kept_at_start`; the others from its end.

    Returns the tensors and the mask with `max_length` in place of `sequence`, padding at the right.
    """
    is_token = attention_mask.bool()
    place = is_token.cumsum(dim=1) - 1  # (batch, sequence): of each token in its text
    length = is_token.sum(dim=1, keepdim=True)  # (batch, 1)
    is_kept = is_token & ((place < kept_at_start) | (place >= length - (max_length - kept_at_start)))
    is_kept |= is_token & (length <= max_length)
    kept = (
        (~is_kept).to(torch.int8).argsort(dim=1, stable=True)[:, :max_length]
    )  # (batch, max_length): kept ones first
    cut = {}
    for name, tensor in tensors.items():
        index = kept if tensor.dim() == 2 else kept.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
        cut[name] = tensor.expand(kept.shape[0], *tensor.shape[1:]).gather(1, index)
    return cut, is_kept.gather(1, kept).to(attention_mask.dtype)


__all__ = ["tokens_kept_at_start", "truncate_batch"]
