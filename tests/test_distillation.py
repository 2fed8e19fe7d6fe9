"""Training that learns from teachers: the mixed loss, its schedule, and a run that is the same however it is cut."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from helpers import trainer as helpers
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.modeling_multitask import MultiTaskModel
from multitask_sentence.training.distillation.lessons import Lessons
from multitask_sentence.training.distillation.report import _joint_answers
from multitask_sentence.training.distillation.settings import Distillation, TeacherName
from multitask_sentence.training.distillation.teachers import open_teacher
from multitask_sentence.training.resuming.files import read_record, write_record

SINGLE = list(helpers.MEAN_LOSS_TASKS)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    return tmp_path / "datasets" / "multitask_teachers"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def teacher(backbone, tmp_path_factory) -> str:
    """A model with every task that knows something else than the student's start."""
    folder = tmp_path_factory.mktemp("teacher")
    model = helpers.make_model(backbone)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return str(folder)


def make_lessons(
    teacher: str, model: MultiTaskModel, tasks: list[str] | None = None, unlabeled: Any = None, **settings: Any
) -> Lessons:
    names = {task: (TeacherName(teacher),) for task in (tasks or model.config.tasks)}
    opened = {task: [open_teacher(task, *found, model.config.tasks[task])] for task, found in names.items()}
    return Lessons(Distillation(names, **settings), opened, unlabeled)


def all_sets(**counts: int) -> list[LabelledSet]:
    sets = [helpers.make_set(SINGLE, {"sentiment": 0.7, "tags": 0.3, "rating": 0.4}, **counts)]
    return sets + [helpers.make_set([task], seed=seed, **counts) for seed, task in ((100, "pairs"), (200, "search"))]


def run(
    backbone: Path,
    folder: Path,
    sets: list[LabelledSet],
    teacher: str | None,
    settings: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    checkpoint: str | None = None,
    **arguments: Any,
):
    """A run's gradients by step, and its trainer."""
    tasks = tuple(task for entry in sets for task in entry.tasks)
    model = helpers.make_model(backbone, tasks)
    lessons = make_lessons(teacher, model, **(settings or {})) if teacher else None
    recorder = helpers.GradientRecorder()
    options = {"callbacks": [recorder], "lessons": lessons, **(options or {})}
    trainer = helpers.make_trainer(model, sets, folder, options, **{"per_device_train_batch_size": 8, **arguments})
    helpers.train_from(checkpoint, trainer)
    return recorder.steps, trainer


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("balancing", [None, "dwa"])
def test_loss_is_the_weighted_sum_of_the_tasks_losses_and_the_share_grows(balancing, backbone, teacher, tmp_path):
    options = {"balancing": balancing}
    _, trainer = run(backbone, tmp_path, all_sets(train=16), teacher, options=options, num_train_epochs=2)
    entries = logged(trainer)
    for entry in entries:
        weights = {task: entry.get(f"weight_{task}", settings.loss_weight) for task, settings in trainer.tasks.items()}
        expected = sum(weight * entry[f"loss_{task}"] for task, weight in weights.items())
        assert entry["loss"] == pytest.approx(expected, rel=1e-4)
    last = len(entries) - 1
    assert [entry["label_share"] for entry in entries] == pytest.approx([step / last for step in range(last + 1)])


