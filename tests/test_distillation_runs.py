"""`train.py` with a `distillation` block: teachers found, trained or refused, and what is reported of them."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file

from helpers.pictures import drawn
from helpers.small_job import change, make_recipe, write_rows
from helpers.trainer import blank_start
from multitask_sentence.train import main, run
from multitask_sentence.training.comparison.single_runs import is_finished, single_settings
from multitask_sentence.training.distillation import answers as answers_module
from multitask_sentence.training.distillation.starting import joint_run_of

TASKS = ("mood", "similarity", "search")


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield
    datasets.config.HF_DATASETS_CACHE = before


def make_job(folder: Path, backbone: str, tasks: tuple[str, ...] = TASKS, **blocks: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder)
    job = make_recipe(folder, backbone, tasks)
    training = yaml.safe_load(job.read_text(encoding="utf-8"))["training"]
    return change(job, training={**training, "num_train_epochs": 2}, **blocks)


def train(job: Path, *flags: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed):
        run([str(job), *flags])
    return printed.getvalue()


def results_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def refusal(job: Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(job), *flags])
    return str(ended.value)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A folder with a recipe, its joint run, and its single runs."""
    folder = tmp_path_factory.mktemp("runs")
    train(make_job(folder, tiny_backbone), "--compare_single")
    return folder


@pytest.fixture(scope="module")
def distilled(compared: Path) -> tuple[Path, str]:
    """The same run with each task's own teacher, and what it printed."""
    job = change(compared / "job.yaml", distillation={"teachers": "single"})
    with drawn():
        printed = train(job, "--output_dir", str(compared / "distilled"))
    return compared / "distilled", printed


# ---- teachers: single ----


def test_single_teachers_of_an_earlier_comparison_are_taken_and_all_three_are_reported(compared, distilled):
    folder, printed = distilled
    for task in TASKS:
        assert f"{task} alone" in printed and f"finished before, in {compared / 'result' / 'single' / task}" in printed
    assert not (folder / "single").exists()
    found, joint = results_of(folder)["distillation"], results_of(compared / "result")
    assert (found["teachers"], found["joint"]) == ("single", "result")
    for task, entry in found["tasks"].items():
        single = results_of(compared / "result" / "single" / task)["scores"]
        split, metric = entry["split"], entry["metric"]
        assert split == ("validation" if task == "search" else "test")
        assert entry["single"]["score"] == pytest.approx(single[split][metric])
        assert entry["joint"]["score"] == pytest.approx(joint["scores"][split][task][metric], abs=1e-6)
        assert entry["distilled"] == pytest.approx(results_of(folder)["scores"][split][task][metric])
        for other in ("single", "joint"):
            assert entry[other]["difference"] == pytest.approx(entry["distilled"] - entry[other]["score"])
            low, high = entry[other]["interval"]
            assert low <= high
    assert "teachers each task's own, annealing, temperature 1, all rows, divergence for cosines" in printed
    assert "Distilled, and what it is measured against" in printed
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "## Distillation" in card and "Each task's teacher is its own model" in card
    assert "(distillation.png)" in card and (folder / "distillation.png").stat().st_size > 1000
    assert str(compared) not in card + (folder / "results.json").read_text()


def test_comparison_of_a_distilled_run_takes_the_single_runs_that_taught_it(distilled, compared):
    job = change(compared / "job.yaml", distillation={"teachers": "single"})
    printed = train(job, "--output_dir", str(compared / "both"), "--compare_single")
    assert not (compared / "both" / "single").exists()
    assert printed.count("finished before, in") == 2 * len(TASKS)
    found, single = (results_of(compared / name) for name in ("both", "result/single/mood"))
    assert found["compare_single"]["tasks"]["mood"]["single"] == single["scores"]["test"]["macro_f1"]
    assert found["scores"] == results_of(distilled[0])["scores"]


