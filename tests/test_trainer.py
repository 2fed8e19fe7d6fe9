"""The trainer against the invariants of the design: loss, gradients, freezing, evaluation, checkpoints, resuming."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from helpers import trainer as helpers
from helpers import warm
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training import evaluation_loop
from multitask_sentence.training.evaluation.scores import choose_thresholds
from multitask_sentence.training.report.confusion import count_confusions

TASKS, SINGLE = helpers.TASKS, list(helpers.MEAN_LOSS_TASKS)
WEIGHTS = {name: complete_task(name, task).loss_weight for name, task in TASKS.items()}
SHARES = {"sentiment": 0.7, "tags": 0.3, "rating": 0.4}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def backbone_with_dropout(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"), dropout=0.3)


def all_sets(**counts: int) -> list[LabelledSet]:
    """Sets for all five tasks."""
    sets = [helpers.make_set(SINGLE, SHARES, **counts)]
    return sets + [helpers.make_set([task], seed=seed, **counts) for seed, task in ((100, "pairs"), (200, "search"))]


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], **tolerance: float):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda m, n=name: f"{n}: {m}")


class Watcher(TrainerCallback):
    """Calls a function with the model before each optimizer step."""

    def __init__(self, look):
        self.look = look

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.look(model)


# The loss and its gradients


def gradients_by_hand(model: MultiTaskModel, rows: list[dict]) -> dict[str, torch.Tensor]:
    """A plain loop over tasks: one padded batch, mean over labelled rows, weighted sum, backward."""
    tokens = model.tokenizer([row["sentences"][0] for row in rows], padding=True, return_tensors="pt")
    states = model.backbone(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    embeddings = (states * mask).sum(dim=1) / mask.sum(dim=1)
    hidden = F.relu(F.linear(embeddings, *model.heads["sentiment"].layers[0].parameters()))
    logits = {
        "sentiment": F.linear(hidden, *model.heads["sentiment"].layers[-1].parameters()),
        "tags": F.linear(embeddings, *model.heads["tags"].layers[-1].parameters()),
        "rating": F.linear(embeddings, *model.heads["rating"].layers[-1].parameters())[:, 0],
    }
    losses = {"sentiment": F.cross_entropy, "tags": F.binary_cross_entropy_with_logits, "rating": F.mse_loss}
    total = 0.0
    for task, loss in losses.items():
        labelled = [index for index, row in enumerate(rows) if row[f"label_{task}"] is not None]
        labels = torch.tensor([rows[index][f"label_{task}"] for index in labelled])
        labels = labels if task == "sentiment" else labels.double()
        if task == "rating":  # a head learns standardised targets
            labels = (labels - labels.mean()) / labels.std(correction=0)
        total += TASKS[task].get("loss_weight", 1.0) * loss(logits[task][labelled], labels)
    total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (3, 3), (1, 8)])
def test_gradients_equal_those_of_a_hand_written_loop_however_the_step_is_cut(
    batch_size, accumulation, backbone, tmp_path
):
    data = helpers.make_set(SINGLE, SHARES, train=8)
    (found,) = helpers.train_gradients(
        helpers.make_model(backbone, SINGLE).double(),
        [data],
        tmp_path,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **helpers.without_learning(),
    )
    expected = gradients_by_hand(helpers.make_model(backbone, SINGLE).double(), list(data.splits["train"]))
    assert_same(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "arguments",
    [{"gradient_checkpointing": True}, {"dataloader_num_workers": 2}],
    ids=["checkpointing", "workers"],
)
def test_ways_to_train_with_less_memory_or_time_keep_losses_and_weights(arguments, backbone_with_dropout, tmp_path):
    runs = []
    for own in ({}, arguments):
        sets = [helpers.make_set(["sentiment", "rating"], train=24)]
        trainer = helpers.make_trainer(
            helpers.make_model(backbone_with_dropout, ("sentiment", "rating")), sets, tmp_path, **own
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, copy_of(trainer.model)))
    (expected_losses, expected), (losses, found) = runs
    assert losses == expected_losses
    assert_same(found, expected, rtol=0, atol=0)


def test_tokens_without_embedding_are_told_of_before_training(backbone, tmp_path, caplog):
    model, sets = helpers.make_model(backbone, ("sentiment",)), [helpers.make_set(["sentiment"], train=2)]
    helpers.make_trainer(model, sets, tmp_path)
    assert "resize_token_embeddings" not in caplog.text
    model.tokenizer.add_tokens(["wolpertinger"])
    helpers.make_trainer(model, sets, tmp_path)
    assert "tokens up to the id 99, but the model has embeddings for 99 tokens only" in caplog.text


def test_premise_micro_batches_have_unequal_numbers_of_labelled_rows():
    columns = helpers.make_set(SINGLE, SHARES, train=8).splits["train"].to_dict()
    counts = [sum(label is not None for label in columns[f"label_{task}"]) for task in SINGLE]
    assert len(set(counts)) == 3
    assert min(counts) < 4, "with four micro-batches, one lacks the task"


def test_last_step_of_an_epoch_is_the_mean_over_its_own_fewer_rows(backbone, tmp_path):
    data = helpers.make_set(["sentiment"], train=7)
    model = helpers.make_model(backbone, ["sentiment"]).double()
    options = {"per_device_train_batch_size": 2, **helpers.without_learning()}
    accumulated = helpers.train_gradients(model, [data], tmp_path, gradient_accumulation_steps=3, **options)
    options["per_device_train_batch_size"] = 6
    whole = helpers.train_gradients(model, [data], tmp_path, **options)
    assert (len(accumulated), len(whole)) == (2, 2)
    for found, expected in zip(accumulated, whole, strict=True):
        assert_same(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("logging_steps", "accumulation"), [(1, 1), (3, 1), (3, 2)])
def test_logged_loss_is_the_weighted_sum_of_the_logged_task_losses(logging_steps, accumulation, backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone),
        all_sets(train=30),
        tmp_path,
        {"mixture": {"rows_per_batch": {"pairs": 5, "search": 6}}},
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulation,
        logging_steps=logging_steps,
        num_train_epochs=2,
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == trainer.state.global_step // logging_steps > 1
    for entry in entries:
        weighted = sum(WEIGHTS[task] * entry[f"loss_{task}"] for task in TASKS)
        assert entry["loss"] == pytest.approx(weighted, rel=1e-5)
    if logging_steps == accumulation == 1:
        assert any(entry["loss_pairs"] == 0.0 for entry in entries), "premise: steps without the task"


def test_logged_task_losses_are_means_over_labelled_rows(backbone, tmp_path):
    data = helpers.make_set(SINGLE, SHARES, train=8, validation=1)
    data.splits["validation"] = data.splits["train"]
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, SINGLE), [data], tmp_path, eval_strategy="epoch", **helpers.without_learning()
    )
    trainer.train()
    logged, evaluated = trainer.state.log_history[:2]
    for key in ("loss", *(f"loss_{task}" for task in SINGLE)):
        evaluated_key = f"eval_{key.removeprefix('loss_')}_loss" if "_" in key else "eval_loss"
        assert logged[key] == pytest.approx(evaluated[evaluated_key], rel=1e-5)


def test_task_without_labelled_rows_adds_an_exact_zero_and_zero_gradients(backbone, tmp_path):
    data = helpers.make_set(["sentiment"], train=6)
    recorder = helpers.GradientRecorder()
    trainer = helpers.make_trainer(
        helpers.make_model(backbone), [data], tmp_path, {"callbacks": [recorder]}, per_device_train_batch_size=3
    )
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        assert [entry[f"loss_{task}"] for task in TASKS] == [entry["loss_sentiment"], 0.0, 0.0, 0.0, 0.0]
        assert entry["loss"] == pytest.approx(0.5 * entry["loss_sentiment"])
    for gradients in recorder.steps:
        for name, gradient in gradients.items():
            assert gradient is not None, name
            is_idle = name.startswith(("heads.tags.", "heads.rating."))
            assert bool(gradient.any()) != is_idle or "key.bias" in name, name
            assert gradient.isfinite().all()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_backbone_is_called_once_for_every_micro_batch(accumulation, backbone, tmp_path):
    model = helpers.make_model(backbone)
    calls = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    trainer = helpers.make_trainer(
        model,
        all_sets(train=10),
        tmp_path,
        per_device_train_batch_size=10,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    assert len(calls) == len(trainer.sampler)


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_alone_changes_every_trainable_parameter(task, backbone, tmp_path):
    model = helpers.make_model(backbone, [task], projection={"out_features": 24})
    before = copy_of(model)
    helpers.make_trainer(model, [helpers.make_set([task], train=8)], tmp_path).train()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == []
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# Frozen is frozen


def freeze(model: MultiTaskModel) -> list[str]:
    """Freezes the embeddings and the first layer; returns the frozen parameters' names."""
    for part in (model.backbone.embeddings, model.backbone.encoder.layer[0]):
        part.requires_grad_(False)
    return [name for name, parameter in model.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize("head_learning_rate", [None, 1e-2])
def test_frozen_parameters_stay_bit_identical_and_the_others_change(
    head_learning_rate, backbone_with_dropout, tmp_path
):
    model = helpers.make_model(backbone_with_dropout)
    frozen, before = freeze(model), copy_of(model)
    trainer = helpers.make_trainer(
        model, all_sets(train=8), tmp_path, weight_decay=0.1, head_learning_rate=head_learning_rate
    )
    trainer.train()
    assert len(frozen) == 21
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_frozen_parts_run_without_dropout_and_the_others_with_it_also_after_evaluation(
    backbone_with_dropout, tmp_path
):
    model = helpers.make_model(backbone_with_dropout)
    freeze(model)
    first, second = model.backbone.encoder.layer
    seen = []

    def look(trained):
        seen.append([{m.training for m in part.modules()} for part in (trained.backbone.embeddings, first, second)])

    trainer = helpers.make_trainer(
        model,
        all_sets(train=8, validation=4),
        tmp_path,
        {"callbacks": [Watcher(look)]},
        num_train_epochs=2,
        eval_strategy="epoch",
    )
    trainer.train()
    assert seen == [[{False}, {False}, {True}]] * trainer.state.global_step
    assert trainer.state.global_step > 1


def test_nothing_trainable_is_a_clear_error(backbone, tmp_path):
    model = helpers.make_model(backbone)
    model.requires_grad_(False)
    trainer = helpers.make_trainer(model, all_sets(train=8), tmp_path)
    with pytest.raises(ValueError, match=r"Nothing is trainable: every parameter of the model is frozen\. Unfreeze"):
        trainer.train()


# Learning rates


def test_head_learning_rate_holds_for_everything_but_the_backbone(backbone, tmp_path):
    model = helpers.make_model(backbone, projection={"out_features": 24})
    trainer = helpers.make_trainer(model, all_sets(train=8), tmp_path, head_learning_rate=5e-2, weight_decay=0.1)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in trainer.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(found) == len(names)
    for name, (learning_rate, weight_decay) in found.items():
        assert learning_rate == (1e-3 if name.startswith("backbone.") else 5e-2), name
        assert weight_decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name


def test_without_head_learning_rate_all_parameters_have_one(backbone, tmp_path):
    trainer = helpers.make_trainer(helpers.make_model(backbone), all_sets(train=8), tmp_path)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3}


