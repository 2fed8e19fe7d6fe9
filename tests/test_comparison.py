"""`train.py --compare_single`: the joint run stays what it was, each task is trained alone from the same start, and
what is said of the two follows from their predictions."""

import copy
import io
import json
import math
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file

from helpers import trainer as helpers
from helpers.pictures import drawn
from helpers.small_job import TASKS, change, make_recipe, write_rows
from multitask_sentence import MultiTaskModel
from multitask_sentence import train as train_module
from multitask_sentence.data.metrics import compute_metric
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.train import run
from multitask_sentence.training.comparison import compare
from multitask_sentence.training.comparison import report as comparison_report
from multitask_sentence.training.comparison import single_runs as comparison
from multitask_sentence.training.comparison.compare import compare_task, curve_correlations
from multitask_sentence.training.comparison.single_runs import scale_steps, single_set
from multitask_sentence.training.run.output_folder import check_output_dir


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str) -> Path:
    write_rows(tmp_path)
    return make_recipe(tmp_path, tiny_backbone)


def run_and_read(job: Path, *argv: str) -> tuple[dict[str, Any], str]:
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(job), *argv])
    return json.loads((job.parent / "result" / "results.json").read_text(encoding="utf-8")), printed.getvalue()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> SimpleNamespace:
    """The job, compared once, with the weights that each of its trainers started from. Read only."""
    folder = tmp_path_factory.mktemp("compared")
    write_rows(folder)
    starts: list[tuple[list[str], dict[str, torch.Tensor]]] = []

    class Recording(train_module.MultiTaskTrainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            starts.append((list(self.tasks), weights))
            return super().train(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched, drawn():
        for module in (train_module, comparison):
            patched.setattr(module, "MultiTaskTrainer", Recording)
        results, printed = run_and_read(make_recipe(folder, tiny_backbone), "--compare_single")
    return SimpleNamespace(folder=folder / "result", results=results, printed=printed, starts=starts)


def single_of(compared: SimpleNamespace, task: str) -> dict[str, Any]:
    return json.loads((compared.folder / "single" / task / "results.json").read_text(encoding="utf-8"))


def test_joint_run_is_bit_identical_to_one_without_comparison(job: Path, compared: SimpleNamespace):
    results, _ = run_and_read(job)
    assert "compare_single" not in results
    assert not (job.parent / "result" / "single").exists()
    assert results["scores"] == compared.results["scores"]
    plain, found = (load_file(folder / "model.safetensors") for folder in (job.parent / "result", compared.folder))
    assert plain.keys() == found.keys()
    for name, weights in plain.items():
        torch.testing.assert_close(found[name], weights, rtol=0, atol=0)


def test_every_run_starts_from_the_same_weights(compared: SimpleNamespace):
    assert [tasks for tasks, _ in compared.starts] == [list(TASKS), *([task] for task in TASKS)]
    joint = compared.starts[0][1]
    trained = load_file(compared.folder / "model.safetensors")
    assert any(not torch.equal(trained[name], joint[name]) for name in trained), "premise: training changes weights"
    for _, weights in compared.starts[1:]:
        assert weights.keys() == joint.keys()
        assert all(torch.equal(weights[name], joint[name]) for name in joint)


def test_single_runs_see_their_own_rows_as_often_as_in_the_joint_run(compared: SimpleNamespace):
    for task in TASKS:
        single = single_of(compared, task)
        rows = compared.results["rows"][task]
        assert single["settings"]["rows"] == rows
        assert single["rows_per_epoch"] == rows["train"]
        assert single["steps"] == 3 * math.ceil(rows["train"] / 8)
        evaluations = [entry for entry in single["history"] if "eval_score" in entry]
        assert len(evaluations) == 4, "one an epoch, and the chosen model"
        own = {key for entry in single["history"] for key in entry if key.startswith(("eval_", "loss_"))}
        assert not [key for key in own for other in TASKS if other != task and f"_{other}_" in key + "_"]
        best = max(evaluations[:3], key=lambda entry: (entry["eval_score"], -entry["eval_loss"]))
        assert single["best_step"] == best["step"]
    assert compared.results["rows"]["mood"]["train"] == 12, "premise: fewer rows than tags has"
    assert compared.results["rows"]["tags"]["train"] == 15


def test_comparison_follows_from_both_models_predictions(compared: SimpleNamespace):
    found = compared.results["compare_single"]
    assert list(found["tasks"]) == list(TASKS)
    for task, entry in found["tasks"].items():
        split = "validation" if task == "search" else "test"
        single = single_of(compared, task)
        metric = compared.results["tasks"][task]["metrics"][0]
        assert (entry["split"], entry["metric"]) == (split, metric)
        assert entry["joint"] == compared.results["scores"][split][task][metric]
        assert entry["single"] == single["scores"][split][metric]
        assert entry["difference"] == pytest.approx(entry["joint"] - entry["single"])
        low, high = entry["interval"]
        assert low <= entry["difference"] <= high
        arrays = {
            key: rows.tolist()
            for key, rows in load_arrays(compared.folder / "single" / task / "predictions.safetensors").items()
        }
        again = compute_metric(metric, arrays["predictions"], arrays.get("references"))
        assert again[metric] == pytest.approx(entry["single"], abs=1e-6)
        assert entry["rows"] == len(arrays["predictions"]) == compared.results["rows"][task][split]
    cosines = found["tasks"]["similarity"]["mean_cosines"]
    assert cosines["related"]["joint"] == compared.results["scores"]["test"]["similarity"]["mean_cosine_related"]
    assert len({cosines["related"][stage] for stage in ("start", "single", "joint")}) == 3
    assert "mean_cosines" not in found["tasks"]["mood"]


def test_gradient_cosines_are_measured_over_the_whole_joint_run(compared: SimpleNamespace):
    found = compared.results["compare_single"]["gradient_cosines"]
    steps = compared.results["steps"]
    assert [entry["step"] for entry in found] == sorted({round(steps * tenth / 10) for tenth in range(11)})
    for entry in found:
        matrix = np.array(entry["cosines"])
        assert matrix.shape == (4, 4)
        assert np.allclose(matrix, matrix.T) and np.allclose(matrix.diagonal(), 1)
    assert len({entry["cosines"][1][0] for entry in found}) > len(found) / 2, "the first warm-up step changes nothing"


def test_report_is_printed_and_in_the_card_with_pictures(compared: SimpleNamespace):
    card = (compared.folder / "README.md").read_text(encoding="utf-8")
    section = card[card.index("## Joint and single training") : card.index("## Limits")]
    entry = compared.results["compare_single"]["tasks"]["mood"]
    low, high = (f"{round(100 * end, 1) + 0:.1f}" for end in entry["interval"])
    difference = f"{100 * entry['joint']:.1f} - {100 * entry['single']:.1f} = {100 * entry['difference']:.1f}"
    for text in (section, compared.printed):
        assert f"{difference.replace('-0.0', '0.0')} [{low}, {high}]" in text
        assert "mean of 11 measurements" in text
        assert "3 points" in text
        assert "unrelated" in text
    for picture in ("gradient_cosines.png", "compare_single.png"):
        assert f"]({picture})" in section
        assert (compared.folder / picture).stat().st_size > 1000
        assert f"]({picture})" not in card.replace(section, "")
    assert compared.printed.index("mood alone (1 of 4)") > compared.printed.index("task        metric")


def test_finished_single_runs_leave_model_scores_and_predictions(compared: SimpleNamespace):
    folder = compared.folder / "single"
    assert {path.name for path in folder.iterdir()} == set(TASKS)
    for task in TASKS:
        files = {path.name for path in (folder / task).iterdir()}
        assert files >= {"results.json", "predictions.safetensors", "config.json", "model.safetensors"}
        assert not [name for name in files if name.startswith("checkpoint") or name.endswith(".bin")]


def test_hashes_tell_other_rows_and_other_weights(tiny_model: MultiTaskModel):
    rows = {"sentences": [["a"], ["b"]], "label_mood": [0, 1]}
    hashes = {
        comparison.rows_hash(Dataset.from_dict(changed))
        for changed in (rows, {**rows, "label_mood": [1, 1]}, {**rows, "sentences": [["a"], ["c"]]})
    }
    assert len(hashes) == 3
    assert comparison.rows_hash(Dataset.from_dict(rows)) in hashes
    before = comparison.weights_hash(tiny_model)
    assert comparison.weights_hash(tiny_model) == before
    with torch.no_grad():
        next(tiny_model.parameters()).view(-1)[0] += 1
    assert comparison.weights_hash(tiny_model) != before


def test_interrupted_comparison_goes_on_where_it_stopped_and_ends_the_same(
    job: Path, compared: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    train_single, trained = comparison.train_single, []

    def interrupted(joint: Any, initial: Any, task: str, *rest: Any) -> None:
        if task == "similarity" and "similarity" not in trained:
            trained.append(task)
            (job.parent / "result" / "single" / task / "checkpoint-1").mkdir(parents=True)
            raise KeyboardInterrupt
        trained.append(task)
        train_single(joint, initial, task, *rest)

    monkeypatch.setattr(compare, "train_single", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_and_read(job, "--compare_single")
    results = json.loads((job.parent / "result" / "results.json").read_text(encoding="utf-8"))
    assert results["scores"] == compared.results["scores"], "the joint model is saved first"
    with pytest.raises(ValueError, match="holds an earlier run"):
        run([str(job), "--compare_single"])

    results, printed = run_and_read(job, "--compare_single", "--resume_from_checkpoint")
    assert trained == ["mood", "tags", "similarity", "similarity", "search"]
    assert "mood alone (1 of 4): finished before" in printed
    expected = copy.deepcopy(compared.results["compare_single"])
    for found in (*expected["tasks"].values(), *results["compare_single"]["tasks"].values()):
        del found["seconds"]
    assert results["compare_single"] == expected
    assert not list((job.parent / "result" / "single").rglob("checkpoint-*"))

    # A run with other settings is not taken for the same one.
    settings = json.loads((job.parent / "result/single/mood/results.json").read_text(encoding="utf-8"))["settings"]
    assert comparison.is_finished(job.parent / "result/single/mood", settings)
    assert not comparison.is_finished(job.parent / "result/single/mood", {**settings, "passes": 2.0})

    run_and_read(job, "--overwrite", "--max_steps", "1")
    assert not (job.parent / "result" / "single").exists()


def test_continued_model_with_frozen_backbone_says_that_there_are_no_cosines(job: Path, compared: SimpleNamespace):
    make_recipe(job.parent, "", ("mood", "tags"))
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    del content["backbone"]
    content |= {"continue_from": str(compared.folder), "strategy": {"freeze": "backbone"}}
    job.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    results, printed = run_and_read(job, "--compare_single", "--num_train_epochs", "1")
    found = results["compare_single"]
    assert list(found["tasks"]) == ["mood", "tags"]
    assert found["gradient_cosines"] == []
    card = (job.parent / "result" / "README.md").read_text(encoding="utf-8")
    for text in (printed, card):
        assert "No gradients were compared" in text
        assert "Validation curves were not compared: that takes three evaluations" in text
    assert "gradient_cosines.png" not in card
    assert set(single_of(SimpleNamespace(folder=job.parent / "result"), "mood")["scores"]) == {"validation", "test"}


def test_each_single_run_makes_its_own_adapter(job: Path, tiny_backbone: str):
    pytest.importorskip("peft")
    make_recipe(job.parent, tiny_backbone, ("mood", "similarity"))
    change(job, peft={"r": 2, "target_modules": ["query"]})
    results, _ = run_and_read(job, "--compare_single", "--num_train_epochs", "2")
    found = results["compare_single"]["tasks"]
    assert list(found) == ["mood", "similarity"]
    stages = found["similarity"]["mean_cosines"]["related"]
    assert len(set(stages.values())) == 3, "both runs have trained the adapter"
    assert all(entry["cosines"][1][0] is not None for entry in results["compare_single"]["gradient_cosines"])


# ---- what is refused, before any data is loaded ----


@pytest.mark.parametrize(
    ("tasks", "strategy", "message"),
    [
        (
            ("mood",),
            {},
            r"job\.yaml: only 'mood' is trained, so there is nothing to compare\. Train two tasks",
        ),
        (("mood", "similarity"), {"freeze": "backbone"}, "only 'mood' is trained"),
        (("mood", "tags"), {"freeze": "all"}, "strategy leaves nothing to train, so there is nothing to compare"),
        (
            ("mood", "similarity"),
            {"unfreeze": [{"epochs": 1, "train": "heads"}, {"train": "all"}]},
            "strategy.unfreeze, stage 1: nothing trains that 'similarity' is answered from. Let a part",
        ),
    ],
)
def test_comparison_that_cannot_be_made_is_refused(
    job: Path, tiny_backbone: str, tasks: tuple[str, ...], strategy: dict[str, Any], message: str
):
    change(make_recipe(job.parent, tiny_backbone, tasks), strategy=strategy)
    for path in job.parent.glob("*.csv"):
        path.unlink()  # so that looking at the data would be another error
    with pytest.raises(ValueError, match=message):
        run([str(job), "--compare_single"])


def test_stage_too_short_for_a_task_alone_is_refused_before_anything_is_trained(job: Path, tiny_backbone: str):
    stages = [{"epochs": 0.3, "train": {"top_layers": 1}}, {"train": "all"}]
    change(make_recipe(job.parent, tiny_backbone, ("mood", "search")), strategy={"unfreeze": stages})
    message = "--compare_single, search alone: strategy.unfreeze, stage 1 has no step: an epoch is 1 optimizer steps"
    with pytest.raises(ValueError, match=message):
        run([str(job), "--compare_single"])
    assert not (job.parent / "result").exists()
    run([str(job), "--num_train_epochs", "1"])  # premise: together the stage has a step


# ---- the parts ----


def test_single_set_keeps_the_rows_that_max_rows_left_and_their_passes(tmp_path: Path):
    sets = [helpers.make_set(["sentiment", "rating"], {"sentiment": 0.5}, train=40, validation=10)]
    sets.append(helpers.make_set(["pairs"], seed=100, train=20, validation=6, test=6))
    model = helpers.make_model(helpers.make_backbone(tmp_path / "backbone"), ("sentiment", "rating", "pairs"))
    mixture = {"max_rows": {"sentiment": 30}, "passes": {"rating": 1.5}, "rows_per_batch": {"pairs": 4}}
    joint = helpers.make_trainer(
        model, sets, tmp_path, {"mixture": mixture}, max_steps=10, per_device_train_batch_size=8
    )
    found, passes = single_set(joint, "sentiment")
    assert passes == 1.5
    assert found.tasks == ["sentiment"]
    assert found.splits["train"].column_names == ["sentences", "label_sentiment"]
    drawn = joint.train_dataset.sets[0]
    expected = [row["sentences"] for row in drawn if row["label_sentiment"] is not None]
    assert [row["sentences"] for row in found.splits["train"]] == expected
    assert 0 < len(expected) < 30
    assert set(single_set(joint, "pairs")[0].splits) == {"train", "validation", "test"}

    args = comparison.single_arguments(joint, "sentiment", tmp_path / "single")
    # An epoch is 45 + 20 rows in 9 batches: 10 steps are 10 / 9 epochs, for each task alone as well.
    assert comparison.steps_of_epoch(joint.sampler, joint.args) == 9
    assert (args.num_train_epochs, args.max_steps) == (pytest.approx(10 / 9), -1)
    assert (joint.args.max_steps, joint.args.output_dir) == (10, str(tmp_path))


def test_schedule_of_a_single_run_follows_its_own_metric(tmp_path: Path):
    model = helpers.make_model(helpers.make_backbone(tmp_path / "backbone"), ("sentiment", "rating"))
    sets = [helpers.make_set(["sentiment", "rating"], train=8, validation=4)]
    options = {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"factor": 0.5}}
    joint = helpers.make_trainer(
        model, sets, tmp_path, **options, eval_strategy="epoch", metric_for_best_model="eval_loss"
    )
    args = comparison.single_arguments(joint, "sentiment", tmp_path / "single")
    assert args.metric_for_best_model == "eval_score", "premise"
    assert args.lr_scheduler_kwargs == {"factor": 0.5, "mode": "max"}
    assert joint.args.lr_scheduler_kwargs["mode"] == "min"


@pytest.mark.parametrize(
    ("max_steps", "eval_steps", "expected"),
    [
        (1000, 500, (100, 200, 11, 21)),
        (4724, 500, (473, 946, 50, 100)),
        (7, 500, (1, 2, 1, 1)),
        (100, 0.1, (0.1, 21, 1, 2)),
    ],
)
def test_steps_are_scaled_to_the_length_of_the_single_run(max_steps: int, eval_steps: float, expected: tuple):
    args = SimpleNamespace(
        eval_strategy="steps", eval_steps=eval_steps, save_steps=1000, logging_steps=50, warmup_steps=100, eval_delay=0
    )
    scale_steps(args, max_steps, joint_steps=4724)
    found = (args.eval_steps, args.save_steps, args.logging_steps, args.warmup_steps)
    assert found == expected
    if eval_steps > 1 and max_steps > 10:
        assert math.ceil(max_steps / args.eval_steps) == math.ceil(4724 / 500) == 10


def test_warmup_as_a_share_and_epochs_stay_as_they_are():
    args = SimpleNamespace(
        eval_strategy="epoch", eval_steps=None, save_steps=500, logging_steps=0.1, warmup_steps=0.1, eval_delay=1
    )
    scale_steps(args, 100, joint_steps=200)
    assert (args.logging_steps, args.warmup_steps, args.eval_delay, args.eval_steps) == (0.1, 0.1, 1, None)


def curves(**values: list[float]) -> tuple[list[dict[str, Any]], dict[str, TaskConfig]]:
    history = [{"step": 0, "loss": 1.0}]
    for place in range(len(next(iter(values.values())))):
        scores = {f"eval_{task}_accuracy": curve[place] for task, curve in values.items()}
        history.append({"step": place, "eval_score": 0.5, **scores})
    settings = TaskConfig(problem_type="single_label_classification", labels=["a", "b"])
    return history, dict.fromkeys(values, settings)


def test_correlations_of_curves_are_pearsons_and_none_where_undefined():
    nan = float("nan")
    evaluations, found = curve_correlations(
        *curves(up=[1.0, 2, 3, 4], down=[4.0, 3, 2, 1], bent=[1.0, 3, 2, 4], flat=[2.0] * 4, short=[nan, nan, 1, 2])
    )
    assert evaluations == 4
    assert found[0][:3] == pytest.approx([1, -1, 0.8])  # the last: 4 / 5
    assert found[1][2] == pytest.approx(-0.8)
    assert [row[3] for row in found] == [None] * 5
    assert found[4] == [None] * 5
    assert curve_correlations(*curves(one=[1.0, 2], two=[2.0, 3]))[1] == [[None] * 2] * 2


def test_curves_that_never_change_are_not_called_too_few():
    compared = {"tasks": {"a": {}, "b": {}}, "gradient_cosines": [], "curve_correlations": [[None, None]] * 2}
    for evaluations, said in ((2, "three evaluations or more"), (4, "no two of them changed")):
        texts = [text for text, _ in comparison_report._tables({**compared, "evaluations": evaluations})]
        assert any(said in text for text in texts)


def test_tasks_measured_on_other_rows_are_refused():
    rows = np.array([0, 1, 1])
    found = compare_task("accuracy", (rows, rows), (1 - rows, rows), (1.0, 0.0), seed=1)
    assert (found["difference"], found["interval"], found["rows"]) == (1.0, (1.0, 1.0), 3)
    with pytest.raises(ValueError, match="measured on other rows"):
        compare_task("accuracy", (rows, rows), (rows, rows[::-1].copy()), (1.0, 1.0), seed=1)


def test_interval_of_f1_is_that_of_the_chosen_classes():
    right, joint, single = np.array([0, 1, 2] * 20), np.array([0, 1, 1] * 20), np.array([1, 1, 2] * 20)
    found = [
        compare_task("f1", (joint, right), (single, right), (0.5, 0.5), seed=1, labels=labels)["interval"]
        for labels in ([0], [2])
    ]
    assert found == [(1.0, 1.0), (-1.0, -1.0)]  # each model never says one class, and is always right on the other


def test_undefined_score_gives_no_interval():
    constant, values = np.zeros(4), np.arange(4.0)
    found = compare_task("spearman", (constant, values), (values, values), (None, 1.0), seed=1)
    assert math.isnan(found["difference"]) and found["interval"] is None


def test_overwrite_of_a_compared_folder_is_allowed(compared: SimpleNamespace, tmp_path: Path):
    shutil.copytree(compared.folder, tmp_path / "copy")
    check_output_dir(tmp_path / "copy", overwrite=True)
