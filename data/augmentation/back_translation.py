"""Back-translation: a sentence through one translation model into another language, and through a second one back.

    open_back_translation   models, languages and settings, checked from configurations and tokenizers alone
    BackTranslation         a list of sentences to as many texts, from the cache as far as it holds them

The cache is a folder below `datasets`' own. Its name is a hash of all that a text depends on besides the sentence: the
two models, the languages and how text is generated. In it stand Arrow files (cache/shards.py) of sentences and texts,
written as translation goes on, so that an interrupted run goes on where it stopped and a later one loads no model.
Decoding is greedy or by beams, never sampled: the cache holds one text for a sentence.
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import torch
import xxhash
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...adapter_multitask import cached_commit
from ...checks_multitask import suggest
from ..cache.shards import file_hash, open_shard, write_shard

FORMAT_VERSION = 1  # of the shards and of the way in which text is made: another number, another folder
CACHE_FOLDER = "multitask_translations"
SENTENCES_PER_SHARD = 512  # translated together and then written; an interrupted run loses no more than these
DEFAULTS = {"languages": None, "batch_size": 32, "num_beams": 1, "max_length": 128}
NO_TEXT = ""  # stands in the cache for a sentence without a usable translation, so that it is not tried again


@dataclass
class Direction:
    """
    One of the two models, opened as far as that takes no weights.

    Attributes:
        name: Hub id or folder.
        revision: the commit of a Hub model; `None` for a folder.
        identity: name and commit, or a hash of the folder's files.
        prefix: what stands before every sentence, for models that are told the language in words.
        first_token_id: what every translation begins with, for models that are told the language by a token.
    """

    name: str
    revision: str | None
    identity: str
    tokenizer: PreTrainedTokenizerBase
    prefix: str = ""
    first_token_id: int | None = None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _open_config(where: str, name: str) -> PreTrainedConfig:
    """The configuration of a translation model; anything else is an error."""
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ValueError(f"{where}.models: there is no folder {name}. Give an existing folder or a Hub id.")
    try:
        config = AutoConfig.from_pretrained(str(folder) if folder.is_dir() else name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}.models: {name} cannot be opened: {_reason(error)}") from error
    if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING or not config.is_encoder_decoder:
        raise ValueError(
            f"{where}.models: {name} is a {config.model_type!r} model, which does not translate text to text. Name "
            "two translation models, such as Helsinki-NLP/opus-mt-en-de and Helsinki-NLP/opus-mt-de-en."
        )
    return config


def _open_tokenizer(where: str, name: str, revision: str | None) -> PreTrainedTokenizerBase:
    options = {} if revision is None else {"revision": revision}
    try:
        with warnings.catch_warnings():
            # MarianTokenizer asks for a normaliser of punctuation which it then never calls.
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            return AutoTokenizer.from_pretrained(name, **options)
    except ImportError as error:
        raise ImportError(
            f"{where}.models: the tokenizer of {name} needs the package sentencepiece, which is not installed: "
            "pip install -e '.[back_translation]'"
        ) from error
    except Exception as error:  # each class of tokenizers raises its own for files that are missing or wrong
        raise ValueError(f"{where}.models: the tokenizer of {name} cannot be opened: {_reason(error)}") from error


def _set_languages(
    where: str, direction: Direction, config: PreTrainedConfig, languages: tuple[str, str] | None
) -> None:
    """Tell a model of several languages which to translate from and to; one of a single pair needs no telling."""
    tokenizer = direction.tokenizer
    # T5 is told in words that its configuration lists, Marian by a token before the sentence, M2M100, NLLB and mBART
    # by tokens beside the sentence and at the start of the translation.
    instructions = {
        key.removeprefix("translation_"): task["prefix"]
        for key, task in (getattr(config, "task_specific_params", None) or {}).items()
        if key.startswith("translation_") and "prefix" in task
    }
    targets = [code.strip("<>") for code in getattr(tokenizer, "supported_language_codes", [])]
    token_ids: dict[str, int] = {}
    if hasattr(tokenizer, "src_lang"):
        token_ids = getattr(tokenizer, "lang_code_to_id", None) or {
            token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.extra_special_tokens
        }
    known = list(instructions or targets or token_ids)
    if not known:
        return
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    if languages is None:
        raise ValueError(
            f"{where}: {direction.name} translates between several languages. Say between which, that of the data "
            f"first, such as languages: [en, de]. It knows {shown}."
        )
    source, target = languages
    wanted = [f"{source}_to_{target}"] if instructions else [target] if targets else [source, target]
    for language in wanted:
        if language not in known:
            raise ValueError(
                f"{where}.languages: {direction.name} does not know {language!r}.{suggest(language, known)} It knows "
                f"{shown}."
            )
    if instructions:
        direction.prefix = instructions[wanted[0]]
    elif targets:
        direction.prefix = f">>{target}<< "
    else:
        tokenizer.src_lang = source
        direction.first_token_id = token_ids[target]


def _open_direction(where: str, name: str, languages: tuple[str, str] | None, max_length: int) -> Direction:
    config = _open_config(where, name)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ValueError(
            f"{where}.max_length is {max_length}, but {name} has positions for {positions} tokens. Lower max_length."
        )
    folder = Path(name).expanduser()
    if folder.is_dir():
        name, revision = str(folder), None
        files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".md")
        identity = xxhash.xxh3_128("".join(f"{path.name} {file_hash(path)}\n" for path in files).encode()).hexdigest()
    else:
        revision = cached_commit(name, {})
        identity = f"{name}@{revision}"
    direction = Direction(name, revision, identity, _open_tokenizer(where, name, revision))
    _set_languages(where, direction, config, languages)
    return direction


def open_back_translation(where: str, settings: dict[str, Any]) -> "BackTranslation":
    """
    Open what the checked settings of an augmentation name, without any weights.

    Args:
        where: what errors begin with, such as `tasks.sentiment.augmentation`.
        settings: `models`, `languages`, `batch_size`, `num_beams`, `max_length`.

    Raises:
        ValueError: a model cannot be opened, does not translate, or does not know the languages.
        ImportError: a tokenizer needs sentencepiece.
    """
    languages = tuple(settings["languages"]) if settings["languages"] else None
    there = _open_direction(where, settings["models"][0], languages, settings["max_length"])
    back = _open_direction(where, settings["models"][1], languages and languages[::-1], settings["max_length"])
    decides = [FORMAT_VERSION, there.identity, back.identity, languages, settings["num_beams"], settings["max_length"]]
    key = xxhash.xxh3_128(json.dumps(decides).encode()).hexdigest()
    return BackTranslation(there, back, settings, Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / key)


def _load_model(direction: Direction, settings: dict[str, Any], device: torch.device) -> PreTrainedModel:
    options = {} if direction.revision is None else {"revision": direction.revision}
    model = AutoModelForSeq2SeqLM.from_pretrained(direction.name, dtype=torch.float32, **options)
    # Beside what the model brings along, such as words that it must not say.
    model.generation_config.update(
        do_sample=False,
        num_beams=settings["num_beams"],
        num_return_sequences=1,
        max_length=settings["max_length"],
        max_new_tokens=None,
    )
    return model.to(device).eval()


@torch.no_grad()
def translate(
    model: PreTrainedModel, direction: Direction, sentences: Sequence[str], settings: dict[str, Any], bar: tqdm
) -> list[str]:
    """Each sentence's translation; `NO_TEXT` for one that is longer than `max_length`, or does not end within it."""
    translations = [NO_TEXT] * len(sentences)
    inputs = [direction.prefix + sentence for sentence in sentences]
    lengths = [len(ids) for ids in direction.tokenizer(inputs, verbose=False)["input_ids"]]
    fitting = [
        place
        for place, sentence in enumerate(sentences)
        if sentence != NO_TEXT and lengths[place] <= settings["max_length"]
    ]
    bar.update(len(sentences) - len(fitting))
    fitting.sort(key=lambda place: -lengths[place])  # little padding, and what needs most memory comes first
    first_token = {} if direction.first_token_id is None else {"forced_bos_token_id": direction.first_token_id}
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=model.device)
    for start in range(0, len(fitting), settings["batch_size"]):
        batch = fitting[start : start + settings["batch_size"]]
        tokens = direction.tokenizer([inputs[place] for place in batch], padding=True, return_tensors="pt")
        sequences = model.generate(**tokens.to(model.device), **first_token)  # (batch, at most max_length)
        # Some decoders start with the end token, and many are made to put it last where the length runs out.
        is_finished = torch.isin(sequences[:, 1 : settings["max_length"] - 1], ends).any(dim=1).tolist()
        texts = direction.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        for place, text, finished in zip(batch, texts, is_finished, strict=True):
            translations[place] = text.strip() if finished else NO_TEXT
        bar.update(len(batch))
    return translations


