"""The recipe's mixture block: what it is read as, what is wrong with one, and what the trainer draws by it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from helpers import trainer as helpers
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.training.card.body import _task_rows
from multitask_sentence.training.mixture.drawing import DrawnSet, describe_epoch
from multitask_sentence.training.mixture.settings import MixtureConfig
from multitask_sentence.training.recipe.recipe import load_recipe

GROUPS = [["sentiment", "topic"], ["similarity"]]  # the first two read one data set


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


def make_trainer(
    backbone: Path, folder: Path, mixture: dict[str, Any] | None, sets: list | None = None, **kwargs: Any
):
    sets = sets or [
        helpers.make_set(["sentiment", "rating"], train=90),
        helpers.make_set(["pairs"], seed=100, train=10),
        helpers.make_set(["search"], seed=200, train=40),
    ]
    model = helpers.make_model(backbone, tuple(task for labelled_set in sets for task in labelled_set.tasks))
    return helpers.make_trainer(model, sets, folder, {"mixture": mixture}, **kwargs)


# The block


def test_mixture_that_says_nothing_gets_the_defaults():
    mixture = MixtureConfig.from_recipe({"rates": None})
    assert MixtureConfig.from_recipe(None) == mixture
    assert (mixture.sampling, mixture.batches, mixture.to_recipe()) == ("proportional", "mixed", {})
    assert mixture.for_sets(GROUPS) == mixture


def test_mixture_is_written_as_a_recipe_says_it():
    said = {"sampling": "temperature", "temperature": 2, "max_rows": {"topic": 50}}
    mixture = MixtureConfig.from_recipe({**said, "batches": "mixed"})
    assert mixture.to_recipe() == said
    assert mixture.for_sets(GROUPS).max_rows == {"topic": 50, "sentiment": 50}


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (
            {"sampling": "uniformly"},
            r"mixture\.sampling is 'uniformly', .*one of proportional, uniform, .* Did you me",
        ),
        ({"samplng": "uniform"}, r"mixture: unknown key 'samplng'\. Did you mean 'sampling'\?"),
        ({"batches": "single"}, r"mixture\.batches is 'single', .*one of mixed, single_task\. Did you mean 'single_t"),
        ({"sampling": "temperature", "temperature": 0}, r"mixture\.temperature is 0, but should be a number above 0"),
        (
            {"sampling": "temperature", "temperature": -1},
            r"mixture\.temperature is -1, but should be a number above 0",
        ),
        ({"sampling": "temperature", "temperature": True}, r"mixture\.temperature is True, but should be a number"),
        ({"sampling": "temperature"}, r"mixture\.temperature is missing: .*1 is proportional, 2 is sqrt"),
        ({"temperature": 2}, r"mixture\.temperature goes with sampling: temperature, but sampling is proportional"),
        (
            {"rates": {"similarity": 1}},
            r"mixture\.rates goes with sampling: rates, but sampling is proportional\. Rem",
        ),
        (
            {"sampling": "uniform", "passes": {"similarity": 2}},
            r"mixture\.passes goes with sampling: proportional, but sampling is uniform\. Remove one",
        ),
        ({"passes": {"similarity": 2}, "epoch_rows": 9}, r"mixture\.passes and mixture\.epoch_rows both say how long"),
        ({"epoch_rows": 1.5}, r"mixture\.epoch_rows is 1\.5, but should be a whole number above 0"),
        ({"max_rows": {"topic": 0}}, r"mixture\.max_rows\.topic is 0, but should be a whole number above 0"),
        ({"max_rows": 100}, r"mixture\.max_rows is 100, but should be a mapping \(lines of `task: number`\)"),
        (
            {"batches": "single_task", "rows_per_batch": {"similarity": 8}},
            r"mixture\.rows_per_batch has no meaning with batches: single_task",
        ),
        ({"sampling": "rates"}, r"mixture\.rates gives none for 'sentiment' or 'topic'\. Every data set needs one"),
        ({"sampling": "rates", "rates": {"topic": 1}}, r"mixture\.rates gives none for 'similarity'"),
        (
            {"sampling": "rates", "rates": {"topic": 0.5, "similarity": 0.4}},
            r"rates sum to 0\.9, but should sum to 1: .*\(sentiment and topic read one data set, which counts once\)",
        ),
        (
            {"sampling": "rates", "rates": {"topic": 0.4, "sentiment": 0.4, "similarity": 0.2}},
            r"mixture\.rates sum to 0\.6, but should sum to 1",
        ),
        (
            {"sampling": "rates", "rates": {"topic": 0.5, "sentiment": 0.3, "similarity": 0.2}},
            r"mixture\.rates: sentiment, topic share one data set, .*different values: .*Give the val",
        ),
        ({"passes": {"topic": 2, "sentiment": 1}}, r"mixture\.passes: sentiment, topic share one data set"),
        ({"max_rows": {"topic": 2, "sentiment": 1}}, r"mixture\.max_rows: sentiment, topic share one data set"),
        (
            {"sampling": "rates", "rates": {"topics": 1}},
            r"mixture\.rates: unknown key 'topics'\. Did you mean 'topic'",
        ),
        ({"sampling": "rates", "rates": {"topic": 0}}, r"mixture\.rates\.topic is 0, but should be a number above 0"),
    ],
)
def test_wrong_mixture_is_named_with_its_mend(mixture: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MixtureConfig.from_recipe(mixture).for_sets(GROUPS)


@pytest.mark.parametrize("rates", [{"topic": 0.7}, {"sentiment": 0.7}, {"topic": 0.7, "sentiment": 0.7}])
def test_tasks_of_one_set_have_one_rate(rates: dict[str, float]):
    mixture = MixtureConfig(sampling="rates", rates={**rates, "similarity": 0.3}).for_sets(GROUPS)
    assert mixture.rates == {"topic": 0.7, "sentiment": 0.7, "similarity": 0.3}


def test_recipe_checks_rates_for_the_data_sets_before_any_is_loaded(tmp_path: Path):
    sentences = {"dataset": {"path": "csv", "data_files": {"train": "absent.csv"}}}
    task = {"problem_type": "regression", "columns": {"sentence": "text", "label": "first"}, **sentences}
    tasks = {"one": task, "other": {**task, "columns": {"sentence": "text", "label": "second"}}}
    tasks["third"] = {**task, "columns": {"sentence": "title", "label": "first"}}
    path = tmp_path / "mine.yaml"

    def load(**rates: float):
        path.write_text(yaml.safe_dump({"tasks": tasks, "mixture": {"sampling": "rates", "rates": rates}}))
        return load_recipe(path)

    assert load(one=0.75, third=0.25).mixture.rates == {"one": 0.75, "third": 0.25}
    with pytest.raises(
        ValueError, match=r"mine\.yaml: mixture\.rates sum to 0\.75, .*one and other read one data set"
    ):
        load(one=0.5, other=0.5, third=0.25)


# What the trainer draws


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (None, [90, 10, 40]),
        ({"passes": {"rating": 0.5, "pairs": 3}}, [45, 30, 40]),  # said for one task of the set
        ({"sampling": "uniform"}, [47, 47, 46]),
        ({"sampling": "sqrt"}, [70, 23, 47]),  # 9.487 : 3.162 : 6.325
        ({"sampling": "temperature", "temperature": 1}, [90, 10, 40]),
        ({"sampling": "rates", "rates": {"sentiment": 0.5, "pairs": 0.3, "search": 0.2}}, [70, 42, 28]),
        ({"epoch_rows": 28}, [18, 2, 8]),
        ({"sampling": "uniform", "epoch_rows": 30}, [10, 10, 10]),
        ({"max_rows": {"sentiment": 30}}, [30, 10, 40]),
        ({"max_rows": {"sentiment": 30, "pairs": 99}, "sampling": "uniform"}, [27, 27, 26]),
        ({"max_rows": {"sentiment": 30}, "passes": {"sentiment": 2}}, [60, 10, 40]),
    ],
)
def test_epoch_takes_the_rows_that_the_rule_says(mixture, expected, backbone, tmp_path):
    assert make_trainer(backbone, tmp_path, mixture).sampler.rows_per_epoch == expected


@pytest.mark.parametrize(
    ("mixture", "rows_per_epoch", "sizes"),
    [
        ({"sampling": "rates", "rates": {"sentiment": 0.25, "rating": 0.75}}, [15, 45], [30, 30]),
        ({"passes": {"sentiment": 3}}, [90, 30], [30, 30]),
        ({"max_rows": {"sentiment": 5}}, [5, 30], [5, 30]),
    ],
)
def test_what_is_said_for_a_task_that_does_not_train_holds_for_its_set(
    mixture, rows_per_epoch, sizes, backbone, tmp_path
):
    sets = [helpers.make_set(["sentiment", "tags"], train=30), helpers.make_set(["rating"], seed=9, train=30)]
    model = helpers.make_model(backbone, ("sentiment", "tags", "rating"))
    options = {"mixture": mixture, "strategy": {"freeze": ["backbone", {"heads": ["sentiment"]}]}}
    trainer = helpers.make_trainer(model, sets, tmp_path, options)
    assert (trainer.sampler.rows_per_epoch, trainer.sampler.sizes) == (rows_per_epoch, sizes)


def test_rule_that_leaves_a_set_without_a_row_is_an_error(backbone, tmp_path):
    with pytest.raises(ValueError, match=r"an epoch would hold \[89, 0, 2\] rows of the sets; each needs at least 1"):
        make_trainer(backbone, tmp_path, {"sampling": "temperature", "temperature": 0.2, "epoch_rows": 91})


def test_max_rows_keeps_the_same_rows_in_every_epoch_and_says_so(backbone, tmp_path, caplog):
    trainer = make_trainer(backbone, tmp_path, {"max_rows": {"sentiment": 30}})
    seen = []
    for epoch in range(3):
        trainer.sampler.set_epoch(epoch)
        rows = [row for batch in trainer.sampler for row in batch if row < 30]
        seen.append([trainer.train_dataset[row]["sentences"][0] for row in rows])
    assert len(set(seen[0])) == 30
    assert set(seen[0]) == set(seen[1]) == set(seen[2])
    assert seen[0] != seen[1]
    assert [line for line in caplog.messages if "max_rows" in line] == [
        "sentiment, rating: 30 of 90 training rows are used, the same in every epoch (max_rows, seed 42)"
    ]
    caplog.clear()
    make_trainer(backbone, tmp_path, {"max_rows": {"sentiment": 90}})
    assert not any("max_rows" in line for line in caplog.messages)


def test_max_rows_that_leave_a_task_without_a_label_are_an_error(backbone, tmp_path):
    sets = [helpers.make_set(["sentiment", "rating"], {"rating": 0.0}, train=50)]  # only the first row has both labels
    with pytest.raises(
        ValueError, match=r"Task 'rating' has no labelled row among the 3 training rows .*raise mixtur"
    ):
        make_trainer(backbone, tmp_path, {"max_rows": {"rating": 3}}, sets)


def test_rows_that_stand_together_are_counted_by_those_that_are_labelled(backbone, tmp_path):
    sets = [helpers.make_set(["pairs"], {"pairs": 0.0}, train=20)]
    sets[0].splits["train"] = (
        sets[0].splits["train"].map(lambda _, row: {"label_pairs": 3.0 if row < 5 else None}, with_indices=True)
    )
    sampler = make_trainer(backbone, tmp_path, {"rows_per_batch": {"pairs": 2}}, sets).sampler
    assert sampler.least_rows == [8]  # one row in four is labelled
    assert min(map(len, sampler)) >= 8
    assert make_trainer(backbone, tmp_path, {"rows_per_batch": {"pairs": 30}}, sets).sampler.least_rows == [32]
    assert make_trainer(backbone, tmp_path, {"rows_per_batch": {"pairs": 1}}, sets).sampler.least_rows == [1]


def test_single_task_batches_hold_one_set_and_every_row_is_trained_on_once(backbone, tmp_path):
    trainer = make_trainer(backbone, tmp_path, {"batches": "single_task"}, per_device_train_batch_size=8)
    collate, batches = trainer.data_collator, []

    def collate_and_keep(rows):
        batches.append(collate(rows))
        seen.extend(tuple(row["sentences"]) for row in rows)
        return batches[-1]

    seen: list[tuple[str, ...]] = []
    trainer.data_collator = collate_and_keep
    trainer.train()
    expected = [tuple(row) for rows in trainer.train_dataset.sets for row in rows["sentences"]]
    assert sorted(seen) == sorted(expected)
    for batch in batches:
        present = {task for task, labels in batch["labels"].items() if len(labels)}
        assert present in ({"sentiment", "rating"}, {"pairs"}, {"search"})
    assert len(batches) == 12 + 2 + 5


@pytest.mark.parametrize("mixture", [{"sampling": "uniform"}, {"batches": "single_task", "max_rows": {"pairs": 7}}])
def test_resuming_meets_the_rows_that_were_left(mixture, backbone, tmp_path):
    def rows_of_run(checkpoint: str | None) -> list[list[tuple[str, ...]]]:
        options = {"per_device_train_batch_size": 8, "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 22}
        trainer = make_trainer(backbone, tmp_path, mixture, **options)
        collate, seen = trainer.data_collator, []
        trainer.data_collator = lambda rows: seen.append([tuple(row["sentences"]) for row in rows]) or collate(rows)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert len(trainer.sampler) < 22 < 2 * len(trainer.sampler), "premise: the checkpoint stands inside an epoch"
        return seen

    whole = rows_of_run(None)
    resumed = rows_of_run(str(tmp_path / "checkpoint-22"))
    assert resumed == whole[22:]


def test_epoch_is_described_with_rows_batches_and_passes():
    mixture = MixtureConfig(sampling="temperature", temperature=2.0, batches="single_task")
    drawn = [DrawnSet(GROUPS[0], range(3000), 1500, 1), DrawnSet(GROUPS[1], range(250), 500, 1)]
    assert describe_epoch(mixture, drawn, num_batches=64) == (
        "an epoch is 2,000 rows in 64 single_task batches, temperature 2: "
        "sentiment + topic 1,500 rows (75.0%, 0.5 passes), similarity 500 rows (25.0%, 2 passes)"
    )
    many = [DrawnSet([f"task{number}" for number in range(11)], range(9), 9, 1)]
    assert describe_epoch(mixture, many, num_batches=9).endswith(": task0 + 10 tasks 9 rows (100.0%, 1 passes)")


def test_model_card_names_the_options_of_a_loss():
    settings = {**helpers.TASKS["sentiment"], "loss_options": {"class_weights": [1.0, 2, 3], "label_smoothing": 0.1}}
    tasks = {
        "sentiment": complete_task("sentiment", settings),
        "search": complete_task("search", helpers.TASKS["search"]),
    }
    rows, _ = _task_rows(SimpleNamespace(tasks=tasks, results={"rows": {}}))
    assert [row[3] for row in rows] == [
        "cross_entropy (class_weights, label_smoothing 0.1)",
        "multiple_negatives_ranking",
    ]
