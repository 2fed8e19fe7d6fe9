"""Training from Python: plain data sets by task, checked and drawn as those of a recipe."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import ClassLabel, Dataset
from transformers import AutoModel, TrainingArguments, set_seed

from multitask_sentence import MultiTaskModel, MultiTaskTrainer, MultiTaskTrainingArguments
from multitask_sentence.data.loading.in_memory import label_datasets
from multitask_sentence.train import run

TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["bad", "good"], "metrics": ["accuracy"]},
    "stars": {"problem_type": "regression"},
    "similarity": {"problem_type": "similarity", "score_range": [0, 5]},
    "search": {"problem_type": "contrastive"},
}
SUBJECTS = ("cat", "dog", "bird", "bank", "market", "film")
COLUMNS = {
    "mood": {"sentence": "text", "label": "mood"},
    "stars": {"sentence": "text", "label": "stars"},
    "similarity": {"sentence1": "a", "sentence2": "b", "label": "score"},
}


def make_texts(verb: str) -> Dataset:
    rows = [
        {"text": f"the {subject} {verb} {word}", "mood": word, "stars": float(len(subject) + place)}
        for place, word in enumerate(("bad", "good"))
        for subject in SUBJECTS
    ]
    rows[3]["stars"] = None
    return Dataset.from_list(rows)


def make_pairs(verb: str) -> Dataset:
    return Dataset.from_list(
        [{"a": f"a {one} {verb}", "b": f"the {one} {verb} today", "score": 5.0} for one in SUBJECTS]
        + [{"a": f"a {one} {verb}", "b": "bad news", "score": 0.5} for one in SUBJECTS]
    )


def make_search(verb: str) -> Dataset:
    rows = [{"anchor": f"a {one} {verb}", "positive": f"the {one} {verb} on the mat"} for one in SUBJECTS]
    return Dataset.from_list([{**row, "negative": "the price was bad"} for row in rows])


def make_data(verb: str) -> dict[str, Dataset]:
    texts = make_texts(verb)
    return {"mood": texts, "stars": texts, "similarity": make_pairs(verb), "search": make_search(verb)}


def make_model(backbone: str, *tasks: str) -> MultiTaskModel:
    set_seed(42)
    return MultiTaskModel.from_backbone(backbone, tasks={task: TASKS[task] for task in tasks or TASKS}, max_length=20)


def make_arguments(folder: Path, **kwargs: Any) -> MultiTaskTrainingArguments:
    options = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1}
    quiet = {"disable_tqdm": True, "use_cpu": True}
    return MultiTaskTrainingArguments(output_dir=str(folder), **{**options, **quiet, **kwargs})


def without_evaluation() -> dict[str, Any]:
    return {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def losses_of(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The losses and metrics of a log, without times."""
    timed = ("runtime", "per_second", "flos", "train_loss")
    return [{key: entry[key] for key in entry if not any(word in key for word in timed)} for entry in history]


@pytest.fixture
def data() -> dict[str, dict[str, Dataset]]:
    return {"train": make_data("ran"), "validation": make_data("sang")}


def test_run_from_python_has_the_losses_of_the_same_run_from_a_recipe(data, tiny_backbone, tmp_path):
    recipe: dict[str, Any] = {"backbone": tiny_backbone, "max_length": 20, "tasks": {}}
    for name, task in TASKS.items():
        files = {}
        for split, by_task in data.items():
            files[split] = str(tmp_path / f"{'texts' if name in ('mood', 'stars') else name}_{split}.jsonl")
            by_task[name].to_json(files[split])
        keys = {"anchor": "anchor", "positive": "positive", "negative": "negative"}
        columns = COLUMNS.get(name, keys)
        recipe["tasks"][name] = {**task, "dataset": {"path": "json", "data_files": files}, "columns": columns}
    arguments = make_arguments(tmp_path / "recipe")
    names = ("num_train_epochs", "per_device_train_batch_size", "learning_rate", "logging_steps", "use_cpu")
    recipe["training"] = {"output_dir": str(tmp_path / "recipe"), "disable_tqdm": True}
    recipe["training"] |= {name: getattr(arguments, name) for name in names}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    run([str(tmp_path / "recipe.yaml")])
    expected = json.loads((tmp_path / "recipe" / "results.json").read_text())["history"]

    trainer = MultiTaskTrainer(
        make_model(tiny_backbone),
        make_arguments(tmp_path / "python"),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        columns=COLUMNS,
    )
    trainer.train()
    found = json.loads(json.dumps(trainer.state.log_history))
    assert sum("loss" in entry for entry in found) == trainer.state.global_step > 4
    assert sum("eval_score" in entry for entry in found) == 2
    assert losses_of(found) == losses_of(expected)[: len(found)]


