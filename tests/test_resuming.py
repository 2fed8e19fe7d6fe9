"""A resumed run is the same run, bit for bit, or an error that names the difference, before anything is loaded."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, TrainerCallback

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.training.resuming.files import LEFT, RUN_FILE, check_files, last_checkpoint, write_record
from multitask_sentence.training.resuming.optimizer_state import match_state
from multitask_sentence.training.trainer import MultiTaskTrainer

TASKS = {name: helpers.TASKS[name] for name in ("sentiment", "rating", "tags")}
ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
    "save_total_limit": 4,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone") / "tiny", dropout=0.1)


@pytest.fixture(scope="module")
def make(backbone: Path) -> Callable[..., MultiTaskTrainer]:
    """Makes a trainer of one job: 12 rows with three labels each, 3 steps an epoch; what is given is different."""

    def make_one(
        folder: Path,
        tasks: dict[str, dict[str, Any]] = TASKS,
        model: dict[str, Any] | MultiTaskModel | None = None,
        sets: list[Any] | None = None,
        options: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> MultiTaskTrainer:
        torch.manual_seed(1)
        if not hasattr(model, "forward"):
            model = MultiTaskModel.from_backbone(**{"backbone": str(backbone), "tasks": tasks, **(model or {})})
        sets = sets or [helpers.make_set(list(TASKS), train=12, validation=4)]
        return helpers.make_trainer(model, sets, folder, options, **{**ARGUMENTS, **arguments})

    return make_one


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that nothing interrupted: checkpoints of the steps 3 and 6. Read only."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder).train()
    return folder


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run's folder, to be spoilt."""
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def without_record(folder: Path) -> None:
    """Make checkpoints those of an earlier version, which recorded neither the run nor the order of tasks."""
    for checkpoint in folder.glob("checkpoint-*"):
        (checkpoint / RUN_FILE).unlink()
        config = json.loads((checkpoint / "config.json").read_text())
        del config["task_order"]
        (checkpoint / "config.json").write_text(json.dumps(config))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


# ---- the same run ----


def test_reopened_checkpoint_trains_on_from_python_to_the_weights_of_the_whole_run(make, whole: Path, tmp_path: Path):
    checkpoint = whole / "checkpoint-3"
    model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    assert list(model.heads) == list(TASKS), "premise: they are not in the order of the alphabet"
    resumed = make(tmp_path / "run", model=model)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same(dict(resumed.model.state_dict()), load_file(whole / "checkpoint-6" / "model.safetensors"))
    saved, expected = (torch.load(folder / "checkpoint-6" / "optimizer.pt") for folder in (tmp_path / "run", whole))
    for index, state in expected["state"].items():
        assert all(torch.equal(saved["state"][index][key], value) for key, value in state.items())
    record, found = (
        json.loads((folder / "checkpoint-6" / RUN_FILE).read_text()) for folder in (whole, tmp_path / "run")
    )
    assert found["run"] == record["run"]


def test_optimizer_state_follows_the_names_of_its_parameters():
    group = {"lr": 0.1, "params": [0, 1]}
    state = {"state": {0: "of a", 1: "of b", 2: "of c"}, "param_groups": [group, {"lr": 0.2, "params": [2, 3]}]}
    found = match_state(state, [["a", "b"], ["c", "d"]], [["d", "c"], ["b", "a"]], Path("checkpoint-3"))
    assert found == {
        "state": {1: "of c", 2: "of b", 3: "of a"},  # d had none yet
        "param_groups": [{"lr": 0.2, "params": [0, 1]}, {"lr": 0.1, "params": [2, 3]}],
    }
    assert match_state(state, [["a", "b"], ["c", "d"]], [["a", "b"], ["c", "d"]], Path()) == state
    with pytest.raises(ValueError, match="divides its parameters into other groups: those of a are not the same"):
        match_state(state, [["a", "b"], ["c", "d"]], [["a"], ["b", "c", "d"]], Path("checkpoint-3"))


