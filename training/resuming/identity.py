"""What makes a run the run it is, and what of it may change when it goes on from a checkpoint.

MAY_CHANGE      the one list of what may change; everything else may not
describe_run    what a checkpoint records of its run
check_same_run  refuses to go on with another run, in one line that names the difference
check_length    refuses to go on beyond the end
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset
from transformers import Trainer

from ...adapter_multitask import ADAPTER_NAME, has_adapter
from ...configuration_multitask import MultiTaskConfig
from ...data.cache.arrays import cached_text
from ...data.text.tokens import tokenizer_state
from ...records_multitask import settings_of
from ...tasks_multitask import CHOSEN_SETTINGS
from ..arguments import MultiTaskTrainingArguments
from ..mixture.drawing import steps_of_training

LEARNING_RATES = (
    *("training.learning_rate", "training.head_learning_rate", "strategy.learning_rates", "strategy.layer_decay"),
)
_WITHOUT_A_WORD = """
    output_dir run_name project report_to disable_tqdm debug skip_memory_metrics do_train do_eval do_predict
    trackio_space_id trackio_bucket_id trackio_static_space_id
    logging_strategy logging_steps logging_first_step logging_nan_inf_filter log_level log_level_replica
    log_on_each_node include_num_input_tokens_seen
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size eval_accumulation_steps
    eval_do_concat_batches eval_use_gather_object batch_eval_metrics include_for_metrics prediction_loss_only
    save_strategy save_steps save_total_limit save_on_each_node save_only_model enable_jit_checkpoint
    load_best_model_at_end keep_best_of_tasks keep_row_hashes
    early_stopping_patience early_stopping_threshold early_stopping_task
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    resume_from_checkpoint restore_callback_states_from_checkpoint
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    use_cpu local_rank ddp_timeout torch_empty_cache_steps
"""
# What may change, by its name in `describe_run`, and what is said of it. Nothing is said of how a run is logged,
# evaluated, saved, reported and loaded.
MAY_CHANGE: dict[str, str | None] = {
    "training.num_train_epochs": "the learning rate follows the schedule of the new length",
    "training.max_steps": "the learning rate follows the schedule of the new length",
    **dict.fromkeys(LEARNING_RATES, "applied from the next step on"),
    "device": "results may differ in their last digits",
    **dict.fromkeys(f"training.{name}" for name in _WITHOUT_A_WORD.split()),
}
_MEASURED = ("target_mean", "target_deviation")  # of the training rows
_NOISE = ("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "problem_type")
_GROWING = ("training.", "backbone_config.")
_SHOWN = 80  # characters of a value in a message


# ---- what a run is ----


def without_folders(content: Any) -> Any:
    """The same with the last part of each path in place of the path, which says nothing elsewhere."""
    if isinstance(content, Mapping):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [without_folders(value) for value in content]
    if isinstance(content, str) and (os.path.isabs(content) or os.path.isdir(content)):
        return Path(content).name
    return content


def describe_model(config: MultiTaskConfig) -> dict[str, Any]:
    """What of a model's configuration says which model it is."""
    backbone = config.backbone_config.to_dict().items()
    return {
        "task_order": list(config.tasks),
        "tasks": {
            name: {key: value for key, value in task.to_dict().items() if key not in (*CHOSEN_SETTINGS, *_MEASURED)}
            for name, task in config.tasks.items()
        },
        "measured": {name: {key: getattr(task, key) for key in _MEASURED} for name, task in config.tasks.items()},
        **{key: settings_of(getattr(config, key)) for key in ("pooling", "projection", "normalize", "max_length")},
        "backbone_config": {key: value for key, value in backbone if key not in _NOISE and not key.startswith("_")},
    }


def _describe_rows(rows: Dataset) -> dict[str, Any]:
    def content() -> str:
        digest = hashlib.sha256()
        for batch in rows.with_format(None).iter(1000):
            digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
        return digest.hexdigest()

    return {"rows": len(rows), "content": cached_text(rows, "content", content)}


def _describe_lessons(trainer: Trainer) -> dict[str, Any] | None:
    """What is learnt from teachers, and a hash of the unlabelled text."""
    lessons = trainer.lessons
    if lessons is None:
        return None
    return {
        **lessons.describe(),
        "unlabeled": {
            name: {**_describe_rows(lessons.unlabeled[name]), "tasks": asked}
            for name, asked in lessons.asked_tasks().items()
        },
    }


def _describe_kept_text(trainer: Trainer) -> str | None:
    """A hash of which training rows no teacher is asked about, because they stand in a validation or test split."""
    if trainer.lessons is None:
        return None
    digest = hashlib.sha256()
    for rows in trainer.lessons.kept_back(trainer.train_dataset.sets, trainer.sets):
        digest.update(np.packbits(rows))
    return digest.hexdigest()


def describe_adapter(backbone: torch.nn.Module) -> dict[str, Any] | None:
    """Settings of a backbone's adapter, and a hash of what lies under it, which no checkpoint holds."""
    if not has_adapter(backbone):
        return None
    own = ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
    settings = backbone.peft_config[ADAPTER_NAME].to_dict()
    base = xxhash.xxh3_128()
    for name, parameter in backbone.named_parameters():
        if ADAPTER_NAME not in name.split("."):
            base.update(name.encode())
            base.update(parameter.detach().float().cpu().contiguous().numpy())
    described = {key: value for key, value in settings.items() if key not in own}
    described = {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}
    return {**described, "base.content": base.hexdigest()}


