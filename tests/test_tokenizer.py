"""The model's tokenizer: read when the model is opened, private to encode and predict, absent without harm."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from multitask_sentence import MultiTaskModel

SENTENCES = ["the cat sat on the mat .", "a good film", "bad market news today !", "dog"]
LONG = "the cat sat on the mat and a dog ran in the park today but the story was good and very fine"


def swap_words(folder: Path) -> None:
    """Change places of two words in a folder's tokenizer, as another model's would have them."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def saved(tiny_model: MultiTaskModel, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


# ---- read when the model is opened ----


@pytest.mark.parametrize("door", ["AutoModel", "MultiTaskModel", "one head"])
def test_folder_that_is_replaced_later_does_not_change_an_open_model(tiny_model, saved: Path, door: str) -> None:
    options = {"trust_remote_code": True}
    if door == "one head":
        model = AutoModelForSequenceClassification.from_pretrained(saved, task="mood", **options).multitask
    else:
        model = {"AutoModel": AutoModel, "MultiTaskModel": MultiTaskModel}[door].from_pretrained(saved, **options)
    swap_words(saved)
    other = MultiTaskModel.from_pretrained(saved)
    assert np.abs(other.encode(SENTENCES) - tiny_model.encode(SENTENCES)).max() > 1e-3, "premise"
    np.testing.assert_array_equal(model.encode(SENTENCES), tiny_model.encode(SENTENCES))


def test_folder_that_is_gone_does_not_matter(tiny_model: MultiTaskModel, saved: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(saved, trust_remote_code=True)
    shutil.rmtree(saved)
    np.testing.assert_array_equal(model.encode(SENTENCES), tiny_model.encode(SENTENCES))
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=True)
    np.testing.assert_array_equal(again.encode(SENTENCES), tiny_model.encode(SENTENCES))


def test_tokenizer_in_a_subfolder_comes_with_its_weights(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "repository" / "inner")
    model = MultiTaskModel.from_pretrained(tmp_path / "repository", subfolder="inner")
    shutil.rmtree(tmp_path / "repository")
    np.testing.assert_array_equal(model.encode(SENTENCES), tiny_model.encode(SENTENCES))


def test_model_on_the_meta_device_has_its_tokenizer(saved: Path) -> None:
    model = MultiTaskModel.from_pretrained(saved, device_map="meta")
    assert model.device.type == "meta"
    assert model.has_tokenizer


def test_tokenizer_that_cannot_be_read_is_named_when_the_model_is_opened(saved: Path) -> None:
    (saved / "tokenizer.json").write_text('{"version": "1.0", ', encoding="utf-8")
    with pytest.raises(OSError, match=r"saved: the tokenizer cannot be read \(.*\)\. Download it or save it again"):
        MultiTaskModel.from_pretrained(saved)


# ---- without a tokenizer ----


def test_model_without_a_tokenizer_reopens_and_is_saved_again(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tokenizer, tiny_model._tokenizer = tiny_model.tokenizer, None
    tiny_model.save_pretrained(tmp_path / "first")
    first = AutoModel.from_pretrained(tmp_path / "first", trust_remote_code=True)
    assert not first.has_tokenizer
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert first(**inputs).sentence_embedding.shape == (4, 24)
    with pytest.raises(ValueError, match=r"no tokenizer yet, and there is none in .*first\. Set model\.tokenizer ="):
        first.encode(SENTENCES)
    first.save_pretrained(tmp_path / "second")
    files = {path.name for path in (tmp_path / "second").iterdir()}
    assert {"modules.json", "config.json", "model.safetensors"} <= files
    assert "tokenizer.json" not in files
    second = AutoModel.from_pretrained(tmp_path / "second", trust_remote_code=True)
    shutil.rmtree(tmp_path / "second")
    with pytest.raises(ValueError, match="The model has no tokenizer yet, and there is none in"):
        second.encode(SENTENCES)
    second.tokenizer = tokenizer
    second.save_pretrained(tmp_path / "third")
    third = AutoModel.from_pretrained(tmp_path / "third", trust_remote_code=True)
    tiny_model.tokenizer = tokenizer
    np.testing.assert_array_equal(third.encode(SENTENCES), tiny_model.encode(SENTENCES))


def test_nothing_is_saved_by_half_where_the_tokenizer_cannot_be_read(saved: Path, tmp_path: Path, monkeypatch) -> None:
    model = MultiTaskModel.from_pretrained(saved)
    model._tokenizer = None  # as of a model that was made from a configuration

    def from_pretrained(*args: object, **kwargs: object) -> None:
        raise RuntimeError("damaged")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="the tokenizer cannot be read"):
        model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


