"""Adapters: what a recipe may ask for, what is trained, and the two ways to save: merged, and as an adapter."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel, TrainerCallback

from helpers import hub_server
from helpers.trainer import blank_start
from multitask_sentence import MultiTaskModel
from multitask_sentence.adapter_multitask import has_adapter
from multitask_sentence.train import main, run
from multitask_sentence.training.recipe.adapters import adapter_config, check_adapter

SENTENCES = ["the cat sat on the mat", "a dog ran", "the film was very good !", "market news today , and bad"]
TASKS: dict[str, dict[str, Any]] = {
    "mood": {"problem_type": "single_label_classification", "labels": ["negative", "neutral", "positive"]},
    "rating": {"problem_type": "regression", "head": {"hidden_dims": [7]}},
}
LORA = {"r": 3, "target_modules": ["query", "value"]}
CONFIG = BertConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=99, intermediate_size=37
)  # of the tiny backbone

RECIPE = """
backbone: {backbone}
max_length: 20
projection: {{out_features: 24}}
peft: {{r: 3, lora_alpha: 6, target_modules: [query, value], lora_dropout: 0.1}}
tasks:
  mood:
    problem_type: single_label_classification
    dataset: &texts {{path: csv, data_files: {{train: train.csv, validation: validation.csv}}}}
    columns: {{sentence: text, label: mood}}
  kind:
    problem_type: single_label_classification
    dataset: *texts
    columns: {{sentence: text, label: kind}}
    head: {{hidden_dims: [11], dropout: 0.2}}
training:
  output_dir: {output_dir}
  num_train_epochs: 2
  per_device_train_batch_size: 4
  learning_rate: 0.01
  head_learning_rate: 0.001
  eval_strategy: steps
  eval_steps: 3
  save_strategy: steps
  save_steps: 3
  metric_for_best_model: eval_loss
  greater_is_better: true  # so that the best checkpoint is not the last, which has the lowest loss
  logging_steps: 2
  disable_tqdm: true
  use_cpu: true
