"""Pooling, forward, tasks, and what is saved: on every architecture, and reopened without our package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from multitask_sentence import MultiTaskConfig, MultiTaskModel, MultiTaskOutput
from multitask_sentence.heads_multitask import MultiTaskHead, cls_pool, max_pool, mean_pool
from multitask_sentence.tasks_multitask import TaskConfig

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 99,
    "intermediate_size": 37,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
MODERN_BERT_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertConfig(**SIZES),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, vocab_size=99, hidden_dim=37, max_position_embeddings=64, initializer_range=0.2
    ),
    "roberta": lambda: RobertaConfig(**SIZES),
    "xlm-roberta": lambda: XLMRobertaConfig(**SIZES),
    "mpnet": lambda: MPNetConfig(**SIZES),
    "electra": lambda: ElectraConfig(embedding_size=16, **SIZES),
    "deberta-v2": lambda: DebertaV2Config(**DEBERTA, **SIZES),
    "modernbert": lambda: ModernBertConfig(**MODERN_BERT_IDS, **SIZES),
}
POOLINGS = dict(zip(ARCHITECTURES, ["mean", "cls", "max"] * 3, strict=False))
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "tags": {
        "problem_type": "multi_label_classification",
        "labels": ["a", "b", "c", "d"],
        "head": {"hidden_dims": [11], "activation": "gelu", "dropout": 0.1},
    },
    "rating": {"problem_type": "regression", "head": {"hidden_dims": [7, 5]}},
    "entails": {"problem_type": "single_label_classification", "labels": ["no", "yes"], "pair": True},
    "similarity": {"problem_type": "similarity"},
    "search": {"problem_type": "contrastive"},
}
TASK_ROWS = {
    "mood": torch.tensor([0, 3, 4]),
    "tags": torch.tensor([1, 2]),
    "rating": torch.tensor([4, 0, 1, 2]),
    "entails": torch.tensor([[0, 1], [2, 3], [4, 0]]),
    "similarity": torch.tensor([[0, 1], [3, 4]]),
    "search": torch.tensor([[0, 1, 2], [3, 4, 0]]),
}
LOGIT_SHAPES = {"mood": (3, 3), "tags": (2, 4), "rating": (4,), "entails": (3, 2), "similarity": (2,), "search": (2,)}
SENTENCES = ["The cat sat on the mat.", "good film!", "it is bad news today, but the story was fine"]


def build(architecture: str, **settings: Any) -> MultiTaskModel:
    torch.manual_seed(0)
    settings = {"pooling": POOLINGS[architecture], "projection": {"out_features": 24}, "tasks": TASKS} | settings
    return MultiTaskModel(MultiTaskConfig(backbone_config=ARCHITECTURES[architecture](), **settings)).eval()


def batch(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    """Five rows of random ids, lengths 7, 3, 5, 7 and 2, with the backbone's own padding id."""
    input_ids = torch.randint(5, 99, (5, 7), generator=torch.Generator().manual_seed(3))
    attention_mask = (torch.arange(7) < torch.tensor([7, 3, 5, 7, 2])[:, None]).long()
    pad = model.config.backbone_config.pad_token_id
    return {"input_ids": input_ids.masked_fill(attention_mask == 0, pad), "attention_mask": attention_mask}


def flat(output: MultiTaskOutput) -> dict[str, torch.Tensor]:
    tensors = {"last_hidden_state": output.last_hidden_state, "sentence_embedding": output.sentence_embedding}
    tensors |= {f"logits.{name}": logits for name, logits in output.logits.items()}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


# ---- pooling ----

