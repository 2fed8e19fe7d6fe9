"""Which training arguments work, which are refused and why: before any data is loaded."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import TrainingArguments
from transformers.integrations import integration_utils

from multitask_sentence.train import run
from multitask_sentence.training.argument_checks import TRACKERS, check_packages
from multitask_sentence.training.arguments import SHARDED, WITHOUT_EFFECT, WORKS, MultiTaskTrainingArguments
from multitask_sentence.training.recipe.command_line import RecipeArgumentParser
from multitask_sentence.training.report.results import changed_arguments

RECIPE = """
tasks:
  topic:
    problem_type: single_label_classification
    dataset: {{path: csv, data_files: {{train: train.csv}}}}
    columns: {{sentence: text, label: label}}
training: {{use_cpu: true, {training}}}
"""


PLACES = [("cat", "bank"), ("dog", "market"), ("bird", "story"), ("mat", "film")]


def make(**arguments: Any) -> MultiTaskTrainingArguments:
    return MultiTaskTrainingArguments(output_dir="nowhere", use_cpu=True, **arguments)


def parse(tmp_path: Path, training: str, *flags: str) -> MultiTaskTrainingArguments:
    (tmp_path / "mine.yaml").write_text(RECIPE.format(training=training), encoding="utf-8")
    return RecipeArgumentParser().parse([str(tmp_path / "mine.yaml"), *flags])[2]


def test_every_field_of_transformers_arguments_is_decided():
    found = {argument.name for argument in fields(TrainingArguments) if argument.init}
    assert found - set(WORKS) - set(WITHOUT_EFFECT) - set(SHARDED) == set(), "new in transformers: does it work here?"
    added = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # by transformers 5.23
    assert set(WORKS) - found - added == set() == set(WITHOUT_EFFECT) - found, "gone from transformers"
    assert set(WORKS) & set(WITHOUT_EFFECT) == set()
    assert len(WORKS) == len(set(WORKS))


OTHER_VALUES = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "average_tokens_across_devices"), False),
    **dict.fromkeys(("logging_nan_inf_filter", "dataloader_in_order", "eval_do_concat_batches"), False),
    "label_smoothing_factor": 0.1,
    "train_sampling_strategy": "group_by_length",
    "length_column_name": "size",
    "parallelism_config": {"tp_size": 2},
    "label_names": ["label"],
    "neftune_noise_alpha": 5.0,
    "liger_kernel_config": {"rope": True},
    "eval_accumulation_steps": 4,
    "include_for_metrics": ["inputs"],
    "hub_strategy": "every_save",
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_argument_without_effect_is_refused_with_what_to_say_instead(name: str, tmp_path: Path):
    value = OTHER_VALUES.get(name, True)
    written = str(value).lower() if isinstance(value, bool) else value
    with pytest.raises(ValueError, match=rf"training\.{name} is .*, but has no effect here\. \w") as caught:
        parse(tmp_path, f"{name}: {written}")
    assert str(caught.value).endswith(WITHOUT_EFFECT[name])


@pytest.mark.parametrize(("name", "value"), [("fsdp", "full_shard"), ("fsdp", True), ("deepspeed", "zero.json")])
def test_sharded_training_is_refused_with_a_reason(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"training\.{name}: models are not sharded\. accelerate shards none on a CPU"
    ):
        make(**{name: value})


@pytest.mark.parametrize(
    ("name", "variable"), [("fsdp", "ACCELERATE_USE_FSDP"), ("deepspeed", "ACCELERATE_USE_DEEPSPEED")]
)
def test_sharding_that_a_launcher_asks_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, variable: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=rf"training\.{name}: models are not sharded"):
        make()


def test_precision_that_a_launcher_asks_for_is_recorded_like_the_flag(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched = make()
    assert launched.bf16 and not launched.fp16
    assert changed_arguments(launched)["bf16"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    assert make().fp16, "which gradient balancing refuses"
    with_flag = make(bf16=True)
    assert with_flag.bf16 and not with_flag.fp16, "as transformers does it"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match=r"asks for mixed precision fp8, but should ask for one of no, bf16, fp16\."):
        make()


@pytest.mark.parametrize("name", ["do_train", "do_eval", "do_predict"])
def test_argument_that_says_what_is_done_anyway_is_taken(name: str, tmp_path: Path):
    assert getattr(parse(tmp_path, f"{name}: true"), name) is True
    with pytest.raises(ValueError, match=rf"training\.{name} is False, but has no effect"):
        parse(tmp_path, "seed: 1", f"--no_{name}")


@pytest.mark.parametrize(
    ("name", "values", "should_be"),
    [
        ("per_device_eval_batch_size", ["0", "-8", "99999999999999"], "a whole number of at least 1"),
        ("per_device_train_batch_size", ["0", "-1"], "a whole number of at least 1"),
        ("gradient_accumulation_steps", ["0"], "a whole number of at least 1"),
        ("save_total_limit", ["0", "-1"], "a whole number of at least 1"),
        ("dataloader_num_workers", ["-1"], "a whole number of at least 0"),
        ("torch_empty_cache_steps", ["0"], "a whole number of at least 1"),
        ("ddp_timeout", ["0"], "a whole number of at least 1"),
        ("max_steps", ["0", "-2"], "a whole number of at least 1"),
        (
            "num_train_epochs",
            ["0", "-1", ".nan", ".inf", "1e400"],
            r"a number above 0 \(to train nothing, say strategy",
        ),
        ("learning_rate", ["-1e-4", ".nan", ".inf"], "a number of at least 0"),
        ("head_learning_rate", ["-1", ".nan"], "a number of at least 0"),
        ("weight_decay", ["-0.1", ".nan"], "a number of at least 0"),
        ("adam_beta1", ["1", "-0.1", ".nan"], "a number of at least 0 and below 1"),
        ("adam_beta2", ["1.5"], "a number of at least 0 and below 1"),
        ("adam_epsilon", ["-1"], "a number of at least 0"),
        ("max_grad_norm", ["-1", ".nan"], "a number of at least 0"),
        ("warmup_steps", ["-1", ".nan", ".inf"], "a number of at least 0"),
        ("warmup_steps", ["1.5"], "a whole number of steps, or below 1 a share"),
        ("logging_steps", ["0", "-5", ".nan", ".inf"], "a number above 0"),
        ("eval_steps", ["0", "-5", ".inf"], "a number above 0"),
        ("save_steps", ["0", ".nan"], "a number above 0"),
        ("save_steps", ["2.5"], "a whole number of steps, or below 1 a share"),
        ("eval_delay", ["-1", ".nan"], "a number of at least 0"),
        ("seed", ["-1", "4294967296"], r"a whole number from 0 to 2\*\*32 - 1"),
        ("data_seed", ["-1"], r"a whole number from 0 to 2\*\*32 - 1"),
    ],
)
def test_number_that_cannot_work_is_refused(name: str, values: list[str], should_be: str, tmp_path: Path):
    for value in values:
        with pytest.raises(ValueError, match=rf"training\.{name} is .*, but should be {should_be}"):
            parse(tmp_path, f"{name}: {value}")


def test_numbers_at_the_edge_of_what_works_are_taken(tmp_path: Path):
    arguments = parse(
        tmp_path,
        "learning_rate: 0, warmup_steps: 0, max_grad_norm: 0, weight_decay: 0, max_steps: 1, num_train_epochs: 0.1, "
        "save_total_limit: null, logging_steps: 0.5, seed: 4294967295, adam_beta1: 0, eval_delay: 0",
    )
    assert (arguments.learning_rate, arguments.save_total_limit, arguments.seed) == (0, None, 2**32 - 1)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("metric_for_best_model: [eval_score]", r"metric_for_best_model is \['eval_score'\], but should be text\."),
        ("metric_for_best_model: {a: b}", r"metric_for_best_model is \{'a': 'b'\}, but should be text\."),
        ("run_name: true", r"run_name is True, but should be text\."),
        ("output_dir: [a, b]", r"output_dir is \['a', 'b'\], but should be text\."),
        (
            "save_strategy: step",
            r"save_strategy is 'step', but should be one of no, steps, epoch, best\. Did you mean",
        ),
        ("eval_strategy: null", r"eval_strategy is None, but should be one of no, steps, epoch\."),
        ("lr_scheduler_type: cosin", r"lr_scheduler_type is 'cosin', but should be one of .*\. Did you mean 'cosine'"),
        ("optim: adam", r"optim is 'adam', but should be one of adamw_torch, .* or \d+ others\."),
        ("log_level: loud", r"log_level is 'loud', but should be one of detail, debug, info"),
        ("ddp_backend: mip", r"ddp_backend is 'mip', but should be one of nccl, .* Did you mean 'mpi'"),
        ("report_to: [1]", r"report_to is \[1\], but should be text, or a list of texts\."),
        ("debug: 5", r"debug is 5, but should be text"),
        ("lr_scheduler_kwargs: [1]", r"lr_scheduler_kwargs is \[1\], but should be a mapping"),
        ("lr_scheduler_kwargs: '{a'", r"lr_scheduler_kwargs is '\{a', but should be a mapping"),
    ],
)
def test_value_of_the_wrong_kind_is_refused(written: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"training\." + message):
        parse(tmp_path, written)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "eval_steps: 10",
            r"training\.eval_steps is 10\.0, but eval_strategy is epoch\. Set eval_strategy: steps, or ",
        ),
        (
            "save_steps: 10, save_strategy: best",
            r"training\.save_steps is 10\.0, but save_strategy is best\. Set save",
        ),
        (
            "logging_steps: 10, logging_strategy: epoch",
            r"training\.logging_steps is 10\.0, but logging_strategy is ep",
        ),
        ("hub_revision: next", r"training\.hub_revision is 'next', which says nothing without push_to_hub: true\."),
        ("hub_private_repo: true", r"training\.hub_private_repo is True, which says nothing without push_to_hub"),
        ("dataloader_persistent_workers: true", "which says nothing without dataloader_num_workers: 1 or more"),
        pytest.param(
            *("activation_checkpointing_kwargs: {offload: true}", "nothing without activation_checkpointing: true"),
            marks=pytest.mark.skipif(
                not hasattr(TrainingArguments, "activation_checkpointing"), reason="transformers before 5.23"
            ),
        ),
        ("accelerator_config: {dispatch_batches: true}", r"accelerator_config\.dispatch_batches is True, but has no"),
        ("accelerator_config: {split_batches: true}", r"accelerator_config\.split_batches is True, but has no effect"),
    ],
)
def test_argument_that_says_nothing_without_another_is_refused(written: str, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        parse(tmp_path, written)


def test_strategy_given_as_a_flag_takes_the_steps_of_the_recipe_with_it(tmp_path: Path):
    recipe = "eval_strategy: steps, eval_steps: 7, save_strategy: steps, save_steps: 7"
    assert parse(tmp_path, recipe).eval_steps == 7
    arguments = parse(tmp_path, recipe, "--eval_strategy", "epoch", "--save-strategy=epoch")
    assert (arguments.eval_steps, arguments.save_steps) == (None, 500)
    assert parse(tmp_path, recipe, "--eval_strategy", "no", "--no_load_best_model_at_end").save_steps == 7


# ---- packages ----


@pytest.mark.parametrize("tracker", [name for name in integration_utils.INTEGRATION_TO_CALLBACK if name != "kubeflow"])
def test_tracker_whose_package_is_missing_is_refused_in_one_line(tracker: str, monkeypatch: pytest.MonkeyPatch):
    package, is_available = TRACKERS.get(tracker, (tracker, f"is_{tracker}_available"))
    arguments = make(report_to=tracker)
    monkeypatch.setattr(integration_utils, is_available, lambda: True)
    check_packages(arguments)
    monkeypatch.setattr(integration_utils, is_available, lambda: False)
    with pytest.raises(ImportError, match=rf"report_to names {tracker}, .* `pip install {package}`, or") as caught:
        check_packages(arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("optimizer", ["galore_adamw", "apollo_adamw"])
def test_optimizer_whose_state_no_checkpoint_can_hold_is_refused(optimizer: str):
    message = rf"training\.optim is '{optimizer}_layerwise', but should be {optimizer}, or another whose state"
    with pytest.raises(ValueError, match=message):
        make(optim=f"{optimizer}_layerwise")


def test_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"report_to names 'wandbb', but knows azure_ml, .*Did you mean 'wandb'\?"):
        check_packages(make(report_to=["wandbb"]))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"optim": "galore_adamw"},
            ImportError,
            r"training\.optim is galore_adamw, whose package is missing: .*galore",
        ),
        ({"optim": "lomo"}, ImportError, r"training\.optim is lomo, whose package is missing: .*lomo"),
        ({"optim_args": "x"}, ValueError, r"training\.optim_args is 'x', but should be options of adamw_torch"),
        ({"optim_args": "x=1"}, ValueError, r"training\.optim_args is 'x=1', but adamw_torch\w* reads none of it"),
        ({"lr_scheduler_kwargs": {"x": 1}}, ValueError, r"lr_scheduler_kwargs is \{'x': 1\}, which the linear sched"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}}, ValueError, "the cosine sched"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}},
            ValueError,
            "constant schedule has no op",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ValueError, r"the cosine_with_min_lr schedule does not take"),
    ],
)
def test_optimizer_and_schedule_that_cannot_be_made_are_refused(arguments: dict, kind: type, message: str):
    with pytest.raises(kind, match=message):
        check_packages(make(**arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"optim": "adafactor"},
        {"optim": "sgd"},
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": 2}},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 2}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 10}},
        {"lr_scheduler_type": "constant_with_warmup"},
    ],
)
def test_optimizer_and_schedule_that_can_be_made_pass(arguments: dict):
    check_packages(make(**arguments))


def test_process_that_sees_several_gpus_is_refused_before_data_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(MultiTaskTrainingArguments, "n_gpu", 2)
    (tmp_path / "mine.yaml").write_text(RECIPE.format(training=f"output_dir: {tmp_path / 'result'}"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"One process sees 2 GPUs\..*in a notebook, restart the kernel"):
        run([str(tmp_path / "mine.yaml")])


# ---- what is said to work does ----


def test_rarely_used_arguments_that_work_do(tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = "".join(f"the {animal} ran,animal\nthe {place} was bad,money\n" for animal, place in PLACES)
    (tmp_path / "train.csv").write_text("text,label\n" + rows, encoding="utf-8")
    training = (
        f"output_dir: {tmp_path / 'result'}, num_train_epochs: 1, per_device_train_batch_size: 2, disable_tqdm: true, "
        "skip_memory_metrics: false, include_num_input_tokens_seen: non_padding, eval_on_start: true, "
        "logging_steps: 1, debug: underflow_overflow, torch_empty_cache_steps: 1, "
        "save_only_model: true, "
        "logging_first_step: true, dataloader_num_workers: 1, dataloader_multiprocessing_context: fork, "
        "gradient_accumulation_steps: 2, gradient_checkpointing: true"
    )
    recipe = tmp_path / "mine.yaml"
    text = RECIPE.format(training=training).replace("columns:", "validation_split: 0.25\n    columns:")
    recipe.write_text(f"backbone: {tiny_backbone}\n{text}", encoding="utf-8")
    run([str(recipe)])
    history = json.loads((tmp_path / "result" / "results.json").read_text(encoding="utf-8"))["history"]
    assert history[0]["step"] == 0 and "eval_loss" in history[0]  # eval_on_start
    losses = [entry for entry in history if "loss" in entry]
    assert losses[-1]["num_input_tokens_seen"] > losses[0]["num_input_tokens_seen"] > 0
    assert any("train_mem_cpu_alloc_delta" in entry for entry in history)
