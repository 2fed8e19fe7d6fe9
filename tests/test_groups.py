"""Groups of tasks that are scored together, against scikit-learn over the joined rows and figures worked by hand."""

import io
import json
import math
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from sklearn.metrics import f1_score

from helpers import trainer as helpers
from multitask_sentence import MultiTaskModel
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.tasks_multitask import complete_task
from multitask_sentence.train import run
from multitask_sentence.training.evaluation.groups import group_scores, read_groups
from multitask_sentence.training.evaluation.scores import TaskAnswers
from multitask_sentence.training.recipe.recipe import load_recipe
from multitask_sentence.training.trainer import MultiTaskTrainer

RECIPES = Path(__file__).parent.parent / "recipes"
LABELS = ["none", "against", "favor"]
STANCE = {"problem_type": "single_label_classification", "labels": LABELS}
TASKS = {"dogs": STANCE, "cats": {**STANCE, "metrics": ["macro_f1"]}, "rating": helpers.TASKS["rating"]}
PETS = {"tasks": ["dogs", "cats"], "metrics": ["f1", "accuracy"], "f1_labels": ["against", "favor"]}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def sets() -> list[LabelledSet]:
    """A set of each task; cats has fewer rows than dogs."""
    counts = {"dogs": (16, 21), "cats": (16, 9)}
    sets = []
    for seed, (task, (train, validation)) in enumerate(counts.items()):
        found = helpers.make_set(["sentiment"], seed=seed, train=train, validation=validation)
        splits = {
            split: rows.rename_column("label_sentiment", f"label_{task}") for split, rows in found.splits.items()
        }
        sets.append(LabelledSet([task], splits))
    sets.append(helpers.make_set(["rating"], seed=5, train=16, validation=10))
    return sets


@pytest.fixture
def make_trainer(backbone: Path, sets: list[LabelledSet], tmp_path: Path) -> Callable[..., MultiTaskTrainer]:
    def make(groups: dict[str, Any] | None, **arguments: Any) -> MultiTaskTrainer:
        torch.manual_seed(1)
        model = MultiTaskModel.from_backbone(str(backbone), tasks=TASKS)
        return helpers.make_trainer(model, sets, tmp_path / "run", {"groups": groups}, **arguments)

    return make


def answered(predictions: list[Any], references: list[Any]) -> TaskAnswers:
    return TaskAnswers(torch.zeros(0), np.array(predictions), np.array(references), loss=1.0)


def test_group_is_scored_over_the_joined_rows_and_counts_once(make_trainer, sets):
    trainer = make_trainer({"pets": PETS})
    found = trainer.evaluate()
    predictions, references = [], []
    for labelled_set in sets[:2]:
        (task,), rows = labelled_set.tasks, labelled_set.splits["validation"]
        sentences = [sentence for (sentence,) in rows["sentences"]]
        answers = trainer.model.predict(sentences, tasks=task)[task]["labels"]
        predictions += [LABELS.index(answer) for answer in answers]
        references += rows[f"label_{task}"]
    expected = f1_score(references, predictions, labels=[1, 2], average="macro")
    by_task = [
        f1_score(references[part], predictions[part], labels=[1, 2], average="macro")
        for part in (slice(21), slice(21, None))
    ]
    assert expected != pytest.approx(np.mean(by_task)), "premise: a figure over all rows is not the mean of figures"
    assert found["eval_pets_f1"] == pytest.approx(expected)
    assert found["eval_pets_accuracy"] == pytest.approx(np.mean(np.equal(references, predictions)))
    assert found["eval_score"] == pytest.approx((expected + found["eval_rating_pearson"]) / 2)
    assert found["eval_dogs_accuracy"] != found["eval_pets_accuracy"], "premise"
    alone = make_trainer(None).evaluate()
    assert {key: alone[key] for key in alone if re.search("dogs|cats|rating_", key)} == {
        key: found[key] for key in found if re.search("dogs|cats|rating_", key)
    }
    assert alone["eval_loss"] == found["eval_loss"]


def test_group_of_multi_label_tasks_joins_their_rows():
    task = complete_task("t", {"problem_type": "multi_label_classification", "labels": ["a", "b"]})
    groups = read_groups(
        {"g": {"tasks": ["one", "two"], "metrics": ["f1", "accuracy"], "f1_labels": ["b"]}}, {"one": task, "two": task}
    )
    answers = {"one": answered([[1, 1], [0, 1]], [[1, 1], [0, 0]]), "two": answered([[0, 1]], [[1, 1]])}
    assert group_scores(groups, answers)["g"] == pytest.approx({"f1": 0.8, "accuracy": 1 / 3})