def test_checkpoint_that_was_half_removed_when_the_run_was_killed_is_gone_after_resuming(make, copied: Path):
    (copied / "checkpoint-1").mkdir()
    (copied / "checkpoint-1" / "model.safetensors").touch()
    os.utime(copied / "checkpoint-1", (0, 0))
    make(copied, save_total_limit=2).train(resume_from_checkpoint=str(copied / "checkpoint-6"))
    assert sorted(path.name for path in copied.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]


# ---- what may not change ----


def changed(task: str, **settings: Any) -> dict[str, dict[str, Any]]:
    return {**TASKS, task: {**TASKS[task], **settings}}


def other_rows(split: str) -> list[Any]:
    sets = [helpers.make_set(list(TASKS), train=12, validation=4)]
    rows = sets[0].splits[split]
    sets[0].splits[split] = rows.map(
        lambda row, number: {**row, "label_sentiment": (row["label_sentiment"] + (number == 2)) % 3}, with_indices=True
    )
    return sets


REVERSED = {name: TASKS[name] for name in reversed(TASKS)}
MULTI = {**TASKS["sentiment"], "problem_type": "multi_label_classification", "metrics": ["macro_f1"]}
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "labels in another order": (
        {"tasks": changed("sentiment", labels=["positive", "neutral", "negative"])},
        r"tasks\.sentiment\.labels was \['negative', 'neutral', 'positive'\] and is \['positive', 'neutral', 'neg",
    ),
    "one label more": (
        {"tasks": changed("sentiment", labels=[*TASKS["sentiment"]["labels"], "mixed"])},
        r"tasks\.sentiment\.labels was .* and is \['negative', 'neutral', 'positive', 'mixed'\] now",
    ),
    "tasks in another order": (
        {"tasks": REVERSED},
        r"task_order was \['sentiment', 'rating', 'tags'\] and is \['tags', 'rating', 'sentiment'\] now",
    ),
    "single to multi-label": (
        {"tasks": {**TASKS, "sentiment": MULTI}},
        "tasks.sentiment.problem_type was 'single_label_classification' and is 'multi_label_classification' now",
    ),
    "head sizes": (
        {"tasks": changed("rating", head={"hidden_dims": [5]})},
        r"tasks\.rating\.head\.hidden_dims was \[\] and is \[5\] now",
    ),
    "loss weight": (
        {"tasks": changed("rating", loss_weight=3.0)},
        r"tasks\.rating\.loss_weight was 1\.0 and is 3\.0 now",
    ),
    "pooling": ({"model": {"pooling": "max"}}, "pooling was 'mean' and is 'max' now"),
    "projection": ({"model": {"projection": {"out_features": 8}}}, "projection.* was None and is"),
    "max_length": ({"model": {"max_length": 7}}, r"max_length was \d+ and is 7 now"),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        "training.gradient_accumulation_steps was 1 and is 2 now",
    ),
    "batch size": ({"per_device_train_batch_size": 2}, "training.per_device_train_batch_size was 4 and is 2 now"),
    "optimizer": ({"optim": "sgd"}, r"training\.optim was 'adamw_torch\w*' and is 'sgd' now"),
    "weight decay": ({"weight_decay": 0.1}, r"training\.weight_decay was 0\.0 and is 0\.1 now"),
    "schedule": ({"lr_scheduler_type": "cosine"}, "training.lr_scheduler_type was 'linear' and is 'cosine' now"),
    "seed": ({"seed": 7}, "training.seed was 42 and is 7 now"),
    "best by another metric": ({"metric_for_best_model": "loss"}, "metric_for_best_model was 'eval_score' and is 'lo"),
    "frozen parts": (
        {"options": {"strategy": {"freeze": ["embeddings"]}}},
        r"strategy\.freeze was \[\] and is \['embeddings'\] now",
    ),
    "mixture": ({"options": {"mixture": {"sampling": "uniform"}}}, "mixture.sampling was 'proportional' and is 'uni"),
    "balancing": ({"options": {"balancing": "uncertainty"}}, "balancing.method was 'sum' and is 'uncertainty' now"),
    "one training label": (
        {"sets": other_rows("train")},
        "data.sentiment and rating and tags.train is not what it was",
    ),
    "one validation label": (
        {"sets": other_rows("validation")},
        "data.sentiment and rating and tags.validation is not what it was",
    ),
    "one row more": (
        {"sets": [helpers.make_set(list(TASKS), train=13, validation=4)]},
        r"data\.sentiment and rating and tags\.train\.rows was 12 and is 13 now",
    ),
}