"""


def rows(verb: str) -> str:
    subjects = {"cat": "animal", "dog": "animal", "bank": "money", "market": "money"}
    moods = {"good": "positive", "bad": "negative", "fine": "positive"}
    lines = [
        f"the {subject} {verb} {word} today,{mood},{kind}"
        for subject, kind in subjects.items()
        for word, mood in moods.items()
    ]
    return "\n".join(["text,mood,kind", *lines, ""])


def write_job(folder: Path, backbone: str, **changes: Any) -> Path:
    """Data and recipe in a folder; the result goes to `result` beside them."""
    (folder / "train.csv").write_text(rows("ran"))
    (folder / "validation.csv").write_text(rows("sat"))
    recipe = yaml.safe_load(RECIPE.format(backbone=backbone, output_dir=folder / "result"))
    recipe.update(changes)
    (folder / "job.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder / "job.yaml"


@pytest.fixture(scope="module", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("datasets-cache")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, cache
    yield cache
    datasets.config.HF_DATASETS_CACHE = before


def error_of(monkeypatch: pytest.MonkeyPatch, *argv: object) -> str:
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, str)
    return caught.value.code


def make_model(backbone: str, tasks: dict[str, dict[str, Any]] = TASKS, **kwargs: Any) -> MultiTaskModel:
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(backbone, tasks=tasks, max_length=20, **kwargs)


def with_trained_adapter(model: MultiTaskModel, adapter_config: Any) -> MultiTaskModel:
    """The model with an adapter whose weights are far from those it started with."""
    model.add_adapter(adapter_config)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def outputs(model: MultiTaskModel) -> dict[str, torch.Tensor]:
    """Token states, embeddings and logits of `SENTENCES`."""
    tokens = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens)
    return {"states": output.last_hidden_state, "embedding": output.sentence_embedding, **output.logits}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float = 0) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---- merging, saving, opening ----


@pytest.mark.parametrize(
    "adapter_config",
    [
        LoraConfig(**LORA),
        LoraConfig(**LORA, use_dora=True, bias="all"),
        LoraConfig(r=2, target_modules=["word_embeddings", "dense"]),
        IA3Config(target_modules=["key", "value"], feedforward_modules=[]),
        LoHaConfig(r=2, target_modules=["query"]),
    ],
    ids=["lora", "dora with biases", "lora on embeddings", "ia3", "loha"],
)
def test_adapter_is_saved_exactly_and_merged_up_to_rounding(tiny_backbone: str, tmp_path: Path, adapter_config: Any):
    plain = make_model(tiny_backbone, projection={"out_features": 24})
    at_start = outputs(plain)
    model = with_trained_adapter(make_model(tiny_backbone, projection={"out_features": 24}), adapter_config)
    trained = outputs(model)
    assert (trained["embedding"] - at_start["embedding"]).abs().max() > 0.01  # the adapter does something

    model.save_pretrained(tmp_path / "adapter")
    opened = AutoModel.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert has_adapter(opened.backbone)
    assert not opened.training
    assert_equal(outputs(opened), trained)
    opened.save_pretrained(tmp_path / "again")
    assert_equal(outputs(MultiTaskModel.from_pretrained(tmp_path / "again")), trained)

    model.merge_adapter()
    assert not has_adapter(model.backbone)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_equal(outputs(model), trained, atol=1e-5)
    model.save_pretrained(tmp_path / "merged")
    assert not (tmp_path / "merged" / "adapter").exists()
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == plain.state_dict().keys()
    assert_equal(outputs(AutoModel.from_pretrained(tmp_path / "merged", trust_remote_code=True)), outputs(model))


def test_adapter_folder_holds_no_backbone_and_peft_itself_opens_it(tiny_backbone: str, tmp_path: Path):
    model = with_trained_adapter(make_model(tiny_backbone), LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    assert {name.split(".")[0] for name in load_file(tmp_path / "model.safetensors")} == {"heads"}
    assert not (tmp_path / "adapter_config.json").exists()  # there, it would send AutoModel on the Hub to the base
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == 2 * 2 * 2 * 3 * 32  # layers, modules, A and B
    base = json.loads((tmp_path / "config.json").read_text())["base_name_or_path"]
    assert base.startswith("../"), "no folder of this machine, but the way there from the saved one"
    assert (tmp_path / base).resolve() == Path(tiny_backbone).resolve()
    adapter_config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert adapter_config["base_model_name_or_path"] == "./tiny"
    assert model.backbone.peft_config["default"].inference_mode is False  # saving leaves the model as it was

    alone = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny_backbone), tmp_path, subfolder="adapter")
    tokens = model.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = alone.eval()(**tokens).last_hidden_state
        model.padding_free = False
        torch.testing.assert_close(states, model(**tokens).last_hidden_state, rtol=0, atol=0)


def test_one_head_of_an_adapter_opens_as_a_plain_classifier(tiny_backbone: str, tmp_path: Path):
    model = with_trained_adapter(make_model(tiny_backbone), LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "model")
    for folder in ("model", "classifier"):
        classifier = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / folder, task="mood", trust_remote_code=True
        )
        assert_equal(outputs(classifier.multitask), outputs(model))
        if folder == "model":
            classifier.save_pretrained(tmp_path / "classifier")
    assert not any("backbone" in name for name in load_file(tmp_path / "classifier" / "model.safetensors"))


def test_adapter_of_a_model_without_heads_and_of_a_task_called_backbone_is_saved(tiny_backbone: str, tmp_path: Path):
    for name, tasks in {
        "headless": {"similarity": {"problem_type": "similarity"}},
        "named": {"backbone": TASKS["mood"]},
    }.items():
        model = with_trained_adapter(make_model(tiny_backbone, tasks), LoraConfig(**LORA))
        model.save_pretrained(tmp_path / name)
        assert_equal(outputs(MultiTaskModel.from_pretrained(tmp_path / name)), outputs(model))


def test_adapter_on_a_trained_model_takes_that_model_as_its_base(tiny_backbone: str, tmp_path: Path):
    first = with_trained_adapter(make_model(tiny_backbone), LoraConfig(**LORA))
    first.save_pretrained(tmp_path / "first")  # itself an adapter
    first.merge_adapter()
    first.save_pretrained(tmp_path / "merged")
    for base in ("first", "merged"):
        model = MultiTaskModel.from_pretrained(tmp_path / base)
        if base == "first":
            with pytest.raises(ValueError, match=r"has an adapter already\. Merge it first"):
                model.add_adapter(LoraConfig(**LORA))
            model.merge_adapter()
        model = with_trained_adapter(model, LoraConfig(r=2, target_modules=["key"]))
        model.save_pretrained(tmp_path / "second")
        assert model.config.base_name_or_path == str(tmp_path / base)
        assert_equal(outputs(MultiTaskModel.from_pretrained(tmp_path / "second")), outputs(model))


def test_recipe_names_the_peft_that_it_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("peft.tuners.tuners_utils.BaseTuner.uses_shared_state")  # of peft 0.21
    with pytest.raises(ImportError, match=r"peft block needs peft 0\.21 or newer.* pip install 'peft>=0\.21'"):
        adapter_config({})


def test_adapter_never_writes_over_its_own_base(tiny_backbone: str, tmp_path: Path):
    make_model(tiny_backbone).save_pretrained(tmp_path / "base")
    files = {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()}
    model = with_trained_adapter(MultiTaskModel.from_pretrained(tmp_path / "base"), LoraConfig(**LORA))
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for folder in ("base", "link"):
        with pytest.raises(ValueError, match=r"the weights that the adapter was trained on.*another folder"):
            model.save_pretrained(tmp_path / folder)
    assert {path: path.read_bytes() for path in (tmp_path / "base").rglob("*") if path.is_file()} == files

    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "config.json").read_text(encoding="utf-8"))
    config["base_name_or_path"] = str(tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be opened: that is the folder itself"):
        MultiTaskModel.from_pretrained(tmp_path / "adapter")


def test_adapter_opens_in_another_type_and_on_a_base_given_by_a_relative_path(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(Path(tiny_backbone).parent)
    model = with_trained_adapter(make_model(Path(tiny_backbone).name), LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    opened = AutoModel.from_pretrained("model", trust_remote_code=True, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in opened.parameters()} == {torch.bfloat16}
    expected, bare = (outputs(one)["embedding"] for one in (model, make_model(tiny_backbone)))
    found = outputs(opened)["embedding"].float()
    assert (bare - expected).abs().max() > 1, "premise: the adapter tells"
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_opening_an_adapter_names_what_is_missing_or_does_not_fit(tiny_backbone: str, tmp_path: Path):
    with_trained_adapter(make_model(tiny_backbone), LoraConfig(**LORA)).save_pretrained(tmp_path)
    (tmp_path / "manifest.json").unlink()  # it would tell first that a file has changed
    weights_file, config_file = tmp_path / "adapter" / "adapter_model.safetensors", tmp_path / "config.json"
    weights, config = load_file(weights_file), json.loads(config_file.read_text())

    save_file(dict(list(weights.items())[1:]), weights_file)
    with pytest.raises(ValueError, match=r"the weights of the adapter do not fit its layers \(encoder\.layer\.0"):
        MultiTaskModel.from_pretrained(tmp_path)
    weights_file.write_bytes(weights_file.read_bytes().replace(b'":', b'"?', 1))
    with pytest.raises(OSError, match=r"adapter_model\.safetensors: the adapter's weights are damaged"):
        MultiTaskModel.from_pretrained(tmp_path)
    weights_file.unlink()
    with pytest.raises(OSError, match=r"saved as an adapter, but adapter/adapter_model\.safetensors is missing"):
        MultiTaskModel.from_pretrained(tmp_path)
    save_file(weights, weights_file)

    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(tiny_backbone, intermediate_size=38)).save_pretrained(tmp_path / "other")
    for base, message in (("other", "which cannot be opened: "), ("gone", r"there is no folder \S+gone")):
        config_file.write_text(json.dumps({**config, "base_name_or_path": str(tmp_path / base)}))
        with pytest.raises(ValueError, match=f"was saved as an adapter on {tmp_path / base}.*{message}"):
            MultiTaskModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="An adapter needs a base"):
        MultiTaskModel(make_model(tiny_backbone).config.__class__(tasks=TASKS)).add_adapter(LoraConfig(**LORA))


# ---- a recipe's run ----


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> SimpleNamespace:
    """The job, saved in both ways: folders, printed texts and results. Read only."""
    found: dict[str, Any] = {}
    for save in ("merged", "adapter"):
        job = write_job(tmp_path_factory.mktemp(save), tiny_backbone)
        recipe = yaml.safe_load(job.read_text())
        recipe["peft"]["save"] = save
        job.write_text(yaml.safe_dump(recipe, sort_keys=False))
        printed = io.StringIO()
        with redirect_stdout(printed):
            run([str(job)])
        found[save] = SimpleNamespace(
            job=job,
            folder=job.parent / "result",
            printed=printed.getvalue(),
            results=json.loads((job.parent / "result" / "results.json").read_text()),
        )
    return SimpleNamespace(**found)


def test_run_trains_adapter_heads_and_projection_and_leaves_the_backbone_alone(
    finished: SimpleNamespace, tiny_backbone: str
):
    backbone = AutoModel.from_pretrained(tiny_backbone)
    adapter = MultiTaskModel.from_pretrained(finished.adapter.folder)
    for name, weight in backbone.state_dict().items():
        if not name.startswith("pooler."):
            name = name if name in adapter.backbone.state_dict() else name.replace(".weight", ".base_layer.weight")
            name = name if name in adapter.backbone.state_dict() else name.replace(".bias", ".base_layer.bias")
            torch.testing.assert_close(adapter.backbone.state_dict()[name], weight, rtol=0, atol=0)
    assert all(
        weight.abs().max() > 0 for name, weight in adapter.backbone.state_dict().items() if ".lora_B." in name
    )  # they start as zeros
    start = make_model(tiny_backbone, adapter.config.tasks, projection={"out_features": 24})
    for name, weight in adapter.state_dict().items():
        if not name.startswith("backbone."):
            assert not torch.equal(weight, start.state_dict()[name]), name
    assert_equal(outputs(MultiTaskModel.from_pretrained(finished.merged.folder)), outputs(adapter), atol=1e-5)


def test_settings_and_results_show_the_adapter(finished: SimpleNamespace):
    heads, projection, lora = 24 * 2 + 2 + 24 * 11 + 11 + 11 * 2 + 2, 32 * 24 + 24, 2 * 2 * 2 * 3 * 32
    (line,) = [line for line in finished.merged.printed.splitlines() if line.startswith("peft ")]
    assert "LORA, r 3, lora_alpha 6, lora_dropout 0.1, target_modules [query, value]; saved merged; " in line
    assert f"{heads + projection + lora:,} of " in line
    assert "saved adapter; " in finished.adapter.printed
    assert finished.adapter.results["peft"]["save"] == "adapter"
    assert "peft" in (finished.merged.folder / "README.md").read_text()
    assert "opening it needs the package peft" in (finished.adapter.folder / "README.md").read_text()
    merged = finished.merged.results["scores"]["validation"]
    for task, scores in finished.adapter.results["scores"]["validation"].items():
        assert scores["loss"] == pytest.approx(merged[task]["loss"], abs=1e-5)


def test_interrupted_adapter_run_resumes_to_the_same_weights(
    finished: SimpleNamespace, tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    job = write_job(tmp_path, tiny_backbone)
    recipe = yaml.safe_load(job.read_text())
    recipe["peft"]["save"] = "adapter"
    job.write_text(yaml.safe_dump(recipe, sort_keys=False))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(TrainerCallback, "on_save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run([str(job)])
    (checkpoint,) = (tmp_path / "result").glob("checkpoint-*")
    assert has_adapter(AutoModel.from_pretrained(checkpoint, trust_remote_code=True).backbone)
    whole = Path(tiny_backbone) / "model.safetensors"
    assert (checkpoint / "model.safetensors").stat().st_size < whole.stat().st_size / 5
    with redirect_stdout(io.StringIO()), blank_start():
        run([str(job), "--resume_from_checkpoint"])
    last = f"checkpoint-{finished.adapter.results['steps']}"  # the result itself is the best one, perhaps the first
    for place in (".", last):
        for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
            whole = load_file(finished.adapter.folder / place / file)
            assert_equal(load_file(tmp_path / "result" / place / file), whole)
    results = json.loads((tmp_path / "result" / "results.json").read_text())
    assert results["scores"] == finished.adapter.results["scores"]


def test_best_checkpoint_is_the_result(finished: SimpleNamespace, tmp_path: Path, tiny_backbone: str):
    results = finished.adapter.results
    best, last = (finished.adapter.folder / f"checkpoint-{results[step]}" for step in ("best_step", "steps"))
    assert best != last  # or there would be nothing to choose
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert_equal(load_file(finished.adapter.folder / file), load_file(best / file))
        different = [not torch.equal(load_file(last / file)[name], w) for name, w in load_file(best / file).items()]
        assert any(different)


OPEN = """
import json, sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        blocked = name.partition(".")[0] in ("peft", "multitask_sentence")
        return None if blocked else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

