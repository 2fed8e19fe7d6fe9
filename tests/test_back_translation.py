"""Back-translation: what the two models say, what the cache keeps of it, and which models are refused."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianMTModel,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from helpers.hub_server import File, Repository
from multitask_sentence.data.augmentation import back_translation
from multitask_sentence.data.augmentation.back_translation import BackTranslation, open_back_translation
from multitask_sentence.data.augmentation.rows import complete_augmentation
from multitask_sentence.data.cache import shards

SENTENCES = [
    *("the cat sat on the mat", "a dog ran", "good film today and bad news", "the bank", "it was a very fine story"),
    *("the bird sang in the park", "a cat and a dog", "bad price", "the market is good today", "very fine"),
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def open_models(models: list[Any], **changes: Any) -> BackTranslation:
    """As a recipe's block with these models would be opened, with a batch size that cuts `SENTENCES` unevenly."""
    block = {"method": "back_translation", "share": 1, "models": [str(model) for model in models]}
    return open_back_translation("here", complete_augmentation("here", {**block, "batch_size": 3, **changes}))


def count_generated(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """Sentences of every call of `generate`; after so many calls the next one is interrupted."""
    calls: list[int] = []
    plain = MarianMTModel.generate

    def generate(self: MarianMTModel, **kwargs: Any) -> Any:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(len(kwargs["input_ids"]))
        return plain(self, **kwargs)

    monkeypatch.setattr(MarianMTModel, "generate", generate)
    return calls


def changed_copy(folder: str, target: Path, **changes: Any) -> str:
    """A copy of a model's folder with other values in its generation_config.json."""
    shutil.copytree(folder, target)
    path = target / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(target)


# ---- what comes back ----


@pytest.mark.parametrize("num_beams", [1, 3])
def test_texts_are_those_of_the_two_models_one_after_the_other(tiny_translators, num_beams):
    opened = [
        (AutoTokenizer.from_pretrained(folder), AutoModelForSeq2SeqLM.from_pretrained(folder))
        for folder in tiny_translators
    ]
    expected = []
    for sentence in SENTENCES:
        text = sentence
        for tokenizer, model in opened:
            tokens = tokenizer(text, return_tensors="pt")
            sequence = model.generate(**tokens, num_beams=num_beams, do_sample=False, max_length=20)[0]
            text = tokenizer.decode(sequence, skip_special_tokens=True).strip()
            if not text:
                break
        expected.append(text)
    found = open_models(tiny_translators, num_beams=num_beams, max_length=20)([*SENTENCES, *SENTENCES[:2]])
    assert found == [*expected, *expected[:2]]
    assert len(set(expected)) > 4, "the models tell sentences apart, or this test would say little"


def test_sentence_without_a_usable_translation_gives_no_text_and_is_not_tried_again(tiny_translators, monkeypatch):
    long = " ".join(["cat"] * 30)
    augment = open_models(tiny_translators, max_length=20)
    assert augment([long, "the bank"])[0] == ""
    calls = count_generated(monkeypatch)
    assert augment([long]) == [""] and not calls


def test_translation_that_does_not_end_gives_no_text(tiny_translators, tmp_path):
    # It is made to put an end token where the length runs out, and looks finished.
    endless = changed_copy(tiny_translators[0], tmp_path / "endless", exponential_decay_length_penalty=None)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(endless), AutoTokenizer.from_pretrained(endless)
    sequence = model.generate(**tokenizer("the bank", return_tensors="pt"), max_length=12)[0].tolist()
    assert len(sequence) == 12 and sequence.index(0) == 11
    assert open_models([endless, tiny_translators[1]], max_length=12)(["the bank"]) == [""]
    assert open_models([tiny_translators[0], endless], max_length=12)(["the bank"]) == [""]


def test_models_are_let_go_afterwards(tiny_translators, monkeypatch):
    loaded: list[Any] = []
    plain = back_translation._load_model

    def load(*args: Any) -> Any:
        model = plain(*args)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(back_translation, "_load_model", load)
    augment = open_models(tiny_translators)
    augment(SENTENCES)
    gc.collect()
    assert [model() for model in loaded] == [None, None], f"{augment.folder} is still at hand, the models are not"


# ---- the cache ----


def test_second_run_translates_nothing_and_loads_no_model(tiny_translators, monkeypatch):
    first = open_models(tiny_translators)(SENTENCES)
    calls = count_generated(monkeypatch)
    monkeypatch.setattr(back_translation, "_load_model", lambda *_: pytest.fail("a model was loaded"))
    assert open_models(tiny_translators)(SENTENCES[::-1]) == first[::-1]
    assert not calls


def test_only_new_sentences_are_translated(tiny_translators, monkeypatch):
    open_models(tiny_translators)(SENTENCES[:6])
    calls = count_generated(monkeypatch)
    open_models(tiny_translators)(SENTENCES)
    there = -(-4 // 3)
    assert sum(calls[:there]) == 4


def test_interrupted_run_goes_on_where_it_stopped(tiny_translators, monkeypatch, empty_cache):
    monkeypatch.setattr(back_translation, "SENTENCES_PER_SHARD", 4)
    whole = open_models(tiny_translators, batch_size=4)(SENTENCES)
    shutil.rmtree(empty_cache)
    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        count_generated(interrupted, stop_after=3)  # two shards need four calls
        open_models(tiny_translators, batch_size=4)(SENTENCES)
    assert [path.suffix for path in empty_cache.rglob("*") if path.is_file()] == [".arrow"]
    calls = count_generated(monkeypatch)
    assert open_models(tiny_translators, batch_size=4)(SENTENCES) == whole
    assert sum(calls[::2]) == len(SENTENCES) - 4


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_file_is_computed_again_with_a_warning(tiny_translators, monkeypatch, empty_cache, damage):
    monkeypatch.setattr(back_translation, "SENTENCES_PER_SHARD", 5)
    first = open_models(tiny_translators)(SENTENCES)
    path = sorted(empty_cache.rglob("*.arrow"))[0]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(b"the ")] ^= 1
    path.write_bytes({"cut": content[:-100], "empty": b""}.get(damage, content))
    warnings: list[str] = []
    monkeypatch.setattr(shards.logger, "warning", warnings.append)
    calls = count_generated(monkeypatch)
    assert open_models(tiny_translators)(SENTENCES) == first
    assert [str(path) in text and "is damaged" in text for text in warnings] == [True]
    assert calls and path.is_file()


def test_cache_belongs_to_the_models_and_to_how_they_translate(tiny_translators, tmp_path):
    there, back = tiny_translators
    plain = open_models([there, back]).folder
    assert open_models([there, back], batch_size=7).folder == plain
    moved = changed_copy(there, tmp_path / "moved")
    shutil.copy(Path(there) / "generation_config.json", moved)
    (Path(moved) / "README.md").write_text("what it is")
    assert open_models([moved, back]).folder == plain, "where the folder lies does not matter"
    others = [
        open_models([back, there]),
        open_models([there, back], num_beams=2),
        open_models([there, back], max_length=20),
        open_models([changed_copy(there, tmp_path / "other", length_penalty=0.5), back]),
    ]
    weights = Path(moved) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    others.append(open_models([moved, back]))
    assert len({plain, *(other.folder for other in others)}) == 1 + len(others)


def test_models_on_the_hub_are_read_at_one_commit_and_another_commit_has_another_cache(
    tiny_translators, nearby, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, folder in zip(("there", "back"), tiny_translators, strict=True):
        files = {path.name: File(path.read_bytes(), is_large=False) for path in Path(folder).iterdir()}
        nearby.repositories[f"team/{name}"] = Repository()
        nearby.repositories[f"team/{name}"].add("main", "Add the model", files)
    there = nearby.repositories["team/there"]
    first = open_models(["team/there", "team/back"])
    assert first.there.revision == there.branches["main"][0].oid
    there.add(
        "main", "Say what it is", {**there.branches["main"][0].files, "README.md": File(b"It translates.", False)}
    )
    second = open_models(["team/there", "team/back"])
    assert second.there.revision == there.branches["main"][1].oid and second.folder != first.folder
    assert first(SENTENCES[:3]) == open_models(tiny_translators)(SENTENCES[:3])


# ---- models of several languages ----


def make_nllb(folder: Path) -> str:
    """A random M2M100 with NLLB's tokenizer over single letters and two languages."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    tokenizer = NllbTokenizer(vocab=vocabulary, merges=[], extra_special_tokens=["eng_Latn", "fra_Latn"])
    tokenizer.save_pretrained(folder)
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = M2M100Config(vocab_size=len(tokenizer), max_position_embeddings=40, init_std=1.0, **sizes, **heads)
    M2M100ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def test_language_tokens_stand_before_the_sentence_and_begin_the_translation(tmp_path, monkeypatch):
    folder = make_nllb(tmp_path / "nllb")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    english, french = tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])
    seen = []
    plain = M2M100ForConditionalGeneration.generate

    def generate(self: Any, **kwargs: Any) -> Any:
        sequences = plain(self, **kwargs)
        seen.append((kwargs["input_ids"][0, 0].item(), sequences[0, 1].item()))
        # As if it had ended there, because random weights do not: the text is that of the one letter.
        sequences[:, 2] = tokenizer.convert_tokens_to_ids("b")
        sequences[:, 3:] = tokenizer.eos_token_id
        return sequences

    monkeypatch.setattr(M2M100ForConditionalGeneration, "generate", generate)
    augment = open_models([folder, folder], languages=["eng_Latn", "fra_Latn"], max_length=20)
    assert augment(["a cat"]) == ["b"]
    assert seen == [(english, french), (french, english)]


def test_t5_and_marian_are_told_the_language_before_the_sentence(tiny_translators, tiny_tokenizer, tmp_path):
    sizes = {"vocab_size": 99, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    instructions = {
        "translation_en_to_de": {"prefix": "translate English to German: "},
        "translation_de_to_en": {"prefix": "translate German to English: "},
        "summarization": {"prefix": "summarize: "},
    }
    config = T5Config(**sizes, task_specific_params=instructions, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tiny_tokenizer.save_pretrained(tmp_path / "t5")
    shutil.copytree(tiny_translators[0], tmp_path / "romance")
    vocabulary = json.loads((tmp_path / "romance" / "vocab.json").read_text())
    (tmp_path / "romance" / "vocab.json").write_text(json.dumps({**vocabulary, ">>fra<<": 57, ">>de<<": 58}))

    augment = open_models([tmp_path / "t5"] * 2, languages=["en", "de"])
    assert augment.there.prefix == "translate English to German: "
    assert augment.back.prefix == "translate German to English: "
    augment = open_models([tmp_path / "romance", tiny_translators[1]], languages=["en", "de"])
    assert augment.there.tokenizer.tokenize(augment.there.prefix + "a cat")[0] == ">>de<<"
    assert augment.back.prefix == "", "a model of one pair is told nothing"


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (
            None,
            r"here: .*nllb translates between several languages\. .*languages: \[en, de\]\. It knows eng_Latn, fra",
        ),
        (["eng_Latn", "fra_Latm"], r"here\.languages: .*nllb does not know 'fra_Latm'\. Did you mean 'fra_Latn'\?"),
        (["english", "fra_Latn"], "does not know 'english'"),
    ],
)
def test_model_of_several_languages_wants_to_know_two_of_them(tmp_path, languages, message):
    folder = make_nllb(tmp_path / "nllb")
    with pytest.raises(ValueError, match=message):
        open_models([folder, folder], languages=languages, max_length=20)


# ---- what is refused ----


def test_models_that_do_not_translate_are_refused(tiny_translators, tiny_backbone, tmp_path):
    with pytest.raises(ValueError, match=r"here\.models: .* is a 'bert' model, which does not translate"):
        open_models([tiny_translators[0], tiny_backbone])
    with pytest.raises(ValueError, match=r"here\.models: there is no folder \./nowhere\. Give"):
        open_models(["./nowhere", tiny_translators[1]])
    with pytest.raises(ValueError, match=r"here\.models: some/model cannot be opened: "):
        open_models(["some/model", tiny_translators[1]])  # the tests have no network
    with pytest.raises(ValueError, match=r"here\.max_length is 131, but .*there has positions for 130 tokens"):
        open_models(tiny_translators, max_length=131)
    (tmp_path / "bare").mkdir()
    shutil.copy(Path(tiny_translators[0]) / "config.json", tmp_path / "bare")
    with pytest.raises(ValueError, match=r"here\.models: the tokenizer of .*bare cannot be opened"):
        open_models([tmp_path / "bare", tiny_translators[1]])


def test_missing_sentencepiece_names_the_extra_to_install(tiny_translators, monkeypatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("MarianTokenizer requires the SentencePiece library but it was not found")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    message = r"here\.models: .*there needs the package sentencepiece.*pip install -e '\.\[back_translation\]'"
    with pytest.raises(ImportError, match=message):
        open_models(tiny_translators)