@pytest.mark.parametrize(("changes", "message"), CHANGES.values(), ids=CHANGES)
def test_another_run_is_refused_in_one_line_before_anything_is_loaded(changes, message, make, whole, tmp_path):
    trainer = make(tmp_path / "run", **changes)
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        trainer.train(resume_from_checkpoint=str(whole / "checkpoint-3"))
    text = str(caught.value)
    assert text.startswith(f"resume_from_checkpoint: {whole / 'checkpoint-3'} comes from another run: ")
    assert "Go on with what it was, or start a run anew, without --resume_from_checkpoint." in text
    assert "\n" not in text
    assert_same(dict(trainer.model.state_dict()), before)


def test_renamed_task_is_refused(make, whole: Path, tmp_path: Path):
    tasks = {("mood" if name == "sentiment" else name): task for name, task in TASKS.items()}
    entry = helpers.make_set(list(TASKS), train=12, validation=4)
    splits = {split: rows.rename_column("label_sentiment", "label_mood") for split, rows in entry.splits.items()}
    trainer = make(tmp_path, tasks=tasks, sets=[type(entry)(list(tasks), splits)])
    with pytest.raises(
        ValueError, match=r"task_order was \['sentiment', 'rating', 'tags'\] and is \['mood', 'rating',"
    ):
        trainer.train(resume_from_checkpoint=str(whole / "checkpoint-3"))


def test_another_backbone_is_refused(make, whole: Path, tmp_path: Path):
    model = MultiTaskModel.from_backbone(str(helpers.make_backbone(tmp_path / "other")), tasks=TASKS)  # no dropout
    with pytest.raises(ValueError, match=r"backbone_config\.hidden_dropout_prob was 0\.1 and is 0\.0 now"):
        make(tmp_path, model=model).train(resume_from_checkpoint=str(whole / "checkpoint-3"))


def test_other_tokens_are_refused(make, whole: Path, backbone: Path, tmp_path: Path):
    shutil.copytree(backbone, tmp_path / "other")
    for file in (tmp_path / "other").glob("tokenizer.json"):
        file.write_text(file.read_text().replace("word46", "word99"))
    with pytest.raises(ValueError, match="tokenizer is not what it was"):
        make(tmp_path / "run", model={"backbone": str(tmp_path / "other")}).train(
            resume_from_checkpoint=str(whole / "checkpoint-3")
        )


def test_adapter_is_refused_in_the_run_of_a_model_without_and_so_is_another_base(make, whole, backbone, tmp_path):
    peft = pytest.importorskip("peft")

    def with_adapter(folder: Path, base: Path = backbone, rank: int = 2) -> MultiTaskTrainer:
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(str(base), tasks=TASKS)
        model.add_adapter(peft.LoraConfig(r=rank, target_modules=["query"]))
        return make(folder, model=model)

    with pytest.raises(ValueError, match=r"peft\.\w+ was None and is .* now"):
        with_adapter(tmp_path / "first").train(resume_from_checkpoint=str(whole / "checkpoint-3"))
    run = with_adapter(tmp_path / "run")
    run.train()
    checkpoint = str(tmp_path / "run" / "checkpoint-3")
    with pytest.raises(ValueError, match=r"peft\.r was 2 and is 3 now"):
        with_adapter(tmp_path / "second", rank=3).train(resume_from_checkpoint=checkpoint)

    other = AutoModel.from_pretrained(backbone)
    with torch.no_grad():
        other.embeddings.word_embeddings.weight[5] += 1
    other.save_pretrained(tmp_path / "other")
    for file in backbone.glob("*token*"):
        shutil.copy(file, tmp_path / "other")
    with pytest.raises(ValueError, match=r"peft\.base is not what it was"):
        with_adapter(tmp_path / "third", base=tmp_path / "other").train(resume_from_checkpoint=checkpoint)
    resumed = with_adapter(tmp_path / "fourth")
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same(dict(resumed.model.state_dict()), dict(run.model.state_dict()))