def test_tasks_that_are_given_one_object_share_its_rows(data, tiny_backbone, tmp_path):
    trainer = MultiTaskTrainer(
        make_model(tiny_backbone), make_arguments(tmp_path), data["train"], data["validation"], columns=COLUMNS
    )
    assert [entry.tasks for entry in trainer.drawn] == [["mood", "stars"], ["similarity"], ["search"]]
    assert [len(entry.rows) for entry in trainer.drawn] == [12, 12, 6]
    data["train"]["stars"] = make_texts("ran")  # equal rows, but another object
    apart = MultiTaskTrainer(
        make_model(tiny_backbone), make_arguments(tmp_path), data["train"], data["validation"], columns=COLUMNS
    )
    assert [entry.tasks for entry in apart.drawn] == [["mood"], ["stars"], ["similarity"], ["search"]]


def test_shared_training_rows_are_measured_on_each_tasks_own_validation_rows(data, tiny_backbone, tmp_path):
    data["validation"]["stars"] = make_texts("sat").select(range(2))
    trainer = MultiTaskTrainer(
        make_model(tiny_backbone), make_arguments(tmp_path), data["train"], data["validation"], columns=COLUMNS
    )
    assert [entry.tasks for entry in trainer.drawn] == [["mood", "stars"], ["similarity"], ["search"]]
    answers = trainer.predictions("validation", ["mood", "stars"])
    assert {task: len(found.predictions) for task, found in answers.items()} == {"mood": 12, "stars": 2}
    assert set(trainer.identity["data"]["mood and stars"]) == {"train"}
    assert set(trainer.identity["data"]["stars"]) == {"validation"}


def test_only_the_tasks_with_data_are_trained(tiny_backbone, tmp_path):
    model = make_model(tiny_backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = Dataset.from_dict({"sentence": ["the cat ran", "a good dog"], "label": ["bad", "good"]})
    trainer = MultiTaskTrainer(model, make_arguments(tmp_path, **without_evaluation()), {"mood": rows})
    trainer.train()
    changed = {name for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert any(name.startswith("heads.mood") for name in changed)
    assert any(name.startswith("backbone") for name in changed)
    assert not any(name.startswith("heads.stars") for name in changed)


def test_evaluate_takes_other_data_by_task(data, tiny_backbone, tmp_path):
    trainer = MultiTaskTrainer(
        make_model(tiny_backbone), make_arguments(tmp_path), data["train"], data["validation"], columns=COLUMNS
    )
    own, given = trainer.evaluate(), trainer.evaluate({"mood": data["validation"]["mood"]})
    assert given["eval_mood_loss"] == pytest.approx(own["eval_mood_loss"], rel=1e-6)
    assert "eval_stars_loss" in own and "eval_stars_loss" not in given
    assert given["eval_score"] == given["eval_mood_accuracy"]
    other = trainer.evaluate({"mood": make_texts("sat")}, metric_key_prefix="other")
    assert other["other_mood_loss"] != pytest.approx(own["eval_mood_loss"], rel=1e-3)
    with pytest.raises(ValueError, match=r"eval_dataset: the model has no task 'moods'\. Did you mean 'mood'\?"):
        trainer.evaluate({"moods": make_texts("sat")})


def test_class_label_ids_are_read_by_their_names(tiny_backbone, tmp_path):
    rows = Dataset.from_dict({"sentence": ["the cat ran", "a good dog"], "label": [0, 1]})
    rows = rows.cast_column("label", ClassLabel(names=["good", "bad"]))  # the other way round than the model's
    trainer = MultiTaskTrainer(
        make_model(tiny_backbone, "mood"), make_arguments(tmp_path, **without_evaluation()), {"mood": rows}
    )
    assert trainer.drawn[0].rows["label_mood"][:] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            {"sentence": ["the cat", "a dog"], "label": ["good", "godo"]},
            r"train_dataset\['mood'\], row 2: .*'godo' is not a label of task 'mood'\. .*Did you mean 'good'\?",
        ),
        (
            {"sentence": ["the cat", ""], "label": ["good", "bad"]},
            r"train_dataset\['mood'\], row 2: column 'sentence'",
        ),
        ({"text": ["the cat"], "label": ["good"]}, r"train_dataset\['mood'\]: task 'mood' needs a column 'sentence'"),
        ({"sentence": [["the", "cat"]], "label": ["good"]}, r"column 'sentence' of task 'mood' holds lists"),
        (
            {"sentence": ["the cat"], "label": [None]},
            r"the train split \(train_dataset\['mood'\]\) has no labelled row",
        ),
    ],
)
def test_wrong_rows_are_refused_as_those_of_a_recipe(rows, message, tiny_backbone, tmp_path):
    arguments = make_arguments(tmp_path, **without_evaluation())
    with pytest.raises(ValueError, match=message):
        MultiTaskTrainer(make_model(tiny_backbone, "mood"), arguments, {"mood": Dataset.from_dict(rows)})