# Batches


def test_tasks_with_pair_losses_get_16_rows_a_batch_and_others_one(backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone), all_sets(train=40), tmp_path, per_device_train_batch_size=32
    )
    assert trainer.sampler.least_rows == [1, 16, 16]
    small = helpers.make_trainer(
        helpers.make_model(backbone),
        all_sets(train=40),
        tmp_path,
        {"mixture": {"rows_per_batch": {"search": 3}, "passes": {"pairs": 2.0}}},
        per_device_train_batch_size=8,
    )
    assert small.sampler.least_rows == [1, 8, 3]
    assert small.sampler.rows_per_epoch == [40, 80, 40]


def test_every_row_is_trained_on_once_an_epoch_in_an_order_that_changes(backbone, tmp_path):
    data = helpers.make_set(["sentiment"], train=11)
    model = helpers.make_model(backbone, ["sentiment"])
    trainer = helpers.make_trainer(model, [data], tmp_path, per_device_train_batch_size=3, num_train_epochs=3)
    collate, seen = trainer.data_collator, []
    trainer.data_collator = lambda rows: seen.extend(row["sentences"][0] for row in rows) or collate(rows)
    trainer.train()
    epochs = [seen[start : start + 11] for start in range(0, 33, 11)]
    everything = sorted(row[0] for row in data.splits["train"]["sentences"])
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len(set(map(tuple, epochs))) == 3


