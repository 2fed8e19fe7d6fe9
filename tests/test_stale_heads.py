"""Heads that were left behind when something else trained the backbone are warned of when the folder is opened."""

import copy
import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from transformers import AutoModel, AutoModelForSequenceClassification
from transformers.utils import logging

from multitask_sentence import MultiTaskModel, stale_heads_multitask
from multitask_sentence.modeling_multitask import MultiTaskForSequenceClassification
from multitask_sentence.train import run

TASKS = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]},
    "rating": {"problem_type": "regression"},
}
ROWS = {"sentence1": ["the cat sat", "bad price"], "sentence2": ["a cat sat", "good film"], "score": [0.9, 0.1]}
VERBS, WORDS = ("sat", "ran"), ("good", "bad")
LORA = LoraConfig(r=3, target_modules=["query", "value"])


@pytest.fixture
def folder(tiny_backbone: str, tmp_path: Path) -> Path:
    """A saved model with two heads."""
    torch.manual_seed(1)
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


@pytest.fixture
def opens_with_warning(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Opens a folder; how many times the heads were warned of."""

    def count(folder: Path, kind: type = MultiTaskModel, **options) -> int:
        lines = []
        monkeypatch.setattr(stale_heads_multitask.logger, "warning", lines.append)
        kind.from_pretrained(folder, **options)
        assert all(str(folder) in line and "belong to another backbone" in line for line in lines)
        return len(lines)

    return count


def move(*modules: torch.nn.Module) -> None:
    """A step of training, as small as the last ones of a run."""
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter += 1e-4 * torch.randn_like(parameter)


def train_in_sentence_transformers(folder: Path, run: Path) -> None:
    """Three steps of its own Trainer, which saves a checkpoint; then its own saving."""
    opened = SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(run), max_steps=3, save_steps=3, learning_rate=1e-4, report_to="none", use_cpu=True
    )
    SentenceTransformerTrainer(
        model=opened, args=arguments, train_dataset=Dataset.from_dict(ROWS), loss=CoSENTLoss(opened)
    ).train()
    opened.save_pretrained(str(run / "again"))


def test_heads_left_behind_by_sentence_transformers_are_warned_of(
    folder: Path,
    tmp_path: Path,
    opens_with_warning: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train_in_sentence_transformers(folder, tmp_path / "run")
    assert opens_with_warning(folder) == 0
    assert opens_with_warning(tmp_path / "run" / "checkpoint-3") == 1
    assert opens_with_warning(tmp_path / "run" / "again") == 1
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    with caplog.at_level("WARNING"):
        AutoModel.from_pretrained(tmp_path / "run" / "again", trust_remote_code=True)
    assert caplog.text.count("the heads (mood, rating) belong to another backbone") == 1


def test_view_of_one_head_warns_as_the_model_does(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    move(model.backbone)
    model.save_pretrained(tmp_path / "stale")
    assert opens_with_warning(tmp_path / "stale", MultiTaskForSequenceClassification, task="mood") == 1
    view = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True, task="mood")
    move(view.multitask.backbone)
    view.save_pretrained(tmp_path / "view")
    assert opens_with_warning(tmp_path / "view") == 1
    move(view.multitask.heads)
    view.save_pretrained(tmp_path / "trained")
    assert opens_with_warning(tmp_path / "trained") == 0


def test_training_the_view_of_one_head_leaves_the_others_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(name: str, kind: type = MultiTaskModel) -> list[str]:
        lines = []
        monkeypatch.setattr(stale_heads_multitask.logger, "warning", lines.append)
        opened[name] = kind.from_pretrained(tmp_path / name)
        return [re.search(r"the heads \((.*)\) belong", line)[1] for line in lines]

    opened = {}
    view = MultiTaskForSequenceClassification.from_pretrained(folder, head="mood")
    optimizer = torch.optim.AdamW(view.parameters())
    view(input_ids=torch.tensor([[2, 7, 3]]), labels=torch.tensor([1])).loss.backward()
    optimizer.step()
    view.save_pretrained(tmp_path / "view")
    assert stale("view") == ["rating"]
    opened["view"].save_pretrained(tmp_path / "copy")
    assert stale("copy", MultiTaskForSequenceClassification) == ["rating"]
    move(opened["copy"].multitask.heads["rating"])
    opened["copy"].save_pretrained(tmp_path / "trained")
    assert stale("trained") == []
    move(opened["view"].backbone)
    opened["view"].save_pretrained(tmp_path / "both")
    assert stale("both") == ["mood, rating"]


@pytest.mark.parametrize(
    ("moved", "frozen", "warnings"),
    [
        (("backbone",), (), 1),
        (("projection",), (), 1),
        (("backbone", "heads"), (), 0),
        (("heads",), ("backbone",), 0),
        (("backbone",), ("heads",), 0),
        ((), (), 0),
    ],
)
def test_heads_are_stale_where_they_stayed_and_the_encoder_did_not(
    folder: Path,
    tmp_path: Path,
    opens_with_warning: Callable[..., int],
    moved: tuple[str, ...],
    frozen: tuple[str, ...],
    warnings: int,
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    if frozen:
        model.freeze(*frozen)
    move(*(getattr(model, part) for part in moved))
    model.save_pretrained(tmp_path / "again")
    assert opens_with_warning(tmp_path / "again") == warnings


def test_model_that_was_started_and_moved_without_its_heads_is_stale(
    tiny_backbone: str, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS)
    move(model.backbone)
    model.save_pretrained(tmp_path / "stale")
    assert opens_with_warning(tmp_path / "stale") == 1


def test_stale_heads_stay_stale_until_they_are_trained(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    move(model.backbone)
    model.save_pretrained(tmp_path / "stale")
    MultiTaskModel.from_pretrained(tmp_path / "stale").save_pretrained(tmp_path / "copy")
    assert opens_with_warning(tmp_path / "copy") == 1
    model = MultiTaskModel.from_pretrained(tmp_path / "copy")
    model.freeze("heads")
    model.save_pretrained(tmp_path / "frozen")
    assert opens_with_warning(tmp_path / "frozen") == 1
    model.add_task("topic", {"problem_type": "single_label_classification", "labels": ["a", "b"]})
    model.save_pretrained(tmp_path / "added")
    assert opens_with_warning(tmp_path / "added") == 1
    move(model.heads)
    model.save_pretrained(tmp_path / "trained")
    assert opens_with_warning(tmp_path / "trained") == 0


def test_heads_left_behind_after_a_save_are_stale(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    move(model.backbone, model.heads)
    model.save_pretrained(tmp_path / "trained")
    move(model.backbone)
    model.save_pretrained(tmp_path / "stale")
    assert [opens_with_warning(tmp_path / name) for name in ("trained", "stale")] == [0, 1]


def test_added_task_is_trained_with_the_backbone(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    model.freeze("heads")
    model.add_task("topic", {"problem_type": "single_label_classification", "labels": ["a", "b"]})
    model.save_pretrained(tmp_path / "added")
    move(model.backbone, model.heads["topic"])
    model.save_pretrained(tmp_path / "trained")
    assert [opens_with_warning(tmp_path / name) for name in ("added", "trained")] == [0, 0]


@pytest.mark.parametrize("opened", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_makes_no_heads_stale(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int], saved: torch.dtype, opened: torch.dtype
) -> None:
    model = MultiTaskModel.from_pretrained(folder).to(saved)
    copy.deepcopy(model).save_pretrained(tmp_path / "half")
    assert opens_with_warning(tmp_path / "half", dtype=opened) == 0
    move(model.backbone.float())
    model.to(saved).save_pretrained(tmp_path / "stale")
    assert opens_with_warning(tmp_path / "stale", dtype=opened) == 1


def test_adapters_keep_their_heads_and_a_moved_one_leaves_them_behind(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    model.add_adapter(LORA)
    model.save_pretrained(tmp_path / "added")
    move(model.backbone.encoder.layer[0].attention.self.query.lora_B, model.heads)
    model.save_pretrained(tmp_path / "trained")
    merged = copy.deepcopy(model)
    merged.merge_adapter()
    merged.save_pretrained(tmp_path / "merged")
    move(model.backbone.encoder.layer[0].attention.self.query.lora_B)
    model.save_pretrained(tmp_path / "stale")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "stale merged")
    found = {name: opens_with_warning(tmp_path / name) for name in ("added", "trained", "merged")}
    assert found == {"added": 0, "trained": 0, "merged": 0}
    assert [opens_with_warning(tmp_path / name) for name in ("stale", "stale merged")] == [1, 1]


def test_adapter_on_a_base_that_was_replaced_is_warned_of(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    model.add_adapter(LORA)
    model.save_pretrained(tmp_path / "adapter")
    retrained = MultiTaskModel.from_pretrained(folder)
    move(retrained.backbone, retrained.heads)
    retrained.save_pretrained(folder)
    assert opens_with_warning(tmp_path / "adapter") == 1


def test_model_without_heads_or_without_fingerprint_is_silent(
    tiny_backbone: str, folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks={"similarity": {"problem_type": "similarity"}})
    move(model.backbone)
    model.save_pretrained(tmp_path / "headless")
    assert opens_with_warning(tmp_path / "headless") == 0
    assert json.loads((tmp_path / "headless" / "config.json").read_text())["encoder_fingerprint"] is None
    model = MultiTaskModel.from_pretrained(folder)
    move(model.backbone)
    model.save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    settings = json.loads(path.read_text())
    del settings["encoder_fingerprint"]
    path.write_text(json.dumps(settings))
    assert opens_with_warning(tmp_path / "old") == 0


def test_heads_can_be_adopted(folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int]) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    move(model.backbone)
    model.adopt_heads()
    model.save_pretrained(tmp_path / "adopted")
    assert opens_with_warning(tmp_path / "adopted") == 0


def test_fingerprint_reads_samples_alone() -> None:
    weights = torch.ones(1).expand(10**13)  # 40 TB, were they all read
    assert stale_heads_multitask.fingerprint({"a": weights}) == stale_heads_multitask.fingerprint({"a": weights[:64]})


def test_fingerprint_of_quantised_or_absent_weights_is_unknown() -> None:
    weights = {"a": torch.randn(5, 3)}
    assert stale_heads_multitask.fingerprint(weights) is not None
    for other in (torch.zeros(4, dtype=torch.uint8), torch.zeros(0), torch.zeros(3, device="meta")):
        assert stale_heads_multitask.fingerprint({**weights, "b": other}) is None


def test_checkpoints_of_our_own_trainer_are_never_stale(
    tiny_backbone: str, tmp_path: Path, opens_with_warning: Callable[..., int]
) -> None:
    rows = [f"the cat {verb} {word},{word},{index / 8}" for index, (verb, word) in enumerate(product(VERBS, WORDS))]
    (tmp_path / "train.csv").write_text("\n".join(["text,mood,score", *rows, ""]))
    texts = {"path": "csv", "data_files": {"train": "train.csv", "validation": "train.csv"}}
    mood = {
        "problem_type": "single_label_classification",
        "dataset": texts,
        "columns": {"sentence": "text", "label": "mood"},
        "loss_weight": 0.0,  # so that the head never moves
    }
    pairs = {
        "problem_type": "similarity",
        "dataset": texts,
        "columns": {"sentence1": "text", "sentence2": "mood", "label": "score"},
    }
    training = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 3,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "weight_decay": 0.0,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
    }
    recipe = {"backbone": tiny_backbone, "tasks": {"mood": mood, "pairs": pairs}, "training": training}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run([str(tmp_path / "recipe.yaml")])
    folders = [path.parent for path in (tmp_path / "run").rglob("model.safetensors")]
    assert len(folders) == 5  # the result, two checkpoints and the best of both tasks
    first, last = (MultiTaskModel.from_pretrained(tmp_path / "run" / f"checkpoint-{step}") for step in (2, 3))
    assert not torch.equal(first.backbone.embeddings.word_embeddings.weight, last.get_input_embeddings().weight)
    assert torch.equal(first.heads["mood"].layers[-1].weight, last.heads["mood"].layers[-1].weight)
    assert [opens_with_warning(folder) for folder in folders] == [0] * 5


@pytest.mark.parametrize("kind", [MultiTaskModel, MultiTaskForSequenceClassification])
def test_resized_vocabulary_leaves_no_heads_behind_and_training_after_it_does(
    folder: Path, tmp_path: Path, opens_with_warning: Callable[..., int], kind: type
) -> None:
    model = kind.from_pretrained(folder, **({} if kind is MultiTaskModel else {"head": "mood"}))
    model.resize_token_embeddings(107)
    model.save_pretrained(tmp_path / "resized")
    move(model.base_model.backbone)
    model.save_pretrained(tmp_path / "stale")
    assert [opens_with_warning(tmp_path / name) for name in ("resized", "stale")] == [0, 1]
