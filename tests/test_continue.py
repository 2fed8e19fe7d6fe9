"""Going on from a trained model: what it brings along, what is added, what is refused, scores before and after."""

import io
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
import yaml
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModel, BertConfig

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.adapter_multitask import has_adapter
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.train import main, run
from multitask_sentence.training.arguments import MultiTaskTrainingArguments
from multitask_sentence.training.recipe.recipe import load_recipe
from multitask_sentence.training.recipe.starting import check_start, scores_before, start_model

SENTENCES = ["the cat sat on the mat", "a dog ran", "the film was very good !"]
SUBJECTS = {"cat": "animal", "dog": "animal", "bank": "money", "market": "money"}
MOODS = {"good": "positive", "bad": "negative", "fine": "positive"}


def texts(verb: str) -> str:
    lines = [
        f"the {subject} {verb} {word} today,{mood},{kind}{'|time' * (word == 'fine')},{len(word)}"
        for subject, kind in SUBJECTS.items()
        for word, mood in MOODS.items()
    ]
    return "\n".join(["text,mood,tags,stars", *lines, ""])


def pairs(verb: str) -> str:
    lines = [f"a {subject} {verb},the {subject} {verb} today,{4 + i}" for i, subject in enumerate(SUBJECTS)]
    lines += [f"a {subject} {verb},it is news of film,{i}" for i, subject in enumerate(SUBJECTS)]
    return "\n".join(["a,b,score", *lines, ""])


FILES = {"train": "{}_ran.csv", "validation": "{}_sat.csv", "test": "{}_sang.csv"}
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "columns": {"sentence": "text", "label": "mood"}},
    "tags": {"problem_type": "multi_label_classification", "columns": {"sentence": "text", "label": "tags"}},
    "stars": {"problem_type": "regression", "columns": {"sentence": "text", "label": "stars"}},
    "similarity": {"problem_type": "similarity", "columns": {"sentence1": "a", "sentence2": "b", "label": "score"}},
}
TASKS["mood"]["head"] = {"hidden_dims": [11], "dropout": 0.1}
TASKS["mood"]["metrics"] = ["macro_f1", "accuracy"]


def arguments(folder: Path) -> MultiTaskTrainingArguments:
    return MultiTaskTrainingArguments(output_dir=str(folder / "result"))