def test_group_is_scored_on_the_rows_there_are():
    stance = complete_task("t", STANCE)
    groups = read_groups({"pets": {"tasks": ["dogs", "cats"]}}, {"dogs": stance, "cats": stance})
    assert group_scores(groups, {"cats": answered([0, 1, 2], [0, 1, 1])}) == {"pets": {"accuracy": 2 / 3}}
    assert group_scores(groups, {"other": answered([0], [0])}) == {}


def test_undefined_tasks_and_groups_count_as_zero(make_trainer, monkeypatch):
    trainer = make_trainer({"pets": PETS})
    trainer.model.heads["rating"].layers[-1].weight.data.zero_()  # a constant has no correlation
    found = trainer.evaluate()
    assert math.isnan(found["eval_rating_pearson"])
    assert found["eval_score"] == pytest.approx(found["eval_pets_f1"] / 2)


def test_groups_are_measured_before_training_where_all_their_tasks_are(make_trainer):
    trainer = make_trainer({"pets": PETS})
    assert list(trainer.measure("validation", ["dogs", "cats"])) == ["dogs", "cats", "pets"]
    assert list(trainer.measure("validation", ["dogs", "rating"])) == ["dogs", "rating"]


def train(make_trainer: Callable[..., MultiTaskTrainer], groups: dict[str, Any], **arguments: Any) -> MultiTaskTrainer:
    steps = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make_trainer(groups, num_train_epochs=3, per_device_train_batch_size=8, **steps, **arguments)
    trainer.train()
    return trainer


def test_best_checkpoint_and_best_of_tasks_follow_the_group(make_trainer, tmp_path):
    trainer = train(make_trainer, {"pets": PETS}, metric_for_best_model="eval_pets_accuracy", learning_rate=5e-3)
    scored = [entry for entry in trainer.state.log_history if "eval_pets_f1" in entry][:3]
    assert len({entry["eval_pets_accuracy"] for entry in scored}) > 1, "premise"
    assert trainer.state.best_metric == max(entry["eval_pets_accuracy"] for entry in scored)
    best = trainer.best_of_tasks.summary["pets"]
    assert best["score"] == max(entry["eval_pets_f1"] for entry in scored)
    assert (best["metric"], best["folder"]) == ("f1", "best/pets")
    assert json.loads((tmp_path / "run" / "best" / "pets" / "best.json").read_text())["step"] == best["step"]


def test_early_stopping_watches_a_group(make_trainer):
    settings = {"early_stopping_patience": 1, "early_stopping_threshold": 2.0}  # a gain that no F1 can have
    trainer = train(make_trainer, {"pets": PETS}, early_stopping_task="pets", **settings)
    assert trainer.state.epoch == 2.0
    with pytest.raises(ValueError, match=r"no task 'pet'.*mean 'pets'"):
        train(make_trainer, {"pets": PETS}, early_stopping_task="pet", **settings)


def test_loss_of_a_group_chooses_no_checkpoint(make_trainer):
    with pytest.raises(ValueError, match=r"evaluations give no 'eval_pets_loss'.*eval_pets_f1, eval_pets_accuracy"):
        make_trainer({"pets": PETS}, metric_for_best_model="eval_pets_loss")


