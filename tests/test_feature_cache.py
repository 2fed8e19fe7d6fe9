"""The feature cache: the same losses without backbone passes, never a wrong vector, and nothing held in memory."""

import json
import logging
import os
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from helpers import feature_cache_run
from helpers import trainer as helpers
from multitask_sentence.data.cache import shards
from multitask_sentence.data.collation import MultiTaskCollator
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.data.sampling.sampler import FILLER_ROW, MixtureDataset
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.features import cache as feature_cache
from multitask_sentence.training.features.batches import FeatureDataset, sentence_windows
from multitask_sentence.training.features.cache import (
    cache_sentences,
    can_cache_features,
    embed_cached,
    features_key,
    open_features,
    text_hashes,
)
from multitask_sentence.training.report.results import format_settings

SINGLE = list(helpers.MEAN_LOSS_TASKS)
PROJECTION = {"out_features": 24, "bias": True, "activation": "tanh"}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch) -> Path:
    """Where the caches of one test go."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "datasets" / "multitask_features"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"), dropout=0.3)


def frozen_model(backbone: Path, tasks=tuple(helpers.TASKS), **kwargs) -> MultiTaskModel:
    model = helpers.make_model(backbone, tasks, **kwargs)
    model.backbone.requires_grad_(False)
    for head in model.heads.values():
        head.layers[-2].p = 0.2  # dropout of heads draws the same numbers with and without the cache
    return model


def all_sets(**counts: int) -> list[LabelledSet]:
    """Sets for all five tasks, some rows without some labels."""
    sets = [helpers.make_set(SINGLE, {"sentiment": 0.7, "tags": 0.3, "rating": 0.4}, **counts)]
    return sets + [helpers.make_set([task], seed=seed, **counts) for seed, task in ((100, "pairs"), (200, "search"))]


def count_calls(model: MultiTaskModel) -> list[int]:
    """A list that grows by the sentences of each backbone pass, of a padded batch or of sentences."""
    calls: list[int] = []
    passes: list[None] = []

    def count(name: str) -> None:
        plain = getattr(model, name)

        def counted(batch, *others):
            before = len(passes)
            found = plain(batch, *others)
            assert len(passes) == before + 1
            calls.append(len(batch))
            return found

        setattr(model, name, counted)

    model.backbone.register_forward_hook(lambda *_: passes.append(None))
    count("_backbone_pass")
    count("_pooled_batch")
    return calls


def train(model: MultiTaskModel, sets: list[LabelledSet], folder: Path, **kwargs):
    """A run of two epochs with an evaluation after each."""
    arguments = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "eval_strategy": "epoch", **kwargs}
    torch.manual_seed(5)
    trainer = helpers.make_trainer(model, sets, folder, **arguments)
    trainer.train()
    return trainer


def numbers(history: list[dict]) -> list[dict[str, float]]:
    """What was logged, without what depends on the clock, in the log's order."""
    timed = ("runtime", "per_second", "flos")
    return [{key: entry[key] for key in entry if not key.endswith(timed)} for entry in history]


def sentences_of(sets: list[LabelledSet], *splits: str) -> set[str]:
    return {text for entry in sets for split in splits for row in entry.splits[split]["sentences"] for text in row}


# The same training


@pytest.mark.parametrize(("projection", "accumulation"), [(None, 1), (PROJECTION, 2)])
def test_losses_scores_and_weights_equal_those_without_the_cache(projection, accumulation, backbone, tmp_path):
    sets = all_sets(train=24, validation=9)
    runs = [
        train(
            frozen_model(backbone, projection=projection),
            sets,
            tmp_path,
            gradient_accumulation_steps=accumulation,
            feature_cache=is_cached,
        )
        for is_cached in (False, True)
    ]
    plain, cached = (numbers(run.state.log_history) for run in runs)
    assert sum("loss" in entry for entry in plain) >= 6 and sum("eval_score" in entry for entry in plain) == 2
    assert [entry.keys() for entry in cached] == [entry.keys() for entry in plain]
    for found, expected in zip(cached, plain, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)
    for (name, found), expected in zip(
        runs[1].model.state_dict().items(), runs[0].model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4, msg=lambda message, n=name: f"{n}: {message}")