def write_job(folder: Path, tasks: list[str], **changes: Any) -> Path:
    """Data and recipe in a folder; the result goes to `result` beside them."""
    folder.mkdir(exist_ok=True)
    for verb in ("ran", "sat", "sang"):
        (folder / f"texts_{verb}.csv").write_text(texts(verb))
        (folder / f"pairs_{verb}.csv").write_text(pairs(verb))
    recipe: dict[str, Any] = {"tasks": {}, "max_length": None, **changes}
    for task in tasks:
        kind = "pairs" if task == "similarity" else "texts"
        dataset = {"path": "csv", "data_files": {split: file.format(kind) for split, file in FILES.items()}}
        recipe["tasks"][task] = {**TASKS[task], "dataset": dataset}
    recipe["training"] = {
        "output_dir": str(folder / "result"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.003,
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "job.yaml"


def change(job: Path, *keys: str, value: Any) -> Path:
    content = yaml.safe_load(job.read_text())
    block = content
    for key in keys[:-1]:
        block = block[key]
    block[keys[-1]] = value
    job.write_text(yaml.safe_dump(content, sort_keys=False))
    return job


def finish(job: Path, *argv: str) -> SimpleNamespace:
    """Run a job in this process: its folder, printed text and results."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(job), *argv])
    folder = job.parent / "result"
    results = json.loads((folder / "results.json").read_text())
    return SimpleNamespace(folder=folder, printed=printed.getvalue(), results=results)


def error_of(monkeypatch: pytest.MonkeyPatch, *argv: object) -> str:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, str)
    return caught.value.code


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield cache
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> SimpleNamespace:
    """A trained model with the tasks mood, tags and similarity. Read only."""
    job = write_job(
        tmp_path_factory.mktemp("first") / "job",
        ["mood", "tags", "similarity"],
        backbone=tiny_backbone,
        max_length=20,
        projection={"out_features": 24},
    )
    return finish(job)


@pytest.fixture(scope="module")
def second(first: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The first model, continued with mood and the new task stars. Read only."""
    job = write_job(
        tmp_path_factory.mktemp("second") / "job", ["mood", "stars"], continue_from=str(first.folder), max_length=20
    )
    change(job, "tasks", "mood", "loss_weight", value=0.5)
    return finish(job)


# ---- a run that goes on ----


def test_continued_model_has_old_and_new_tasks_and_opens(first: SimpleNamespace, second: SimpleNamespace):
    model = AutoModel.from_pretrained(second.folder, trust_remote_code=True)
    assert set(model.config.tasks) == {"mood", "tags", "similarity", "stars"}
    assert set(model.predict(SENTENCES)) == {"mood", "tags", "stars"}
    before, after = (load_file(run.folder / "model.safetensors") for run in (first, second))
    assert after.keys() - before.keys() == {"heads.stars.layers.1.weight", "heads.stars.layers.1.bias"}
    moved = {name.split(".")[1] for name in before if "heads." in name and not torch.equal(before[name], after[name])}
    assert moved == {"mood"}  # tags has no data in the recipe, so its head is as it was
    moved = [name for name in before if name.startswith("backbone.") and not torch.equal(before[name], after[name])]
    assert moved
    old, new = (run.results["tasks"] for run in (first, second))
    assert new["mood"] == {**old["mood"], "loss_weight": 0.5}
    assert (new["tags"], new["similarity"]) == (old["tags"], old["similarity"])


def test_scores_before_are_those_the_model_was_left_with(first: SimpleNamespace, second: SimpleNamespace):
    scores = second.results["scores"]
    assert list(scores) == ["validation before", "validation", "test before", "test"]
    for split in ("validation", "test"):
        assert list(scores[f"{split} before"]) == ["mood"]  # not stars, which was new; not tags, without data
        assert set(scores[split]) == {"mood", "stars"}
        assert scores[f"{split} before"]["mood"] == first.results["scores"][split]["mood"]
        assert scores[split]["mood"]["loss"] != scores[f"{split} before"]["mood"]["loss"]
    table = second.printed[second.printed.index("task    metric") :]
    header = re.split(" {2,}", table.splitlines()[0].strip())
    assert header == ["task", "metric", "validation before", "validation", "test before", "test"]
    assert f"{scores['test before']['mood']['loss']:.4f}" in table
    assert "tags" not in table


def test_settings_say_what_is_continued_new_and_kept(first: SimpleNamespace, second: SimpleNamespace):
    lines = {line[:17].strip(): line for line in second.printed.splitlines()}
    assert str(first.folder) in lines["backbone"]
    assert lines["continued tasks"].split()[-1] == "mood"
    assert lines["new tasks"].split()[-1] == "stars"
    assert "tags, similarity (no data in the recipe: heads frozen, not measured; " in lines["kept tasks"]
    assert "loss_mood" in second.printed
    assert "loss_tags" not in second.printed
    assert second.results["continue_from"] == f"./{first.folder.name}"
    assert "was trained on `mood` and `stars` from there" in (second.folder / "README.md").read_text()


def test_heads_without_data_are_frozen_and_a_new_one_is_not(first: SimpleNamespace, tmp_path: Path):
    # Distributed training waits in vain for the gradient of a trainable parameter that takes no part.
    recipe = load_recipe(write_job(tmp_path / "job", ["mood", "stars"], continue_from=str(first.folder)))
    start = check_start(recipe, arguments(tmp_path))
    model = start_model(start, recipe, SimpleNamespace(labels={}, score_ranges={}))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"heads.tags.layers.1.weight", "heads.tags.layers.1.bias"}


def test_metrics_of_a_continued_task_bring_their_own_classes_of_f1(first: SimpleNamespace, tmp_path: Path):
    model = MultiTaskModel.from_pretrained(first.folder)
    model.config.change_task("mood", metrics=["f1", "accuracy"], f1_labels=["negative"])
    model.save_pretrained(tmp_path / "trained")
    job = write_job(tmp_path / "job", ["mood"], continue_from=str(tmp_path / "trained"))

    def start_with(**changes: Any) -> TaskConfig:
        for key, value in changes.items():
            change(job, "tasks", "mood", key, value=value)
        return check_start(load_recipe(job), arguments(tmp_path)).tasks["mood"]

    task = start_with(metrics=None)
    assert (task.metrics, task.f1_labels) == (["f1", "accuracy"], ["negative"])
    task = start_with(metrics=["accuracy"])
    assert (task.metrics, task.f1_labels) == (["accuracy"], [])
    task = start_with(metrics=["f1"], f1_labels=["positive"])
    assert (task.metrics, task.f1_labels) == (["f1"], ["positive"])


def test_labels_of_the_trained_model_are_those_the_data_must_have(first: SimpleNamespace, tmp_path: Path):
    job = write_job(tmp_path / "job", ["mood"], continue_from=str(first.folder))
    for path in job.parent.glob("texts_*.csv"):
        lines = [line for line in path.read_text().splitlines() if ",negative," not in line]
        path.write_text("\n".join([*lines, ""]))
    assert finish(job).results["tasks"]["mood"]["labels"] == ["negative", "positive"]


def test_continued_run_resumes_to_the_same_weights(second: SimpleNamespace, first: SimpleNamespace, tmp_path: Path):
    job = write_job(tmp_path / "job", ["mood", "stars"], continue_from=str(first.folder), max_length=20)
    change(job, "tasks", "mood", "loss_weight", value=0.5)
    finish(job, "--save_strategy", "steps", "--save_steps", "1", "--no_load_best_model_at_end")
    (job.parent / "result" / "results.json").unlink()
    with helpers.blank_start():
        resumed = finish(job, "--resume_from_checkpoint", str(job.parent / "result" / "checkpoint-1"), "--overwrite")
    whole = load_file(second.folder / "model.safetensors")
    for name, weight in load_file(resumed.folder / "model.safetensors").items():
        torch.testing.assert_close(weight, whole[name], rtol=0, atol=0)
    assert resumed.results["scores"] == second.results["scores"]


# ---- only the new head ----


def test_recipe_of_the_docs_adds_a_task_and_keeps_the_answers_of_the_old_ones(first: SimpleNamespace, tmp_path: Path):
    page = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    block = yaml.safe_load(next(re.finditer(r"^```yaml\n(continue_from: .*?)^```", page, re.DOTALL | re.MULTILINE))[1])
    job = write_job(tmp_path / "job", [], continue_from=str(first.folder))
    (task,) = block["tasks"]
    words = [f"the {subject} is {word} today" for subject in SUBJECTS for word in (*MOODS, "new")]
    rows = [f"{text},{('joy', 'anger')[number % 2]}" for number, text in enumerate(words)]
    (job.parent / "emotions.csv").write_text("\n".join(["text,emotion", *rows, ""]))
    change(job, "tasks", value=block["tasks"])
    # The recipe's own comment: the model of this file has a projection.
    assert block["strategy"] == {"freeze": "backbone"} and "[backbone, projection] where" in page
    change(job, "strategy", value={"freeze": ["backbone", "projection"]})
    folder = finish(job).folder

    old, new = (MultiTaskModel.from_pretrained(path).eval() for path in (first.folder, folder))
    assert old.projection is not None and set(new.config.tasks) - set(old.config.tasks) == {task}
    before, after = old.state_dict(), new.state_dict()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=0)
    for name, settings in old.config.tasks.items():
        assert new.config.tasks[name] == settings
    said = [model.predict(SENTENCES, head=["mood", "tags"]) for model in (old, new)]
    for name in ("mood", "tags"):
        assert said[0][name]["labels"] == said[1][name]["labels"]
        assert (said[0][name]["probabilities"] == said[1][name]["probabilities"]).all()