def test_record_with_what_json_does_not_know_is_whole_when_read(copied: Path):
    checkpoint = copied / "checkpoint-3"
    write_record(checkpoint, {"nan": float("nan"), 2: "two", 10: "ten", "path": copied}, [["a"]], False)
    check_files(checkpoint, num_processes=1)


def test_another_number_of_processes_is_refused(make, copied: Path, tmp_path: Path):
    record = json.loads((copied / "checkpoint-3" / RUN_FILE).read_text())
    assert record["run"]["processes"] == 1
    record["run"]["processes"] = 2
    del record["hash"]
    (copied / "checkpoint-3" / RUN_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="processes was 2 and is 1 now"):
        make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-3"))


def test_all_differences_are_named_the_first_with_its_values(make, whole: Path, tmp_path: Path):
    trainer = make(tmp_path, tasks=changed("rating", loss_weight=2.0), seed=7, weight_decay=0.5)
    message = r"_weight was 1\.0 and is 2\.0 now \(also different: training\.weight_decay, training\.seed\)\. Go on"
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(whole / "checkpoint-3"))


def test_long_lists_are_told_by_the_first_entry_that_differs(make, tmp_path: Path):
    labels = [f"the label of number {number}" for number in range(30)]
    others = [*labels[:17], labels[18], labels[17], *labels[19:]]
    first, second = (changed("sentiment", labels=names) for names in (labels, others))
    make(tmp_path / "run", tasks=first, num_train_epochs=1).train()
    message = (
        r"tasks\.sentiment\.labels: entry 17 of 30 was 'the label of number 17' and is 'the label of number 18' now"
    )
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "again", tasks=second).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


# ---- what may change ----


