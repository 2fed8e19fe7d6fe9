"""Out of scope: the distance and its percentile, in predict and files, abstention by it, and what a run leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import ledoit_wolf

from helpers.small_job import change, make_recipe, write_rows
from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.labelling.answers import answer_table
from multitask_sentence.scope_multitask import Scope
from multitask_sentence.tasks_multitask import TaskConfig
from multitask_sentence.train import main, run
from multitask_sentence.training import evaluation_loop
from multitask_sentence.training.calibration import scope as scope_module
from multitask_sentence.training.calibration.scope import fit_scope, sample_rows
from multitask_sentence.training.evaluation.scores import near_enough

SENTENCES = ["the cat sat on the mat", "a dog ran", "good film", "", "bad news today"]
LABELS = {"problem_type": "single_label_classification", "labels": ["a", "b", "c"]}


def draw(rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around three class means on the sphere in eight dimensions, wide in one direction and narrow in others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, rows)
    means = np.eye(8)[[0, 3, 6]] * 5
    noise = generator.normal(size=(rows, 8)) * [1, 1, 0.1, 1, 0.1, 1, 1, 0.1]
    return torch.from_numpy(means[labels] + noise), torch.from_numpy(labels)


def scope_of(embeddings: torch.Tensor, labels: torch.Tensor, held_out: torch.Tensor | None = None) -> Scope:
    scope = Scope(8, 3)
    scope.load_state_dict(fit_scope(TaskConfig(**LABELS), embeddings, labels, held_out))
    return scope


def unit(embeddings: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(embeddings, dim=-1).numpy()


# ---- the distance ----


def test_percentiles_are_the_same_under_autocast() -> None:
    scope = scope_of(*draw(500, seed=0))
    probe = draw(20, seed=1)[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = scope(probe)
    torch.testing.assert_close(found, scope(probe), rtol=0, atol=0)


def test_distance_is_that_of_mahalanobis_to_the_nearest_class_mean() -> None:
    embeddings, labels = draw(500, seed=0)
    scope = scope_of(embeddings, labels)
    units = unit(embeddings)
    means = [units[labels == label].mean(axis=0) for label in range(3)]
    covariance, _ = ledoit_wolf(units - np.stack(means)[labels], assume_centered=True)
    inverse = np.linalg.inv(covariance)
    probe, _ = draw(20, seed=1)
    expected = [min(mahalanobis(row, mean, inverse) for mean in means) for row in unit(probe)]
    np.testing.assert_allclose(scope.distances(probe), expected, rtol=1e-3)
    np.testing.assert_allclose(scope.distances(7 * probe), expected, rtol=1e-3, err_msg="only the direction counts")


def test_percentile_of_new_rows_of_the_task_is_their_rank_and_other_rows_are_beyond() -> None:
    held_out, _ = draw(1000, seed=3)
    scope = scope_of(*draw(60, seed=2), held_out)  # so few rows that they are nearer to their own means
    found = scope(draw(4000, seed=4)[0]).numpy()
    for share in (10, 50, 90, 95):
        assert np.mean(found <= share) == pytest.approx(share / 100, abs=0.03)
    narrow = np.eye(8)[[0, 3, 6]] * 5 + 2 * np.eye(8)[[2, 4, 7]]  # where rows of the task hardly ever go
    assert (scope(torch.from_numpy(narrow)) > 99).all()
    own = scope_of(*draw(60, seed=2))(draw(4000, seed=4)[0]).numpy()
    assert np.mean(own > 95) > 0.1, "premise: the scale of the training rows themselves is another"


def test_rows_without_a_label_of_a_multi_label_task_are_in_scope_and_classes_without_rows_do_not_count() -> None:
    embeddings, classes = draw(600, seed=5)
    labels = torch.zeros(600, 4)  # of four labels, the last is never given, and a third of the rows has none
    labels[classes == 0, 0] = labels[classes == 1, 1] = 1
    task = TaskConfig(problem_type="multi_label_classification", labels=["a", "b", "c", "d"])
    scope = Scope(8, 5)
    scope.load_state_dict(fit_scope(task, embeddings, labels))
    assert torch.isfinite(scope.distances(embeddings)).all()
    np.testing.assert_allclose(scope.distances(embeddings), scope_of(embeddings, classes).distances(embeddings), 1e-4)


# ---- in a model ----


@pytest.fixture
def scoped(tiny_model: MultiTaskModel) -> MultiTaskModel:
    """The tiny model, whose `mood` knows of sentences on cats."""
    torch.manual_seed(0)
    texts = [f"the {one} {verb} {place}" for one in ("cat", "dog", "bird") for verb in ("sat", "ran", "sang")
             for place in ("on the mat", "in the park", "under it", "today")]  # fmt: skip
    embeddings = torch.from_numpy(tiny_model.encode(texts, normalize=False))
    labels = torch.arange(len(texts)) % 3
    tiny_model._set_scope("mood", fit_scope(tiny_model.config.tasks["mood"], embeddings, labels))
    return tiny_model


def test_percentiles_do_not_depend_on_order_batch_size_or_company(scoped: MultiTaskModel) -> None:
    found = scoped.predict([*SENTENCES, *SENTENCES])["mood"]["out_of_scope"]
    assert found.dtype == np.float32 and len(set(found.tolist())) > 1
    np.testing.assert_array_equal(found[:5], found[5:])
    backwards = scoped.predict(SENTENCES[::-1], batch_size=1)["mood"]["out_of_scope"][::-1]
    np.testing.assert_allclose(found[:5], backwards, atol=1e-3)
    assert scoped.predict(SENTENCES[1])["mood"]["out_of_scope"] == pytest.approx(found[1], abs=1e-3)
    assert "out_of_scope" not in scoped.predict(SENTENCES)["tags"]
    assert scoped.predict([], head="mood")["mood"]["out_of_scope"].shape == (0,)


def test_saved_scope_opens_with_the_same_percentiles(scoped: MultiTaskModel, tmp_path: Path) -> None:
    before = scoped.predict(SENTENCES)
    scoped.save_pretrained(tmp_path)
    opened = MultiTaskModel.from_pretrained(tmp_path)
    for key in ("out_of_scope", "probabilities"):
        np.testing.assert_array_equal(opened.predict(SENTENCES)["mood"][key], before["mood"][key])
    assert not any(name.endswith(".bin") for name in map(str, tmp_path.iterdir()))


def test_scope_keeps_its_precision_in_bfloat16(scoped: MultiTaskModel, tmp_path: Path) -> None:
    scoped.save_pretrained(tmp_path / "float32")
    opened = MultiTaskModel.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    opened.save_pretrained(tmp_path / "bfloat16")
    for model in (opened, MultiTaskModel.from_pretrained(tmp_path / "bfloat16")):
        assert model.heads["mood"].layers[-1].weight.dtype == torch.bfloat16, "premise"
        for name, value in scoped.heads["mood"].scope.state_dict().items():
            torch.testing.assert_close(model.heads["mood"].scope.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("change", [lambda model: model.to(torch.bfloat16), lambda model: model.half()])
def test_scope_keeps_its_precision_when_the_model_is_put_into_half(
    scoped: MultiTaskModel, tmp_path: Path, change: Callable[[MultiTaskModel], MultiTaskModel]
) -> None:
    before = {name: buffer.clone() for name, buffer in scoped.heads["mood"].scope.named_buffers()}
    change(scoped).save_pretrained(tmp_path)
    assert scoped.heads["mood"].layers[-1].weight.dtype != torch.float32, "premise"
    for model in (scoped, MultiTaskModel.from_pretrained(tmp_path)):
        found = dict(model.heads["mood"].scope.named_buffers())
        assert all(torch.equal(found[name], buffer) for name, buffer in before.items())
        assert {buffer.dtype for buffer in found.values()} == {torch.float32}


def test_label_is_none_beyond_the_percentile(scoped: MultiTaskModel) -> None:
    before = scoped.predict(SENTENCES)["mood"]
    most = float(before["out_of_scope"].min())
    found = scoped.predict(SENTENCES, head=["mood", "tags"], abstain={"out_of_scope": most})
    near = before["out_of_scope"] <= most
    assert 0 < near.sum() < 5
    expected = [label if own else None for label, own in zip(before["labels"], near, strict=True)]
    assert found["mood"]["labels"] == expected and None not in found["tags"]["labels"]
    scoped.config.change_task("mood", abstain={"out_of_scope": most, "confidence": 1.0})
    assert scoped.predict(SENTENCES)["mood"]["labels"] == [None] * 5
    assert scoped.predict(SENTENCES, abstain=False)["mood"]["labels"] == before["labels"]


def test_percentile_stands_in_plain_answers_and_files(scoped: MultiTaskModel) -> None:
    found = scoped.predict(SENTENCES)["mood"]["out_of_scope"]
    rows = scoped.predict(SENTENCES, as_list=True)
    assert [row["mood"]["out_of_scope"] for row in rows] == found.tolist()
    assert "out_of_scope" not in rows[0]["tags"]
    table = answer_table(scoped, SENTENCES, ["mood", "tags"], embeddings=True, pairs=False)
    assert table["mood_out_of_scope"].to_pylist() == pytest.approx(found.tolist(), abs=1e-3)
    frame = scoped.predict(SENTENCES, convert_to="pandas")
    np.testing.assert_array_equal(frame["mood_out_of_scope"], found)
    assert list(frame)[:4] == table.column_names[:4]
    assert table.column_names[:4] == ["mood_label", "mood_probability", "mood_out_of_scope", "tags_labels"]


def test_new_labels_give_the_scope_up(scoped: MultiTaskModel) -> None:
    scoped.add_labels("mood", ["mixed"])
    assert not scoped.config.tasks["mood"].out_of_scope
    assert "out_of_scope" not in scoped.predict(SENTENCES)["mood"]


def test_new_task_with_the_settings_of_one_that_knows_its_scope_knows_none(
    scoped: MultiTaskModel, tiny_backbone: str
) -> None:
    name = next(name for name, task in scoped.config.tasks.items() if task.out_of_scope)
    started = MultiTaskModel.from_backbone(tiny_backbone, scoped.config.tasks)
    started.add_task("added", scoped.config.tasks[name])
    for task in (name, "added"):
        assert started.heads[task].scope is None
        assert "out_of_scope" not in started.predict("the cat sat", tasks=task)[task]
    assert scoped.config.tasks[name].out_of_scope, "the settings that were given stay as they are"


def test_settings_without_a_percentile_are_written_as_before() -> None:
    task = TaskConfig(**LABELS, abstain={"risk": 0.05})
    assert task.to_dict()["abstain"] == {"risk": 0.05, "confidence": None}
    assert "out_of_scope" not in task.to_dict()


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (
            "mood",
            {"abstain": {"out_of_scope": 101}},
            r"tasks\.mood\.abstain\.out_of_scope is 101, but should be a perc",
        ),
        ("entails", {"abstain": {"out_of_scope": 99}}, r"only tasks of single sentences know their scope"),
        ("entails", {"out_of_scope": True}, r"only tasks of single sentences know what is"),
        ("rating", {"out_of_scope": True}, r"tasks\.rating\.out_of_scope has no meaning for problem_type regression"),
        ("mood", {"out_of_scope": "yes"}, r"tasks\.mood\.out_of_scope is 'yes', but should be true or false"),
    ],
)
def test_wrong_settings_are_refused(all_tasks: dict[str, Any], task: str, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(tasks={task: {**all_tasks[task], **settings}})


def test_task_that_does_not_know_its_scope_says_how_to_mend_that(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(ValueError, match=r"none of the tasks mood knows its scope\. Train with `out_of_scope: true`"):
        tiny_model.predict(SENTENCES, head="mood", abstain={"out_of_scope": 99})


# ---- a run ----


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A recipe of two tasks, trained with `out_of_scope: true`. Read only."""
    folder = tmp_path_factory.mktemp("scope")
    write_rows(folder)
    path = make_recipe(folder, tiny_backbone, ("mood", "tags", "similarity"))
    tasks = yaml.safe_load(path.read_text(encoding="utf-8"))["tasks"]
    tasks["mood"]["abstain"] = {"out_of_scope": 97}
    run([str(change(path, out_of_scope=True, tasks=tasks))])
    return path