STATES = torch.tensor([[[1.0, -5.0], [3.0, -7.0], [100.0, 100.0]], [[2.0, 4.0], [6.0, 0.0], [7.0, -1.0]]])
RIGHT, LEFT = torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("pool", "right", "left"),
    [
        (mean_pool, [[2.0, -6.0], [5.0, 1.0]], [[51.5, 46.5], [5.0, 1.0]]),
        (cls_pool, [[1.0, -5.0], [2.0, 4.0]], [[3.0, -7.0], [2.0, 4.0]]),
        (max_pool, [[3.0, -5.0], [7.0, 4.0]], [[100.0, 100.0], [7.0, 4.0]]),
    ],
)
def test_pooling_ignores_padding_on_either_side(pool: Callable, right: list, left: list) -> None:
    torch.testing.assert_close(pool(STATES, RIGHT), torch.tensor(right), rtol=0, atol=0)
    torch.testing.assert_close(pool(STATES, LEFT), torch.tensor(left), rtol=0, atol=0)
    spoilt = STATES.masked_fill(RIGHT.unsqueeze(-1) == 0, -1e4)
    torch.testing.assert_close(pool(spoilt, RIGHT), torch.tensor(right), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", [mean_pool, cls_pool, max_pool])
def test_pooling_in_half_precision_keeps_type_and_values(pool: Callable, dtype: torch.dtype) -> None:
    pooled = pool(STATES.to(dtype), RIGHT)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.float(), pool(STATES, RIGHT), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_pooling_of_a_fully_masked_row_is_finite(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    for pool in (mean_pool, cls_pool, max_pool):
        assert pool(STATES.to(dtype), mask).isfinite().all()


def test_mean_of_many_large_states_has_room_in_half_precision() -> None:
    states = torch.full((1, 1000, 1), 100.0, dtype=torch.float16)  # their sum is above 65,504
    assert mean_pool(states, torch.ones(1, 1000)).item() == 100


# ---- every architecture ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_answers_every_task_with_its_shape(architecture: str) -> None:
    model = build(architecture)
    output = model(**batch(model), task_rows=TASK_ROWS)
    assert output.last_hidden_state.shape == (5, 7, 32)
    assert output.sentence_embedding.shape == (5, 24)
    assert {name: tuple(logits.shape) for name, logits in output.logits.items()} == LOGIT_SHAPES
    assert all(logits.isfinite().all() for logits in output.logits.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backward_reaches_every_parameter(architecture: str) -> None:
    """The gradient reaches the backbone, and nothing is carried along that no output depends on."""
    model = build(architecture).train()
    output = model(**batch(model), task_rows=TASK_ROWS)
    sum(logits.square().sum() for logits in output.logits.values()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    word_embeddings = model.get_input_embeddings().weight.grad
    assert word_embeddings.abs().sum() > 0
    layers = [name for name, _ in model.named_parameters() if "layer" in name and "query" in name]
    assert all(model.get_parameter(name).grad.abs().sum() > 0 for name in layers)


# ---- saved here, opened in a process that lacks our package ----

OPEN_ALL = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

job = json.loads(sys.argv[1])
torch.set_num_threads(job["threads"])
report = {}
for name, folder in job["folders"].items():
    inputs = load_file(f"{folder}/inputs.safetensors")
    task_rows = {key.removeprefix("rows."): inputs.pop(key) for key in list(inputs) if key.startswith("rows.")}
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    output = model(**inputs, task_rows=task_rows)
    tensors = {"last_hidden_state": output.last_hidden_state, "sentence_embedding": output.sentence_embedding}
    tensors |= {f"logits.{task}": logits for task, logits in output.logits.items()}
    save_file({key: value.detach().contiguous() for key, value in tensors.items()}, f"{folder}/found.safetensors")
    report[name] = {
        "module": type(model).__module__,
        "training": model.training,
        "misaligned": [key for key, parameter in model.named_parameters() if parameter.data_ptr() % 64],
        "config": AutoConfig.from_pretrained(folder, trust_remote_code=True).to_dict(),
    }

folder = job["tokenized"]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    embedding = model(**tokenizer(job["sentences"], padding=True, return_tensors="pt")).sentence_embedding
save_file({"embedding": embedding}, f"{folder}/found.safetensors")
answers = model.predict(job["sentences"])
report["answers"] = {task: {key: list(map(str, value)) for key, value in answer.items() if key == "labels"}
                     for task, answer in answers.items()}
report["encoded"] = model.encode(job["sentences"]).tolist()
report["model_max_length"] = tokenizer.model_max_length
report["loaded"] = sorted(BLOCKED & {name.partition(".")[0] for name in sys.modules})
print(json.dumps(report, default=str))
"""


@pytest.fixture(scope="module")
def reopened(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str, block_packages: str) -> dict[str, Any]:
    """All architectures saved here and opened by one new process in another folder: its report, and the folders."""
    root = tmp_path_factory.mktemp("saved")
    folders, configs = {}, {}
    for architecture in ARCHITECTURES:
        model = build(architecture, normalize=architecture in ("bert", "mpnet"))
        folder = root / architecture
        model.save_pretrained(folder)
        inputs = batch(model)
        expected = flat(model(**inputs, task_rows=TASK_ROWS))
        save_file(expected, folder / "expected.safetensors")
        rows = {f"rows.{name}": rows for name, rows in TASK_ROWS.items()}
        save_file({**inputs, **rows}, folder / "inputs.safetensors")
        folders[architecture], configs[architecture] = str(folder), model.config.to_dict()

    torch.manual_seed(1)
    with_tokenizer = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, pooling="cls", max_length=9)
    with_tokenizer.save_pretrained(root / "tokenized")
    job = {
        "folders": folders,
        "tokenized": str(root / "tokenized"),
        "sentences": SENTENCES,
        "threads": torch.get_num_threads(),
    }
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(root / "modules")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "open_all.py").write_text(block_packages + OPEN_ALL)
    finished = subprocess.run(
        [sys.executable, "open_all.py", json.dumps(job)],
        cwd=elsewhere,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    report = json.loads(finished.stdout.splitlines()[-1])
    return {"report": report, "folders": folders, "configs": configs, "model": with_tokenizer, "root": root}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_model_gives_the_same_bits_in_a_clean_process(architecture: str, reopened: dict[str, Any]) -> None:
    folder = reopened["folders"][architecture]
    expected = load_file(f"{folder}/expected.safetensors")
    assert set(expected) == {"last_hidden_state", "sentence_embedding", *(f"logits.{name}" for name in TASKS)}
    assert_identical(load_file(f"{folder}/found.safetensors"), expected)


def test_clean_process_runs_the_saved_code_without_our_package_or_optional_ones(reopened: dict[str, Any]) -> None:
    assert reopened["report"]["loaded"] == []
    for architecture in ARCHITECTURES:
        report = reopened["report"][architecture]
        assert report["module"].startswith("transformers_modules.")
        assert report["training"] is False


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reloaded_weights_are_aligned(architecture: str, reopened: dict[str, Any]) -> None:
    assert reopened["report"][architecture]["misaligned"] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_config_opens_unchanged_in_a_clean_process(architecture: str, reopened: dict[str, Any]) -> None:
    found, expected = reopened["report"][architecture]["config"], reopened["configs"][architecture]
    as_read = json.loads(json.dumps(expected, default=str))
    for config in (found, as_read):  # where the code and the folder lie is not the configuration's own
        config.pop("auto_map", None)
        config.pop("_name_or_path")
    assert found == as_read


def test_folder_with_tokenizer_encodes_and_predicts_in_a_clean_process(reopened: dict[str, Any]) -> None:
    model, report = reopened["model"], reopened["report"]
    inputs = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    found = load_file(reopened["root"] / "tokenized" / "found.safetensors")["embedding"]
    torch.testing.assert_close(found, model(**inputs).sentence_embedding.detach(), rtol=0, atol=0)
    torch.testing.assert_close(
        torch.tensor(report["encoded"]), model.encode(SENTENCES, convert_to="tensor"), rtol=0, atol=0
    )
    labels = {name: answer["labels"] for name, answer in model.predict(SENTENCES).items() if "labels" in answer}
    found_labels = {name: answer["labels"] for name, answer in report["answers"].items() if answer}
    assert found_labels == {name: list(map(str, value)) for name, value in labels.items()}
    assert report["model_max_length"] == 9


def test_saved_folder_holds_safetensors_code_and_tokenizer_only(reopened: dict[str, Any]) -> None:
    files = {path.name for path in (reopened["root"] / "tokenized").iterdir()} - {"found.safetensors"}
    code = {name for name in files if name.endswith(".py")}
    needed = {"configuration", "backbone", "modeling", "encoding", "padding_free"}
    assert {f"{name}_multitask.py" for name in needed} <= code
    assert all(name.endswith("_multitask.py") for name in code)
    assert files - code == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "modules.json",
        "1_Pooling",
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
        "manifest.json",
    }
    auto_map = json.loads((reopened["root"] / "tokenized" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoConfig"] == "configuration_multitask.MultiTaskConfig"
    assert auto_map["AutoModel"] == "modeling_multitask.MultiTaskModel"


def test_saving_twice_gives_the_same_weights(tiny_model: MultiTaskModel, tmp_path: Path) -> None:
    tiny_model.save_pretrained(tmp_path / "first")
    MultiTaskModel.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert_identical(second, first)
    assert (tmp_path / "second" / "tokenizer.json").is_file()


def test_tokenizer_comes_from_the_revision_that_the_model_was_opened_at(tmp_path: Path, monkeypatch) -> None:
    """A pinned revision pins the code that the tokenizer's own look at the configuration would run, too."""
    build("bert").save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    asked: list[dict[str, Any]] = []

    def from_pretrained(name: str, **kwargs: Any) -> Any:
        asked.append({"name": name, **kwargs})
        raise RuntimeError("asked")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
    with pytest.raises(OSError, match="the tokenizer cannot be read \\(asked\\)"):
        MultiTaskModel.from_pretrained(tmp_path, revision="a" * 40)
    with pytest.raises(OSError, match="asked"):
        MultiTaskModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert [kwargs.pop("config").model_type for kwargs in asked] == ["multitask"] * 2
    assert asked == [
        {"name": str(tmp_path), "revision": "a" * 40, "trust_remote_code": False},
        {"name": str(tmp_path), "revision": None, "trust_remote_code": True},
    ]


def test_model_opened_by_a_relative_path_finds_its_tokenizer_from_elsewhere(
    tiny_model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    model = AutoModel.from_pretrained("saved", trust_remote_code=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_identical({"embedding": model.encode(SENTENCES)}, {"embedding": tiny_model.encode(SENTENCES)})
    model.save_pretrained("again")
    for path in Path("again").glob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")


def test_model_opens_from_weights_in_memory(tiny_model: MultiTaskModel) -> None:
    model = MultiTaskModel.from_pretrained(None, config=tiny_model.config, state_dict=tiny_model.state_dict())
    model.tokenizer = tiny_model.tokenizer
    assert_identical({"embedding": model.encode(SENTENCES)}, {"embedding": tiny_model.encode(SENTENCES)})


def test_model_without_tokenizer_says_how_to_set_one() -> None:
    with pytest.raises(ValueError, match=r"Set model\.tokenizer = AutoTokenizer"):
        build("bert").encode("good")


def test_tokenizer_takes_over_the_maximum_length(tiny_backbone: str) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, max_length=5)
    assert model.tokenizer.model_max_length == 5
    assert model.tokenizer("cat " * 50, truncation=True)["input_ids"] == [2, *[7] * 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reload_keeps_the_type_asked_for(tiny_backbone: str, tmp_path: Path, dtype: torch.dtype) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert {parameter.dtype for parameter in reloaded.parameters()} == {dtype}
    inputs = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    assert_identical(flat(reloaded(**inputs)), flat(model(**inputs)))


# ---- forward ----


@pytest.fixture
def inputs(tiny_model: MultiTaskModel) -> dict[str, torch.Tensor]:
    return dict(tiny_model.tokenizer(SENTENCES, padding=True, return_tensors="pt"))


def test_output_fields_stand_in_the_documented_order(tiny_model: MultiTaskModel, inputs: dict) -> None:
    output = tiny_model(**inputs)
    assert list(output) == ["last_hidden_state", "sentence_embedding", "logits"]
    assert output[0] is output.last_hidden_state


def test_return_dict_false_gives_a_flat_tuple_of_the_named_tensors(tiny_model: MultiTaskModel, inputs: dict) -> None:
    expected = tiny_model(**inputs)
    names = tiny_model.output_names()
    assert names == ["last_hidden_state", "sentence_embedding", "logits.mood", "logits.tags", "logits.rating"]
    found = tiny_model(**inputs, return_dict=False)
    assert type(found) is tuple
    for name, tensor in zip(names, found, strict=True):
        wanted = expected.logits[name.removeprefix("logits.")] if name.startswith("logits.") else expected[name]
        torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
    tiny_model.config.return_dict = False
    assert len(tiny_model(**inputs, task="tags")) == len(tiny_model.output_names("tags")) == 3


def test_task_chooses_the_heads(tiny_model: MultiTaskModel, inputs: dict) -> None:
    everything = tiny_model(**inputs)
    assert list(everything.logits) == ["mood", "tags", "rating"], "all that answer one sentence, in the config's order"
    assert tiny_model(**inputs, task="embedding").logits == {}
    only = tiny_model(**inputs, task="tags")
    assert list(only.logits) == ["tags"]
    torch.testing.assert_close(only.logits["tags"], everything.logits["tags"], rtol=0, atol=0)
    rows = {"mood": torch.tensor([0]), "entails": torch.tensor([[0, 1]])}
    assert list(tiny_model(**inputs, task_rows=rows).logits) == ["mood", "entails"]
    assert list(tiny_model(**inputs, task="entails", task_rows=rows).logits) == ["entails"]


def test_unknown_task_names_the_known_ones(tiny_model: MultiTaskModel, inputs: dict) -> None:
    message = r"There is no task 'moood'\. Did you mean 'mood'\? Known tasks: mood, tags, rating, entails"
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs, task="moood")
    with pytest.raises(ValueError, match=message):
        tiny_model(**inputs, task_rows={"moood": torch.tensor([0])})


@pytest.mark.parametrize("task", ["entails", "distance", "similarity", "search"])
def test_pair_task_without_rows_is_an_error(tiny_model: MultiTaskModel, inputs: dict, task: str) -> None:
    with pytest.raises(ValueError, match=rf"Task '{task}' compares two sentences.*task_rows"):
        tiny_model(**inputs, task=task)


def test_task_rows_pick_rows_of_the_batch(tiny_model: MultiTaskModel, inputs: dict) -> None:
    everything = tiny_model(**inputs)
    rows = {"mood": torch.tensor([2, 0, 2]), "similarity": torch.tensor([[0, 1], [2, 2]])}
    chosen = tiny_model(**inputs, task_rows=rows).logits
    torch.testing.assert_close(chosen["mood"], everything.logits["mood"][[2, 0, 2]], rtol=0, atol=1e-6)
    u, v = everything.sentence_embedding[[0, 2]], everything.sentence_embedding[[1, 2]]
    expected = (u * v).sum(dim=1) / (u.norm(dim=1) * v.norm(dim=1))
    torch.testing.assert_close(chosen["similarity"], expected, rtol=0, atol=1e-6)


def test_embedding_is_normalised_but_heads_read_it_before(tiny_model: MultiTaskModel, inputs: dict) -> None:
    rows = {"mood": torch.tensor([0, 1]), "entails": torch.tensor([[0, 1]])}
    plain = tiny_model(**inputs, task_rows=rows)
    tiny_model.config.normalize = True
    unit = tiny_model(**inputs, task_rows=rows)
    assert (plain.sentence_embedding.norm(dim=1) - 1).abs().min() > 0.1
    torch.testing.assert_close(unit.sentence_embedding.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        unit.sentence_embedding, torch.nn.functional.normalize(plain.sentence_embedding, dim=1), rtol=0, atol=0
    )
    for name, logits in plain.logits.items():
        expected = tiny_model.heads[name](plain.sentence_embedding[rows[name]])
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)
        torch.testing.assert_close(unit.logits[name], logits, rtol=0, atol=0)


def test_projection_is_applied_after_pooling(tiny_model: MultiTaskModel, inputs: dict) -> None:
    output = tiny_model(**inputs)
    pooled = mean_pool(output.last_hidden_state, inputs["attention_mask"])
    linear = tiny_model.projection.linear
    torch.testing.assert_close(output.sentence_embedding, torch.tanh(pooled @ linear.weight.T + linear.bias))


@pytest.mark.parametrize("architecture", ["distilbert", "deberta-v2", "modernbert"])
def test_token_types_are_dropped_where_the_backbone_has_none(architecture: str) -> None:
    model = build(architecture)
    inputs = batch(model)
    expected = model(**inputs).sentence_embedding
    found = model(**inputs, token_type_ids=torch.ones_like(inputs["input_ids"])).sentence_embedding
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_pair_head_reads_u_v_and_their_distance() -> None:
    head = MultiTaskHead(2, TaskConfig(problem_type="regression", pair=True))
    with torch.no_grad():
        head.layers[-1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 1e4, 1e5]]))
        head.layers[-1].bias.zero_()
    found = head(torch.tensor([[[1.0, 2.0], [4.0, 0.0]]]))
    assert found.tolist() == [1 + 20 + 400 + 0 + 3e4 + 2e5]


def test_head_has_the_layers_of_its_settings() -> None:
    head = {"hidden_dims": [7, 5], "activation": "tanh", "dropout": 0.3}
    task = TaskConfig(problem_type="multi_label_classification", labels=["a", "b"], head=head)
    layers = MultiTaskHead(4, task).layers
    assert [type(layer).__name__ for layer in layers] == ["Linear", "Tanh", "Linear", "Tanh", "Dropout", "Linear"]
    assert [tuple(layer.weight.shape) for layer in layers if hasattr(layer, "weight")] == [(7, 4), (5, 7), (2, 5)]
    assert layers[4].p == 0.3


# ---- training mode, freezing ----


def test_frozen_modules_stay_in_eval_mode(tiny_model: MultiTaskModel) -> None:
    tiny_model.backbone.embeddings.requires_grad_(False)
    tiny_model.backbone.encoder.layer[0].requires_grad_(False)
    tiny_model.heads["tags"].requires_grad_(False)
    assert tiny_model.train() is tiny_model
    frozen = [tiny_model.backbone.embeddings, tiny_model.backbone.encoder.layer[0], tiny_model.heads["tags"]]
    for module in frozen:
        assert not any(part.training for part in module.modules()), "dropout inside a frozen module is off"
    for module in (tiny_model.backbone.encoder.layer[1], tiny_model.heads["rating"], tiny_model.projection):
        assert all(part.training for part in module.modules())
    assert tiny_model.training
    assert not any(module.training for module in tiny_model.eval().modules())


def test_frozen_backbone_gives_the_same_embedding_in_training(tiny_model: MultiTaskModel, inputs: dict) -> None:
    expected = tiny_model(**inputs).sentence_embedding
    tiny_model.train()
    assert (tiny_model(**inputs).sentence_embedding - expected).abs().max() > 1e-3, "dropout should show"
    tiny_model.backbone.requires_grad_(False)
    tiny_model.train()
    torch.testing.assert_close(tiny_model(**inputs).sentence_embedding, expected, rtol=0, atol=0)


def test_thawed_modules_train_again(tiny_model: MultiTaskModel) -> None:
    tiny_model.backbone.requires_grad_(False)
    tiny_model.train()
    tiny_model.backbone.requires_grad_(True)
    assert all(module.training for module in tiny_model.train().modules())


# ---- tasks that come and go ----


def test_add_and_remove_task_leave_the_other_outputs_alone(
    tiny_model: MultiTaskModel, inputs: dict, tmp_path: Path
) -> None:
    before = flat(tiny_model(**inputs))
    tiny_model.add_task("topic", {"problem_type": "single_label_classification", "labels": ["x", "y"]})
    tiny_model.add_task("ranking", {"problem_type": "contrastive"})
    added = flat(tiny_model(**inputs))
    assert added.pop("logits.topic").shape == (3, 2)
    assert_identical(added, before)

    tiny_model.save_pretrained(tmp_path)
    reloaded = MultiTaskModel.from_pretrained(tmp_path)
    assert set(reloaded.config.tasks) == {*tiny_model.config.tasks}
    assert reloaded.config.tasks["topic"].metrics == ["accuracy"]
    assert_identical(flat(reloaded(**inputs)), flat(tiny_model(**inputs)))

    reloaded.remove_task("topic")
    reloaded.remove_task("ranking")
    reloaded.remove_task("mood")
    del before["logits.mood"]
    assert_identical(flat(reloaded(**inputs)), before)
    reloaded.save_pretrained(tmp_path / "less")
    assert not any("mood" in name or "topic" in name for name in load_file(tmp_path / "less" / "model.safetensors"))
    assert_identical(flat(MultiTaskModel.from_pretrained(tmp_path / "less")(**inputs)), before)


def test_added_head_takes_type_initialisation_and_mode_of_the_model(tiny_backbone: str) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone, dtype=torch.bfloat16)
    task = {"problem_type": "regression", "head": {"hidden_dims": [5], "dropout": 0.5}}
    model.add_task("rating", task)
    assert {parameter.dtype for parameter in model.heads.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.heads["rating"].modules()), "the model is in eval mode"
    assert all(layer.bias.abs().max() == 0 for layer in model.heads["rating"].layers if hasattr(layer, "bias"))
    model.train().add_task("other", task)
    assert all(module.training for module in model.heads["other"].modules())


def test_wrong_additions_and_removals_are_named(tiny_model: MultiTaskModel) -> None:
    with pytest.raises(ValueError, match="There is a task 'mood' already"):
        tiny_model.add_task("mood", TASKS["mood"])
    with pytest.raises(ValueError, match=r"tasks\.new\.labels is None"):
        tiny_model.add_task("new", {"problem_type": "single_label_classification"})
    assert "new" not in tiny_model.config.tasks
    with pytest.raises(ValueError, match=r"There is no task 'nothing'.*Known tasks: mood"):
        tiny_model.remove_task("nothing")


def test_configurations_of_two_models_are_independent(tiny_backbone: str) -> None:
    one, other = (MultiTaskModel.from_backbone(tiny_backbone, tasks={"mood": TASKS["mood"]}) for _ in range(2))
    one.add_task("rating", TASKS["rating"])
    assert list(other.config.tasks) == ["mood"]