class Rates(TrainerCallback):
    """The learning rates of each step, as the optimizer takes it."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
        self.seen.append([group["lr"] for group in optimizer.param_groups])


def resumed_rates(make, folder: Path, checkpoint: Path, **changes: Any) -> list[list[float]]:
    rates = Rates()
    make(folder, options={"callbacks": [rates], **changes.pop("options", {})}, **changes).train(
        resume_from_checkpoint=str(checkpoint)
    )
    return rates.seen


def test_changed_learning_rate_is_said_and_applied(make, whole: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING)
    same = resumed_rates(make, tmp_path / "same", whole / "checkpoint-3")
    assert same[0] == pytest.approx([1e-3 * 3 / 6] * 2), "premise: linear decay over 6 steps"
    assert "learning_rate" not in caplog.text
    found = resumed_rates(make, tmp_path / "run", whole / "checkpoint-3", learning_rate=2e-2)
    assert found == [pytest.approx([2e-2 * left / 6] * 2) for left in (3, 2, 1)]
    line = "training.learning_rate was 0.001 and is 0.02 now; applied from the next step on."
    assert f"{whole / 'checkpoint-3'}: {line}" in caplog.text


def test_more_epochs_are_said_and_follow_the_schedule_of_the_new_length(make, whole, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    found = resumed_rates(make, tmp_path, whole / "checkpoint-3", num_train_epochs=4)
    assert found == [pytest.approx([1e-3 * left / 12] * 2) for left in range(9, 0, -1)]
    line = "training.num_train_epochs was 2 and is 4 now; the learning rate follows the schedule of the new length."
    assert line in caplog.text


def test_rates_that_divide_the_parameters_otherwise_are_refused(make, whole: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="Parts that trained with one learning rate should still train with one"):
        resumed_rates(make, tmp_path, whole / "checkpoint-3", head_learning_rate=0.01)


def test_changed_rate_of_a_part_is_applied_in_stages_too(make, tmp_path: Path):
    def strategy(rate: float) -> dict[str, Any]:
        stages = [{"epochs": 1, "train": "heads"}, {"train": "all"}]
        return {"strategy": {"unfreeze": stages, "learning_rates": {"heads": rate}}}

    make(tmp_path / "run", options=strategy(0.01), num_train_epochs=3).train()
    changed, same = (
        resumed_rates(
            make, tmp_path / name, tmp_path / "run" / "checkpoint-3", options=strategy(rate), num_train_epochs=3
        )
        for name, rate in (("changed", 0.05), ("same", 0.01))
    )
    peaks = [
        {round(rate / (left / 9), 6) for rate in rates} for rates, left in zip(changed, range(6, 0, -1), strict=True)
    ]
    assert all(found == {0.05, 0.001} for found in peaks)
    assert all({round(rate / (6 / 9), 6) for rate in rates} == {0.01, 0.001} for rates in same[:1])


def test_learning_rate_of_a_schedule_without_peak_is_refused(make, tmp_path: Path):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    make(tmp_path / "run", num_train_epochs=1, **options).train()
    trainer = make(tmp_path / "again", learning_rate=0.1, **options)
    with pytest.raises(
        ValueError, match=r"0\.1 now; .* But the schedule reduce_lr_on_plateau makes up its rates as it"
    ):
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def test_schedule_without_peak_goes_on_where_it_was(make, tmp_path: Path):
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss"}
    make(tmp_path / "run", **options).train()
    resumed = make(tmp_path / "again", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert_same(dict(resumed.model.state_dict()), load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors"))


def test_plateau_of_an_earlier_version_goes_on_as_it_began(make, tmp_path: Path):
    """Its mode was `min`, whatever the metric, and no argument said so."""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "eval_score"}
    make(tmp_path / "run", **plateau, lr_scheduler_kwargs={"mode": "min"}).train()
    checkpoint = tmp_path / "run" / "checkpoint-3"
    record = json.loads((checkpoint / RUN_FILE).read_text())
    record["run"]["training"]["lr_scheduler_kwargs"] = None
    del record["hash"]
    (checkpoint / RUN_FILE).write_text(json.dumps(record))
    resumed = make(tmp_path / "again", **plateau)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.lr_scheduler.mode == "min"
    assert_same(dict(resumed.model.state_dict()), load_file(tmp_path / "run" / "checkpoint-6" / "model.safetensors"))


def test_changed_logging_is_applied(make, whole: Path, tmp_path: Path):
    trainer = make(tmp_path, logging_steps=2)
    trainer.train(resume_from_checkpoint=str(whole / "checkpoint-3"))
    steps = [entry["step"] for entry in trainer.state.log_history if "loss" in entry and entry["step"] > 3]
    assert steps == [4, 6]
    assert_same(dict(trainer.model.state_dict()), load_file(whole / "checkpoint-6" / "model.safetensors"))


def test_nothing_left_to_train_is_said_and_a_step_beyond_the_end_refused(make, whole: Path, tmp_path: Path, caplog):
    caplog.set_level(logging.WARNING)
    trainer = make(tmp_path / "run")
    trainer.train(resume_from_checkpoint=str(whole / "checkpoint-6"))
    assert f"{whole / 'checkpoint-6'} is of the last step, 6: nothing is left to train." in caplog.text
    assert_same(dict(trainer.model.state_dict()), load_file(whole / "checkpoint-6" / "model.safetensors"))
    with pytest.raises(ValueError, match=r"-6 is of step 6, but the run now ends at step 3\. Train for more"):
        make(tmp_path / "shorter", num_train_epochs=1).train(resume_from_checkpoint=str(whole / "checkpoint-6"))


def test_run_that_ends_inside_an_epoch_is_finished_at_its_last_checkpoint(make, tmp_path: Path):
    options = {"max_steps": 4, "lr_scheduler_type": "constant"}
    make(tmp_path / "run", **options).train()
    last = tmp_path / "run" / "checkpoint-4"
    trainer = make(tmp_path / "again", **options)
    trainer.train(resume_from_checkpoint=str(last))
    assert trainer.state.global_step == 4
    assert_same(dict(trainer.model.state_dict()), load_file(last / "model.safetensors"))
    assert not list((tmp_path / "again").glob("checkpoint-*"))


class KilledAtStep4(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt


def test_later_checkpoints_are_put_aside_where_a_run_goes_on_before_them(make, copied: Path, caplog):
    caplog.set_level(logging.WARNING)
    trainer = make(copied, options={"callbacks": [KilledAtStep4()]}, learning_rate=1e-4)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=str(copied / "checkpoint-3"))
    assert last_checkpoint(copied) == copied / "checkpoint-3"
    assert (copied / LEFT / "checkpoint-6" / RUN_FILE).exists()
    assert f"checkpoint-6 lies in {copied / LEFT} now." in caplog.text


def test_later_checkpoints_stay_where_a_run_goes_on_elsewhere(make, copied: Path, tmp_path: Path):
    make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-3"))
    assert last_checkpoint(copied) == copied / "checkpoint-6"


# ---- all parts, and whole ----

PARTS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "config.json")


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "earlier version"])
@pytest.mark.parametrize("part", PARTS)
def test_checkpoint_without_one_of_its_parts_is_refused(part: str, recorded: bool, make, copied, tmp_path):
    if not recorded:
        without_record(copied)
    (copied / "checkpoint-6" / part).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint-6 lacks {part}, without which a run cannot go on\.") as caught:
        make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-6"))
    assert f"An earlier one is whole: --resume_from_checkpoint {copied / 'checkpoint-3'}." in str(caught.value)


def test_checkpoint_without_its_record_was_not_written_to_its_end(make, copied: Path, tmp_path: Path, caplog):
    (copied / "checkpoint-6" / RUN_FILE).unlink()
    with pytest.raises(ValueError, match=r"checkpoint-6 lacks run\.json, its last file: saving it was interrupted"):
        make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-6"))
    caplog.set_level(logging.WARNING)
    assert last_checkpoint(copied) == copied / "checkpoint-3"
    assert f"{copied / 'checkpoint-6'} was not written to its end" in caplog.text


def test_checkpoint_of_the_model_only_is_refused(make, tmp_path: Path):
    make(tmp_path / "run", num_train_epochs=1, save_only_model=True).train()
    message = (
        r"lacks optimizer\.pt, scheduler\.pt and the random numbers: it was saved with save_only_model\. No earlier"
    )
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def overwrite(content: bytes) -> bytes:
    return b"\xff\xfe not what it was"


def flip(content: bytes) -> bytes:
    """One bit of what the file holds, beyond its header."""
    place = len(content) * 3 // 4
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def empty(content: bytes) -> bytes:
    return b"{}"


def another_kind(content: bytes) -> bytes:
    return b"[]"


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        *((part, damage) for part in (*PARTS, RUN_FILE) for damage in (cut, overwrite, flip)),
        *((RUN_FILE, damage) for damage in (empty, another_kind)),
    ],
)
def test_damaged_file_is_named_with_the_checkpoint_that_is_whole(part: str, damage, make, copied, tmp_path):
    file = copied / "checkpoint-6" / part
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"checkpoint-6 is damaged: {part} is not what was written") as caught:
        make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-6"))
    assert f"An earlier one is whole: --resume_from_checkpoint {copied / 'checkpoint-3'}." in str(caught.value)


@pytest.mark.parametrize("damage", [cut, overwrite])
@pytest.mark.parametrize("part", PARTS)
def test_damaged_file_of_an_earlier_version_is_named_too(part: str, damage, make, copied: Path, tmp_path: Path):
    without_record(copied)
    for step in (3, 6):
        file = copied / f"checkpoint-{step}" / part
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"checkpoint-6 is damaged: {part} is not what was written") as caught:
        make(tmp_path / "again").train(resume_from_checkpoint=str(copied / "checkpoint-6"))
    assert "No earlier one is whole: start anew" in str(caught.value)


# ---- the best checkpoint so far ----

BEST_IS_FIRST = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


@pytest.fixture
def best_is_first(make, tmp_path: Path) -> Path:
    """A run that ends with its checkpoint of step 3, in a folder that has been moved since."""
    trainer = make(tmp_path / "first", **BEST_IS_FIRST)
    trainer.train()
    assert trainer.state.best_global_step == 3, "premise: the loss on validation data rises"
    (tmp_path / "first").rename(tmp_path / "moved")
    return tmp_path / "moved"


def test_best_checkpoint_is_found_where_the_folder_was_moved(make, best_is_first: Path, tmp_path: Path):
    resumed = make(best_is_first, **BEST_IS_FIRST)
    resumed.train(resume_from_checkpoint=str(best_is_first / "checkpoint-6"))
    best = load_file(best_is_first / "checkpoint-3" / "model.safetensors")
    assert_same(dict(resumed.model.state_dict()), best)


def test_best_checkpoint_that_is_gone_or_damaged_is_refused(make, best_is_first: Path):
    checkpoint, best = best_is_first / "checkpoint-6", best_is_first / "checkpoint-3"
    content = (best / "model.safetensors").read_bytes()
    (best / "model.safetensors").write_bytes(cut(content))
    with pytest.raises(ValueError, match=r"checkpoint-3 is damaged: model\.safetensors is not what was written"):
        make(best_is_first, **BEST_IS_FIRST).train(resume_from_checkpoint=str(checkpoint))
    shutil.rmtree(best)
    with pytest.raises(ValueError, match=r"the best checkpoint before .*checkpoint-6, checkpoint-3, is gone"):
        make(best_is_first, **BEST_IS_FIRST).train(resume_from_checkpoint=str(checkpoint))
    make(best_is_first, **{**BEST_IS_FIRST, "load_best_model_at_end": False}).train(
        resume_from_checkpoint=str(checkpoint)
    )


# ---- checkpoints of earlier versions ----


def test_checkpoint_of_an_earlier_version_goes_on_with_a_warning(make, whole, copied: Path, tmp_path: Path, caplog):
    without_record(copied)
    caplog.set_level(logging.WARNING)
    resumed = make(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(copied / "checkpoint-3"))
    assert "checkpoint-3 comes from an earlier version, which did not record its run." in caplog.text
    assert_same(dict(resumed.model.state_dict()), load_file(whole / "checkpoint-6" / "model.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        CHANGES["labels in another order"],
        CHANGES["pooling"],
        ({"tasks": REVERSED}, r"has the shape \(.*\), but the optimizer of .*checkpoint-3 was training one of"),
        (CHANGES["frozen parts"][0], r"has groups of \[.*\] parameters, but that of this run has \["),
        (CHANGES["accumulation"][0] | {"num_train_epochs": 1}, "is of step 3, but the run now ends at step 2"),
    ],
    ids=["labels", "pooling", "order", "frozen", "accumulation"],
)
def test_another_run_than_that_of_an_earlier_version_is_refused(changes, message, make, copied, tmp_path):
    without_record(copied)
    with pytest.raises(ValueError, match=message):
        make(tmp_path / "again", **changes).train(resume_from_checkpoint=str(copied / "checkpoint-3"))
