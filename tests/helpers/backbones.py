"""Tiny configurations of every backbone that the tests know: hidden 32, vocabulary 99, 40 positions."""

from collections.abc import Callable
from typing import Any

from transformers import (
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 99, "intermediate_size": 37}
COMMON: dict[str, Any] = {"hidden_size": 32, "max_position_embeddings": 40, "initializer_range": 0.2}
NO_IDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
DISTILBERT = {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 37, "vocab_size": 99}
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
MODERNBERT = {"local_attention": 4, "initializer_cutoff_factor": 3.0, **NO_IDS}  # both kinds of layers

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "bert": lambda: BertConfig(**SIZES, **COMMON),
    "distilbert": lambda: DistilBertConfig(**DISTILBERT, max_position_embeddings=40, initializer_range=0.2),
    "roberta": lambda: RobertaConfig(**SIZES, **COMMON),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES, **COMMON),
    "mpnet": lambda: MPNetConfig(**SIZES, **COMMON),
    "electra": lambda: ElectraConfig(embedding_size=16, **SIZES, **COMMON),
    "deberta-v2": lambda: DebertaV2Config(**SIZES, **COMMON, **DEBERTA),
    "modernbert": lambda: ModernBertConfig(**{**SIZES, "num_hidden_layers": 2}, **COMMON, **MODERNBERT),
}