def test_gradients_are_those_of_the_mixed_target(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["rating"], train=8, validation=2)]
    (found,), trainer = run(
        backbone, tmp_path, sets, teacher, {"schedule": 0.25, "rows": "own"}, **helpers.without_learning()
    )
    answers = MultiTaskModel.from_pretrained(teacher).predict(
        [row[0] for row in sets[0].splits["train"]["sentences"]], "rating"
    )["rating"]["values"]
    mixed = sets[0].splits["train"].to_dict()
    mixed["label_rating"] = [
        0.25 * label + 0.75 * float(value) for label, value in zip(mixed["label_rating"], answers, strict=True)
    ]
    model = helpers.make_model(backbone, ("rating",))
    scale = {key: getattr(trainer.tasks["rating"], key) for key in ("target_mean", "target_deviation")}
    model.config.change_task("rating", **scale)
    expected = helpers.train_gradients(
        model,
        [LabelledSet(["rating"], {"train": datasets.Dataset.from_dict(mixed)})],
        tmp_path,
        per_device_train_batch_size=8,
        **helpers.without_learning(),
    )
    for name, gradient in expected[0].items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("task", list(helpers.TASKS))
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_student_that_equals_its_teacher_starts_with_a_gradient_of_zero(task, temperature, backbone, tmp_path):
    sets, same = [helpers.make_set([task], train=8)], helpers.make_model(backbone, (task,))
    if task == "rating":  # values in the units of the labels, as the student's
        values = np.array(sets[0].splits["train"]["label_rating"])
        scale = {"target_mean": float(values.mean()), "target_deviation": float(values.std())}
        same.config.change_task("rating", **scale)
    same.save_pretrained(tmp_path / "same")
    settings = {"schedule": 0.0, "temperature": temperature}
    arguments = {"num_train_epochs": 1, **helpers.without_learning()}
    (found,), _ = run(backbone, tmp_path, sets, str(tmp_path / "same"), settings, **arguments)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=2e-5, msg=name)
    (others,), _ = run(backbone, tmp_path, sets, None, **arguments)
    assert max(gradient.abs().max() for gradient in others.values()) > 1e-3, "premise: labels would teach something"


@pytest.mark.parametrize("rows", ["own", "all"])
def test_share_one_trains_bit_for_bit_as_without_teachers(rows, backbone, teacher, tmp_path):
    sets = all_sets(train=16)
    weights = []
    for settings in (None, {"schedule": 1.0, "rows": rows}):
        _, trainer = run(backbone, tmp_path, sets, teacher if settings else None, settings, num_train_epochs=2)
        weights.append({name: tensor.clone() for name, tensor in trainer.model.state_dict().items()})
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_gradients_do_not_depend_on_how_a_step_is_cut(backbone, teacher, tmp_path):
    sets = [helpers.make_set(SINGLE, {"sentiment": 0.5, "tags": 0.3, "rating": 0.4}, train=8)]
    settings = {"schedule": 0.3, "temperature": 2.0}
    found = []
    for batch_size, accumulation in ((8, 1), (2, 4), (3, 3)):
        (gradients,), trainer = run(
            backbone,
            tmp_path,
            sets,
            teacher,
            settings,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            **helpers.without_learning(),
        )
        found.append((gradients, logged(trainer)[0]["loss"]))
    for gradients, loss in found[1:]:
        assert loss == pytest.approx(found[0][1], rel=1e-5)
        for name, gradient in found[0][0].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_rows_without_a_label_teach_by_their_answers_alone(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=4), helpers.make_set(["rating"], seed=50, train=4)]
    only_sentiment = {"settings": {"tasks": ["sentiment"], "schedule": 0.5, "rows": "all"}}
    trainer = run(backbone, tmp_path, sets, teacher, **only_sentiment, **helpers.without_learning())[1]
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(8)])
    assert len(batch["labels"]["sentiment"]) == 4
    assert len(batch["task_rows"]["sentiment"]) == len(batch["teacher_targets"]["sentiment"]) == 8
    assert set(batch["teacher_targets"]) == {"sentiment"}
    probabilities = MultiTaskModel.from_pretrained(teacher).predict(
        [row[0] for row in sets[1].splits["train"]["sentences"]], "sentiment"
    )["sentiment"]["probabilities"]
    torch.testing.assert_close(
        batch["teacher_targets"]["sentiment"][4:], torch.from_numpy(probabilities), rtol=1e-4, atol=1e-5
    )