# Evaluation


def test_evaluation_gives_loss_and_metrics_of_every_task_and_their_sums(backbone, tmp_path):
    trainer = helpers.make_trainer(helpers.make_model(backbone), all_sets(train=4, validation=12), tmp_path)
    scores = trainer.evaluate()
    primary = ["sentiment_accuracy", "tags_macro_f1", "rating_pearson", "pairs_cosine_spearman", "search_mrr"]
    others = ["sentiment_macro_f1", "rating_mse", "search_accuracy_at_1"]
    others += ["pairs_mean_cosine_related", "pairs_mean_cosine_unrelated"]
    expected = {f"eval_{key}" for key in [*primary, *others, *(f"{task}_loss" for task in TASKS), "loss", "score"]}
    speed = {"eval_runtime", "eval_samples_per_second"}
    assert set(scores) - {"epoch"} == expected | speed
    weighted = sum(WEIGHTS[task] * scores[f"eval_{task}_loss"] for task in TASKS)
    assert scores["eval_loss"] == pytest.approx(weighted)
    assert scores["eval_score"] == pytest.approx(sum(scores[f"eval_{key}"] for key in primary) / 5)


def test_evaluation_takes_the_named_split_and_prefix(backbone, tmp_path):
    trainer = helpers.make_trainer(helpers.make_model(backbone), all_sets(train=4, validation=5, test=7), tmp_path)
    scores = trainer.evaluate("test", metric_key_prefix="test")
    assert "test_sentiment_loss" in scores
    assert scores["test_score"] != trainer.evaluate()["eval_score"]