@dataclass
class BackTranslation:
    """Sentences to texts of the same meaning in other words. Every process has to call it with the same sentences."""

    there: Direction
    back: Direction
    settings: dict[str, Any]
    folder: Path

    def __call__(self, sentences: Sequence[str]) -> list[str]:
        """
        One text for each sentence, from the cache where it is known; `""` where there is no usable one.

        Raises:
            OSError: what was written cannot be read back.
        """
        state = PartialState()
        known = self.read(sentences)
        missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in known]
        state.wait_for_everyone()  # nobody writes before everybody has looked
        self._fill(missing[state.process_index :: state.num_processes])
        state.wait_for_everyone()
        known |= self.read(missing)
        # Machines without a common disk do not see each other's shares.
        self._fill([sentence for sentence in missing if sentence not in known])
        known |= self.read([sentence for sentence in missing if sentence not in known])
        if any(sentence not in known for sentence in missing):
            raise OSError(f"{self.folder}: translations that were just written cannot be read back. Check the disk.")
        return [known[sentence] for sentence in sentences]

    def read(self, sentences: Iterable[str]) -> dict[str, str]:
        """The texts of those sentences that the cache holds."""
        wanted, found = set(sentences), {}
        for path in sorted(self.folder.glob("*.arrow")) if wanted else []:
            shard = open_shard(path)
            if shard is not None:
                pairs = zip(shard["sentence"][:], shard["text"][:], strict=True)
                found |= {sentence: text for sentence, text in pairs if sentence in wanted}
        return found

    def _fill(self, sentences: list[str]) -> None:
        """Translate there and back and write, a shard at a time. The models are in memory only here."""
        if not sentences:
            return
        state = PartialState()
        models: dict[str, PreTrainedModel] = {}  # one model may serve both ways
        for direction in (self.there, self.back):
            if direction.identity not in models:
                models[direction.identity] = _load_model(direction, self.settings, state.device)
        description = f"Translating through {self.there.name} and {self.back.name}"
        with tqdm(total=2 * len(sentences), desc=description, disable=not state.is_main_process) as bar:
            for start in range(0, len(sentences), SENTENCES_PER_SHARD):
                window = texts = sentences[start : start + SENTENCES_PER_SHARD]
                for direction in (self.there, self.back):
                    texts = translate(models[direction.identity], direction, texts, self.settings, bar)
                columns = {"sentence": pa.array(window, pa.string()), "text": pa.array(texts, pa.string())}
                write_shard(self.folder, pa.RecordBatch.from_pydict(columns))
        del models
        if state.device.type == "cuda":
            torch.cuda.empty_cache()


__all__ = ["DEFAULTS", "BackTranslation", "open_back_translation"]