def test_labelled_rows_come_first_and_answered_ones_last_whatever_their_order(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment", "rating"], {"sentiment": 0.5}, train=10, validation=3)]
    train = sets[0].splits["train"].to_dict()
    train["sentences"][0] = sets[0].splits["validation"]["sentences"][0]  # labelled, but never answered
    sets[0].splits["train"] = datasets.Dataset.from_dict(train)
    trainer = run(backbone, tmp_path, sets, teacher, {"tasks": ["sentiment"], "schedule": 0.5})[1]
    rows = [trainer.train_dataset[row] for row in reversed(range(10))]
    batch = trainer.data_collator(rows)
    labels = [row["label_sentiment"] for row in rows if row["label_sentiment"] is not None]
    assert sorted(batch["labels"]["sentiment"].tolist()) == sorted(labels)
    assert batch["labels"]["sentiment"][0] == train["label_sentiment"][0], "it was never answered"
    assert len(batch["teacher_targets"]["sentiment"]) == 9
    assert len(batch["task_rows"]["sentiment"]) == 10


def test_frozen_backbone_learns_from_teachers_as_from_tokens(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=8, validation=4)]
    frozen = {"strategy": {"freeze": "backbone"}}
    losses = []
    for is_cached in (True, False):
        _, trainer = run(
            backbone, tmp_path, sets, teacher, options=frozen, feature_cache=is_cached, eval_strategy="epoch"
        )
        losses.append([entry["loss"] for entry in logged(trainer)])
        assert trainer.model.backbone.training is False
    assert losses[0] == losses[1]


def test_unlabelled_text_is_drawn_and_answered_and_has_passes_of_its_own(backbone, teacher, tmp_path):
    more = datasets.Dataset.from_dict({"sentences": [[sentence] for sentence in helpers.make_sentences(12, 77)]})
    sets = [helpers.make_set(["sentiment"], train=8)]
    options = {"mixture": {"passes": {"more": 0.5}}}
    settings = {"unlabeled": {"more": more}, "rows": "own"}
    _, trainer = run(backbone, tmp_path, sets, teacher, settings, options)
    assert [(entry.tasks, entry.rows_per_epoch) for entry in trainer.drawn] == [(["sentiment"], 8), ([], 6)]
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 8, 19)])
    assert len(batch["labels"]["sentiment"]) == 1
    assert len(batch["teacher_targets"]["sentiment"]) == 3


def test_only_teachers_of_named_tasks_are_asked_about_unlabelled_text(backbone, teacher, tmp_path):
    texts = [[sentence] for sentence in helpers.make_sentences(12, 77)]
    more = {name: datasets.Dataset.from_dict({"sentences": texts}) for name in ("messages", "others")}
    model = helpers.make_model(backbone, ("sentiment", "rating"))
    lessons = make_lessons(teacher, model)
    sets = [helpers.make_set([task], seed=seed, train=8) for seed, task in ((1, "sentiment"), (2, "rating"))]
    settings = {"messages": {"tasks": ["rating"]}, "others": {}}
    lessons = Lessons(replace(lessons.settings, unlabeled=settings), lessons.teachers, more)
    trainer = helpers.make_trainer(model, sets, tmp_path, {"lessons": lessons}, per_device_train_batch_size=8)
    trainer.train()
    answered = [
        {name for name in rows.column_names if name.startswith("teacher_")} for rows in trainer.train_dataset.sets
    ]
    assert answered[2:] == [{"teacher_rating"}, {"teacher_sentiment", "teacher_rating"}]


@pytest.mark.parametrize(("asked", "expected"), [({}, [8, 1, 8, 1]), ({"others": 4, "more": 2}, [8, 1, 4, 2])])
def test_unlabelled_pairs_stand_together_as_those_of_a_task_that_compares_them(
    asked, expected, backbone, teacher, tmp_path
):
    sentences = helpers.make_sentences(24, 77)
    others = datasets.Dataset.from_dict({"sentences": list(zip(sentences[:12], sentences[12:], strict=True))})
    more = datasets.Dataset.from_dict({"sentences": [[sentence] for sentence in sentences]})
    sets = [helpers.make_set([task], seed=seed, train=16) for seed, task in ((100, "pairs"), (1, "sentiment"))]
    settings = {"unlabeled": {"others": others, "more": more}}
    _, trainer = run(backbone, tmp_path, sets, teacher, settings, {"mixture": {"rows_per_batch": asked}})
    assert [entry.least_rows for entry in trainer.drawn] == expected
    assert [entry.unlabeled for entry in trainer.drawn] == [None, None, "others", "more"]