def continued(job: Path, folder: Path, **blocks: Any) -> Path:
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    del content["backbone"], content["max_length"], content["out_of_scope"], content["tasks"]["tags"]
    content |= {"continue_from": str(job.parent / "result"), **blocks}
    content["training"] |= {"output_dir": str(folder / "result"), "num_train_epochs": 1}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def test_run_stores_what_its_tasks_were_trained_on(job: Path) -> None:
    model = MultiTaskModel.from_pretrained(job.parent / "result")
    assert [name for name, task in model.config.tasks.items() if task.out_of_scope] == ["mood", "tags"]
    trained = [f"the {subject} ran {word} today" for subject in ("cat", "dog", "bank") for word in ("good", "bad")]
    found = model.predict([*trained, "! ? ! ? ! ? ! ? under under under", ", . , . , ."])["mood"]["out_of_scope"]
    assert np.median(found[:-2]) < 100
    assert (found[-2:] == 100).all()
    scope = model.heads["mood"].scope
    units = torch.nn.functional.normalize(torch.from_numpy(model.encode(trained, normalize=False)), dim=-1)
    assert (units - scope.centre).norm(dim=-1).max() < 1


def test_checkpoint_answers_without_labels_where_it_should_keep_within_a_scope_that_it_does_not_know(
    job: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, *_ = sorted((job.parent / "result").glob("checkpoint-*"))
    model = MultiTaskModel.from_pretrained(checkpoint)
    model.predict(SENTENCES)
    found = model.predict(SENTENCES)
    assert found["mood"]["labels"] == [None] * 5 and found["mood"]["probabilities"].shape == (5, 2)
    assert "out_of_scope" not in found["mood"] and None not in found["tags"]["labels"]
    assert caplog.text.count("'mood' should give no label beyond the percentile 97") == 1, "said once"
    labels = model.predict(SENTENCES, abstain=False)["mood"]["labels"]
    assert set(labels) <= set(model.config.tasks["mood"].labels)


def test_going_on_measures_the_scope_anew_and_forgets_that_of_tasks_without_data(job: Path, tmp_path: Path) -> None:
    path = continued(job, tmp_path)
    run([str(path), "--data_root", str(job.parent)])
    model = MultiTaskModel.from_pretrained(tmp_path / "result")
    assert {name: task.out_of_scope for name, task in model.config.tasks.items() if task.labels} == {
        "mood": True,
        "tags": False,
    }
    before = MultiTaskModel.from_pretrained(job.parent / "result").heads["mood"].scope
    assert not torch.equal(model.heads["mood"].scope.centre, before.centre)


def test_scope_stays_where_the_embedding_does(job: Path, tmp_path: Path) -> None:
    path = continued(job, tmp_path, strategy={"freeze": ["backbone"]})
    run([str(path), "--data_root", str(job.parent)])
    before, after = (MultiTaskModel.from_pretrained(folder / "result").heads for folder in (job.parent, tmp_path))
    for task in ("mood", "tags"):
        for name, value in before[task].scope.state_dict().items():
            torch.testing.assert_close(after[task].scope.state_dict()[name], value, rtol=0, atol=0)


def without_abstain(job: Path, *tasks: str) -> dict[str, Any]:
    content = yaml.safe_load(job.read_text(encoding="utf-8"))["tasks"]
    return {task: {key: value for key, value in content[task].items() if key != "abstain"} for task in tasks}


def test_task_with_new_labels_that_abstains_by_its_scope_measures_it_anew_and_so_do_the_best_models(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, encode = [], MultiTaskModel.encode

    def count(self: MultiTaskModel, sentences: Any, *args: Any, **kwargs: Any) -> Any:
        lengths.append(len(sentences))
        return encode(self, sentences, *args, **kwargs)

    monkeypatch.setattr(MultiTaskModel, "encode", count)
    monkeypatch.setattr(evaluation_loop, "SENTENCES_AT_ONCE", 4)
    tasks = without_abstain(job, "mood", "similarity")
    tasks["mood"]["labels"] = ["negative", "positive", "mixed"]
    path = continued(job, tmp_path, strategy={"freeze": ["backbone"]}, tasks=tasks)
    training = yaml.safe_load(path.read_text(encoding="utf-8"))["training"]
    change(path, training={**training, "eval_strategy": "epoch", "save_strategy": "epoch"})
    run([str(path), "--data_root", str(job.parent)])
    assert max(lengths) == 4, "no list of all sentences is read at once"
    finished = MultiTaskModel.from_pretrained(tmp_path / "result")
    trained = [f"the {subject} ran {word} today" for subject in ("cat", "dog", "bank") for word in ("good", "bad")]
    assert finished.config.tasks["mood"].abstain.out_of_scope == 97, "premise"
    assert set(finished.predict(trained, head="mood")["mood"]["labels"]) - {None}
    before = MultiTaskModel.from_pretrained(job.parent / "result").heads["tags"].scope.state_dict()
    best = MultiTaskModel.from_pretrained(tmp_path / "result" / "best" / "mood")
    scopes = finished.heads["mood"].scope.state_dict(), before
    for task, expected in zip(("mood", "tags"), scopes, strict=True):
        assert best.config.tasks[task].out_of_scope
        for name, value in expected.items():
            torch.testing.assert_close(best.heads[task].scope.state_dict()[name], value, rtol=0, atol=0)


def test_scope_that_is_not_wanted_any_more_goes_also_where_the_embedding_stays(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tasks = without_abstain(job, "mood", "tags")
    path = continued(
        job, tmp_path, strategy={"freeze": ["backbone"]}, tasks={"tags": tasks["tags"]}, out_of_scope=False
    )
    run([str(path), "--data_root", str(job.parent)])
    found = MultiTaskModel.from_pretrained(tmp_path / "result").config.tasks
    assert (found["mood"].out_of_scope, found["tags"].out_of_scope) == (True, False)
    assert "tags: what is out of its scope is no longer known, because the recipe says" in capsys.readouterr().out
    change(path, tasks=tasks)
    with pytest.raises(
        SystemExit, match=r"out_of_scope is false, but the task 'mood' of \S+ abstains out of its scope"
    ):
        main([str(path), "--overwrite"])


def test_rows_of_rare_tasks_and_classes_are_drawn_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scope_module, "MOST_ROWS", 60)
    monkeypatch.setattr(scope_module, "LEAST_OF_CLASS", 5)
    rows = range(1000)
    columns = {
        "sentences": [[f"text {row}"] for row in rows],
        "label_common": [2 if row in (17, 900) else row % 2 for row in rows],
        "label_rare": [row % 3 if row % 100 == 7 else None for row in rows],
        "label_tags": [[float(row == 33), float(row % 5 == 0)] if row < 500 else None for row in rows],
    }
    tags = datasets.List(datasets.Value("float32"))
    features = {"sentences": datasets.List(datasets.Value("string")), "label_tags": tags}
    features |= {name: datasets.Value("int64") for name in ("label_common", "label_rare")}
    train = datasets.Dataset.from_dict(columns, datasets.Features({name: features[name] for name in columns}))
    (found,) = sample_rows([LabelledSet(["common", "rare", "tags"], {"train": train})], ["common", "rare", "tags"], 0)
    chosen = [int(text.split()[1]) for (text,) in found.splits["train"]["sentences"]]
    assert len(chosen) == 60 and chosen == sorted(chosen)
    assert {*(row for row in rows if row % 100 == 7), 17, 900, 33} <= set(chosen)
    assert sum(row < 500 for row in chosen) > 30 and sum(row >= 500 for row in chosen) > 10
    (found,) = sample_rows([LabelledSet(["common", "rare"], {"train": train})], ["rare"], 0)
    assert len(found.splits["train"]) == 10, "rows that are labelled for none of the tasks say nothing"


def test_no_row_is_in_a_scope_that_is_not_known(tiny_model: MultiTaskModel) -> None:
    tiny_model.config.change_task("mood", abstain={"out_of_scope": 99})
    rows = torch.arange(3)[:, None]
    assert near_enough(tiny_model, "mood", torch.randn(3, 32), rows).tolist() == [False] * 3
    assert near_enough(tiny_model, "tags", torch.randn(3, 32), rows) is None


def test_recipe_that_contradicts_itself_is_refused(job: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(job.read_text(encoding="utf-8"))
    content["tasks"]["mood"]["abstain"] = {"out_of_scope": 99}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({**content, "out_of_scope": False}), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"out_of_scope is false, but tasks\.mood\.abstain\.out_of_scope needs it"):
        main([str(path)])