finders = list(sys.meta_path)
sys.meta_path[:] = [Without(finder) for finder in finders]
from transformers import AutoModel

job, report = json.loads(sys.argv[1]), {}

def encode(name_or_path):
    return AutoModel.from_pretrained(name_or_path, trust_remote_code=True).encode(job["sentences"]).tolist()

report["merged"] = encode(job["merged"])
try:
    encode(job["adapter"])
except ImportError as error:
    report["without"] = str(error)
report["loaded"] = [name for name in sys.modules if name.partition(".")[0] in ("peft", "multitask_sentence")]

sys.meta_path[:] = finders
report["adapter"] = encode(job["adapter"])

from huggingface_hub import HfApi
from peft import LoraConfig
from multitask_sentence import MultiTaskModel

def push(folder, repo_id):
    HfApi().create_repo(repo_id, exist_ok=True)
    return HfApi().upload_folder(folder_path=folder, repo_id=repo_id).oid

report["base"] = push(job["base"], "team/base")
model = MultiTaskModel.from_backbone("team/base", tasks=job["tasks"])
model.add_adapter(LoraConfig(r=3, target_modules=["query"], init_lora_weights=False))
model.save_pretrained("adapter_on_the_hub")
push("adapter_on_the_hub", "team/adapter")
push(job["other"], "team/base")  # the base goes on; the adapter was trained on what it was
opened = AutoModel.from_pretrained("team/adapter", trust_remote_code=True)
report["revision"] = opened.config.base_revision
report["code"] = type(opened).__module__
report["hub"] = bool((opened.encode(job["sentences"]) == model.eval().encode(job["sentences"])).all())
moved = MultiTaskModel.from_backbone("team/base", tasks=job["tasks"]).encode(job["sentences"])
report["far from"] = float(abs(opened.encode(job["sentences"]) - moved).max())
print("REPORT" + json.dumps(report))
"""


def test_saved_models_open_in_a_clean_process_without_peft_where_merged_and_from_the_hub(
    finished: SimpleNamespace, tiny_backbone: str, tmp_path: Path
):
    folders = {"merged": str(finished.merged.folder), "adapter": str(finished.adapter.folder)}
    torch.manual_seed(7)
    BertModel(BertConfig.from_pretrained(tiny_backbone)).save_pretrained(tmp_path / "other")
    job = {**folders, "base": tiny_backbone, "other": str(tmp_path / "other"), "tasks": TASKS, "sentences": SENTENCES}
    with hub_server.HubServer() as hub:
        process = subprocess.run(
            [sys.executable, "-c", OPEN, json.dumps(job)],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
        )
    assert process.returncode == 0, process.stderr
    report = json.loads(process.stdout.split("REPORT")[1])
    assert report["loaded"] == []
    assert report["without"] == (
        f"{folders['adapter']} was saved as an adapter, which needs the package peft, which is not installed: "
        "pip install peft"
    )
    for save, folder in folders.items():
        expected = torch.tensor(MultiTaskModel.from_pretrained(folder).encode(SENTENCES))
        torch.testing.assert_close(torch.tensor(report[save]), expected, rtol=0, atol=0)
    assert report["revision"] == report["base"]
    assert report["code"].startswith("transformers_modules.")
    assert report["hub"] is True
    assert report["far from"] > 0.01


# ---- what is refused before any data is loaded ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rnk": 3}, r"peft: unknown key 'rnk'\.( Did you mean '\w+'\?)? Known keys for LORA: peft_type, save, "),
        ({"target_module": ["query"]}, r"unknown key 'target_module'\. Did you mean 'target_modules'\?"),
        ({"peft_type": "lorra"}, r"peft_type is 'lorra': there is no such type.* Did you mean 'LORA'\? Known types: "),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, "peft_type is 'PROMPT_TUNING': .* not put into the"),
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA': its ranks are shared out anew in every step"),
        ({"save": "both"}, r"peft\.save is 'both', but should be one of merged, adapter\."),
        ({"modules_to_save": ["heads"]}, r"peft\.modules_to_save is not needed: heads and projection are always tra"),
        ({"inference_mode": True}, r"peft\.inference_mode is set by the run itself\. Remove it\."),
        (
            {"target_modules": ["q_lin"]},
            "no module of the backbone is called 'q_lin'.* called query, key, value, dens",
        ),
        ({"target_modules": ["query", "valeu"]}, r"is called 'valeu'\. Did you mean 'value'\? Its linear layers are"),
        ({"target_modules": ".*nothing"}, r"peft \(LORA\): .*The backbone's linear layers are called query, key, val"),
        ({"r": 0}, r"peft \(LORA\): .*`r`"),
        ({"r": "many"}, r"peft \(LORA\): "),
        (
            {"init_lora_weights": "pissa"},
            "changed encoder.* a weight of the backbone itself, which an adapter is saved",
        ),
        ({"peft_type": "lily", "target_modules": ["query"]}, r"LILY\): .* cannot be merged\. Set save: adapter\."),
    ],
)
def test_adapter_that_cannot_be_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        check_adapter(
            {"target_modules": ["query"], **settings} if settings.get("peft_type") != "lily" else settings, CONFIG
        )


def test_adapter_without_settings_is_a_lora_with_the_defaults_of_peft(tiny_backbone: str):
    check_adapter({}, CONFIG)
    check_adapter({"peft_type": "lily", "target_modules": ["query"], "save": "adapter"}, CONFIG)


def test_mistakes_end_the_command_before_data_is_loaded(
    tmp_path: Path, tiny_backbone: str, monkeypatch: pytest.MonkeyPatch
):
    job = write_job(tmp_path, tiny_backbone, peft={"target_modules": ["q"]})
    for path in tmp_path.glob("*.csv"):
        path.unlink()  # so that looking at the data would be another error
    assert error_of(monkeypatch, job).startswith(
        "error: peft.target_modules: no module of the backbone is called 'q'."
    )
    recipe = yaml.safe_load(job.read_text())
    job.write_text(yaml.safe_dump(recipe | {"peft": ["LORA"]}))
    assert "peft is ['LORA'], but should be a mapping" in error_of(monkeypatch, job)
    job.write_text(yaml.safe_dump(recipe | {"peft": {"save": "adapter"}}))
    assert "where nobody else finds it. Set save: merged" in error_of(monkeypatch, job, "--push_to_hub")
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it now raises ImportError
    assert error_of(monkeypatch, job) == (
        "error: The recipe's peft block needs the package peft, which is not installed: pip install peft"
    )


def test_adapter_is_switched_off_and_on_as_in_transformers(tiny_backbone: str) -> None:
    model = make_model(tiny_backbone)
    plain = model.encode(SENTENCES)
    with_trained_adapter(model, LoraConfig(**LORA))
    adapted = model.encode(SENTENCES)
    assert abs(adapted - plain).max() > 1e-3
    assert model.active_adapters() == ["default"]
    model.disable_adapters()
    assert model.active_adapters() == []
    np.testing.assert_array_equal(model.encode(SENTENCES), plain)
    for switch_on in (model.enable_adapters, partial(model.set_adapter, "default")):
        switch_on()
        np.testing.assert_array_equal(model.encode(SENTENCES), adapted)
        model.disable_adapters()
    with pytest.raises(ValueError, match=r"The adapter is disabled.*enable_adapters\(\).*delete_adapter\(\)"):
        model.merge_adapter()
    names = {name.split(".lora_")[-1] for name in model.get_adapter_state_dict()}
    assert names == {"A.weight", "B.weight"}
    with pytest.raises(ValueError, match=r"no adapter 'german'\. The model has one, named 'default'"):
        model.set_adapter("german")


def test_deleted_adapter_leaves_the_backbone_as_it_was(tiny_backbone: str, tmp_path: Path) -> None:
    model = make_model(tiny_backbone)
    plain, names = model.encode(SENTENCES), list(model.state_dict())
    with_trained_adapter(model, LoraConfig(**LORA)).delete_adapter("default")
    np.testing.assert_array_equal(model.encode(SENTENCES), plain)
    assert list(model.state_dict()) == names
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    np.testing.assert_array_equal(MultiTaskModel.from_pretrained(tmp_path).encode(SENTENCES), plain)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.disable_adapters(),
        lambda model: model.enable_adapters(),
        lambda model: model.active_adapters(),
        lambda model: model.set_adapter("default"),
        lambda model: model.delete_adapter("default"),
        lambda model: model.get_adapter_state_dict(),
        lambda model: model.merge_adapter(),
    ],
    ids=["disable", "enable", "active", "set", "delete", "state_dict", "merge"],
)
def test_model_without_adapter_says_how_to_put_one_on(tiny_model: MultiTaskModel, call) -> None:
    with pytest.raises(ValueError, match=r"has no adapter\. Put one on: model\.add_adapter"):
        call(tiny_model)


def test_adapter_of_another_name_is_refused(tiny_backbone: str) -> None:
    with pytest.raises(ValueError, match="adapter_name is 'german', but a model has one adapter, named 'default'"):
        make_model(tiny_backbone).add_adapter(LoraConfig(**LORA), adapter_name="german")


@pytest.mark.parametrize(
    "setting",
    [
        {"modules_to_save": ["dense"]},
        {"trainable_token_indices": [3]},
        {"layer_replication": [(0, 2), (0, 2)]},
        {"target_parameters": ["query.weight"]},
    ],
)
def test_setting_that_reaches_beyond_layers_is_refused_as_in_a_recipe(
    tiny_backbone: str, setting: dict[str, Any]
) -> None:
    model = make_model(tiny_backbone)
    (key,) = setting
    with pytest.raises(ValueError, match=rf"The adapter's {key} .*\. Leave it out"):
        model.add_adapter(LoraConfig(r=2, target_modules=["query"], **setting))
    assert not has_adapter(model.backbone)
    with pytest.raises(ValueError, match=rf"peft\.{key} .*\. Remove it"):
        check_adapter(setting, CONFIG)


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_unfreezing_trains_of_the_backbone_only_what_is_saved(tiny_backbone: str, bias: str) -> None:
    model = make_model(tiny_backbone)
    model.add_adapter(LoraConfig(**LORA, bias=bias))
    expected = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("base_layer.bias" in name for name in expected) == (bias == "lora_only")
    model.freeze("all")
    model.unfreeze("all")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected
    model.freeze("all")
    model.unfreeze(top_layers=1)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == {name for name in expected if "encoder.layer.1" in name}
    with pytest.raises(ValueError, match=r"adapter is not in embeddings.*merge_adapter\(\)"):
        model.unfreeze("embeddings")
    model.merge_adapter()
    model.unfreeze("embeddings")