def test_checkpoint_of_a_run_with_other_groups_is_refused(make_trainer, tmp_path):
    train(make_trainer, {"pets": PETS})
    checkpoint = max((tmp_path / "run").glob("checkpoint-*"))
    make_trainer({"pets": PETS}, num_train_epochs=3, per_device_train_batch_size=8).check_resume(checkpoint)
    for groups, message in (
        ({"pets": {**PETS, "f1_labels": ["favor"]}}, r"groups\.pets\.f1_labels was \['against', 'favor'\] and is"),
        ({"pets": {**PETS, "metrics": ["accuracy", "f1"]}}, r"groups\.pets\.metrics was \['f1', 'accuracy'\] and is"),
        (None, r"groups"),
    ):
        with pytest.raises(ValueError, match=f"comes from another run: {message}"):
            make_trainer(groups, num_train_epochs=3, per_device_train_batch_size=8).check_resume(checkpoint)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([PETS], r"groups is \[.*but should be a mapping"),
        ({"pets": ["dogs"]}, r"groups\.pets is \['dogs'\], but should be a mapping"),
        ({"my pets": PETS}, "groups: the name 'my pets' is not an identifier"),
        ({"rating": PETS}, "groups: 'rating' is the name of a task"),
        ({"pets": {**PETS, "task": []}}, r"groups\.pets: unknown key 'task'\. Did you mean 'tasks'"),
        ({"pets": {"tasks": ["dogs"]}}, r"groups\.pets\.tasks is \['dogs'\], but should list two tasks or more"),
        ({"pets": {}}, r"groups\.pets\.tasks is None, but should list two"),
        (
            {"pets": {"tasks": ["dogs", "cat"]}},
            r"pets\.tasks: there is no task 'cat'\..*mean 'cats'.*dogs, cats",
        ),
        ({"pets": {"tasks": ["dogs", ["cats"]]}}, r"groups\.pets\.tasks: there is no task \['cats'\]"),
        ({"pets": {"tasks": ["dogs", "dogs"]}}, r"groups\.pets\.tasks lists 'dogs' more than once"),
        ({"pets": {"tasks": ["dogs", "rating"]}}, "'rating' is a task of type regression, but only classification"),
        (
            {"pets": {"tasks": ["dogs", "turned"]}},
            r"'dogs' is .*'against', 'favor'\], but 'turned' is .*\['fav",
        ),
        ({"pets": {"tasks": ["dogs", "tags"]}}, "'tags' is a task of type multi_label_classification with the labels"),
        ({"pets": PETS, "more": {"tasks": ["cats", "third"]}}, r"more\.tasks: 'cats' stands in groups\.pets as well"),
        ({"pets": {**PETS, "f1_labels": ["pro"]}}, r"groups\.pets\.f1_labels: a label is 'pro', but should be one of"),
        ({"pets": {**PETS, "metrics": ["f2"]}}, r"groups\.pets\.metrics \(single_label_classification\): a metric is"),
        ({"pets": {"tasks": ["dogs", "cats"], "metrics": ["f1"]}}, r"groups\.pets\.f1_labels is missing"),
        (
            {"dogs_macro": PETS, "x": {"tasks": ["third", "fourth"]}},
            "'dogs' and 'dogs_macro' would both report",
        ),
    ],
)
def test_wrong_group_is_named_with_its_remedy(groups: Any, message: str):
    tasks = {name: complete_task(name, task) for name, task in TASKS.items()}
    tasks["dogs"] = complete_task("dogs", {**STANCE, "metrics": ["macro_f1"]})
    tasks |= dict.fromkeys(("third", "fourth"), tasks["cats"])
    tasks["turned"] = complete_task("turned", {**STANCE, "labels": LABELS[::-1]})
    tasks["tags"] = complete_task("tags", {**STANCE, "problem_type": "multi_label_classification"})
    with pytest.raises(ValueError, match=message):
        read_groups(groups, tasks)


# ---- in a recipe ----