def test_a_batch_of_vectors_is_the_collated_batch_with_the_backbone_pass_done(backbone):
    model = frozen_model(backbone)
    sets = all_sets(train=12)
    sets[2].splits["train"] = datasets.concatenate_datasets([sets[2].splits["train"]] * 2)  # sentences stand twice
    rows_of = [entry.splits["train"] for entry in sets]
    cache = open_features(model)
    places = cache_sentences(cache, model, lambda: sentence_windows(rows_of))
    cached = FeatureDataset(rows_of, model.config.tasks, cache, places)
    plain = MixtureDataset(rows_of)
    collate = MultiTaskCollator(model.tokenizer, model.config.tasks, model.config.max_length)
    assert len(cached) == len(plain)
    for rows in ([3, 0, 25, 13, 30, 42, 5, 27], [0], [14, 13], [FILLER_ROW], [47, 12, FILLER_ROW]):
        expected, found = collate([plain[row] for row in rows]), cached.__getitems__(rows)
        with torch.no_grad():
            _, vectors = model._backbone_pass(expected["attention_mask"], {"input_ids": expected["input_ids"]})
        for task in model.config.tasks:
            assert len(found["labels"][task]) == len(expected["labels"][task])
            if len(expected["labels"][task]):
                torch.testing.assert_close(found["labels"][task], expected["labels"][task], rtol=0, atol=0)
                task_rows = expected["task_rows"][task]
                assert found["task_rows"][task].shape == task_rows.shape
                torch.testing.assert_close(found["pooled"][found["task_rows"][task]], vectors[task_rows])
        in_use = torch.cat([task_rows.flatten() for task_rows in expected["task_rows"].values()])
        assert len(found["pooled"]) == len(in_use.unique()), "a sentence of a batch stands once"


def test_forward_from_pooled_vectors_gives_the_same_output_without_token_states(tiny_model):
    tokens = tiny_model.tokenizer(["the cat sat", "a good film ."], padding=True, return_tensors="pt")
    task_rows = {"mood": torch.tensor([1]), "similarity": torch.tensor([[0, 1]])}
    with torch.no_grad():
        expected = tiny_model(**tokens, task_rows=task_rows)
        _, pooled = tiny_model._backbone_pass(tokens["attention_mask"], {"input_ids": tokens["input_ids"]})
        found = tiny_model(pooled=pooled, task_rows=task_rows)
    assert found.last_hidden_state is None and list(found) == ["sentence_embedding", "logits"]
    torch.testing.assert_close(found.sentence_embedding, expected.sentence_embedding, rtol=0, atol=0)
    assert set(found.logits) == set(task_rows)
    for task in task_rows:
        torch.testing.assert_close(found.logits[task], expected.logits[task], rtol=0, atol=0)
    # accelerate takes outputs apart and puts them together again where it trains in a lower precision.
    again = type(found)(dict(found.items()))
    assert again.last_hidden_state is None and set(again.logits) == set(task_rows)


def test_forward_refuses_vectors_beside_tokens(tiny_model):
    with pytest.raises(ValueError, match=r"given pooled vectors and input_ids\. Give one or the other"):
        tiny_model(pooled=torch.zeros(1, 32), input_ids=torch.ones(1, 3, dtype=torch.long))


def test_bfloat16_training_runs_on_cached_vectors(backbone, tmp_path):
    sets = all_sets(train=16, validation=9)
    plain, cached = (
        train(frozen_model(backbone), sets, tmp_path, num_train_epochs=1, bf16=True, feature_cache=is_cached)
        for is_cached in (False, True)
    )
    for found, expected in zip(numbers(cached.state.log_history), numbers(plain.state.log_history), strict=True):
        # bfloat16 has 8 bits; what a batch is padded to decides the last ones.
        assert {key: found[key] for key in found if "loss" in key} == pytest.approx(
            {key: expected[key] for key in expected if "loss" in key}, rel=0.05, abs=0.05
        )


def test_tokens_are_counted_where_the_backbone_is_frozen(backbone, tmp_path):
    sets = all_sets(train=8, validation=4)
    trainer = train(frozen_model(backbone), sets, tmp_path, include_num_input_tokens_seen="non_padding")
    assert trainer.state.num_input_tokens_seen > 0
    assert trainer.features.describe(trainer.model, []) == "off, because tokens are counted"