def describe_run(trainer: Trainer) -> dict[str, Any]:
    """
    What a checkpoint records of its run, as JSON holds it; what matters most to a reader comes first.

    Args:
        trainer: a MultiTaskTrainer that trains or is about to.
    """
    args, strategy, model = trainer.args, trainer.strategy, describe_model(trainer.model.config)
    arguments = args.to_dict()
    names = [field.name for field in fields(MultiTaskTrainingArguments) if field.init]
    recorded = [name for name in names if MAY_CHANGE.get(f"training.{name}", "") is not None]
    data: dict[str, dict[str, Any]] = {}
    for entry in trainer.sets:
        rows = {split: _describe_rows(rows) for split, rows in entry.splits.items() if split != "test"}
        data.setdefault(" and ".join(entry.tasks), {}).update(rows)
    run = {
        **{key: model.pop(key) for key in ("task_order", "tasks")},
        "groups": {name: group.to_recipe() for name, group in trainer.groups.items()},
        **without_folders(trainer.origin),
        **{key: model[key] for key in model if key != "measured"},
        "tokenizer.content": hashlib.sha256(tokenizer_state(trainer.model.tokenizer)).hexdigest(),
        "trained_tasks": list(trainer.trained_tasks),
        "peft": describe_adapter(trainer.model.backbone),
        "strategy": {
            "freeze": trainer.plan.frozen,
            **{key: strategy.get(key) for key in ("unfreeze", "learning_rates", "layer_decay")},
        },
        "distillation": _describe_lessons(trainer),
        "text_kept_from_teachers.content": _describe_kept_text(trainer),
        "mixture": asdict(trainer.mixture),
        "buffer_size": {
            " and ".join(own.tasks): own.texts.buffer_size for own in trainer.drawn if own.texts is not None
        },
        "balancing": trainer.balancer.config.to_recipe(),
        "processes": args.world_size,
        "training": without_folders({name: arguments.get(name) for name in recorded}),
        "data": data,
        "measured": model["measured"],  # after the rows that it follows from
        "parameters": {
            name: list(parameter.shape)
            for part in trainer.plan.parameters.values()
            for name, parameter in part.items()
        },
        "device": args.device.type,
    }
    return json.loads(json.dumps(run, default=str))


# ---- whether two are the same ----


def _flat(name: str, content: Any) -> Iterator[tuple[str, Any]]:
    """`tasks.mood.labels` and so on, down to what is no mapping."""
    if isinstance(content, dict) and content and name not in MAY_CHANGE:
        for key, value in content.items():
            yield from _flat(f"{name}.{key}" if name else key, value)
    else:
        yield name, content


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _difference(name: str, old: Any, new: Any) -> str:
    if name.endswith(".content"):
        return f"{name.removesuffix('.content')} is not what it was"
    if isinstance(old, list) and isinstance(new, list) and len(repr(old)) > _SHOWN:
        place = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), None)
        if place is not None:
            return f"{name}: entry {place} of {len(old)} was {_shown(old[place])} and is {_shown(new[place])} now"
        return f"{name} had {len(old)} entries and has {len(new)} now"
    return f"{name} was {_shown(old)} and is {_shown(new)} now"


def _differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """By name, what is different, in the order of the new one; only what both know."""
    before = dict(_flat("", {key: value for key, value in old.items() if key in new}))
    now = dict(_flat("", {key: value for key, value in new.items() if key in old}))
    names = [*now, *(name for name in before if name not in now)]
    # Another version of transformers may know other arguments and other settings of a backbone.
    known = [name for name in names if not name.startswith(_GROWING) or (name in before and name in now)]
    return {
        name: _difference(name, before.get(name), now.get(name)) for name in known if before.get(name) != now.get(name)
    }


def check_same_run(checkpoint: Path, recorded: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    """
    Compare the run that a checkpoint comes from with the one that is to go on.

    Args:
        checkpoint: its folder, for the message.
        recorded: what it recorded; of an older checkpoint, only what its configuration tells.
        run: what `describe_run` gives.

    Returns:
        What has changed and may: a line for each, by its name.

    Raises:
        ValueError: something has changed that may not.
    """
    found = _differences(recorded, run)
    refused = [name for name in found if name not in MAY_CHANGE]
    if refused:
        others = f" (also different: {', '.join(refused[1:6])}{', ...' if len(refused) > 6 else ''})"
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} comes from another run: {found[refused[0]]}"
            f"{others if refused[1:] else ''}. Go on with what it was, or start a run anew, without "
            "--resume_from_checkpoint."
        )
    return {name: f"{checkpoint}: {text}; {MAY_CHANGE[name]}." for name, text in found.items()}


def check_length(checkpoint: Path, step: int, trainer: Trainer) -> list[str]:
    """
    Compare the step of a checkpoint with the end of the run; returns a line where nothing is left to train.

    Raises:
        ValueError: the checkpoint lies beyond the end.
    """
    end = steps_of_training(trainer.sampler, trainer.args)
    if step > end:
        raise ValueError(
            f"resume_from_checkpoint: {checkpoint} is of step {step}, but the run now ends at step {end}. Train for "
            "more epochs, or go on from an earlier checkpoint."
        )
    if step == end:
        return [f"{checkpoint} is of the last step, {step}: nothing is left to train. More num_train_epochs go on."]
    return []