def test_joint_run_with_other_balancing_or_arguments_is_not_the_run_without_teachers(distilled, compared, tmp_path):
    singles = {task: compared / "result" / "single" / task for task in TASKS}
    assert joint_run_of(singles, distilled[0]) == compared / "result"
    results = results_of(distilled[0])

    def joint_of(**changed: Any) -> Path | None:
        (tmp_path / "results.json").write_text(json.dumps({**results, **changed}))
        return joint_run_of(singles, tmp_path)

    assert joint_of(balancing={"method": "dwa"}) is None
    assert joint_of(training={**results["training"], "num_train_epochs": 3.0}) is None
    assert joint_of(training={**results["training"], "output_dir": "there"}) == compared / "result"


def test_single_teachers_are_trained_first_and_teach_as_if_they_were_named(
    compared, distilled, tmp_path, tiny_backbone
):
    job = make_job(tmp_path, tiny_backbone, distillation={"teachers": "single"})
    printed = train(job)
    assert "finished before" not in printed
    own = tmp_path / "result"
    assert {path.name for path in (own / "single").iterdir()} == set(TASKS)
    assert results_of(own)["distillation"]["joint"] is None
    named = {task: {"model": str(own / "single" / task)} for task in TASKS}
    train(change(job, distillation={"teachers": named}), "--output_dir", str(tmp_path / "named"))
    weights = [load_file(folder / "model.safetensors") for folder in (own, tmp_path / "named", distilled[0])]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
        assert torch.equal(tensor, weights[2][name]), name
    # Replaced with other settings of the student, its teachers stay.
    job = change(job, distillation={"teachers": "single", "schedule": 0.5})
    printed = train(job, "--overwrite")
    assert printed.count("finished before") == len(TASKS)
    assert any(not torch.equal(tensor, load_file(own / "model.safetensors")[n]) for n, tensor in weights[0].items())