def test_run_says_that_cached_vectors_need_no_loader_processes(backbone, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer = helpers.make_trainer(frozen_model(backbone), all_sets(train=8), tmp_path, dataloader_num_workers=2)
    assert trainer.get_train_dataloader().num_workers == 0
    assert "dataloader_num_workers is 2, but batches of cached vectors need no loader processes" in caplog.text


def test_train_sets_the_mode_that_fits_what_is_frozen_at_each_call(backbone):
    model = frozen_model(backbone)
    for _ in range(2):  # the second call finds the model in training mode already
        model.train()
        assert model.training and all(module.training for module in model.heads.modules())
        assert not any(module.training for module in model.backbone.modules())
    layer = model.backbone.encoder.layer[1]
    layer.requires_grad_(True)
    model.train()
    assert all(module.training for module in layer.modules()), "dropout included, which has no parameters"
    assert not any(module.training for module in model.backbone.encoder.layer[0].modules())
    layer.requires_grad_(False)
    model.train()
    assert not any(module.training for module in model.backbone.modules())
    assert not any(module.training for module in model.eval().modules())


# Backbone passes


def test_each_distinct_sentence_passes_the_backbone_once_and_later_runs_need_no_pass(backbone, tmp_path):
    sets = all_sets(train=24, validation=9, test=5)
    model = frozen_model(backbone, projection=PROJECTION)
    calls = count_calls(model)
    trainer = train(model, sets, tmp_path)
    assert sum(calls) == len(sentences_of(sets, "train", "validation"))
    trainer.choose_thresholds()
    trainer.evaluate("test")
    assert sum(calls) == len(sentences_of(sets, "train", "validation", "test"))

    again = frozen_model(backbone, projection=PROJECTION)
    calls = count_calls(again)
    trainer = train(again, sets, tmp_path)
    trainer.choose_thresholds()
    trainer.evaluate("test")
    assert calls == []


def test_without_the_cache_every_epoch_passes_the_backbone(backbone, tmp_path):
    sets = all_sets(train=24, validation=9)
    model = frozen_model(backbone, projection=PROJECTION)
    calls = count_calls(model)
    train(model, sets, tmp_path, feature_cache=False)
    assert sum(calls) == 2 * len(sentences_of(sets, "train")) + 2 * len(sentences_of(sets, "validation"))


def test_a_backbone_that_a_later_stage_trains_is_not_cached(backbone, tmp_path, empty_cache):
    model = helpers.make_model(backbone)
    stages = [{"epochs": 1, "train": "heads"}, {"train": "all"}]
    arguments = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "eval_strategy": "epoch"}
    sets = all_sets(train=16, validation=9)
    before = {name: weights.clone() for name, weights in model.backbone.state_dict().items()}
    helpers.make_trainer(model, sets, tmp_path, {"strategy": {"unfreeze": stages}}, **arguments).train()
    assert not empty_cache.exists()
    assert any(not torch.equal(before[name], weights) for name, weights in model.backbone.state_dict().items())


def test_a_trained_backbone_is_not_cached(backbone, tmp_path, empty_cache):
    model = frozen_model(backbone)
    next(iter(model.backbone.encoder.layer[-1].parameters())).requires_grad_(True)
    assert not can_cache_features(model)
    train(model, all_sets(train=16, validation=9), tmp_path, num_train_epochs=1)
    assert not empty_cache.exists()


def test_new_data_costs_only_its_unknown_sentences(backbone):
    model = frozen_model(backbone)
    known, new = helpers.make_sentences(20, seed=1), helpers.make_sentences(9, seed=2)
    cache = open_features(model)
    cache_sentences(cache, model, lambda: [known])
    before = cache.find(text_hashes(known))
    calls = count_calls(model)
    mixed = [*known[:5], *new, *new[:3], *known[7:]]
    later = open_features(model)
    places = cache_sentences(later, model, lambda: [mixed[:10], mixed[10:]])
    assert sum(calls) == len(new)
    assert len(later) == len(known) + len(new)
    torch.testing.assert_close(
        embed_cached(model, later, places), torch.from_numpy(model.encode(mixed, normalize=False)), rtol=0, atol=1e-6
    )
    cache.reload()  # opened before, it finds the new shard without moving the old places
    assert sorted(before) == list(range(20))
    np.testing.assert_array_equal(cache.find(text_hashes(known)), before)
    assert (cache.find(text_hashes(mixed)) >= 0).all()


