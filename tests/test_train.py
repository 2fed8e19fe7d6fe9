"""The command from recipe to finished folder: what wins, what is refused, what is left behind, resumed, and opened."""

import io
import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, GPT2Config, T5Config, TrainerCallback

from helpers import train_run, warm
from helpers.pictures import drawn
from multitask_sentence.train import main, run
from multitask_sentence.training.recipe.before_data import chosen_checkpoint
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser

REPOSITORY = Path(__file__).parent.parent
SUBJECTS = {"cat": "animal", "dog": "animal", "bird": "animal", "bank": "money", "market": "money"}
MOODS = {"good": "positive", "fine": "positive", "bad": "negative"}
TASKS = ("mood", "tags", "stars", "similarity", "entails", "search")
SINGLE_TASKS, PAIR_TASKS = TASKS[:3], TASKS[3:]


# ---- a small job with every problem type ----


def text_rows(verb: str) -> list[str]:
    """CSV rows: a sentence with a mood, tags and stars, some of which are missing."""
    rows = ["text,mood,tags,stars"]
    for subject, kind in SUBJECTS.items():
        for word, mood in MOODS.items():
            stars = 4.5 if verb == "sat" else len(word) + 0.5  # the same in all test rows: their correlation is NaN
            labels = [mood, f"{kind}|time" if verb == "sang" else kind, str(stars)]
            if len(rows) % 4 == 3:
                labels[len(rows) % 3] = ""
            rows.append(f"the {subject} {verb} {word} today,{','.join(labels)}")
    return rows


def pair_rows(verb: str) -> list[str]:
    """CSV rows: two sentences with a score and whether they mean the same."""
    rows = ["a,b,score,same"]
    for place, subject in enumerate(SUBJECTS):
        rows.append(f"a {subject} {verb} in the park,the {subject} {verb} in a park,{4 + place / 5},yes")
        rows.append(f"a {subject} {verb} in the park,it is news of film {place * 'very '}story,{place / 5},no")
    return rows


def search_rows(verb: str) -> list[str]:
    rows = ["query,answer,wrong"]
    return rows + [f"a {subject} {verb},the {subject} {verb} on the mat,the price was bad" for subject in SUBJECTS]


RECIPE = """
backbone: {backbone}
max_length: 20
tasks:
  mood:
    problem_type: single_label_classification
    dataset: &texts {{path: csv, data_files: {{train: [texts_ran.csv, texts_sang.csv], test: texts_sat.csv}}}}
    validation_split: 0.3
    columns: {{sentence: text, label: mood}}
    head: {{hidden_dims: [11]}}
    metrics: [macro_f1, accuracy]
  tags:
    problem_type: multi_label_classification
    dataset: *texts
    validation_split: 0.3
    columns: {{sentence: text, label: tags}}
  stars:
    problem_type: regression
    dataset: *texts
    validation_split: 0.3
    columns: {{sentence: text, label: stars}}
    loss_weight: 0.1
  similarity:
    problem_type: similarity
    dataset: &pairs
      path: csv
      data_files: {{train: pairs_ran.csv, validation: pairs_sang.csv, test: pairs_sat.csv}}
    columns: {{sentence1: a, sentence2: b, label: score}}
  entails:
    problem_type: single_label_classification
    dataset: *pairs
    columns: {{sentence1: a, sentence2: b, label: same}}
    labels: ["no", "yes"]
  search:
    problem_type: contrastive
    dataset: {{path: csv, data_files: {{train: search_ran.csv, validation: search_sang.csv, test: search_sat.csv}}}}
    columns: {{anchor: query, positive: answer, negative: wrong}}
mixture:
  passes: {{search: 2}}
  rows_per_batch: {{similarity: 4, search: 4}}
training:
  output_dir: {output_dir}
  num_train_epochs: 2
  per_device_train_batch_size: 8
  learning_rate: 1e-3
  logging_steps: 2
  disable_tqdm: true
  use_cpu: true
"""