def test_wrong_data_sets_are_refused_with_a_mend(data, tiny_backbone, tmp_path):
    def make(*sets: Any, **kwargs: Any) -> MultiTaskTrainer:
        return MultiTaskTrainer(make_model(tiny_backbone), make_arguments(tmp_path, **kwargs), *sets, columns=COLUMNS)

    with pytest.raises(
        TypeError, match=r"train_dataset should be a mapping of tasks to data sets, .* Found Dataset\."
    ):
        make(data["train"]["mood"])
    with pytest.raises(TypeError, match=r"train_dataset\['mood'\] should be a datasets\.Dataset\. Found list\."):
        make({"mood": [{"text": "the cat", "mood": "good"}]})
    with pytest.raises(ValueError, match=r"train_dataset: the model has no task 'star'\. Did you mean 'stars'\?"):
        make({"star": data["train"]["stars"]})
    with pytest.raises(ValueError, match=r"eval_dataset has no entry for task 'mood', which train_dataset has"):
        make(data["train"], {"stars": data["validation"]["stars"]})
    with pytest.raises(ValueError, match="'mood' and 'Mood' differ in upper and lower case alone"):
        label_datasets(*(dict.fromkeys(("mood", "Mood"), own["mood"]) for own in (TASKS, data["train"])))
    with pytest.raises(
        ValueError, match=r"eval_strategy is epoch, but there is nothing to evaluate on\. Give eval_da"
    ):
        make(data["train"])
    with pytest.raises(TypeError, match=r"args should be MultiTaskTrainingArguments\. Found TrainingArguments\."):
        MultiTaskTrainer(make_model(tiny_backbone), TrainingArguments(str(tmp_path)), data["train"])


PAIRS = {"premise": ["the cat ran", "a dog"], "hypothesis": ["it ran", "a bird"], "label": ["good", "bad"]}


@pytest.mark.parametrize("columns", [{"sentence1": "premise", "sentence2": "hypothesis", "label": "label"}, None])
def test_pairs_are_refused_for_a_task_of_single_sentences(columns, tiny_backbone, tmp_path):
    names = {"premise": "sentence1", "hypothesis": "sentence2"} if columns is None else {}
    rows = Dataset.from_dict({names.get(name, name): cells for name, cells in PAIRS.items()})
    with pytest.raises(ValueError, match=r"'mood' .* reads single sentences, but .* sentence1 and sentence2\..*pair"):
        MultiTaskTrainer(
            make_model(tiny_backbone, "mood"),
            make_arguments(tmp_path, **without_evaluation()),
            {"mood": rows},
            columns={"mood": columns} if columns else None,
        )


@pytest.mark.parametrize("columns", [{"sentence": "premise", "label": "label"}, None])
def test_single_sentences_are_refused_for_a_task_of_pairs(columns, tiny_backbone, tmp_path):
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"nli": {**TASKS["mood"], "pair": True}}, max_length=20)
    rows = Dataset.from_dict({**PAIRS, "sentence": PAIRS["premise"]})
    with pytest.raises(ValueError, match=r"'nli' of the model reads pairs, but its data has the columns sentence\."):
        MultiTaskTrainer(
            model,
            make_arguments(tmp_path, **without_evaluation()),
            {"nli": rows},
            columns={"nli": columns} if columns else None,
        )


def test_arguments_of_the_caller_stay_as_they_are(data, tiny_backbone, tmp_path):
    arguments = make_arguments(tmp_path)
    before = arguments.to_dict()
    MultiTaskTrainer(make_model(tiny_backbone), arguments, data["train"], data["validation"], columns=COLUMNS)
    assert arguments.to_dict() == before


def test_scale_of_the_training_targets_stands_in_the_models_config_and_is_saved(data, tiny_backbone, tmp_path):
    model = make_model(tiny_backbone)
    assert model.config.tasks["stars"].target_mean is None, "premise: not measured yet"
    trainer = MultiTaskTrainer(model, make_arguments(tmp_path), data["train"], data["validation"], columns=COLUMNS)
    stars = [value for value in data["train"]["stars"]["stars"][:] if value is not None]
    assert model.config.tasks["stars"].target_mean == pytest.approx(sum(stars) / len(stars))
    trainer.save_model(str(tmp_path / "saved"))
    opened = AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    assert opened.config.tasks["stars"].target_mean == model.config.tasks["stars"].target_mean


def test_importing_the_package_for_inference_imports_no_datasets_and_train_can_be_called_at_once():
    script = """
import sys
import multitask_sentence
multitask_sentence.MultiTaskModel
print("datasets" in sys.modules, "multitask_sentence.train" in sys.modules)
from multitask_sentence import train
print(callable(train), callable(train.run), "datasets" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False", "True", "True", "True"]
