"""Loss options: what a task may say, what is wrong with one, balanced weights, and gradients that stay the same."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from datasets import Dataset
from sklearn.utils.class_weight import compute_class_weight

from helpers import trainer as helpers
from multitask_sentence.configuration_multitask import MultiTaskConfig
from multitask_sentence.data.rows.sets import LabelledSet
from multitask_sentence.tasks_multitask import TaskConfig, complete_task
from multitask_sentence.training.losses.class_weights import balanced_class_weights, balanced_pos_weight
from multitask_sentence.training.losses.losses import binary_cross_entropy, cosent, cross_entropy, task_loss
from multitask_sentence.training.recipe.recipe import load_recipe

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
WEIGHTED = {"class_weights": [0.5, 2.0, 1.5], "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return helpers.make_backbone(tmp_path_factory.mktemp("backbone"))


def complete(problem_type: str, options: Any, labels: tuple[str, ...] = ("a", "b"), **settings: Any) -> TaskConfig:
    given = {"problem_type": problem_type, "loss_options": options, **settings}
    return complete_task("topic", {**given, "labels": list(labels)} if "classification" in problem_type else given)


# What may be said


@pytest.mark.parametrize(
    ("problem_type", "options", "expected"),
    [
        (SINGLE, {"class_weights": "balanced", "label_smoothing": 0.1}, None),
        (SINGLE, {"class_weights": [1, 2]}, {"class_weights": [1.0, 2.0]}),
        (SINGLE, {"class_weights": {"b": 3, "a": 0.5}}, {"class_weights": [0.5, 3.0]}),
        (MULTI, {"pos_weight": {"b": 3, "a": 0.5}}, {"pos_weight": [0.5, 3.0]}),
        (MULTI, {"pos_weight": "balanced"}, None),
        ("similarity", {"temperature": 1}, None),
        ("contrastive", {"temperature": 0.02, "symmetric": True}, None),
        ("contrastive", {"temperature": 0.02, "symmetric": None}, {"temperature": 0.02}),
    ],
)
def test_options_are_kept_and_weights_stand_in_the_order_of_the_labels(problem_type, options, expected):
    completed = complete(problem_type, options)
    assert completed.loss_options == (expected or options)
    assert complete_task("topic", completed) == completed


@pytest.mark.parametrize("options", [None, {}, {"class_weights": None}])
def test_task_without_options_has_no_such_key_so_that_its_config_is_as_before(options):
    assert "loss_options" not in complete(SINGLE, options).to_dict()


def test_weights_by_label_know_numbers_and_booleans_of_yaml():
    assert complete(SINGLE, {"class_weights": {True: 2, False: 1}}, ("false", "true")).loss_options == {
        "class_weights": [1.0, 2.0]
    }
    assert complete(SINGLE, {"class_weights": {1: 2, 0: 1}}, ("0", "1")).loss_options["class_weights"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("problem_type", "options", "message"),
    [
        (SINGLE, [0.1], r"tasks\.topic\.loss_options is \[0\.1\], but should be a mapping, such as"),
        (SINGLE, {"label_smooth": 0.1}, r"loss_options \(cross_entropy\): unknown key .* mean 'label_smoothing'\?"),
        (SINGLE, {"temperature": 0.1}, r"unknown key 'temperature'.* Known keys: class_weights, label_smoothing"),
        (MULTI, {"class_weights": [1, 2]}, r"\(binary_cross_entropy\): unknown key 'class_weights'.* pos_weight"),
        ("regression", {"temperature": 0.1}, r"loss_options: the loss mse takes no options\. Remove them"),
        (SINGLE, {"label_smoothing": 1}, r"label_smoothing is 1, but should be at least 0 and less than 1"),
        (SINGLE, {"label_smoothing": "0.1"}, r"label_smoothing is '0\.1', but should be at least 0"),
        ("similarity", {"temperature": 0}, r"temperature is 0, but should be a number above 0: cosines are divided"),
        ("contrastive", {"temperature": -1}, r"temperature is -1, but should be a number above 0"),
        ("contrastive", {"symmetric": "yes"}, r"symmetric is 'yes', but should be true or false"),
        (
            SINGLE,
            {"class_weights": "even"},
            r"class_weights is 'even', but should be balanced or sqrt_balanced, or give a number above",
        ),
        (SINGLE, {"class_weights": [1]}, r"class_weights is \[1\], .* for each of the 2 labels"),
        (SINGLE, {"class_weights": [1, 0]}, r"class_weights is \[1, 0\], .* number above 0"),
        (SINGLE, {"class_weights": {"a": 1}}, r"class_weights gives no weight for 'b'\. Every label needs one"),
        (
            SINGLE,
            {"class_weights": {"a": 1, "bb": 1}},
            r"a label is 'bb', but should be one of a, b\. Did you mean 'b",
        ),
        (MULTI, {"pos_weight": [1, float("nan")]}, r"pos_weight is \[1, nan\]"),
    ],
)
def test_wrong_option_is_named_with_its_mend(problem_type, options, message):
    with pytest.raises(ValueError, match=message):
        complete(problem_type, options)


def test_options_of_the_other_loss_of_a_problem_type_are_refused():
    with pytest.raises(ValueError, match="the loss cosine_mse takes no options"):
        complete("similarity", {"temperature": 0.1}, loss="cosine_mse")


@pytest.mark.parametrize("weights", ["balanced", {"good": 2, "bad": 1, "so so": 3}, [1, 2, 3]])
def test_recipe_takes_weights_for_labels_that_only_the_data_knows(weights, tmp_path):
    task = {
        "problem_type": SINGLE,
        "dataset": {"path": "csv", "data_files": {"train": "absent.csv"}},
        "columns": {"sentence": "text", "label": "label"},
        "loss_options": {"class_weights": weights},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"topic": task}}))
    assert load_recipe(path).settings["topic"]["loss_options"] == {"class_weights": weights}
    path.write_text(
        yaml.safe_dump({"tasks": {"topic": {**task, "loss_options": {"class_weights": {"a": 1, "b": 0}}}}})
    )
    with pytest.raises(ValueError, match=r"mine\.yaml: tasks\.topic\.loss_options\.class_weights is \[1, 0\]"):
        load_recipe(path)


def test_config_of_an_older_model_opens_as_before(tmp_path):
    config = MultiTaskConfig(tasks={"topic": {"problem_type": SINGLE, "labels": ["a", "b"]}})
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert "loss_options" not in stored["tasks"]["topic"]
    assert stored["format_version"] == 1
    assert MultiTaskConfig.from_pretrained(tmp_path).tasks == config.tasks


def test_options_are_saved_with_the_config(tmp_path):
    options = {"class_weights": [0.5, 3.0], "label_smoothing": 0.1}
    MultiTaskConfig(tasks={"topic": complete(SINGLE, options)}).save_pretrained(tmp_path)
    assert MultiTaskConfig.from_pretrained(tmp_path).tasks["topic"].loss_options == options


# The losses


def test_weighted_and_smoothed_cross_entropy_equals_the_loop():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    weights, smoothing = WEIGHTED["class_weights"], WEIGHTED["label_smoothing"]
    expected = 0.0
    for row, label in zip(logits.log_softmax(dim=1).tolist(), labels.tolist(), strict=True):
        expected -= (1 - smoothing) * weights[label] * row[label]
        expected -= sum(smoothing / 3 * weight * value for weight, value in zip(weights, row, strict=True))
    assert cross_entropy(logits, labels, **WEIGHTED).item() == pytest.approx(expected, rel=1e-9)


def test_pos_weight_counts_positives_that_often():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 2, dtype=torch.float64), torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]).double()
    expected = 0.0
    for row, truth in zip(logits.sigmoid().tolist(), labels.tolist(), strict=True):
        for probability, label, weight in zip(row, truth, (3.0, 0.5), strict=True):
            expected -= weight * math.log(probability) / 2 if label else math.log(1 - probability) / 2
    assert binary_cross_entropy(logits, labels, pos_weight=[3.0, 0.5]).item() == pytest.approx(expected, rel=1e-9)


def test_temperature_divides_the_cosines_of_cosent():
    cosines, scores = torch.tensor([0.9, 0.1]), torch.tensor([0.0, 1.0])
    assert cosent(cosines, scores, 0.5).item() == pytest.approx(2 * math.log(1 + math.exp(0.8 / 0.5)), rel=1e-6)


def test_task_loss_hands_the_options_to_the_loss():
    torch.manual_seed(0)
    logits, labels, rows = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.arange(4)
    task = complete(SINGLE, WEIGHTED, ("a", "b", "c"))
    found = task_loss(task, logits, labels, torch.randn(4, 5), rows)
    torch.testing.assert_close(found, cross_entropy(logits, labels, **WEIGHTED), rtol=0, atol=0)
    assert found != cross_entropy(logits, labels)
    with pytest.raises(ValueError, match="balanced weights need training rows to count"):
        task_loss(complete(SINGLE, {"class_weights": "balanced"}, ("a", "b", "c")), logits, labels, logits, rows)


# Balanced weights


def test_balanced_class_weights_are_those_of_scikit_learn():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 31)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    weights = balanced_class_weights(np.bincount(labels))
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert weights[labels].mean() == pytest.approx(1.0)


def test_sqrt_balanced_weights_go_with_the_root_of_inverse_frequency_and_are_1_on_average():
    counts = np.array([100, 4, 1])
    weights = balanced_class_weights(counts, 0.5)
    np.testing.assert_allclose(weights / weights[0], [1, 5, 10])
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(balanced_pos_weight(np.array([10, 36]), 40, 0.5), [3**0.5, 1 / 3])


def test_balanced_pos_weight_makes_positives_and_negatives_count_alike():
    counts = np.array([2, 25, 10])
    weights = balanced_pos_weight(counts, 40)
    np.testing.assert_allclose(weights * counts, 40 - counts)


def make_labelled(count: int, **labels: list[Any]) -> LabelledSet:
    columns = {"sentences": [[sentence] for sentence in helpers.make_sentences(count, 0)]}
    columns |= {f"label_{task}": values for task, values in labels.items()}
    rows = Dataset.from_dict(columns)
    return LabelledSet(list(labels), {"train": rows, "validation": rows})


def model_with(backbone: Path, **options: dict[str, Any]):
    model = helpers.make_model(backbone, tuple(options))
    for task, given in options.items():
        model.config.change_task(task, loss_options=given)
    return model


def test_trainer_puts_the_roots_in_place_of_sqrt_balanced(backbone, tmp_path, caplog):
    model = model_with(backbone, sentiment={"class_weights": "sqrt_balanced"}, tags={"pos_weight": "sqrt_balanced"})
    tags = [[float(row < 2), float(row < 5)] for row in range(10)]
    data = make_labelled(10, sentiment=[0] * 4 + [1] * 4 + [2, None], tags=tags)
    helpers.make_trainer(model, [data], tmp_path)
    assert model.config.tasks["sentiment"].loss_options == {"class_weights": pytest.approx([0.9, 0.9, 1.8])}
    assert model.config.tasks["tags"].loss_options == {"pos_weight": [2.0, 1.0]}
    assert caplog.messages == [
        "sentiment: sqrt_balanced class_weights, from 9 training rows: negative 0.9, neutral 0.9, positive 1.8",
        "tags: sqrt_balanced pos_weight, from 10 training rows: a 2, b 1",
    ]
    model.config.validate_multitask()


def test_trainer_puts_the_numbers_of_the_labelled_training_rows_in_place_of_balanced(backbone, tmp_path, caplog):
    sentiment = [0] * 6 + [1] * 3 + [2] * 1 + [None] * 2
    tags = [[1.0, float(row < 9)] if row < 3 else [0.0, float(row < 9)] for row in range(12)]
    options = {"class_weights": "balanced", "label_smoothing": 0.1}
    model = model_with(backbone, sentiment=options, tags={"pos_weight": "balanced"})
    helpers.make_trainer(model, [make_labelled(12, sentiment=sentiment, tags=tags)], tmp_path)
    expected = {"class_weights": pytest.approx([10 / 18, 10 / 9, 10 / 3]), "label_smoothing": 0.1}
    assert model.config.tasks["sentiment"].loss_options == expected
    assert model.config.tasks["tags"].loss_options == {"pos_weight": pytest.approx([9 / 3, 3 / 9])}
    assert caplog.messages == [
        "sentiment: balanced class_weights, from 10 training rows: negative 0.5556, neutral 1.111, positive 3.333",
        "tags: balanced pos_weight, from 12 training rows: a 3, b 0.3333",
    ]
    model.config.validate_multitask()


@pytest.mark.parametrize("freeze", ["all", ["backbone", {"heads": ["tags"]}]])
def test_balanced_loss_of_a_task_that_does_not_train_is_evaluated(freeze, backbone, tmp_path):
    data = make_labelled(
        12, sentiment=[row % 3 for row in range(12)], tags=[[float(row < 3), 1.0] for row in range(12)]
    )
    options = {"sentiment": {"class_weights": "balanced"}, "tags": {"pos_weight": [9.0, 1.0]}}
    model = model_with(backbone, **options)
    given = helpers.make_trainer(model, [data], tmp_path, {"strategy": {"freeze": freeze}}).evaluate()
    model = model_with(backbone, sentiment=options["sentiment"], tags={"pos_weight": "balanced"})
    data.splits["train"] = (
        data.splits["train"]
        .remove_columns("label_tags")
        .add_column("label_tags", [[float(row < 3), float(row < 6)] for row in range(12)])
    )
    trainer = helpers.make_trainer(model, [data], tmp_path, {"strategy": {"freeze": freeze}})
    assert model.config.tasks["tags"].loss_options == {"pos_weight": [3.0, 1.0]}
    found = trainer.evaluate()
    assert math.isfinite(found["eval_tags_loss"]) and found["eval_tags_loss"] < given["eval_tags_loss"]


def test_balanced_weights_count_the_rows_that_max_rows_keeps(backbone, tmp_path):
    model = model_with(backbone, sentiment={"class_weights": "balanced"})
    data = make_labelled(200, sentiment=[row % 3 if row < 150 else 0 for row in range(200)])
    trainer = helpers.make_trainer(model, [data], tmp_path, {"mixture": {"max_rows": {"sentiment": 60}}})
    counts = np.bincount(trainer.train_dataset.sets[0]["label_sentiment"], minlength=3)
    assert counts.sum() == 60
    assert model.config.tasks["sentiment"].loss_options["class_weights"] == pytest.approx((60 / (3 * counts)).tolist())


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("sentiment", [0, 0, 2, 2], r"tasks\.sentiment\.loss_options\.class_weights: .*no training row has 'neutral'"),
        ("sentiment", [2, 2, 2, None], r"no training row has 'negative', 'neutral'\. Add rows"),
        ("tags", [[1.0, 0.0], [0.0, 0.0]], r"tasks\.tags\.loss_options\.pos_weight: .*no training row has 'b'"),
        ("tags", [[1.0, 0.0], [1.0, 1.0]], r"every training row has 'a'\. Add rows, take the label out, or give num"),
    ],
)
def test_balanced_needs_examples_of_every_class(task, labels, message, backbone, tmp_path):
    model = model_with(backbone, **{task: {"class_weights" if task == "sentiment" else "pos_weight": "balanced"}})
    with pytest.raises(ValueError, match=message):
        helpers.make_trainer(model, [make_labelled(len(labels), **{task: labels})], tmp_path)


# Training


def test_gradients_with_weights_and_smoothing_do_not_depend_on_accumulation(backbone, tmp_path):
    data = helpers.make_set(["sentiment", "tags"], {"sentiment": 0.6, "tags": 0.5}, train=12)
    model = model_with(backbone, sentiment=WEIGHTED, tags={"pos_weight": [4.0, 0.25]})
    plain = helpers.make_model(backbone, ("sentiment", "tags"))

    def gradients(model, **arguments: int):
        (step,) = helpers.train_gradients(model, [data], tmp_path, **arguments, **helpers.without_learning())
        return step

    whole = gradients(model, per_device_train_batch_size=12)
    cut = gradients(model, per_device_train_batch_size=3, gradient_accumulation_steps=4)
    unweighted = gradients(plain, per_device_train_batch_size=12)
    for name, expected in whole.items():
        torch.testing.assert_close(cut[name], expected, rtol=1e-5, atol=1e-7)
    for task in ("sentiment", "tags"):
        name = next(name for name in whole if name.startswith(f"heads.{task}"))
        assert not torch.allclose(whole[name], unweighted[name])


def test_evaluation_loss_has_the_weights_and_the_smoothing_of_training(backbone, tmp_path):
    labels = [0, 0, 0, 0, 1, 2, 2, 0]
    model = model_with(backbone, sentiment=WEIGHTED)
    data = make_labelled(len(labels), sentiment=labels)
    trainer = helpers.make_trainer(model, [data], tmp_path)
    logits = model.eval()(
        **model.tokenizer([row[0] for row in data.splits["train"]["sentences"]], padding=True, return_tensors="pt")
    ).logits["sentiment"]
    weights = torch.tensor(WEIGHTED["class_weights"])
    expected = F.cross_entropy(logits, torch.tensor(labels), weights, label_smoothing=0.1, reduction="sum") / 8
    assert trainer.evaluate()["eval_sentiment_loss"] == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"problem_type": SINGLE, "labels": ["a", "b"]}, {"label_smoothing": np.float32(0.25)}),
        ({"problem_type": "similarity"}, {"temperature": np.float64(0.5)}),
        ({"problem_type": "similarity"}, {"temperature": np.int64(2)}),
    ],
)
def test_number_of_numpy_is_kept_as_json_holds_it(settings: dict[str, Any], options: dict[str, Any]) -> None:
    task = complete_task("task", {**settings, "loss_options": options})
    assert json.loads(json.dumps(task.to_dict()))["loss_options"] == dict(options)