def write_recipe(folder: Path, backbone: str, **changes: Any) -> Path:
    """Two tasks of three classes, read from one file a split, and what is changed."""
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            f"the {animal} {verb} {place},{LABELS[(one + two) % 3]},{LABELS[(one + three) % 3]}"
            for one, animal in enumerate(("dog", "cat", "bird"))
            for two, verb in enumerate(("sat", "ran", "sang"))
            for three, place in enumerate(("in the park", "on the mat", "today")[number:] or ["today"])
        ]
        (folder / f"{split}.csv").write_text("\n".join(["text,dogs,cats", *rows, ""]))
    files = {split: str(folder / f"{split}.csv") for split in ("train", "validation", "test")}
    task = {**STANCE, "dataset": {"path": "csv", "data_files": files}}
    recipe = {
        "backbone": backbone,
        "tasks": {name: {**task, "columns": {"sentence": "text", "label": name}} for name in ("dogs", "cats")},
        "groups": {"pets": PETS},
        "training": {
            "output_dir": str(folder / "result"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.003,
            "disable_tqdm": True,
            "use_cpu": True,
        },
        **changes,
    }
    recipe["tasks"]["cats"] |= {"metrics": ["f1"], "f1_labels": ["none"]}
    (folder / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "job.yaml"


def test_names_of_a_run_that_differ_in_case_alone_are_refused(tmp_path: Path, tiny_backbone: str):
    recipe = write_recipe(tmp_path, tiny_backbone, groups={"Dogs": PETS})
    with pytest.raises(ValueError, match="tasks: 'dogs' and 'Dogs' differ in upper and lower case alone"):
        run([str(recipe)])


def train_recipe(recipe: Path, *flags: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(recipe), *flags])
    return printed.getvalue()


@pytest.fixture(scope="module")
def compared(tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with a recipe and a joint run that was compared with single ones, and what it printed."""
    folder = tmp_path_factory.mktemp("compared")
    return folder, train_recipe(write_recipe(folder, tiny_backbone), "--compare_single")


def test_run_scores_the_group_everywhere_and_compares_it(compared: tuple[Path, str]):
    root, printed = compared
    folder = root / "result"
    results = json.loads((folder / "results.json").read_text())
    assert results["groups"] == {"pets": PETS}
    scores = results["scores"]["test"]
    assert list(scores) == ["dogs", "cats", "pets"] and list(scores["pets"]) == ["f1", "accuracy"]
    assert results["best_metric"] == max(entry.get("eval_pets_f1", 0) for entry in results["history"])
    assert re.search(r"^group pets +dogs, cats: f1 \(against, favor\), accuracy$", printed, flags=re.MULTILINE)
    assert re.search(rf"^pets \(group\) +f1 +[\d.]+ +{scores['pets']['f1']:.4f}$", printed, flags=re.MULTILINE)

    card = (folder / "README.md").read_text()
    assert "`pets` is one figure over the rows of `dogs` and `cats` together." in card
    assert re.search(r"\| `pets` \(group\) +\| f1 of `against`, `favor` +\|", card)
    measured = {found.metric_name: found for found in ModelCard.load(folder / "README.md").data.eval_results}
    assert measured["pets f1"].metric_value == pytest.approx(scores["pets"]["f1"])
    assert measured["pets f1"].metric_args == {"average": "macro", "labels": [1, 2]}

    compared = results["compare_single"]
    assert list(compared["tasks"]) == ["dogs", "cats"] and list(compared["groups"]) == ["pets"]
    pets = compared["groups"]["pets"]
    assert compared["tasks"]["cats"]["joint"] == scores["cats"]["f1"] != scores["pets"]["f1"]
    assert pets["rows"] == sum(compared["tasks"][task]["rows"] for task in ("dogs", "cats"))
    assert pets["joint"] == scores["pets"]["f1"]
    low, high = pets["interval"]
    assert low <= pets["joint"] - pets["single"] <= high
    assert re.search(r"^pets +f1 +test +\d+ ", printed, flags=re.MULTILINE)
    assert "best/pets" in printed and (folder / "best" / "pets" / "config.json").is_file()
    assert "groups" not in json.loads((folder / "config.json").read_text())


def test_distilled_model_is_compared_on_the_group(compared: tuple[Path, str], tiny_backbone: str):
    root, _ = compared
    job = write_recipe(root, tiny_backbone, distillation={"teachers": "single"})
    printed, folder = train_recipe(job, "--output_dir", str(root / "distilled")), root / "distilled"
    assert "finished before" in printed, "premise: teachers are the models that were compared"
    results, earlier = (json.loads((path / "results.json").read_text()) for path in (folder, root / "result"))
    pets = results["distillation"]["groups"]["pets"]
    assert pets["distilled"] == results["scores"]["test"]["pets"]["f1"]
    assert pets["single"]["score"] == pytest.approx(earlier["compare_single"]["groups"]["pets"]["single"])
    assert pets["joint"]["score"] == pytest.approx(earlier["scores"]["test"]["pets"]["f1"])
    for other in ("single", "joint"):
        low, high = pets[other]["interval"]
        assert low <= pets[other]["difference"] == pets["distilled"] - pets[other]["score"] <= high
    assert re.search(r"^pets +f1 +test +\d+ ", printed, flags=re.MULTILINE)


def test_recipe_without_groups_has_none(tmp_path: Path):
    assert load_recipe(write_recipe(tmp_path, "backbone", groups=None)).groups == {}


def test_stance_of_tweeteval_is_scored_by_the_official_rule():
    recipe = load_recipe(RECIPES / "tweeteval.yaml")
    (group,) = recipe.groups.values()
    assert set(group.tasks) == {name for name in recipe.tasks if name.startswith("stance_")}
    generator, answers = np.random.default_rng(0), {}
    for number, task in enumerate(group.tasks):
        references = generator.integers(3, size=20 + 10 * number)
        answers[task] = answered(np.where(generator.random(len(references)) < 0.5, references, number % 3), references)
    joined = [
        np.concatenate([getattr(found, side) for found in answers.values()]) for side in ("references", "predictions")
    ]
    against, favor = (f1_score(*(side == number for side in joined)) for number in (1, 2))
    assert group_scores(recipe.groups, answers)["stance"] == pytest.approx({"f1": (against + favor) / 2})
    assert recipe.tasks["irony"].primary_metric == "f1" and recipe.tasks["irony"].f1_labels == ["irony"]


def test_classes_of_a_group_are_the_names_that_were_written(tmp_path: Path):
    recipe = write_recipe(tmp_path, "backbone")
    recipe.write_text(recipe.read_text().replace("- none", "- false").replace("- against", "- true"))
    assert load_recipe(recipe).groups["pets"].scoring.f1_labels == ["true", "favor"]


def test_tasks_of_a_group_list_their_labels_in_the_recipe(tmp_path: Path):
    content = yaml.safe_load(write_recipe(tmp_path, "backbone").read_text())
    del content["tasks"]["cats"]["labels"]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"job\.yaml: groups\.pets\.tasks: 'cats' lists no labels\. .* tasks\.cats"):
        load_recipe(tmp_path / "job.yaml")