def test_settings_say_what_is_known(backbone, tmp_path, empty_cache):
    sets = all_sets(train=24, validation=9)
    model = frozen_model(backbone)
    distinct = len(sentences_of(sets, "train", "validation"))
    trainer = helpers.make_trainer(model, sets, tmp_path)
    folder = empty_cache / features_key(model)

    def described() -> str | None:
        return trainer.features.describe(model, [rows for entry in sets for rows in entry.splits.values()])

    assert described() == f"{distinct} sentences, 0 known, folder {folder}"
    trainer.evaluate()
    known = len(sentences_of(sets, "validation"))
    assert described() == f"{distinct} sentences, {known} known, folder {folder}"
    settings = format_settings(SimpleNamespace(path="recipe.yaml", backbone="tiny"), model, trainer)
    assert re.search(rf"^feature cache +{distinct} sentences, {known} known, folder {folder}$", settings, re.MULTILINE)
    trainer.args.feature_cache = False
    assert described() == "off"
    model.backbone.requires_grad_(True)
    assert described() is None


def test_nothing_trainable_is_an_error_before_anything_is_encoded(backbone, tmp_path):
    model = frozen_model(backbone)
    model.requires_grad_(False)
    calls = count_calls(model)
    with pytest.raises(ValueError, match="Nothing is trainable"):
        train(model, all_sets(train=16, validation=9), tmp_path)
    assert calls == []


# What a vector depends on


def test_key_changes_with_all_that_a_vector_depends_on(tmp_path, backbone):
    model = frozen_model(backbone)
    keys = {"as it is": features_key(model)}

    def changed(what: str, change) -> None:
        other = frozen_model(backbone)
        change(other)
        keys[what] = features_key(other)

    changed("pooling", lambda other: setattr(other.config, "pooling", "max"))
    changed("max_length", lambda other: setattr(other.config, "max_length", 7))
    changed("one weight", lambda other: other.backbone.encoder.layer[1].output.dense.weight.data[3, 4].add_(1e-3))
    changed("dtype", lambda other: other.backbone.half())
    changed("configuration", lambda other: setattr(other.backbone.config, "hidden_act", "relu"))
    changed("a new token", lambda other: other.tokenizer.add_tokens(["word1 word2"]))
    changed("truncation side", lambda other: setattr(other.tokenizer, "truncation_side", "left"))
    keys["precision"] = features_key(model, "bf16")
    assert len(set(keys.values())) == len(keys), keys


def test_key_stays_for_the_same_backbone_whatever_the_heads_and_however_it_was_opened(tmp_path, backbone):
    model = frozen_model(backbone)
    key = features_key(model)
    model.tokenizer(["word1"], padding=True, truncation=True, max_length=3)
    assert features_key(model) == key
    other = helpers.make_model(backbone, ("rating",), projection=PROJECTION)
    assert features_key(other) == key
    model.save_pretrained(tmp_path / "saved")
    assert features_key(AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)) == key


# On disk


