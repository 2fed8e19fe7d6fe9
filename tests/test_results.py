"""What a run may write over, prints and leaves behind."""

import re
from pathlib import Path

import pytest

from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.report.results import (
    changed_arguments,
    format_scores,
    scores_by_task,
)
from multitask_sentence.training.run.output_folder import check_output_dir

CLASSES = {"problem_type": "single_label_classification", "labels": ["a", "b"]}
TASKS = {
    "topic": TaskConfig(**CLASSES, metrics=["macro_f1", "accuracy"]),
    "topic_macro": TaskConfig(**CLASSES),
    "samples": TaskConfig(problem_type="regression", metrics=["spearman", "mse"]),
    "pairs": TaskConfig(problem_type="similarity"),
    "silent": TaskConfig(**CLASSES),
}


def make_files(folder: Path, *names: str) -> Path:
    """A folder with files and, where a name ends in a slash, folders."""
    folder.mkdir()
    for name in names:
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_text("kept")
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- the output folder ----


def test_absent_and_empty_folders_are_free(tmp_path: Path):
    check_output_dir(tmp_path / "new" / "deeper", overwrite=False)
    check_output_dir(make_files(tmp_path / "empty"), overwrite=False)


def test_file_as_output_folder_is_refused(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("kept")
    with pytest.raises(ValueError, match=r"output_dir .*notes\.txt is a file\. Give a folder"):
        check_output_dir(tmp_path / "notes.txt", overwrite=True)


@pytest.mark.parametrize(
    "names",
    [
        ("thesis.tex",),
        ("results.json", "analysis.py"),  # results of something else
        ("recipe.yaml", "runs/"),  # where a person works: the recipe and all earlier runs
        ("recipe.yaml",),
        ("runs/",),
        ("checkpoint-3/", "thesis.tex"),
        ("config.json", "model.safetensors"),  # a model of another making
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_with_something_else_is_refused_and_kept(tmp_path: Path, names: tuple[str, ...], overwrite: bool):
    folder = make_files(tmp_path / "mine", *names)
    before = names_in(folder)
    with pytest.raises(
        ValueError, match=rf"mine holds something else than a run \(.*{min(before)}.*Give another fold"
    ):
        check_output_dir(folder, overwrite=overwrite)
    assert names_in(folder) == before


@pytest.mark.parametrize(
    "names",
    [("results.json", "recipe.yaml", "model.safetensors", "checkpoint-3/"), ("checkpoint-3/", "runs/")],
    ids=["finished", "unfinished"],
)
def test_earlier_run_needs_overwrite(tmp_path: Path, names: tuple[str, ...]):
    folder = make_files(tmp_path / "mine", *names)
    with pytest.raises(ValueError, match=r"holds an earlier run\. .*--resume_from_checkpoint, .*--overwrite"):
        check_output_dir(folder, overwrite=False)
    check_output_dir(folder, overwrite=True)
    assert len(names_in(folder)) == len(names)  # the check itself removes nothing


# ---- settings ----


def test_settings_show_what_differs_from_transformers_defaults(tmp_path: Path):
    arguments = MultiTaskTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        weight_decay=0.5,
        eval_strategy="no",
        load_best_model_at_end=False,
        lr_scheduler_kwargs={"num_cycles": 2},
    )
    changed = changed_arguments(arguments)
    assert changed["weight_decay"] == 0.5
    assert changed["eval_strategy"] == "no"  # a plain word, not an enumeration
    assert changed["lr_scheduler_kwargs"] == {"num_cycles": 2}
    assert changed["learning_rate"] == 1e-4  # our own default is not transformers'
    assert "adam_beta1" not in changed


def test_settings_keep_tokens_secret(tmp_path: Path):
    arguments = MultiTaskTrainingArguments(str(tmp_path), hub_token="hf_secret", use_cpu=True)
    assert "hf_secret" not in str(changed_arguments(arguments))


# ---- scores ----


def test_scores_go_to_the_task_that_measured_them():
    metrics = {
        "test_topic_loss": 0.1,
        "test_topic_accuracy": 0.2,
        "test_topic_macro_f1": 0.3,  # of topic, although there is a task topic_macro
        "test_topic_macro_accuracy": 0.4,
        "test_samples_mse": 0.5,
        "test_samples_per_second": 99.0,  # speed, not a score of the task samples
        "test_pairs_cosine_spearman": 0.6,
        "test_pairs_mean_cosine_related": 0.7,
        "test_pairs_mean_cosine_unrelated": 0.8,
        "test_loss": 0.9,
        "test_score": 1.0,
        "eval_silent_accuracy": 0.0,
    }
    assert scores_by_task(metrics, "test", TASKS) == {
        "topic": {"macro_f1": 0.3, "accuracy": 0.2, "loss": 0.1},
        "topic_macro": {"accuracy": 0.4},
        "samples": {"mse": 0.5},
        "pairs": {"cosine_spearman": 0.6, "mean_cosine_related": 0.7, "mean_cosine_unrelated": 0.8},
    }


def test_table_of_scores_puts_the_primary_metric_first_and_a_dash_where_nothing_was_measured():
    tasks = {name: TASKS[name] for name in ("topic", "pairs")}
    scores = {
        "validation": {
            "topic": {"accuracy": 0.25, "loss": 1.5, "macro_f1": 0.5},
            "pairs": {"cosine_spearman": 0.75, "mean_cosine_related": 0.875, "loss": 2.0},
        },
        "test": {"topic": {"accuracy": 0.125, "macro_f1": 0.0625, "loss": 3.0}},
    }
    header, *rows = (line.split() for line in format_scores(tasks, scores).splitlines() if re.search(r"\w", line))
    assert header == ["task", "metric", "validation", "test"]
    assert [tuple(row) for row in rows] == [
        ("topic", "macro_f1", "0.5000", "0.0625"),
        ("accuracy", "0.2500", "0.1250"),
        ("loss", "1.5000", "3.0000"),
        ("pairs", "cosine_spearman", "0.7500", "-"),
        ("mean_cosine_related", "0.8750", "-"),
        ("loss", "2.0000", "-"),
    ]
