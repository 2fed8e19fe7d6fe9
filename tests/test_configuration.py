"""What a configuration accepts, fills in, refuses, and gives back after config.json."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, BertConfig, GPT2Config, T5Config

from multitask_sentence.configuration_multitask import MultiTaskConfig, ProjectionConfig, complete_projection
from multitask_sentence.problem_types_multitask import PROBLEM_TYPES
from multitask_sentence.records_multitask import HeadConfig
from multitask_sentence.tasks_multitask import TaskConfig, complete_task, extend_labels

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
LINEAR = {"hidden_dims": [], "activation": "relu", "dropout": 0.0}
COMPLETED = {
    SINGLE: {
        "problem_type": SINGLE,
        "pair": False,
        "labels": ["a", "b"],
        "head": LINEAR,
        "loss": "cross_entropy",
        "loss_weight": 1.0,
        "metrics": ["accuracy"],
    },
    MULTI: {
        "problem_type": MULTI,
        "pair": False,
        "labels": ["a", "b"],
        "head": LINEAR,
        "loss": "binary_cross_entropy",
        "loss_weight": 1.0,
        "metrics": ["macro_f1"],
        "thresholds": [0.5, 0.5],
    },
    "regression": {
        "problem_type": "regression",
        "pair": False,
        "head": LINEAR,
        "loss": "mse",
        "loss_weight": 1.0,
        "metrics": ["spearman"],
        "target_mean": 0.0,
        "target_deviation": 1.0,
    },
    "similarity": {
        "problem_type": "similarity",
        "pair": True,
        "loss": "cosent",
        "loss_weight": 1.0,
        "metrics": ["cosine_spearman"],
        "score_range": [0.0, 1.0],
    },
    "contrastive": {
        "problem_type": "contrastive",
        "pair": True,
        "loss": "multiple_negatives_ranking",
        "loss_weight": 1.0,
        "metrics": ["mrr"],
    },
}


def shortest(problem_type: str, **changes: Any) -> dict[str, Any]:
    labels = {"labels": ["a", "b"]} if "label" in problem_type else {}
    return {"problem_type": problem_type, **labels, **changes}


def tiny_bert(**changes: Any) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
    return BertConfig(**sizes, intermediate_size=37, **changes)


# ---- defaults ----


@pytest.mark.parametrize("problem_type", COMPLETED)
def test_every_problem_type_completes_with_its_defaults(problem_type: str) -> None:
    assert complete_task("name", shortest(problem_type)).to_dict() == COMPLETED[problem_type]


@pytest.mark.parametrize("problem_type", COMPLETED)
def test_completing_twice_changes_nothing_and_leaves_the_input_alone(problem_type: str) -> None:
    given = shortest(problem_type, loss_weight=2)
    before = json.dumps(given)
    completed = complete_task("name", given)
    assert json.dumps(given) == before
    assert complete_task("name", completed) == completed
    assert completed.loss_weight == 2.0


def test_completed_tasks_share_no_list_with_each_other_or_the_caller() -> None:
    one, other = complete_task("one", shortest(SINGLE)), complete_task("other", shortest(SINGLE))
    one.head.hidden_dims.append(3)
    one.metrics.append("mcc")
    assert other.to_dict() == COMPLETED[SINGLE]

    metrics, sizes = ["accuracy"], [5]
    completed = complete_task("name", shortest(SINGLE, metrics=metrics, head={"hidden_dims": sizes}))
    metrics.append("nonsense")
    sizes.append(0)
    assert (completed.metrics, completed.head.hidden_dims) == (["accuracy"], [5])


def test_every_setting_of_a_task_is_kept() -> None:
    task = {
        "problem_type": MULTI,
        "pair": True,
        "labels": ["x", "y", "z"],
        "head": {"hidden_dims": [5, 3], "activation": "gelu", "dropout": 0.25},
        "loss": "binary_cross_entropy",
        "loss_weight": 0.5,
        "metrics": ["micro_f1", "accuracy"],
        "thresholds": [0.0, 0.3, 1.0],
    }
    assert complete_task("name", task).to_dict() == task
    scored = shortest("similarity", loss="cosine_mse", score_range=[0, 5])
    assert complete_task("name", scored).to_dict() == {
        **COMPLETED["similarity"],
        "loss": "cosine_mse",
        "score_range": [0.0, 5.0],
    }


@pytest.mark.parametrize("problem_type", COMPLETED)
def test_every_documented_loss_and_metric_is_accepted(problem_type: str) -> None:
    for loss in PROBLEM_TYPES[problem_type].losses:
        assert complete_task("name", shortest(problem_type, loss=loss)).loss == loss
    metrics = list(PROBLEM_TYPES[problem_type].metrics)
    chosen = {"f1_labels": ["b"]} if "f1" in metrics else {}
    assert complete_task("name", shortest(problem_type, metrics=metrics, **chosen)).metrics == metrics


def test_numeric_labels_become_names() -> None:
    task = complete_task("name", {"problem_type": SINGLE, "labels": [0, 1], "metrics": ["f1"], "f1_labels": [1]})
    assert (task.labels, task.f1_labels) == (["0", "1"], ["1"])


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_classes_of_f1_are_saved_and_nothing_is_where_there_are_none(problem_type: str) -> None:
    task = shortest(problem_type, metrics=["accuracy", "f1"], f1_labels=["b", "a"])
    config = MultiTaskConfig(backbone_config=tiny_bert(), tasks={"t": task, "other": shortest(problem_type)})
    saved = json.loads(config.to_json_string())["tasks"]
    assert saved["t"]["f1_labels"] == ["b", "a"]
    assert saved["other"] == COMPLETED[problem_type]
    assert complete_task("t", saved["t"]) == config.tasks["t"]
    assert extend_labels("t", config.tasks["t"], ["c"]).f1_labels == ["b", "a"]


def test_multi_label_may_have_one_label() -> None:
    assert complete_task("name", {"problem_type": MULTI, "labels": ["spam"]}).thresholds == [0.5]


def test_projection_gets_its_defaults() -> None:
    assert complete_projection(None) is None
    completed = complete_projection({"out_features": 5})
    assert completed == ProjectionConfig(out_features=5, bias=True, activation="tanh")
    assert complete_projection(completed) == completed
    assert complete_projection({"out_features": 5, "bias": False, "activation": None}).to_dict() == {
        "out_features": 5,
        "bias": False,
        "activation": "linear",
    }


def test_config_defaults_are_the_documented_ones() -> None:
    config = MultiTaskConfig()
    assert (config.pooling, config.projection, config.normalize, config.max_length) == ("mean", None, False, 128)
    assert config.tasks == {}
    assert config.backbone_config.model_type == "bert"


def test_embedding_dim_is_that_of_the_projection_else_of_the_backbone() -> None:
    plain = MultiTaskConfig(backbone_config=tiny_bert())
    assert (plain.embedding_dim, plain.hidden_size) == (32, 32)
    projected = MultiTaskConfig(backbone_config=tiny_bert(), projection={"out_features": 24})
    assert (projected.embedding_dim, projected.hidden_size) == (24, 24)


# ---- round trip ----


def test_config_json_round_trip_changes_nothing(tmp_path) -> None:
    tasks = {problem_type: shortest(problem_type) for problem_type in COMPLETED}
    config = MultiTaskConfig(
        backbone_config=tiny_bert(hidden_act="relu"),
        pooling="max",
        projection={"out_features": 24, "bias": False},
        normalize=True,
        max_length=77,
        tasks=tasks,
    )
    config.save_pretrained(tmp_path / "first")
    reloaded = MultiTaskConfig.from_pretrained(tmp_path / "first")
    assert reloaded.to_dict() == config.to_dict()
    assert {name: task.to_dict() for name, task in reloaded.tasks.items()} == COMPLETED
    assert type(reloaded.backbone_config) is BertConfig
    assert reloaded.backbone_config.intermediate_size == 37

    reloaded.save_pretrained(tmp_path / "second")
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second"))
    assert first == second


def test_tasks_keep_their_order_in_config_json_whose_keys_are_sorted(tmp_path) -> None:
    config = MultiTaskConfig(tasks={name: {"problem_type": "regression"} for name in ("tone", "age", "mood")})
    config.tasks = {**config.tasks, "bias": complete_task("bias", {"problem_type": "regression"})}  # as add_task does
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert list(content["tasks"]) == ["age", "bias", "mood", "tone"], "premise: the file sorts them"
    reopened = MultiTaskConfig.from_pretrained(tmp_path)
    assert list(reopened.tasks) == ["tone", "age", "mood", "bias"]
    reopened.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == content

    del content["task_order"]  # as it was saved before there was one
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert list(MultiTaskConfig.from_pretrained(tmp_path).tasks) == ["age", "bias", "mood", "tone"]


def test_a_setting_spoilt_afterwards_is_refused_when_saving(tmp_path) -> None:
    config = MultiTaskConfig(backbone_config=tiny_bert(), tasks={"mood": shortest(SINGLE)})
    config.tasks["mood"].labels.append("a")
    with pytest.raises(StrictDataclassError, match=r"tasks\.mood\.labels lists 'a' more than once"):
        config.save_pretrained(tmp_path)


# What code from before the records wrote for WRITTEN_BEFORE; tasks in the order of results.json.
SETTINGS_BEFORE = Path(__file__).parent / "fixtures/settings_2026_11.json"
WRITTEN_BEFORE = {
    "topic": {"problem_type": SINGLE, "labels": ["b", "a"]},
    "entails": {
        "problem_type": SINGLE,
        "pair": True,
        "labels": [1, 0],
        "head": {"hidden_dims": [5, 3], "activation": "gelu", "dropout": 0.25},
        "loss_options": {"class_weights": {"0": 2, "1": 3}, "label_smoothing": 0.1},
        "loss_weight": 2,
        "metrics": ["macro_f1", "mcc"],
    },
    "tags": {
        "problem_type": MULTI,
        "labels": ["x", "y", "z"],
        "loss_options": {"pos_weight": "balanced"},
        "thresholds": [0, 0.3, 1],
    },
    "animals": {"problem_type": MULTI, "labels": ["cat"], "loss_options": {}},
    "rating": {"problem_type": "regression"},
    "age": {
        "problem_type": "regression",
        "target_mean": None,
        "target_deviation": None,
        "metrics": ["pearson", "mae"],
    },
    "distance": {"problem_type": "regression", "pair": True, "target_mean": 50, "target_deviation": 12.5},
    "alike": {"problem_type": "similarity", "score_range": [0, 5], "loss_options": {"temperature": 0.1}},
    "alike_too": {"problem_type": "similarity", "loss": "cosine_mse"},
    "answers": {
        "problem_type": "contrastive",
        "loss_options": {"symmetric": True, "temperature": None},
        "metrics": ["accuracy_at_1", "mrr"],
        "loss_weight": 0,
    },
}


def test_settings_are_written_as_they_were_before_there_were_records(tmp_path) -> None:
    before = SETTINGS_BEFORE.read_text()
    assert {task["problem_type"] for task in WRITTEN_BEFORE.values()} == set(PROBLEM_TYPES), "premise: every type"
    config = MultiTaskConfig(projection={"out_features": 24}, tasks=WRITTEN_BEFORE)
    given = config.to_dict()
    written = {key: given[key] for key in ("projection", "task_order", "tasks")}
    written["projection"] = dict(sorted(written["projection"].items()))
    assert json.dumps(written, indent=2) + "\n" == before

    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved = {key: saved[key] for key in written}
    assert json.dumps(saved, indent=2) == json.dumps(json.loads(before), indent=2, sort_keys=True)


# ---- records ----


def test_a_task_is_a_record_with_every_default_and_its_problem_types_facts() -> None:
    task = TaskConfig(problem_type=MULTI, labels=("a", "b"), head=HeadConfig(hidden_dims=[5]))
    assert (task.head.hidden_dims, task.head.dropout, task.thresholds) == ([5], 0.0, [0.5, 0.5])
    assert task.kind is PROBLEM_TYPES[MULTI]
    assert task.primary_metric == "macro_f1"
    assert task == TaskConfig(problem_type=MULTI, labels=["a", "b"], head={"hidden_dims": [5]})
    assert task != TaskConfig(problem_type=MULTI, labels=["a", "b"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.loss_weight = 2.0
    with pytest.raises(TypeError, match="not subscriptable"):
        task["loss_weight"]


@pytest.mark.parametrize("problem_type", COMPLETED)
def test_a_record_survives_copy_pickle_and_replace(problem_type: str) -> None:
    task = complete_task("name", shortest(problem_type, loss_weight=3))
    for again in (copy.deepcopy(task), pickle.loads(pickle.dumps(task)), dataclasses.replace(task)):
        assert again == task
        assert again is not task
        assert again.to_dict() == {**COMPLETED[problem_type], "loss_weight": 3.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weight": -1}, r"^tasks\.mood\.loss_weight is -1"),
        ({"thresholds": [0.5]}, r"^tasks\.mood\.thresholds is \[0\.5\]"),
        ({"head": {"dropout": 1}}, r"^tasks\.mood\.head\.dropout is 1"),
        ({"target_mean": 1.0}, r"^tasks\.mood\.target_mean has no meaning"),
    ],
)
def test_a_changed_task_is_checked_and_stays_as_it_was_where_it_is_refused(changes: dict, message: str) -> None:
    config = MultiTaskConfig(tasks={"mood": shortest(MULTI)})
    with pytest.raises(ValueError, match=message):
        config.change_task("mood", **changes)
    assert config.tasks["mood"].to_dict() == COMPLETED[MULTI]
    assert config.change_task("mood", thresholds=[0.1, 0.2]) is config.tasks["mood"]
    assert config.tasks["mood"].thresholds == [0.1, 0.2]


def test_a_record_made_by_hand_leaves_the_scale_to_training_and_a_mapping_is_a_model_of_before() -> None:
    by_hand = MultiTaskConfig(tasks={"age": TaskConfig(problem_type="regression")}).tasks["age"]
    assert (by_hand.target_mean, by_hand.target_deviation, by_hand.target_scale) == (None, None, (0.0, 1.0))
    mapping = MultiTaskConfig(tasks={"age": {"problem_type": "regression"}}).tasks["age"]
    assert (mapping.target_mean, mapping.target_deviation) == (0.0, 1.0)


def test_assigned_settings_become_records_or_are_refused_at_once() -> None:
    config = MultiTaskConfig(tasks={"mood": shortest(SINGLE)})
    config.tasks = {**config.tasks, "tags": shortest(MULTI)}
    assert [type(task) for task in config.tasks.values()] == [TaskConfig, TaskConfig]
    with pytest.raises(ValueError, match=r"tasks\.tags\.labels is None"):
        config.tasks = {"tags": {"problem_type": MULTI}}
    with pytest.raises(ValueError, match=r"projection\.out_features is 0"):
        config.projection = {"out_features": 0}
    assert list(config.tasks) == ["mood", "tags"]
    assert config.projection is None


def test_tasks_given_when_a_configuration_is_opened_become_records(tmp_path) -> None:
    MultiTaskConfig(tasks={"mood": shortest(SINGLE)}).save_pretrained(tmp_path)
    opened = MultiTaskConfig.from_pretrained(tmp_path, tasks={"tags": shortest(MULTI)})
    assert {name: task.to_dict() for name, task in opened.tasks.items()} == {"tags": COMPLETED[MULTI]}
    remote = AutoConfig.from_pretrained(tmp_path, trust_remote_code=True, tasks=opened.tasks)
    assert type(remote.tasks["tags"]) is not TaskConfig, "premise: the folder's own class"
    assert remote.tasks == opened.tasks
    assert complete_task("tags", remote.tasks["tags"]) == opened.tasks["tags"]


def test_a_configuration_prints_and_compares_its_records() -> None:
    config = MultiTaskConfig(projection={"out_features": 24}, tasks={"mood": shortest(SINGLE)})
    assert config == MultiTaskConfig(projection={"out_features": 24}, tasks={"mood": shortest(SINGLE)})
    assert config != MultiTaskConfig(projection={"out_features": 24}, tasks={"mood": shortest(SINGLE, loss_weight=2)})
    assert '"metrics": [' in repr(config)
    printed = json.loads(config.to_json_string(use_diff=False))
    assert printed["tasks"] == {"mood": COMPLETED[SINGLE]}
    assert printed["projection"] == {"out_features": 24, "bias": True, "activation": "tanh"}
    assert copy.deepcopy(config) == config


# ---- what is refused ----


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("t", shortest("single_label_clasification"), r"tasks\.t\.problem_type.*mean 'single_label_classification'"),
        ("t", {"labels": ["a", "b"]}, r"tasks\.t\.problem_type is None"),
        ("t", "regression", r"tasks\.t is 'regression', but should be a mapping"),
        ("t", shortest(SINGLE, lables=["a", "b"]), r"tasks\.t: unknown key 'lables'.*mean 'labels'"),
        ("t", {"problem_type": SINGLE}, r"tasks\.t\.labels is None.*at least 2"),
        ("t", {"problem_type": MULTI}, r"tasks\.t\.labels is None.*at least 1"),
        ("t", {"problem_type": SINGLE, "labels": ["a"]}, r"tasks\.t\.labels.*at least 2"),
        ("t", {"problem_type": SINGLE, "labels": "ab"}, r"tasks\.t\.labels is 'ab'"),
        ("t", {"problem_type": MULTI, "labels": []}, r"tasks\.t\.labels.*at least 1"),
        ("t", {"problem_type": SINGLE, "labels": ["a", "b", "a"]}, r"tasks\.t\.labels lists 'a' more than once"),
        ("t", {"problem_type": SINGLE, "labels": [1, "1"]}, r"tasks\.t\.labels lists '1' more than once"),
        ("t", shortest("regression", labels=["a", "b"]), r"tasks\.t\.labels has no meaning for .*regression"),
        ("t", shortest(SINGLE, head={"hidden_dim": [3]}), r"tasks\.t\.head: unknown key 'hidden_dim'.*'hidden_dims'"),
        ("t", shortest(SINGLE, head="mlp"), r"tasks\.t\.head is 'mlp'"),
        ("t", shortest(SINGLE, head={"hidden_dims": 256}), r"tasks\.t\.head\.hidden_dims is 256.*\[256\]"),
        ("t", shortest(SINGLE, head={"hidden_dims": [0]}), r"tasks\.t\.head\.hidden_dims: a size is 0"),
        ("t", shortest(SINGLE, head={"hidden_dims": [2.5]}), r"tasks\.t\.head\.hidden_dims: a size is 2\.5"),
        ("t", shortest(SINGLE, head={"hidden_dims": [True]}), r"tasks\.t\.head\.hidden_dims: a size is True"),
        ("t", shortest(SINGLE, head={"activation": "rellu"}), r"tasks\.t\.head\.activation.*mean 'relu'"),
        ("t", shortest(SINGLE, head={"activation": ["relu"]}), r"tasks\.t\.head\.activation is \['relu'\]"),
        ("t", shortest(SINGLE, head={"dropout": 1}), r"tasks\.t\.head\.dropout is 1, .*less than 1"),
        ("t", shortest(SINGLE, head={"dropout": -0.1}), r"tasks\.t\.head\.dropout is -0\.1"),
        ("t", shortest(SINGLE, head={"dropout": "0.1"}), r"tasks\.t\.head\.dropout is '0\.1'"),
        ("t", shortest("similarity", head={"hidden_dims": [3]}), r"tasks\.t\.head has no meaning for .*similarity"),
        ("t", shortest("contrastive", head={}), r"tasks\.t\.head has no meaning for .*contrastive"),
        ("t", shortest(SINGLE, loss="crossentropy"), r"tasks\.t\.loss .*mean 'cross_entropy'"),
        ("t", shortest("regression", loss="cosent"), r"tasks\.t\.loss \(regression\) is 'cosent'.*mse"),
        ("t", shortest(SINGLE, loss_weight=-1), r"tasks\.t\.loss_weight is -1"),
        ("t", shortest(SINGLE, loss_weight=float("nan")), r"tasks\.t\.loss_weight is nan"),
        ("t", shortest(SINGLE, loss_weight=float("inf")), r"tasks\.t\.loss_weight is inf"),
        ("t", shortest(SINGLE, loss_weight=True), r"tasks\.t\.loss_weight is True"),
        ("t", shortest(SINGLE, loss_weight="2"), r"tasks\.t\.loss_weight is '2'"),
        ("t", shortest(SINGLE, metrics=["macro_f2"]), r"tasks\.t\.metrics .*'macro_f2'.*mean 'macro_f1'"),
        ("t", shortest(SINGLE, metrics=["accuracy", "spearman"]), r"tasks\.t\.metrics .*'spearman'"),
        ("t", shortest(SINGLE, metrics="accuracy"), r"tasks\.t\.metrics is 'accuracy', but should be a list"),
        ("t", shortest("regression", metrics=["mse", "pearson"]), r"tasks\.t\.metrics: mse cannot stand first"),
        ("t", shortest(MULTI, thresholds=[0.5]), r"tasks\.t\.thresholds is \[0\.5\].*each of the 2 labels"),
        ("t", shortest(MULTI, thresholds=[0.5, 1.5]), r"tasks\.t\.thresholds is \[0\.5, 1\.5\]"),
        ("t", shortest(MULTI, thresholds=0.5), r"tasks\.t\.thresholds is 0\.5"),
        ("t", shortest(SINGLE, thresholds=[0.5, 0.5]), r"tasks\.t\.thresholds has no meaning"),
        ("t", shortest("similarity", score_range=[5, 0]), r"tasks\.t\.score_range is \[5, 0\].*\[lowest, highest\]"),
        ("t", shortest("similarity", score_range=[1, 1]), r"tasks\.t\.score_range is \[1, 1\]"),
        ("t", shortest("similarity", score_range=[0, 1, 2]), r"tasks\.t\.score_range"),
        ("t", shortest("similarity", score_range=5), r"tasks\.t\.score_range is 5"),
        (
            "t",
            shortest(SINGLE, metrics=["f1"]),
            r"tasks\.t\.f1_labels is missing: .* such as \[b\]; macro_f1",
        ),
        ("t", shortest(MULTI, f1_labels=["a"]), r"tasks\.t\.f1_labels is \['a'\], but metrics lists no f1"),
        (
            "t",
            shortest(SINGLE, metrics=["f1"], f1_labels=["a", "bb"]),
            r"tasks\.t\.f1_labels: a label is 'bb', but should be one of a, b\. Did you mean 'b'\?",
        ),
        ("t", shortest(SINGLE, metrics=["f1"], f1_labels=["a", "a"]), r"tasks\.t\.f1_labels lists 'a' more than once"),
        ("t", shortest(SINGLE, metrics=["f1"], f1_labels="a"), r"tasks\.t\.f1_labels is 'a', but should list"),
        ("t", shortest("similarity", f1_labels=["a"]), r"tasks\.t\.f1_labels has no meaning for .*similarity"),
        ("t", shortest("regression", metrics=["mae"]), r"tasks\.t\.metrics: mae cannot stand first"),
        ("t", shortest("regression", score_range=[0, 5]), r"tasks\.t\.score_range has no meaning"),
        ("t", shortest("similarity", target_mean=1.0), r"tasks\.t\.target_mean has no meaning for .*similarity"),
        (
            "t",
            shortest("regression", target_mean=3),
            r"tasks\.t: found target_mean 3, target_deviation None, but .*Give both",
        ),
        ("t", shortest("regression", target_mean=3, target_deviation=0), r"found .*target_deviation 0, but"),
        ("t", shortest("regression", target_mean=None, target_deviation=2), r"found target_mean None, .*Give both"),
        ("t", shortest("similarity", pair=False), r"tasks\.t\.pair is False, .*compares two sentences"),
        ("t", shortest(SINGLE, pair="yes"), r"tasks\.t\.pair is 'yes'.*true or false"),
        ("embedding", shortest(SINGLE), r"'embedding' is taken by the sentence embedding"),
        ("my-task", shortest(SINGLE), r"'my-task' is not an identifier"),
        ("a.b", shortest(SINGLE), r"'a\.b' is not an identifier"),
        (3, shortest(SINGLE), r"the name 3 is not an identifier"),
        ("type", shortest(SINGLE), r"'type' is taken by torch's ModuleDict.*'type_task'"),
        ("training", shortest(SINGLE), r"'training' is taken by torch"),
        ("keys", shortest(SINGLE), r"'keys' is taken by torch"),
    ],
)
def test_wrong_task_setting_is_named_with_its_remedy(name: Any, task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        complete_task(name, task)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "meen"}, r"pooling is 'meen', .*mean, cls, max.*mean 'mean'"),
        ({"projection": {"out_features": 0}}, r"projection\.out_features is 0, .*at least 1"),
        ({"projection": {}}, r"projection\.out_features is None"),
        ({"projection": 256}, r"projection is 256, but should be null or like"),
        ({"projection": {"out_features": 5, "biass": True}}, r"projection: unknown key 'biass'.*mean 'bias'"),
        ({"projection": {"out_features": 5, "bias": 1}}, r"projection\.bias is 1"),
        ({"projection": {"out_features": 5, "activation": "tahn"}}, r"projection\.activation is 'tahn'.*'tanh'"),
        ({"max_length": 0}, r"max_length is 0, .*at least 1"),
        ({"tasks": {"embedding": shortest(SINGLE)}}, r"'embedding' is taken"),
        ({"tasks": {"mood": shortest("sentiment")}}, r"tasks\.mood\.problem_type is 'sentiment'"),
        ({"backbone_config": T5Config()}, r"backbone: 't5' is not an encoder"),
        ({"backbone_config": GPT2Config()}, r"backbone: 'gpt2' is not an encoder"),
        ({"backbone_config": {"model_type": "gpt2"}}, r"backbone: 'gpt2' is not an encoder"),
        ({"backbone_config": tiny_bert(is_decoder=True)}, r"backbone: 'bert' is not an encoder"),
        ({"backbone_config": {"hidden_size": 32}}, r"backbone_config has no model_type"),
    ],
)
def test_wrong_config_setting_is_a_value_error_with_its_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiTaskConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"max_length": "128"}, "max_length"),
        ({"max_length": 12.5}, "max_length"),
        ({"normalize": "yes"}, "normalize"),
        ({"pooling": None}, "pooling"),
        ({"tasks": ["mood"]}, "tasks"),
    ],
)
def test_wrong_type_of_a_config_field_is_named(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(StrictDataclassError, match=f"field '{name}'"):
        MultiTaskConfig(**settings)