def test_old_scores_are_bit_identical_where_only_the_new_head_is_trained(tmp_path: Path):
    """What `strategy: {freeze: [backbone, projection, {heads: [...]}]}` does, done by hand."""
    backbone = helpers.make_backbone(tmp_path / "backbone", dropout=0.1)
    tasks = ("sentiment", "tags", "pairs")
    helpers.make_model(backbone, tasks, projection={"out_features": 24}).save_pretrained(tmp_path / "trained")
    model = MultiTaskModel.from_pretrained(tmp_path / "trained")
    model.add_task("rating", helpers.TASKS["rating"])
    for part in (model.backbone, model.projection, model.heads["sentiment"], model.heads["tags"]):
        part.requires_grad_(False)
    frozen = {name: weight.clone() for name, weight in model.state_dict().items() if "rating" not in name}
    new = {name: weight.clone() for name, weight in model.state_dict().items() if "rating" in name}

    sets = [
        helpers.make_set(["sentiment", "tags", "rating"], train=12, validation=9, test=7),
        helpers.make_set(["pairs"], train=8, validation=6),
    ]
    trainer = helpers.make_trainer(
        model, sets, tmp_path / "run", per_device_train_batch_size=8, num_train_epochs=3, weight_decay=0.1
    )
    before = scores_before(trainer, ["validation", "test"], tasks)
    assert set(before["validation before"]) == set(tasks)
    assert set(before["test before"]) == {"sentiment", "tags"}
    thresholds = list(model.config.tasks["tags"].thresholds)
    trainer.train()
    assert trainer.choose_thresholds() == {}  # new ones would change the score of a task that was not trained
    assert model.config.tasks["tags"].thresholds == thresholds
    assert scores_before(trainer, ["validation", "test"], tasks) == before
    for name, weight in frozen.items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=0, atol=0)
    assert all(not torch.equal(model.state_dict()[name], weight) for name, weight in new.items())