def write_job(folder: Path, backbone: str) -> Path:
    """The data files and the recipe in a folder; the result goes to `result` beside them."""
    for name, rows in (("texts", text_rows), ("pairs", pair_rows), ("search", search_rows)):
        for verb in ("ran", "sang", "sat"):
            (folder / f"{name}_{verb}.csv").write_text("\n".join(rows(verb)) + "\n", encoding="utf-8")
    recipe = folder / "job.yaml"
    recipe.write_text(RECIPE.format(backbone=backbone, output_dir=folder / "result"), encoding="utf-8")
    return recipe


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield cache
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str) -> Path:
    return write_job(tmp_path, tiny_backbone)


def change(job: Path, *keys: str, value: Any) -> None:
    """Set one value of a written recipe."""
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    block = content
    for key in keys[:-1]:
        block = block.setdefault(key, {})
    block[keys[-1]] = value
    job.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> SimpleNamespace:
    """The job, run once in this process: its recipe, folder, printed text and results. Read only."""
    recipe = write_job(tmp_path_factory.mktemp("finished"), tiny_backbone)
    printed = io.StringIO()
    with redirect_stdout(printed), drawn():
        run([str(recipe)])
    folder = recipe.parent / "result"
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return SimpleNamespace(recipe=recipe, folder=folder, printed=printed.getvalue(), results=results)