def test_evaluation_of_a_split_that_is_none_names_the_splits(backbone, tmp_path):
    trainer = helpers.make_trainer(helpers.make_model(backbone), all_sets(train=4, validation=5), tmp_path)
    for split, message in (
        ("test", r"There is no split 'test'\. Known splits: train, validation\."),
        ("validaton", r"There is no split 'validaton'\. Did you mean 'validation'\?"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.evaluate(split)
    for data in (trainer.sets[0].splits["validation"], trainer.sets, []):
        kind = type(data).__name__
        with pytest.raises(TypeError, match=rf"the name of a split, one of train, validation\. Found {kind}\."):
            trainer.evaluate(data)
    with pytest.raises(TypeError, match=r"predicts no data set\. Call model\.predict\(sentences\) for answers"):
        trainer.predict(trainer.sets[0].splits["validation"])


def test_chosen_thresholds_are_stored_in_the_config_and_saved(backbone, tmp_path):
    data = helpers.make_set(SINGLE, {"tags": 0.8}, train=4, validation=30)
    trainer = helpers.make_trainer(helpers.make_model(backbone, SINGLE), [data], tmp_path)
    model = trainer.model
    before = trainer.evaluate()["eval_tags_macro_f1"]
    chosen = trainer.choose_thresholds()

    rows = [row for row in data.splits["validation"] if row["label_tags"] is not None]
    probabilities = model.predict([row["sentences"][0] for row in rows], tasks="tags")["tags"]["probabilities"]
    expected = choose_thresholds(probabilities, torch.tensor([row["label_tags"] for row in rows]).numpy())
    assert chosen == {"tags": pytest.approx(expected, abs=1e-6)}
    assert model.config.tasks["tags"].thresholds == chosen["tags"] != [0.5, 0.5]
    assert trainer.evaluate()["eval_tags_macro_f1"] > before
    trainer.save_model(str(tmp_path / "saved"))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["tasks"]["tags"]["thresholds"] == chosen["tags"]


def test_without_multi_label_tasks_no_threshold_is_chosen(backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone, ["rating"]), [helpers.make_set(["rating"], train=4)], tmp_path
    )
    assert trainer.choose_thresholds() == {}


# Checkpoints


def test_training_ends_with_the_checkpoint_of_the_best_eval_score(backbone, tmp_path, monkeypatch):
    scores = iter([0.2, 0.9, 0.5])
    monkeypatch.setattr(evaluation_loop, "combined_score", lambda *_: next(scores))
    trainer = helpers.make_trainer(
        helpers.make_model(backbone),
        all_sets(train=8, validation=4),
        tmp_path,
        num_train_epochs=3,
        **dict.fromkeys(("eval_strategy", "save_strategy"), "epoch"),
        load_best_model_at_end=True,
        save_total_limit=3,
    )
    trainer.train()
    steps = trainer.state.global_step // 3
    first, best, last = (load_file(tmp_path / f"checkpoint-{n * steps}" / "model.safetensors") for n in (1, 2, 3))
    assert trainer.state.best_metric == 0.9
    assert_same(copy_of(trainer.model), best, rtol=0, atol=0)
    for other in (first, last):
        assert any(not torch.equal(best[name], tensor) for name, tensor in other.items())


OPEN_CHECKPOINT = """
import sys, torch
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
tokens = tokenizer(["word1 word2 word3", "word4"], padding=True, return_tensors="pt")
with torch.no_grad():
    output = model(**tokens)
torch.save({"embedding": output.sentence_embedding, **output.logits}, sys.argv[2])
"""


def test_checkpoint_opens_by_itself_in_another_process_and_gives_the_same_output(backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone), all_sets(train=8), tmp_path / "run", save_strategy="epoch"
    )
    trainer.train()
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    moved, empty = tmp_path / "moved", tmp_path / "empty"
    checkpoint.rename(moved)
    empty.mkdir()
    (tmp_path / "open.py").write_text(OPEN_CHECKPOINT, encoding="utf-8")
    command = [tmp_path / "open.py", moved, tmp_path / "output.pt"]
    process = warm.start([str(word) for word in command], os.environ, tmp_path / "printed.txt", empty)
    assert warm.end([process], 120) and process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    found = torch.load(tmp_path / "output.pt")
    model = trainer.model.eval()
    tokens = model.tokenizer(["word1 word2 word3", "word4"], padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens)
    assert_same(found, {"embedding": output.sentence_embedding, **output.logits}, rtol=0, atol=0)