# ---- adapters ----


def test_trained_model_is_continued_with_an_adapter_that_names_it_as_base(first: SimpleNamespace, tmp_path: Path):
    lora = {"r": 2, "target_modules": ["query"], "save": "adapter"}
    job = write_job(tmp_path / "job", ["mood", "stars"], continue_from=str(first.folder), peft=lora)
    adapter = finish(job)
    config = json.loads((adapter.folder / "config.json").read_text())
    assert (adapter.folder / config["base_name_or_path"]).resolve() == first.folder.resolve()
    model = AutoModel.from_pretrained(adapter.folder, trust_remote_code=True)
    assert has_adapter(model.backbone)
    weights, trained = load_file(first.folder / "model.safetensors"), model.state_dict()
    name = "encoder.layer.0.attention.self.query"
    torch.testing.assert_close(
        trained[f"backbone.{name}.base_layer.weight"], weights[f"backbone.{name}.weight"], rtol=0, atol=0
    )

    # And an adapter is continued as the plain model that it merges to.
    again = finish(write_job(tmp_path / "again", ["stars"], continue_from=str(adapter.folder)))
    assert not (again.folder / "adapter").exists()
    stars = again.results["scores"]["test before"]["stars"]["loss"]
    assert stars == pytest.approx(adapter.results["scores"]["test"]["stars"]["loss"], rel=1e-4)


# ---- what is refused before any data is loaded ----


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("backbone",), "some/encoder", "backbone and continue_from are both given"),
        (
            ("pooling",),
            "cls",
            "pooling is 'cls', but .* was trained with 'mean'. Remove it: a model that is continued",
        ),
        (("max_length",), 30, "max_length is 30, but .* was trained with 20"),
        (("normalize",), True, "normalize is True, but .* was trained with False"),
        (
            ("projection",),
            {"out_features": 9},
            r"projection is \{'out_features': 9.* with \{'out_features': 24",
        ),
        (
            ("tasks", "mood", "labels"),
            ["positive", "negative"],
            r"mood\.labels is \['positive', 'negative'\], but .* has \['negative', 'positive'\]\. List these first",
        ),
        (("tasks", "mood", "labels"), ["negative", "angry"], r"List these first, in this order, and new ones after"),
        (("tasks", "mood", "head"), {"hidden_dims": [12]}, r"mood\.head is \{'hidden_dims': \[12\].* has \{.*\[11\]"),
        (
            ("tasks", "mood"),
            {**TASKS["stars"], "dataset": {"path": "csv"}},
            "mood.problem_type is 'regression', but .* has 'single_label",
        ),
        (("tasks", "mood", "columns"), {"sentence1": "a", "sentence2": "b", "label": "c"}, "mood.pair is True, but"),
        (("tasks", "mood", "metrics"), ["spearman"], r"tasks\.mood\.metrics"),
        (("continue_from",), "runs/no/model", "continue_from: there is no folder runs/no/model"),
        (("continue_from",), "{folder}", r"continue_from: the folder \S+ holds no config\.json"),
        (("continue_from",), "{folder}/bert", "is a 'bert' model, not one that was trained here. Name it as backbone"),
    ],
)
def test_recipe_that_does_not_fit_the_trained_model_is_refused(
    first: SimpleNamespace, tmp_path: Path, keys: tuple[str, ...], value: Any, message: str
):
    job = write_job(tmp_path / "job", ["mood", "stars"], continue_from=str(first.folder))
    BertConfig(hidden_size=32, num_attention_heads=4).save_pretrained(tmp_path / "bert")
    for path in job.parent.glob("*.csv"):
        path.unlink()  # so that looking at the data would be another error
    change(job, *keys, value=value.format(folder=tmp_path) if isinstance(value, str) else value)
    with pytest.raises(ValueError, match=message):
        run([str(job)])
    assert not (job.parent / "result").exists()