def error_of(monkeypatch: pytest.MonkeyPatch, *argv: object) -> str:
    """What the command ends with; text as the exit code is printed to stderr and gives exit status 1."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, str)
    return caught.value.code


# ---- the command line ----


def parse(*argv: object) -> Any:
    return RecipeArgumentParser().parse([str(word) for word in argv])[2]


def test_flags_win_over_the_recipe_and_the_recipe_over_our_defaults(job: Path):
    arguments = parse(job, "--learning_rate", "0.5", "--no_load_best_model_at_end")
    assert arguments.learning_rate == 0.5  # a flag
    assert arguments.load_best_model_at_end is False
    assert arguments.num_train_epochs == 2  # the recipe
    assert arguments.output_dir == str(job.parent / "result")
    assert arguments.warmup_steps == 0.1  # our default
    assert arguments.eval_strategy == "epoch"
    assert arguments.adam_beta1 == 0.9  # transformers' default


def test_flag_that_repeats_our_default_wins_over_the_recipe(job: Path):
    assert parse(job, "--learning_rate", "1e-4").learning_rate == 1e-4
    assert parse(job, "--per_device_train_batch_size", "32").per_device_train_batch_size == 32


def test_output_folder_is_named_after_the_recipe_where_nothing_is_said(job: Path):
    change(job, "training", value={"use_cpu": True})
    assert parse(job).output_dir == str(Path("runs") / "job")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rte", "1"], r"unrecognized arguments: --learning_rte 1\. Did you mean '--learning_rate'\?"),
        (["--output_dr=/home/somebody/models/of/today"], r"Did you mean '--output_dir'\? See --help for all"),
        (["--overwite"], r"Did you mean '--overwrite'\?"),
        (["--learning", "1"], "unrecognized arguments: --learning 1"),  # no abbreviations: names may be added
        (["--learning_rate", "fast"], "argument --learning_rate.*: invalid float value: 'fast'"),
        (["second.yaml"], r"unrecognized arguments: second\.yaml"),
    ],
)
def test_wrong_flag_is_refused_with_the_nearest(
    job: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit) as caught:
        parse(job, *argv)
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_missing_recipe_is_named(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        parse("--overwrite")
    assert caught.value.code == 2
    assert "the following arguments are required: recipe" in capsys.readouterr().err


def test_help_begins_with_our_own_arguments(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        run(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: multitask-sentence train RECIPE [--data_root FOLDER] [--overwrite]")
    places = [text.index(f"\n  {word}") for word in ("recipe", "--data_root", "--overwrite", "--output_dir")]
    assert places == sorted(places)
    for name in ("--learning_rate", "--head_learning_rate", "--resume_from_checkpoint"):
        assert f"\n  {name}" in text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "fast", r"job\.yaml: training\.learning_rate is 'fast', but should be a number\."),
        ("learning_rate", [0.1], r"training\.learning_rate is \[0\.1\], but should be a number\."),
        ("learning_rate", None, r"training\.learning_rate is None, but should be a number\."),
        ("learning_rate", True, r"training\.learning_rate is True, but should be a number\."),
        ("per_device_train_batch_size", 8.5, r"per_device_train_batch_size is 8\.5, but should be a whole number\."),
        ("bf16", "perhaps", r"training\.bf16 is 'perhaps', but should be true or false\."),
        (
            "eval_strategy",
            "sometimes",
            r"training\.eval_strategy is 'sometimes', but should be one of no, steps, epoch\.",
        ),
    ],
)
def test_recipe_value_of_the_wrong_type_is_named(job: Path, key: str, value: Any, message: str):
    change(job, "training", key, value=value)
    with pytest.raises(ValueError, match=message):
        parse(job)


def test_recipe_values_get_the_type_of_their_flag(job: Path):
    values = {"learning_rate": 1, "max_steps": "7", "save_total_limit": None, "run_name": 5, "bf16": "no"}
    for key, value in {**values, "lr_scheduler_kwargs": {"num_cycles": 2}}.items():
        change(job, "training", key, value=value)
    arguments = parse(job)
    assert isinstance(arguments.learning_rate, float)
    assert (arguments.max_steps, arguments.save_total_limit, arguments.run_name) == (7, None, "5")
    assert arguments.bf16 is False
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 2}


# ---- which checkpoint ----


def make_checkpoint(folder: Path, whole: bool = True) -> Path:
    folder.mkdir(parents=True)
    if whole:
        (folder / "trainer_state.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "argv",
    [["--resume_from_checkpoint"], ["--resume_from_checkpoint", "--overwrite"], ["--resume_from_checkpoint", "last"]],
)
def test_resume_takes_the_last_whole_checkpoint(job: Path, argv: list[str]):
    result = job.parent / "result"
    last = [make_checkpoint(result / f"checkpoint-{step}") for step in (2, 9, 10)][-1]
    make_checkpoint(result / "checkpoint-11", whole=False)  # its saving was interrupted
    make_checkpoint(result / "checkpoint-best")
    assert chosen_checkpoint(parse(job, *argv)) == last


def test_resume_takes_the_checkpoint_that_is_named(job: Path):
    named = make_checkpoint(job.parent / "elsewhere" / "checkpoint-2")
    assert chosen_checkpoint(parse(job, "--resume_from_checkpoint", named)) == named
    assert chosen_checkpoint(parse(job)) is None
    assert chosen_checkpoint(parse(job, "--resume_from_checkpoint", "false")) is None


def test_resume_without_checkpoint_says_so(job: Path, monkeypatch: pytest.MonkeyPatch):
    message = r"error: .*result holds no checkpoint to resume from\. Leave --resume_from_checkpoint out"
    assert re.match(message, error_of(monkeypatch, job, "--resume_from_checkpoint"))
    make_checkpoint(job.parent / "result" / "checkpoint-1", whole=False)
    assert re.match(message, error_of(monkeypatch, job, "--resume_from_checkpoint"))
    message = f"error: resume_from_checkpoint: {job.parent} is no checkpoint of a Trainer. Name a folder"
    assert error_of(monkeypatch, job, "--resume_from_checkpoint", job.parent).startswith(message)


# ---- what is refused before anything is written ----


def test_resume_from_elsewhere_keeps_out_of_a_folder_with_something_else(job: Path, monkeypatch: pytest.MonkeyPatch):
    named = make_checkpoint(job.parent / "elsewhere" / "checkpoint-2")
    (job.parent / "result").mkdir()
    (job.parent / "result" / "thesis.tex").write_text("kept")
    assert "holds something else than a run (thesis.tex)" in error_of(
        monkeypatch, job, "--resume_from_checkpoint", named, "--overwrite"
    )
    assert [path.name for path in (job.parent / "result").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("config", [T5Config(), GPT2Config()], ids=["t5", "gpt2"])
def test_backbone_that_is_no_encoder_is_refused_before_data_is_loaded(
    job: Path, config: Any, monkeypatch: pytest.MonkeyPatch
):
    config.save_pretrained(job.parent / "decoder")
    change(job, "backbone", value=str(job.parent / "decoder"))
    for path in job.parent.glob("*.csv"):
        path.unlink()  # so that looking at the data would be another error
    message = error_of(monkeypatch, job)
    assert message.startswith(f"error: backbone: '{config.model_type}' is not an encoder")


@pytest.mark.parametrize(
    ("backbone", "message"),
    [("nowhere/deep/model", "there is no folder nowhere/deep/model"), ("{folder}", "holds no config.json")],
)
def test_backbone_that_is_no_model_is_refused(job: Path, backbone: str, message: str, monkeypatch: pytest.MonkeyPatch):
    change(job, "backbone", value=backbone.format(folder=job.parent))
    assert message in error_of(monkeypatch, job)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "texts_sang.csv",
            "good today,positive",
            "good today,postive",
            r"error: \S+texts_sang\.csv, row 1: label 'postive' is not a label of task 'mood'\. Did you mean 'pos",
        ),
        (
            "pairs_sat.csv",
            "a,b,score",
            "a,c,score",
            r"pairs_sat\.csv: task 'similarity' needs a column 'b', which is m",
        ),
        ("pairs_ran.csv", ",4.0,yes", ",NaN,yes", r"pairs_ran\.csv, row 1: found 'NaN' where task 'similarity' needs"),
        ("search_sang.csv", None, "query,answer,wrong\n", r"Task 'search': .*search_sang\.csv.* no"),
    ],
    ids=["label outside the list", "column missing", "score NaN", "split empty"],
)
def test_bad_data_ends_with_one_message_and_leaves_nothing_behind(
    job: Path, file: str, old: str | None, new: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    change(job, "tasks", "mood", "labels", value=["negative", "positive"])
    text = (job.parent / file).read_text(encoding="utf-8")
    assert old is None or old in text
    (job.parent / file).write_text(text.replace(old, new) if old else new, encoding="utf-8")
    assert re.search(message, error_of(monkeypatch, job))
    assert not (job.parent / "result").exists()


def test_rows_per_batch_beyond_the_batch_is_refused(job: Path, monkeypatch: pytest.MonkeyPatch):
    change(job, "mixture", "rows_per_batch", "search", value=9)
    (job.parent / "texts_sat.csv").unlink()  # it is known before data is looked at
    message = error_of(monkeypatch, job)
    assert "mixture.rows_per_batch.search is 9, but a batch holds 8 rows. Raise per_device_train_batch_size" in message


def test_max_length_beyond_the_backbone_is_refused(job: Path, monkeypatch: pytest.MonkeyPatch):
    change(job, "max_length", value=65)
    assert "max_length is 65, but the backbone" in error_of(monkeypatch, job)


def test_single_process_under_accelerate_cpu_is_pointed_out(
    job: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    change(job, "max_length", value=65)  # ends the run soon
    error_of(monkeypatch, job)
    assert "torchrun" not in caplog.text
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # what accelerate launch --cpu --num_processes 2 sets
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    error_of(monkeypatch, job)
    assert "torchrun --nproc_per_node 2 train.py RECIPE" in caplog.text


def test_earlier_run_survives_overwrite_until_the_data_is_in_order(job: Path, monkeypatch: pytest.MonkeyPatch):
    make_checkpoint(job.parent / "result" / "checkpoint-3")
    assert "holds an earlier run" in error_of(monkeypatch, job)
    (job.parent / "texts_sat.csv").unlink()
    assert "there is no file" in error_of(monkeypatch, job, "--overwrite")
    assert (job.parent / "result" / "checkpoint-3").is_dir()


def test_earlier_run_survives_overwrite_where_data_and_settings_do_not_fit(job: Path, monkeypatch: pytest.MonkeyPatch):
    make_checkpoint(job.parent / "result" / "checkpoint-3")
    change(job, "mixture", "passes", "search", value=0.001)
    assert "each needs at least 1" in error_of(monkeypatch, job, "--overwrite")
    assert (job.parent / "result" / "checkpoint-3").is_dir()


def test_unknown_metric_is_refused_before_data_is_loaded(job: Path, monkeypatch: pytest.MonkeyPatch):
    (job.parent / "texts_sat.csv").unlink()
    message = error_of(monkeypatch, job, "--metric_for_best_model", "eval_mood_macro_f")
    assert "evaluations give no 'eval_mood_macro_f'. Did you mean 'mood_macro_f1'?" in message


def test_data_root_is_where_relative_paths_start(job: Path, monkeypatch: pytest.MonkeyPatch):
    moved = job.parent / "recipes"
    moved.mkdir()
    recipe = job.rename(moved / "job.yaml")
    assert f"--data_root, now {moved}" in error_of(monkeypatch, recipe)
    (job.parent / "texts_sat.csv").unlink()
    assert f"there is no file {job.parent / 'texts_sat.csv'}" in error_of(
        monkeypatch, recipe, "--data_root", job.parent
    )


@pytest.mark.parametrize("drops", [False, True])
def test_training_rows_that_another_task_is_measured_on_are_told_of_or_left_out(job: Path, drops: bool):
    pairs = [row.split(",") for row in pair_rows("sat")[1:]]  # the test split of similarity
    borrowed = ["query,answer,wrong", *(f"{pair[1]},{pair[0]},the price was bad" for pair in pairs)]
    (job.parent / "search_ran.csv").write_text(
        "\n".join([*borrowed, *search_rows("ran")[1:]]) + "\n", encoding="utf-8"
    )
    change(job, "drop_held_out", value=drops)
    change(job, "strategy", "freeze", value="all")
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(job)])
    told = f"search: {len(pairs)} of {len(pairs) + len(SUBJECTS)} training rows stand in "
    assert told + ("a validation" if drops else "the validation") in printed.getvalue()
    results = json.loads((job.parent / "result" / "results.json").read_text(encoding="utf-8"))
    assert results["rows"]["search"]["train"] == len(SUBJECTS) + (0 if drops else len(pairs))


# ---- from recipe to finished folder ----


def test_results_hold_scores_of_every_task_and_how_they_came_about(finished: SimpleNamespace):
    results = finished.results
    for split in ("validation", "test"):
        scores = results["scores"][split]
        assert list(scores) == list(TASKS)
        assert {name: list(values) for name, values in scores.items() if name != "similarity"} == {
            "mood": ["macro_f1", "accuracy", "loss"],
            "tags": ["macro_f1", "loss"],
            "stars": ["spearman", "loss"],
            "entails": ["accuracy", "loss"],
            "search": ["mrr", "loss"],
        }
        assert {"cosine_spearman", "mean_cosine_related", "loss"} <= set(scores["similarity"])
    assert results["rows"]["search"] == {"train": 5, "validation": 5, "test": 5}
    assert results["rows"]["similarity"] == {"train": 10, "validation": 10, "test": 10}
    texts = {task: results["rows"][task] for task in SINGLE_TASKS}
    assert all(texts[task]["train"] + texts[task]["validation"] < 30 for task in texts)  # partly labelled
    assert all(texts[task]["test"] < 15 for task in texts)
    assert texts["mood"]["validation"] >= 5  # the validation_split
    assert results["rows_per_epoch"] == 30 - 10 + 10 + 2 * 5  # 30 texts but for validation_split, pairs, search twice
    assert results["backbone"] == "./tiny", "a folder without the folders above it"
    assert results["training"]["learning_rate"] == 1e-3
    assert results["processes"] == 1
    assert results["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert results["tasks"]["stars"]["loss_weight"] == 0.1
    assert results["epochs"] == 2
    history = results["history"]
    assert {f"loss_{task}" for task in TASKS} < set(history[0])
    evaluations = [entry for entry in history if "eval_score" in entry]
    assert len(evaluations) == 3  # each epoch, and the finished model
    assert max(entry["eval_score"] for entry in evaluations[:2]) == results["best_metric"]
    assert evaluations[2]["eval_score"] >= results["best_metric"]  # the best model, with chosen thresholds
    for task, best in results["best_of_tasks"].items():
        at = {entry["step"]: entry[f"eval_{task}_{best['metric']}"] for entry in evaluations[:2]}
        assert best["score"] == at[best["step"]] == max(at.values())
        assert best["chosen_score"] == at[results["best_step"]]
        assert (finished.folder / best["folder"] / "model.safetensors").is_file()
    assert list(results["best_of_tasks"]) == list(TASKS)
    assert "Best of every task, on validation data\n" in finished.printed
    assert results["balancing"] == {"method": "sum"}


def test_results_are_json_of_the_strict_kind(finished: SimpleNamespace):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (finished.folder / "results.json").read_text(encoding="utf-8")
    results = json.loads(text, parse_constant=refuse)
    assert results["scores"]["test"]["stars"]["spearman"] is None  # NaN: all test rows have the same number of stars


def test_finished_folder_is_complete_and_holds_no_pickles(finished: SimpleNamespace):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "modules.json", "results.json"} < names
    assert {"modeling_multitask.py", "configuration_multitask.py"} < names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".part"))]
    assert (finished.folder / "recipe.yaml").read_text() == finished.recipe.read_text()


def test_printed_text_has_settings_data_scores_and_path(finished: SimpleNamespace):
    printed = finished.printed
    parts = ["set aside, stratified, seed 42", "Settings\n", "Mixture: an epoch is 40 rows", "tokens mean/95 %/max"]
    parts += ["task        metric", f"Saved to {finished.folder}. Open it with AutoModel.from_pretrained("]
    places = [printed.index(part) for part in parts]
    assert places == sorted(places)
    assert printed.count("Settings\n") == 1
    for setting in ("learning_rate", "0.001", "pooling", "mean", "max_length", "20", str(finished.recipe)):
        assert setting in printed[places[1] : places[3]]
    for task in TASKS:
        assert printed.count(f"\n{task} ") >= 4  # settings, train, validation, test, scores
    value = finished.results["scores"]["test"]["entails"]["loss"]
    assert f"{value:.4f}" in printed[places[4] :]


def test_thresholds_of_the_multi_label_task_are_chosen_and_stored(finished: SimpleNamespace):
    config = json.loads((finished.folder / "config.json").read_text())
    thresholds = config["tasks"]["tags"]["thresholds"]
    assert config["tasks"]["tags"]["labels"] == ["animal", "money", "time"]
    assert len(thresholds) == 3
    assert 0.5 not in thresholds
    assert finished.results["tasks"]["tags"]["thresholds"] == thresholds


def test_run_says_which_tasks_are_too_small_to_calibrate(finished: SimpleNamespace):
    calibration = finished.results["calibration"]
    assert list(calibration) == ["mood", "tags", "entails"]
    for task in ("mood", "entails"):
        found = calibration[task]
        reason = f"it has {finished.results['rows'][task]['validation']} validation rows, and 100 are needed"
        assert (found["split"], found["temperatures"], found["left_out"]) == ("test", [], reason)
        assert sum(found["before"]["forecasts"]) == finished.results["rows"][task]["test"]
        assert f"{task} is not calibrated: {reason}." in finished.printed
        assert f"`{task}` is not calibrated: {reason}." in (finished.folder / "README.md").read_text()
    assert (finished.folder / "reliability.png").stat().st_size > 10_000


def test_rows_of_validation_and_test_are_left_with_truth_and_prediction(finished: SimpleNamespace):
    folder = finished.folder / "predictions"
    assert {path.name for path in folder.iterdir()} == {f"{task}.parquet" for task in TASKS}
    model = AutoModel.from_pretrained(finished.folder, trust_remote_code=True)
    for task in ("mood", "stars", "tags"):
        rows = pd.read_parquet(folder / f"{task}.parquet")
        assert rows.split.value_counts().to_dict() == {
            split: finished.results["rows"][task][split] for split in ("validation", "test")
        }
        answer = model.predict(rows.text.tolist(), tasks=task)[task]
        found = [list(row) if task == "tags" else row for row in rows.prediction]
        assert found == pytest.approx(answer["values"], abs=1e-4) if task == "stars" else found == answer["labels"]
    test = pd.read_parquet(folder / "mood.parquet").query("split == 'test'")
    expected = [row.split(",")[:2] for row in text_rows("sat")[1:] if row.split(",")[1]]
    assert test[["text", "label"]].to_numpy().tolist() == expected
    accuracy = (test.label == test.prediction).mean()
    assert accuracy == pytest.approx(finished.results["scores"]["test"]["mood"]["accuracy"])


def test_results_and_card_say_how_well_each_class_is_told(finished: SimpleNamespace):
    test = pd.read_parquet(finished.folder / "predictions" / "mood.parquet").query("split == 'test'")
    counted, labels = finished.results["confusion"]["mood"], finished.results["tasks"]["mood"]["labels"]
    assert counted["split"] == "test"
    card = (finished.folder / "README.md").read_text(encoding="utf-8")
    assert "## Classes" in card
    for number, label in enumerate(labels):
        is_right = (test.label == label) & (test.prediction == label)
        recall = is_right.sum() / (test.label == label).sum()
        assert counted["recall"][number] == pytest.approx(recall, abs=1e-4)
        assert re.search(rf"`{label}` +\|.* {recall:.4f} \|.* {(test.label == label).sum()} \|", card)


OPEN = """
import json, sys
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
inputs = json.loads(sys.argv[2])
answers = {**model.predict(inputs["single"]), **model.predict([tuple(pair) for pair in inputs["pairs"]])}
answers["embedding"] = {"values": model.encode(inputs["single"])}
plain = {task: {key: getattr(value, "tolist", lambda: value)() for key, value in answer.items()}
         for task, answer in answers.items()}