@pytest.fixture(scope="module")
def uninterrupted(backbone_with_dropout, tmp_path_factory):
    """A run over three epochs of 7 steps that left a checkpoint in the middle of each."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, *run_three_epochs(backbone_with_dropout, folder)


def run_three_epochs(backbone: Path, folder: Path, checkpoint: Path | None = None, **kwargs):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone),
        all_sets(train=18),
        folder,
        {"mixture": {"rows_per_batch": {"pairs": 4, "search": 4}, "passes": {"pairs": 0.5}}},
        per_device_train_batch_size=8,
        num_train_epochs=3,
        logging_steps=4,
        save_strategy="steps",
        save_steps=5,
        save_total_limit=10,
        **kwargs,
    )
    helpers.train_from(checkpoint, trainer)
    return copy_of(trainer.model), trainer.state.log_history, len(trainer.sampler)


@pytest.mark.parametrize("step", [10, 5])
def test_resuming_in_the_middle_of_an_epoch_gives_the_weights_of_an_uninterrupted_run(
    step, uninterrupted, backbone_with_dropout, tmp_path
):
    folder, expected, _, steps = uninterrupted
    assert 0 < step % steps < steps, "premise: the checkpoint stands in the middle of an epoch"
    set_seed(987)
    found, _, _ = run_three_epochs(backbone_with_dropout, tmp_path, folder / f"checkpoint-{step}")
    assert_same(found, expected, rtol=0, atol=0)


def test_task_losses_logged_after_resuming_are_averaged_over_the_steps_since(
    uninterrupted, backbone_with_dropout, tmp_path
):
    folder, _, expected, _ = uninterrupted
    _, found, _ = run_three_epochs(backbone_with_dropout, tmp_path, folder / "checkpoint-10")
    (at_12, *later) = [entry for entry in found if "loss" in entry and entry["step"] > 10]
    assert at_12["step"] == 12, "premise: two of four steps were run since resuming"
    assert at_12["loss"] == pytest.approx(sum(WEIGHTS[task] * at_12[f"loss_{task}"] for task in TASKS), rel=1e-5)
    assert later == [entry for entry in expected if "loss" in entry and entry["step"] > 12]


def test_training_again_logs_task_losses_of_the_new_training_only(backbone, tmp_path):
    trainer = helpers.make_trainer(
        helpers.make_model(backbone), all_sets(train=8), tmp_path, num_train_epochs=4, logging_steps=3
    )
    trainer.train()
    assert trainer.state.global_step % 3, "premise: steps were left over that nothing has logged"
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        assert entry["loss"] == pytest.approx(sum(WEIGHTS[task] * entry[f"loss_{task}"] for task in TASKS), rel=1e-5)


# Known answers, with real weights

SIX_SENTENCES = [
    ("I love this product.", 2),
    ("This is terrible.", 0),
    ("It's okay I guess.", 1),
    ("Best purchase ever!", 2),
    ("Complete waste of money.", 0),
    ("It works as expected.", 1),
]
HELD_OUT = {
    "I absolutely love this product, it's amazing!": "positive",
    "This movie was terrible and a complete waste of time.": "negative",
    "The service was okay, nothing special but not bad either.": "neutral",
}
FIVE_SENTENCES = [
    ("The stock market crashed due to inflation.", 0, 0),
    ("The film was a cinematic masterpiece.", 1, 1),
    ("Tech companies are investing in AI.", 2, 1),
    ("The weather ruined my mood today.", 1, 0),
    ("Quantum computing is the next big thing.", 2, 1),
]


def packaged_model(tasks: dict) -> MultiTaskModel:
    set_seed(0)
    return MultiTaskModel.from_backbone("sentence-transformers/all-MiniLM-L6-v2", tasks=tasks)


@pytest.mark.pretrained
def test_six_sentences_are_learnt_and_three_held_out_ones_are_right(tmp_path):
    labels, head = ["negative", "neutral", "positive"], {"hidden_dims": [256], "activation": "relu", "dropout": 0.1}
    model = packaged_model(
        {"sentiment": {"problem_type": "single_label_classification", "labels": labels, "head": head}}
    )
    columns = {"sentences": [[s] for s, _ in SIX_SENTENCES], "label_sentiment": [label for _, label in SIX_SENTENCES]}
    data = LabelledSet(["sentiment"], {"train": Dataset.from_dict(columns)})
    trainer = helpers.make_trainer(
        model,
        [data],
        tmp_path,
        num_train_epochs=10,
        per_device_train_batch_size=2,
        learning_rate=2e-4,
        head_learning_rate=1e-3,
        max_grad_norm=1.0,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
    assert first == pytest.approx(1.09, abs=0.05)
    assert last < 0.18
    assert model.predict(list(HELD_OUT), tasks="sentiment")["sentiment"]["labels"] == list(HELD_OUT.values())


@pytest.mark.pretrained
def test_five_sentences_with_two_labels_reach_full_accuracy_in_both(tmp_path):
    names = {"topic": ["Finance", "Entertainment", "Technology"], "sentiment": ["negative", "positive"]}
    model = packaged_model(
        {task: {"problem_type": "single_label_classification", "labels": labels} for task, labels in names.items()}
    )
    columns = {
        "sentences": [[sentence] for sentence, *_ in FIVE_SENTENCES],
        "label_topic": [topic for _, topic, _ in FIVE_SENTENCES],
        "label_sentiment": [sentiment for _, _, sentiment in FIVE_SENTENCES],
    }
    rows = Dataset.from_dict(columns)
    trainer = helpers.make_trainer(
        model,
        [LabelledSet(list(names), {"train": rows, "validation": rows})],
        tmp_path,
        num_train_epochs=10,
        per_device_train_batch_size=5,
        learning_rate=3e-4,
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert min(before["eval_topic_accuracy"], before["eval_sentiment_accuracy"]) < 1.0, "premise"
    assert (after["eval_topic_accuracy"], after["eval_sentiment_accuracy"]) == (1.0, 1.0)


def test_confusion_of_a_task_without_test_split_is_that_of_validation(backbone, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=6, validation=6, test=6)]
    sets.append(helpers.make_set(["tags"], seed=50, train=6, validation=6))
    trainer = helpers.make_trainer(helpers.make_model(backbone, ("sentiment", "tags")), sets, tmp_path)
    answers = {split: trainer.evaluate_and_answer(split)[1] for split in ("validation", "test")}
    counted = count_confusions(trainer.tasks, answers)
    assert {task: found["split"] for task, found in counted.items()} == {
        "sentiment": "test",
        "tags": "validation",
    }