def test_head_that_is_written_out_as_it_was_is_no_contradiction(first: SimpleNamespace, tmp_path: Path):
    job = write_job(tmp_path / "job", ["mood"], continue_from=str(first.folder), projection={"out_features": 24})
    change(job, "tasks", "mood", "labels", value=["negative", "positive"])
    assert finish(job, "--max_steps", "1").results["tasks"]["mood"]["head"]["hidden_dims"] == [11]


def test_labels_after_the_old_ones_are_learnt_and_the_old_rows_of_the_head_stay(
    first: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = write_job(tmp_path / "job", ["mood", "tags"], continue_from=str(first.folder))
    for path in job.parent.glob("texts_*.csv"):
        path.write_text(path.read_text().replace("fine today,positive", "fine today,calm").replace("|time", "|hour"))
    assert "'calm' is not a label of task 'mood'" in error_of(monkeypatch, job)
    change(job, "tasks", "mood", "labels", value=["negative", "positive", "calm"])
    old = MultiTaskModel.from_pretrained(first.folder)
    tags = old.config.tasks["tags"]
    change(job, "tasks", "tags", "labels", value=[*tags.labels, "hour"])

    recipe = load_recipe(job)
    start = check_start(recipe, arguments(job.parent))
    model = start_model(start, recipe, SimpleNamespace(labels={}, score_ranges={}))
    for task in ("mood", "tags"):
        for ours, theirs in zip(model.heads[task].parameters(), old.heads[task].parameters(), strict=True):
            assert torch.equal(ours[: len(theirs)], theirs)
    assert model.config.tasks["tags"].thresholds == [*tags.thresholds, 0.5]

    continued = finish(job)
    assert "new labels of mood" in continued.printed
    settings = continued.results["tasks"]
    assert settings["mood"]["labels"] == ["negative", "positive", "calm"]
    assert len(settings["tags"]["thresholds"]) == len(tags.labels) + 1
    assert continued.results["confusion"]["mood"]["labelled"][2] > 0
    model = AutoModel.from_pretrained(continued.folder, trust_remote_code=True)
    assert model.predict(SENTENCES)["mood"]["probabilities"].shape == (3, 3)


def test_new_task_whose_scores_would_have_the_name_of_an_old_ones_is_refused(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = {"stars_cosine": {"problem_type": "regression"}}  # eval_stars_cosine_spearman
    MultiTaskModel.from_backbone(tiny_backbone, tasks=tasks).save_pretrained(tmp_path / "model")
    job = write_job(tmp_path / "job", ["similarity"], continue_from=str(tmp_path / "model"))
    content = yaml.safe_load(job.read_text())
    change(job, "tasks", value={"stars": content["tasks"]["similarity"]})
    message = error_of(monkeypatch, job)
    assert "'stars' and 'stars_cosine' would both report a score called stars_cosine_spearman" in message


@pytest.mark.parametrize("output_dir", ["model", "."])
def test_model_to_continue_from_is_not_written_over(
    first: SimpleNamespace, tmp_path: Path, output_dir: str, monkeypatch: pytest.MonkeyPatch
):
    model = MultiTaskModel.from_pretrained(first.folder)
    folder = tmp_path / "run" / "checkpoint-3" if output_dir == "." else tmp_path / "run"
    model.save_pretrained(folder)
    (folder / "trainer_state.json").write_text("{}")
    for name in ("results.json", "recipe.yaml"):
        (tmp_path / "run" / name).write_text("{}")
    job = write_job(tmp_path / "job", ["mood"], continue_from=str(folder))
    message = error_of(monkeypatch, job, "--output_dir", tmp_path / "run", "--overwrite")
    assert message == (
        f"error: continue_from {folder} lies in the output_dir {tmp_path / 'run'}, which would be written over. Give "
        "another --output_dir."
    )
    assert (folder / "model.safetensors").is_file()


def test_adapter_in_memory_survives_a_new_task(tiny_backbone: str):
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"similarity": {"problem_type": "similarity"}})
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    model.add_task("rating", {"problem_type": "regression"})
    assert model.heads["rating"].layers[-1].weight.requires_grad
    assert not model.backbone.embeddings.word_embeddings.weight.requires_grad