print("ANSWERS" + json.dumps(plain))
"""


def test_finished_folder_opens_in_another_process_elsewhere_and_its_test_scores_hold(
    finished: SimpleNamespace, tmp_path: Path
):
    texts = [row.split(",") for row in text_rows("sat")[1:]]
    pairs = [row.split(",") for row in pair_rows("sat")[1:]]
    (tmp_path / "open.py").write_text(OPEN, encoding="utf-8")
    inputs = json.dumps({"single": [row[0] for row in texts], "pairs": [row[:2] for row in pairs]})
    command = [str(tmp_path / "open.py"), str(finished.folder), inputs]
    process = warm.start(command, os.environ, tmp_path / "printed.txt", tmp_path)
    assert warm.end([process], 120) and process.exitcode == 0, (tmp_path / "printed.txt").read_text()
    answers = json.loads((tmp_path / "printed.txt").read_text().split("ANSWERS")[1])
    assert set(answers) == {*TASKS, "embedding"}
    scores = finished.results["scores"]["test"]

    found = [label == row[1] for row, label in zip(texts, answers["mood"]["labels"], strict=True) if row[1]]
    assert sum(found) / len(found) == pytest.approx(scores["mood"]["accuracy"])
    found = [label == row[3] for row, label in zip(pairs, answers["entails"]["labels"], strict=True)]
    assert sum(found) / len(found) == pytest.approx(scores["entails"]["accuracy"])
    errors = [
        (value - float(row[3])) ** 2 for row, value in zip(texts, answers["stars"]["values"], strict=True) if row[3]
    ]

    model = AutoModel.from_pretrained(finished.folder, trust_remote_code=True)
    deviation = model.config.tasks["stars"].target_deviation  # the loss is that of standardised targets
    assert sum(errors) / len(errors) == pytest.approx(scores["stars"]["loss"] * deviation**2, rel=1e-4)
    assert torch.equal(
        torch.tensor(answers["embedding"]["values"]), torch.tensor(model.encode([row[0] for row in texts]))
    )


# ---- interrupted, resumed, overwritten ----


def test_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    job: Path, finished: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(TrainerCallback, "on_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([str(job)])
    result = job.parent / "result"
    (checkpoint,) = result.glob("checkpoint-*")
    assert {path.name for path in result.iterdir()} == {checkpoint.name, "best", "unfinished_run.json"}
    assert "holds an earlier run" in error_of(monkeypatch, job)

    capsys.readouterr()
    run([str(job), "--resume_from_checkpoint"])
    assert finished.printed.count("'loss_mood'") == 5
    assert capsys.readouterr().out.count("'loss_mood'") == 3  # steps 6, 8 and 10: only the second epoch was trained
    assert {path.name for path in result.iterdir()} == {path.name for path in finished.folder.iterdir()}
    results = json.loads((result / "results.json").read_text())
    assert results["steps"] == finished.results["steps"]
    assert results["scores"] == finished.results["scores"]
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (result, finished.folder))
    assert resumed.keys() == whole.keys()
    for name, weights in whole.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=0)

    # And the finished folder is replaced where that is asked for, with all that stood in it.
    (result / "left_over.txt").write_text("of the earlier run")
    run([str(job), "--overwrite", "--max_steps", "1", "--logging_steps", "1"])
    assert not (result / "left_over.txt").exists()
    assert json.loads((result / "results.json").read_text())["steps"] == 1


# ---- the command itself ----


def test_two_processes_give_one_result(
    job: Path, finished: SimpleNamespace, run_in_two_processes: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)
    printed = run_in_two_processes(train_run, job, "--per_device_train_batch_size", 4)
    for once in ("Settings\n", "Mixture: ", "tokens mean/95 %/max", "task        metric", "Saved to "):
        assert printed.count(once) == 1
    embedded = re.findall(r"(\d+) models embedded", printed)
    assert len(embedded) == 2 and embedded[0] == embedded[1] != "1", "those of best/ too, by both processes"
    results = json.loads((job.parent / "result" / "results.json").read_text())
    assert results["processes"] == 2
    assert results["rows"] == finished.results["rows"]
    for split, scores in finished.results["scores"].items():
        assert {task: list(values) for task, values in results["scores"][split].items()} == {
            task: list(values) for task, values in scores.items()
        }
    names = {re.sub(r"checkpoint-\d+", "checkpoint", path.name) for path in (job.parent / "result").iterdir()}
    assert names == {re.sub(r"checkpoint-\d+", "checkpoint", path.name) for path in finished.folder.iterdir()}
    assert not list(job.parent.glob("runs"))


def test_mistake_in_the_data_ends_the_command_with_one_line(job: Path, monkeypatch: pytest.MonkeyPatch):
    (job.parent / "pairs_ran.csv").write_text("a,b,score,same\nit,is,high,no\n")
    line = error_of(monkeypatch, job)
    assert line.startswith("error: ") and "\n" not in line
    assert "pairs_ran.csv, row 1: found 'high' where task 'similarity' needs a number" in line


def test_no_file_of_a_finished_run_names_a_folder_of_the_machine(
    finished: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """But for the recipe, which is what its author wrote, and what only the Trainer reads when it resumes."""
    place, exempt = str(tmp_path_factory.getbasetemp()).encode(), ("recipe.yaml", "trainer_state.json")
    paths = [path for path in finished.folder.rglob("*") if path.is_file() and path.name not in exempt]
    paths = [path for path in paths if path.suffix not in (".bin", ".pt", ".pth")]
    assert {"config.json", "results.json", "README.md", "tokenizer_config.json"} <= {path.name for path in paths}
    assert [str(path.relative_to(finished.folder)) for path in paths if place in path.read_bytes()] == []
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert config["backbone_config"]["_name_or_path"] == "./tiny"