def test_share_one_is_the_run_without_the_block(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, distillation={"teachers": "single", "schedule": 1.0})
    train(job)
    assert not (tmp_path / "result" / "single").exists()
    found, expected = (load_file(folder / "result" / "model.safetensors") for folder in (tmp_path, compared))
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_share_one_reads_no_unlabelled_text_and_opens_no_teacher(compared, tmp_path, tiny_backbone):
    block = {"teachers": {"mood": str(compared / "result" / "single" / "mood")}, "schedule": 1}
    block["unlabeled"] = {"dataset": {"path": "csv", "data_files": "gone.csv"}, "columns": {"sentence": "text"}}
    rates = {"mood": 0.32, "similarity": 0.32, "search": 0.16}
    weights = []
    for name, blocks in (
        ("without", {"mixture": {"sampling": "rates", "rates": {"mood": 0.4, "similarity": 0.4, "search": 0.2}}}),
        ("silent", {"mixture": {"sampling": "rates", "rates": {**rates, "unlabeled": 0.2}}, "distillation": block}),
    ):
        train(make_job(tmp_path / name, tiny_backbone, **blocks))
        weights.append(load_file(tmp_path / name / "result" / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    job = change(tmp_path / "silent" / "job.yaml", mixture={"passes": {"unlabeled": 0.5}})
    assert "Nothing was trained or saved" in train(job, "--check")


def test_single_runs_follow_from_the_adapters_settings(tmp_path, tiny_backbone):
    pytest.importorskip("peft")
    found = []
    for peft in (None, {"r": 2, "lora_alpha": 16}, {"r": 2, "lora_alpha": 64}, {"r": 2, "lora_alpha": 16}):
        trainer = run([str(make_job(tmp_path, tiny_backbone, ("mood",), peft=peft)), "--check"])
        found.append(single_settings(trainer, trainer.model, "mood"))
    assert "peft" not in found[0], "single runs that were made before stay what they are"
    assert found[1] == found[3] != found[2]


def test_single_teachers_with_adapters_teach_and_are_found_again(tmp_path, tiny_backbone):
    pytest.importorskip("peft")
    blocks = {"peft": {"r": 2, "lora_alpha": 16}, "distillation": {"teachers": "single"}}
    job = make_job(tmp_path, tiny_backbone, ("mood",), **blocks)
    flags = ["--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "9"]
    flags += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    train(job, *flags)
    expected = load_file(tmp_path / "result" / "model.safetensors")
    with blank_start():
        printed = train(job, *flags, "--resume_from_checkpoint", str(tmp_path / "result" / "checkpoint-2"))
    assert "mood alone: finished before" in printed
    for name, tensor in load_file(tmp_path / "result" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_neighbour_that_cannot_be_read_is_no_finished_single_run(tmp_path):
    folder = tmp_path / "single" / "mood"
    folder.mkdir(parents=True)
    for name in ("predictions.safetensors", "config.json", "results.json"):
        (folder / name).write_text("{")
    assert not is_finished(folder, {})
    assert not is_finished(tmp_path / ("too long" * 99), {})


def test_single_teachers_of_other_settings_are_not_taken(compared):
    job = change(compared / "job.yaml", distillation={"teachers": "single"})
    flags = ("--output_dir", str(compared / "longer"), "--num_train_epochs", "1")
    assert "finished before" not in train(job, *flags)


# ---- teachers by task ----


def test_teachers_of_some_tasks_are_named_and_compared_with_a_joint_run(compared, tmp_path, tiny_backbone):
    block = {"teachers": {"mood": str(compared / "result")}, "rows": "own", "temperature": 2.0}
    job = make_job(tmp_path, tiny_backbone, ("mood", "similarity"), distillation=block)
    printed = train(job, "--joint", str(compared / "result"))
    found = results_of(tmp_path / "result")["distillation"]
    assert found["teachers"] == {"mood": ["./result"]}
    assert set(found["tasks"]["mood"]) >= {"joint", "distilled"} and "single" not in found["tasks"]["mood"]
    assert "label_share" in {key for entry in results_of(tmp_path / "result")["history"] for key in entry}
    assert "joint without teachers" in printed


def test_unlabelled_text_is_read_counted_and_kept_from_what_is_measured(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, ("mood",))
    lines = ["the bird sat in the park", "", "The cat  sat good today", "a dog ran today", "the dog sang fine today"]
    (tmp_path / "more.csv").write_text("said\n" + "\n".join(f'"{line}"' for line in lines) + "\n")
    more = {"dataset": {"path": "csv", "data_files": "more.csv"}, "columns": {"sentence": "said"}}
    block = {"teachers": {"mood": str(compared / "result")}, "unlabeled": more}
    printed = train(change(job, distillation=block, mixture={"passes": {"unlabeled": 3}}))
    assert "distillation.unlabeled: 1 of 5 rows have no text and are left out" in printed
    assert "distillation.unlabeled: 2 of 5 rows stand in a validation or test split and are left out" in printed
    assert "unlabeled 6 rows" in printed


def test_run_that_was_killed_while_teachers_answered_equals_an_uninterrupted_one(
    compared, tmp_path, tiny_backbone, monkeypatch
):
    block = {"teachers": {"mood": str(compared / "result"), "similarity": str(compared / "result")}}
    job = make_job(tmp_path, tiny_backbone, distillation=block)
    train(job, "--output_dir", str(tmp_path / "whole"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fresh")
    monkeypatch.setattr(answers_module, "ANSWERS_PER_SHARD", 4)
    ask, calls = answers_module.ask, []

    def killed(*arguments: Any) -> Any:
        calls.append(arguments[0].name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ask(*arguments)

    monkeypatch.setattr(answers_module, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        train(job)
    answered = tmp_path / "fresh" / answers_module.CACHE_FOLDER
    assert list(answered.rglob("*.arrow")), "premise: some answers were written"
    monkeypatch.setattr(answers_module, "ask", ask)
    train(job, "--overwrite")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("result", "whole"))
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_resumed_run_with_single_teachers_equals_an_uninterrupted_one(distilled, compared):
    job = change(compared / "job.yaml", distillation={"teachers": "single"})
    flags = ["--output_dir", str(compared / "again"), "--save_strategy", "steps", "--save_steps", "4"]
    flags += ["--eval_strategy", "no", "--load_best_model_at_end", "false", "--save_total_limit", "9"]
    train(job, *flags)
    expected = load_file(compared / "again" / "model.safetensors")
    with blank_start():
        printed = train(job, *flags, "--resume_from_checkpoint", str(compared / "again" / "checkpoint-4"))
    assert printed.count("finished before") == len(TASKS)
    for name, tensor in load_file(compared / "again" / "model.safetensors").items():
        assert torch.equal(tensor, expected[name]), name


def test_run_with_single_teachers_goes_on_with_changed_arguments_and_the_teachers_it_had(tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, ("mood",), distillation={"teachers": "single"})
    flags = ["--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "9"]
    flags += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    train(job, *flags)
    own, checkpoint = tmp_path / "result", tmp_path / "result" / "checkpoint-2"
    teacher = own / "single" / "mood"
    weights = (teacher / "model.safetensors").read_bytes()
    resume = (*flags, "--resume_from_checkpoint", str(checkpoint))
    printed = train(job, *resume, "--num_train_epochs", "3", "--logging_steps", "1", "--learning_rate", "2e-3")
    assert f"mood alone: finished before, in {teacher}" in printed
    assert (teacher / "model.safetensors").read_bytes() == weights
    assert results_of(own)["distillation"]["tasks"]["mood"]["single"]["score"] is not None
    assert results_of(own)["epochs"] == 3

    # What may not change is refused before any teacher is touched, and so is a teacher that is gone.
    said = refusal(job, *resume, "--per_device_train_batch_size", "4", "--num_train_epochs", "3")
    assert "per_device_train_batch_size was 8 and is 4 now" in said
    assert (teacher / "model.safetensors").read_bytes() == weights
    teacher.rename(tmp_path / "kept")
    said = refusal(job, *resume)
    assert "holds the teacher that the run of" in said and f"{checkpoint}" in said and "single/mood" in said
    assert not teacher.exists()
    (tmp_path / "beside" / "single").mkdir(parents=True)
    (tmp_path / "kept").rename(tmp_path / "beside" / "single" / "mood")
    test = tmp_path / "texts_test.csv"
    test.write_text(test.read_text().replace("today", "tomorrow"))
    printed = train(job, *resume)
    assert "finished before, in" in printed and "was measured on other rows" in printed
    assert "single" not in results_of(own)["distillation"]["tasks"]["mood"]


def test_check_opens_teachers_and_asks_nothing(compared, tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fresh")
    block = {"teachers": {"mood": str(compared / "result")}}
    job = make_job(tmp_path, tiny_backbone, distillation=block)
    assert "Nothing was trained or saved" in train(job, "--check")
    assert not (tmp_path / "fresh" / answers_module.CACHE_FOLDER).exists()
    assert not (tmp_path / "result").exists()


# ---- what is refused, before anything is trained ----


def test_labels_that_do_not_match_are_refused_with_both_sides(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, ("mood",))
    for split in ("train", "validation", "test"):
        path = tmp_path / f"texts_{split}.csv"
        path.write_text(path.read_text().replace("positive", "great"))
    job = change(job, distillation={"teachers": {"mood": str(compared / "result")}})
    said = refusal(job)
    assert "distillation.teachers.mood: the labels of" in said and "'great'" in said and "'positive'" in said
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": "RESULT", "task": "similarity"}, "is similarity, but task 'mood' is single_label_classification"),
        ({"model": "RESULT", "task": "moods"}, "has no task 'moods'. Its tasks: mood, similarity, search"),
        ("RESULT/single", "holds no config.json, so it is no model"),
        ("./nowhere", "there is no folder ./nowhere"),
    ],
)
def test_teacher_that_cannot_teach_is_refused_before_data_is_loaded(
    teacher, message, compared, tmp_path, tiny_backbone
):
    job = make_job(tmp_path, tiny_backbone, ("mood",))
    (tmp_path / "texts_train.csv").unlink()
    text = json.dumps({"teachers": {"mood": teacher}}).replace("RESULT", str(compared / "result"))
    assert message in refusal(change(job, distillation=json.loads(text)))


def test_teachers_for_a_task_with_nothing_to_train_are_refused(compared, tmp_path, tiny_backbone):
    strategy = {"freeze": "backbone"}  # so that nothing is left of tasks without a head
    job = make_job(tmp_path, tiny_backbone, strategy=strategy, distillation={"teachers": "single"})
    assert "distillation.teachers: single: task 'similarity' has nothing to train" in refusal(job)
    job = change(job, distillation={"teachers": {"similarity": str(compared / "result")}})
    assert "distillation.teachers: task 'similarity' has nothing to train" in refusal(job)


def test_share_outside_0_to_1_and_unknown_rates_are_refused(tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, distillation={"teachers": "single", "schedule": 1.01})
    assert "distillation.schedule is 1.01, but should be annealing" in refusal(job)
    job = change(job, distillation={"teachers": "single"}, mixture={"passes": {"unlabeled": 1}})
    assert "mixture.passes: unknown key 'unlabeled'" in refusal(job)


def test_unlabelled_text_of_which_nothing_is_left_is_refused(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, ("mood",))
    (tmp_path / "more.csv").write_text("text\nthe cat sat bad today\n")
    more = {"dataset": {"path": "csv", "data_files": "more.csv"}, "columns": {"sentence": "text"}}
    job = change(job, distillation={"teachers": {"mood": str(compared / "result")}, "unlabeled": more})
    assert "distillation.unlabeled: none of the 1 rows is left" in refusal(job)
    (tmp_path / "more.csv").write_text('text\n""\n" "\n')
    assert "distillation.unlabeled: none of the 2 rows is left" in refusal(job)
    more["columns"] = {"sentence": "txt"}
    job = change(job, distillation={"teachers": {"mood": str(compared / "result")}, "unlabeled": more})
    said = refusal(job)
    assert "distillation.unlabeled" in said and "'txt'" in said and "tasks.unlabeled" not in said


def test_unlabelled_pairs_are_read_where_a_taught_task_reads_pairs_and_else_refused(compared, tmp_path, tiny_backbone):
    pairs = ["the bird sat in the park,the bank sat in a park", "a cat sat in the park,the bank sat in a park"]
    pairs.append("the cat sat in a park,A cat sat in the park")  # a test pair, the other way round
    (tmp_path / "more.csv").write_text("\n".join(["one,other", *pairs]) + "\n")
    more = {"dataset": {"path": "csv", "data_files": "more.csv"}}
    more["columns"] = {"sentence1": "one", "sentence2": "other"}
    block = {"teachers": {"mood": str(compared / "result")}, "unlabeled": more}
    job = make_job(tmp_path, tiny_backbone, distillation=block)
    said = refusal(job)
    assert "unlabeled.columns gives pairs, but the tasks with teachers (mood) read single sentences" in said
    block["teachers"]["similarity"] = str(compared / "result")
    said = refusal(change(job, distillation={**block, "unlabeled": {**more, "tasks": ["mood"]}}))
    assert "unlabeled.columns gives pairs, but the tasks with teachers (mood) read single sentences" in said
    said = refusal(change(job, distillation={**block, "unlabeled": {**more, "tasks": ["search"]}}))
    assert "distillation.unlabeled.tasks names 'search', which has no teacher" in said
    printed = train(change(job, distillation=block, mixture={"passes": {"unlabeled": 2}}))
    assert "distillation.unlabeled: 1 of 3 rows stand in a validation or test split and are left out" in printed
    assert "2 rows of unlabelled text" in printed and "unlabeled 4 rows" in printed


def test_several_sets_of_unlabelled_text_have_names_and_passes_of_their_own(compared, tmp_path, tiny_backbone):
    (tmp_path / "notes.csv").write_text('said\n"the bird sat in the park"\n"The cat  sat good today"\n')
    (tmp_path / "pairs.csv").write_text("one,other\nthe bird sat in the park,the bank sat in a park\n")
    teacher = str(compared / "result")
    block = {"teachers": {"mood": teacher, "similarity": teacher}, "unlabeled": {}}
    for name, columns in (("notes", {"sentence": "said"}), ("pairs", {"sentence1": "one", "sentence2": "other"})):
        dataset = {"path": "csv", "data_files": f"{name}.csv"}
        block["unlabeled"][name] = {"dataset": dataset, "columns": columns}
    job = make_job(tmp_path, tiny_backbone, distillation=block, mixture={"passes": {"notes": 3, "pairs": 2}})
    printed = train(job)
    assert "distillation.unlabeled.notes: 1 of 2 rows stand in a validation or test split" in printed
    assert "notes 3 rows" in printed and "pairs 2 rows" in printed and "2 rows of unlabelled text" in printed
    assert results_of(tmp_path / "result")["distillation"]["unlabeled"] == {"notes": 1, "pairs": 1}
    card = (tmp_path / "result" / "README.md").read_text(encoding="utf-8")
    said = (
        "text without labels: `notes`, 1 rows (local csv files: `notes.csv` (train)); `pairs`, 1 rows (local csv files"
    )
    assert said in card and str(tmp_path) not in card
    block["unlabeled"]["notes"]["columns"] = {"sentence": "text"}
    said = refusal(change(job, distillation=block), "--overwrite")
    assert "distillation.unlabeled.notes" in said and "'text'" in said


def test_joint_run_that_is_none_is_refused(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, distillation={"teachers": "single"})
    assert f"--joint {tmp_path} is no finished run" in refusal(job, "--joint", str(tmp_path))
    job = make_job(tmp_path, tiny_backbone)
    assert "--joint goes with a distillation block" in refusal(job, "--joint", str(compared / "result"))


def test_joint_run_with_other_tasks_or_labels_in_another_order_is_refused(compared, tmp_path, tiny_backbone):
    job = make_job(tmp_path, tiny_backbone, ("mood",), distillation={"teachers": "single"})
    tasks = yaml.safe_load(job.read_text(encoding="utf-8"))["tasks"]
    joint = ("--joint", str(compared / "result"))
    change(job, tasks={"mood": {**tasks["mood"], "labels": ["positive", "negative"]}})
    said = refusal(job, *joint)
    assert "labels of task 'mood' is ['negative', 'positive'] there, but ['positive', 'negative'] here" in said
    assert not (tmp_path / "result").exists()
    (tmp_path / "texts_train.csv").unlink()
    change(job, tasks={"mood": {**tasks["mood"], "problem_type": "multi_label_classification", "metrics": None}})
    assert "problem_type of task 'mood' is 'single_label_classification' there, but 'multi" in refusal(job, *joint)


def test_distilled_recipe_is_the_main_one_with_a_block_more():
    folder = Path(__file__).parent.parent / "recipes"
    main_job, distilled_job = (
        yaml.safe_load((folder / f"tweets_news_similarity{name}.yaml").read_text()) for name in ("", "_distilled")
    )
    assert distilled_job.pop("distillation")["teachers"] == "single"
    outputs = [Path(job["training"].pop("output_dir")) for job in (main_job, distilled_job)]
    assert outputs[0].parent == outputs[1].parent, "single runs are looked for in folders beside the output folder"
    assert main_job == distilled_job
