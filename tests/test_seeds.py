"""Several seeds: mean and range per task, the same rows for all, and runs that are taken up where they stopped."""

import json
import re
from pathlib import Path

import pytest
import yaml

from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence.train import main, run
from multitask_sentence.training.seeds import format_seeds, summarise_seeds


@pytest.fixture
def job(tmp_path: Path, tiny_backbone: str) -> Path:
    """A recipe of one task whose validation rows are set aside, trained for a single epoch."""
    write_rows(tmp_path)
    path = make_recipe(tmp_path, tiny_backbone, ("mood",))
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["tasks"]["mood"]["dataset"]["data_files"]["validation"]
    content["tasks"]["mood"]["validation_split"] = 0.3
    content["training"]["num_train_epochs"] = 1
    return change(path, tasks=content["tasks"], training=content["training"])


def results_of(job: Path, seed: int) -> dict:
    return json.loads((job.parent / f"result/seed_{seed}/results.json").read_text(encoding="utf-8"))


def test_seeds_train_the_recipe_several_times_on_the_same_rows(job: Path, capsys: pytest.CaptureFixture) -> None:
    run([str(job), "--seeds", "2", "--seed", "7"])
    printed = capsys.readouterr().out
    first, second = results_of(job, 7), results_of(job, 8)
    assert [found["training"]["seed"] for found in (first, second)] == [7, 8]
    losses = [found["scores"]["test"]["mood"]["loss"] for found in (first, second)]
    assert losses[0] != losses[1], "premise: seeds make a difference"
    summary = json.loads((job.parent / "result/seeds.json").read_text(encoding="utf-8"))
    assert summary["seeds"] == [7, 8]
    assert summary["scores"]["test"]["mood"]["loss"] == {
        "mean": pytest.approx(sum(losses) / 2), "lowest": min(losses), "highest": max(losses), "values": losses
    }  # fmt: skip
    assert re.search(r"2 seeds \(7, 8\): mean \[lowest, highest\]", printed)
    import pyarrow.parquet as pq

    texts = [
        sorted(pq.read_table(job.parent / f"result/seed_{seed}/predictions/mood.parquet")["text"].to_pylist())
        for seed in (7, 8)
    ]
    assert texts[0] == texts[1], "other rows would be another difference"
    run([str(job), "--seeds", "3", "--check"])  # of a folder that holds seeds already
    printed = capsys.readouterr().out
    assert re.search(r"^output_dir +\S+/result/seed_42$", printed, flags=re.MULTILINE) and "Checked:" in printed


def test_finished_seeds_are_kept_and_the_others_are_trained(job: Path, capsys: pytest.CaptureFixture) -> None:
    run([str(job), "--seeds", "2"])
    file = job.parent / "result/seed_42/model.safetensors"
    before, after = file.stat().st_mtime_ns, job.parent / "result/seed_43/results.json"
    after.unlink()  # as of a run that was killed before its end
    capsys.readouterr()
    run([str(job), "--seeds", "3"])
    assert "seed 42: finished before" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before
    assert after.is_file() and results_of(job, 44)["training"]["seed"] == 44


def test_seeds_of_another_recipe_are_refused(job: Path) -> None:
    run([str(job), "--seeds", "2"])
    with pytest.raises(SystemExit, match=r"seed_42 holds a run that differs from this one in learning_rate\."):
        main([str(job), "--seeds", "2", "--learning_rate", "0.5"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "1"], r"--seeds is 1, but should be at least 2"),
        (["--seeds", "2", "--compare_single"], r"--seeds and --compare_single"),
        (["--seeds", "2", "--push_to_hub", "true"], r"--seeds and --push_to_hub"),
        (["--seeds", "2", "--resume_from_checkpoint"], r"--seeds and --resume_from_checkpoint"),
    ],
)
def test_what_does_not_go_with_several_seeds_is_refused(job: Path, flags: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main([str(job), *flags])
    assert not (job.parent / "result").exists()


def test_undefined_scores_are_left_out_of_mean_and_range() -> None:
    scores = ({"a": {"spearman": 0.5}}, {"a": {"spearman": None}}, {"a": {"spearman": 0.7}})
    summary = summarise_seeds({seed: {"scores": {"test": found}} for seed, found in enumerate(scores)})
    found = summary["scores"]["test"]["a"]["spearman"]
    assert (found["mean"], found["lowest"], found["highest"]) == (pytest.approx(0.6), 0.5, 0.7)
    assert "0.6000 [0.5000, 0.7000]" in format_seeds(summary, {"a": ["spearman"]})