@pytest.mark.parametrize("step", [2, 5])
def test_resumed_run_equals_an_uninterrupted_one(step, backbone, teacher, tmp_path):
    arguments = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 9}
    arguments["gradient_accumulation_steps"] = 2
    sets = all_sets(train=16)
    _, whole = run(backbone, tmp_path, sets, teacher, **arguments)
    expected = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    checkpoint = str(tmp_path / f"checkpoint-{step}")
    _, resumed = run(backbone, tmp_path, sets, teacher, checkpoint=checkpoint, **arguments)
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    shares = [[entry["label_share"] for entry in logged(trainer)][-2:] for trainer in (whole, resumed)]
    assert shares[0] == shares[1]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": 2.0}, "distillation.temperature was 1.0 and is 2.0 now"),
        ({"rows": "own"}, "distillation.rows was 'all' and is 'own' now"),
        ({"schedule": 0.5}, "distillation.schedule was 'annealing' and is 0.5 now"),
        ({"tasks": ["rating"]}, "distillation.teachers.sentiment"),
        (None, "distillation"),
    ],
)
def test_run_goes_on_with_the_same_lessons_alone(changed, message, backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment", "rating"], train=8)]
    arguments = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "num_train_epochs": 2}
    run(backbone, tmp_path, sets, teacher, **arguments)
    checkpoint = str(tmp_path / "checkpoint-1")
    with pytest.raises(ValueError, match=message):
        run(
            backbone,
            tmp_path,
            sets,
            teacher if changed is not None else None,
            changed,
            checkpoint=checkpoint,
            **arguments,
        )


def test_run_goes_on_with_the_same_rows_kept_from_its_teachers_alone(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=8, test=4)]
    arguments = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 9, "num_train_epochs": 2}
    run(backbone, tmp_path, sets, teacher, **arguments)
    checkpoint = tmp_path / "checkpoint-1"
    test = sets[0].splits["test"].to_dict()
    test["sentences"][0] = ["another test row"]
    sets[0].splits["test"] = datasets.Dataset.from_dict(test)
    run(backbone, tmp_path, sets, teacher, checkpoint=str(checkpoint), **arguments)
    test["sentences"][1] = sets[0].splits["train"]["sentences"][2]  # which is no longer answered
    sets[0].splits["test"] = datasets.Dataset.from_dict(test)
    with pytest.raises(ValueError, match="text_kept_from_teachers is not what it was"):
        run(backbone, tmp_path, sets, teacher, checkpoint=str(checkpoint), **arguments)
    # A checkpoint from before this was recorded is gone on from.
    record = read_record(checkpoint)
    del record["run"]["text_kept_from_teachers.content"]
    write_record(checkpoint, record["run"], record["optimizer"], record["save_only_model"])
    run(backbone, tmp_path, sets, teacher, checkpoint=str(checkpoint), **arguments)


def test_joint_model_is_scored_in_the_precision_of_the_student(backbone, tmp_path):
    sets = all_sets(train=4, validation=12)
    trainer = helpers.make_trainer(helpers.make_model(backbone), sets, tmp_path / "run", bf16=True)
    trainer.model.save_pretrained(tmp_path / "joint")
    own = trainer.predictions("validation", trainer.tasks)
    found = _joint_answers(tmp_path / "joint", trainer, dict.fromkeys(trainer.tasks, "validation"))
    for task, answers in own.items():
        np.testing.assert_array_equal(found[task][1], answers.predictions, err_msg=task)


def test_trainer_that_trains_again_asks_nothing_again_and_lessons_serve_one_trainer(backbone, teacher, tmp_path):
    sets = [helpers.make_set(["sentiment"], train=8)]
    model = helpers.make_model(backbone, ("sentiment",))
    lessons = make_lessons(teacher, model)
    trainer = helpers.make_trainer(model, sets, tmp_path, {"lessons": lessons})
    trainer.train()
    targets = trainer.data_collator.targets
    trainer.train()
    assert trainer.data_collator.targets is targets and targets
    with pytest.raises(ValueError, match=r"no teachers to ask\. Lessons are for one trainer"):
        helpers.make_trainer(model, sets, tmp_path, {"lessons": lessons}).train()


def test_worker_processes_read_the_answers(backbone, teacher, tmp_path):
    sets, losses = [helpers.make_set(["sentiment", "rating"], train=16)], []
    for workers in (0, 2):
        _, trainer = run(backbone, tmp_path, sets, teacher, dataloader_num_workers=workers)
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert losses[0] == losses[1]