def test_sentences_are_encoded_window_by_window_and_read_through_a_memory_map(backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_cache, "SENTENCES_PER_SHARD", 7)
    sets = all_sets(train=16, validation=9)
    model = frozen_model(backbone, projection=PROJECTION)
    sizes = []
    plain = feature_cache.pooled_vectors
    monkeypatch.setattr(
        feature_cache, "pooled_vectors", lambda m, texts, bar: (sizes.append(len(texts)), plain(m, texts, bar))[1]
    )
    trainer = train(model, sets, tmp_path)
    count = len(sentences_of(sets, "train"))
    assert sizes[: -(-count // 7)] == [7] * (count // 7) + ([count % 7] if count % 7 else [])
    cache = trainer.features.open(trainer.model)
    assert len(cache.shards) == len(sizes) > 10
    for shard, vectors in zip(cache.shards.values(), cache._vectors, strict=True):
        assert len(shard.cache_files) == 1, "datasets lists the files of memory-mapped tables only"
        assert not vectors.flags.owndata and not vectors.flags.writeable
    texts = sorted(sentences_of(sets, "train"))
    found = embed_cached(model, cache, cache.find(text_hashes(texts)))
    torch.testing.assert_close(found, torch.from_numpy(model.encode(texts, normalize=False)), rtol=0, atol=1e-6)


def test_cache_goes_to_another_process_by_the_names_of_its_shards_in_their_order(backbone, empty_cache, monkeypatch):
    cache = open_features(frozen_model(backbone))
    hashes = text_hashes(f"text {number}" for number in range(600))
    for first in range(0, 600, 200):  # three times, so that places follow no order of names
        cache.add(hashes[first : first + 200], np.full((200, cache.hidden_size), first, np.float32))
        cache.reload()
    sent = pickle.dumps(cache)
    assert len(sent) < 2000
    cache.add(text_hashes(["one more"]), np.zeros((1, cache.hidden_size), np.float32))  # which `cache` does not know
    received = pickle.loads(sent)
    places = cache.find(hashes)
    assert (received.find(hashes) == places).all() and len(received) == len(cache) == 600
    torch.testing.assert_close(received.gather(places), cache.gather(places), rtol=0, atol=0)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no arrow"])
def test_damaged_shard_is_encoded_again_with_a_warning(damage, backbone, empty_cache, monkeypatch):
    monkeypatch.setattr(feature_cache, "SENTENCES_PER_SHARD", 10)
    model, sentences = frozen_model(backbone), helpers.make_sentences(20, seed=1)
    cache_sentences(open_features(model), model, lambda: [sentences])
    path = sorted(empty_cache.rglob("*.arrow"))[0]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-400] ^= 1
    path.write_bytes({"cut": content[:-300], "empty": b"", "no arrow": b"something else"}.get(damage, content))
    calls = count_calls(model)
    warnings: list[str] = []
    monkeypatch.setattr(shards.logger, "warning", warnings.append)
    cache = open_features(model)
    assert len(cache) == 10
    places = cache_sentences(cache, model, lambda: [sentences])
    assert sum(calls) == 10
    assert [str(path) in text and "is damaged" in text for text in warnings] == [True]
    torch.testing.assert_close(
        embed_cached(model, cache, places),
        torch.from_numpy(model.encode(sentences, normalize=False)),
        rtol=0,
        atol=1e-6,
    )
    assert path.is_file() and len(open_features(model)) == 20


def test_interrupted_encoding_keeps_whole_shards_and_leaves_no_unfinished_file(backbone, empty_cache, monkeypatch):
    monkeypatch.setattr(feature_cache, "SENTENCES_PER_SHARD", 10)
    model, sentences = frozen_model(backbone), helpers.make_sentences(25, seed=1)
    written = []

    def replace(path, target):
        if written:
            raise OSError(28, "No space left on device")
        written.append(os.replace(path, target))

    with monkeypatch.context() as full_disk:
        full_disk.setattr(Path, "replace", replace)
        with pytest.raises(OSError, match="No space left"):
            cache_sentences(open_features(model), model, lambda: [sentences])
    assert [path.suffix for path in empty_cache.rglob("*") if path.is_file()] == [".arrow"]
    calls = count_calls(model)
    cache_sentences(open_features(model), model, lambda: [sentences])
    assert sum(calls) == 15


def test_too_little_room_is_said_before_anything_is_encoded(backbone, monkeypatch):
    model = frozen_model(backbone)
    calls = count_calls(model)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    with pytest.raises(OSError, match=r"20 sentences need .* GB are free.*feature_cache: false"):
        cache_sentences(open_features(model), model, lambda: [helpers.make_sentences(20, seed=1)])
    assert calls == []


def test_model_trained_on_cached_vectors_opens_as_ever(backbone, tmp_path):
    model = frozen_model(backbone, projection=PROJECTION)
    train(model, all_sets(train=16, validation=9), tmp_path / "run", num_train_epochs=1)
    model.save_pretrained(tmp_path / "saved")
    opened = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    tokens = model.tokenizer(helpers.make_sentences(3, seed=1), padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, found = model.eval()(**tokens), opened(**tokens)
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(found.sentence_embedding, expected.sentence_embedding, rtol=0, atol=0)
    torch.testing.assert_close(found.logits["sentiment"], expected.logits["sentiment"], rtol=0, atol=0)


# Several processes


def test_two_processes_share_the_encoding_and_train_like_one(backbone, run_in_two_processes, tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    run_in_two_processes(feature_cache_run, backbone, folder, folder / "datasets")

    one = feature_cache_run.train(backbone, tmp_path / "one", per_device_train_batch_size=8)
    sentences = sentences_of(feature_cache_run.make_sets(), "train", "validation")
    results = [json.loads((folder / f"results.{process}.json").read_text()) for process in range(2)]
    assert sum(result["encoded"] for result in results) == len(sentences)
    assert min(result["encoded"] for result in results) > 0
    for process in range(2):
        weights = load_file(folder / f"weights.{process}.safetensors")
        for name, expected in one.model.state_dict().items():
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=1e-5)
        assert results[process]["scores"] == pytest.approx(
            {key: value for key, value in numbers(one.state.log_history)[-2].items() if key.startswith("eval_")},
            abs=1e-5,
        )