# ---- a copy of its own ----


def test_truncation_of_the_shared_tokenizer_does_not_reach_encode(tiny_model: MultiTaskModel) -> None:
    expected = tiny_model.encode([LONG, *SENTENCES])
    tokenizer = tiny_model.tokenizer
    tokenizer(LONG, truncation=True, max_length=5, padding="max_length")
    state = tokenizer.backend_tokenizer.to_str()
    np.testing.assert_array_equal(tiny_model.encode([LONG, *SENTENCES]), expected)
    assert tokenizer.backend_tokenizer.to_str() == state, "nor does encode change it"


def test_threads_that_truncate_otherwise_do_not_disturb_each_other(tiny_model: MultiTaskModel) -> None:
    texts = [LONG, *SENTENCES] * 40
    expected = tiny_model.encode(texts)
    tokenizer, stop, failures = tiny_model.tokenizer, threading.Event(), []

    def tokenize() -> None:
        while not stop.is_set():
            try:
                for max_length in (4, 64):
                    if len(tokenizer(LONG, truncation=True, max_length=max_length)["input_ids"]) > max_length:
                        failures.append(max_length)
                tokenizer(LONG)
            except Exception as error:
                failures.append(error)

    def encode() -> None:
        for _ in range(30):
            if not np.array_equal(tiny_model.encode(texts), expected):
                failures.append("encode")

    other, encoders = threading.Thread(target=tokenize), [threading.Thread(target=encode) for _ in range(2)]
    for thread in (other, *encoders):
        thread.start()
    for thread in encoders:
        thread.join()
    stop.set()
    other.join()
    assert failures == []


def test_tokens_added_later_and_another_tokenizer_reach_encode(tiny_model: MultiTaskModel, saved: Path) -> None:
    before = tiny_model.encode(["catdog"])
    tiny_model.tokenizer.add_tokens(["catdog"])
    tiny_model.resize_token_embeddings(len(tiny_model.tokenizer))
    after = tiny_model.encode(["catdog"])
    assert np.abs(after - before).max() > 1e-3
    ids = tiny_model.tokenizer(["catdog"], return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(after, tiny_model(**ids).sentence_embedding, rtol=0, atol=1e-6)
    tiny_model.tokenizer.truncation_side = "left"
    left = tiny_model.encode(LONG)
    tiny_model.tokenizer.truncation_side = "right"
    assert np.abs(left - tiny_model.encode(LONG)).max() > 1e-3
    swap_words(saved)
    expected = tiny_model.encode(["dog"])
    tiny_model.tokenizer = PreTrainedTokenizerFast.from_pretrained(saved)
    np.testing.assert_array_equal(tiny_model.encode(["cat"]), expected)


def test_models_that_share_a_tokenizer_keep_their_own_lengths(tiny_backbone: str) -> None:
    short, long = (MultiTaskModel.from_backbone(tiny_backbone, max_length=length) for length in (6, 20))
    expected = short.encode(LONG), long.encode(LONG)
    short.tokenizer = long.tokenizer
    np.testing.assert_array_equal(short.encode(LONG), expected[0])
    np.testing.assert_array_equal(long.encode(LONG), expected[1])


def test_saved_tokenizer_cuts_where_the_model_does(tiny_model: MultiTaskModel, tiny_backbone: str, tmp_path: Path):
    other = MultiTaskModel.from_backbone(tiny_backbone, max_length=30)
    other.tokenizer = tiny_model.tokenizer
    tiny_model.config.max_length = 12
    for model, expected in ((tiny_model, 12), (other, 30)):
        model.save_pretrained(tmp_path / "saved")
        settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == expected
