"""The pass without padding against the padded pass: same states, same gradients, and only where it holds."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMRobertaConfig,
)

from multitask_sentence import MultiTaskConfig, MultiTaskModel, passes_multitask
from multitask_sentence import padding_free_multitask as padding_free_module
from multitask_sentence.padding_free_multitask import attention_with_dropout, cumulate, grouped_attention

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99, "intermediate_size": 37}
COMMON: dict[str, Any] = {"hidden_size": 32, "max_position_embeddings": 40, "initializer_range": 0.2}
PACKED: dict[str, Callable[..., Any]] = {
    "bert": lambda **kwargs: BertConfig(**SIZES, **COMMON, **kwargs),
    "distilbert": lambda **kwargs: DistilBertConfig(
        dim=32, n_layers=2, n_heads=4, vocab_size=99, hidden_dim=37, max_position_embeddings=40, initializer_range=0.2
    ),
    "electra": lambda **kwargs: ElectraConfig(embedding_size=16, **SIZES, **COMMON, **kwargs),
    "roberta": lambda **kwargs: RobertaConfig(**SIZES, **COMMON, **kwargs),
    "xlm-roberta": lambda **kwargs: XLMRobertaConfig(**SIZES, **COMMON, **kwargs),
    "camembert": lambda **kwargs: CamembertConfig(**SIZES, **COMMON, **kwargs),
    # Layers see every token (the first of three), or tokens at a distance of at most 2.
    "modernbert": lambda **kwargs: ModernBertConfig(
        **{**SIZES, "num_hidden_layers": 4},
        **COMMON,
        local_attention=4,
        initializer_cutoff_factor=3.0,
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
        **kwargs,
    ),
}
PADDED = {
    "mpnet": lambda: MPNetConfig(**SIZES, **COMMON),
    "deberta-v2": lambda: DebertaV2Config(**SIZES, **COMMON),
}
LENGTHS = (3, 9, 1, 5, 9, 5)


def build(architecture: str) -> MultiTaskModel:
    torch.manual_seed(0)
    tasks = {"mood": {"problem_type": "single_label_classification", "labels": ["a", "b", "c"]}}
    return MultiTaskModel(MultiTaskConfig(backbone_config=PACKED[architecture](), tasks=tasks)).eval()


def batch(model: MultiTaskModel, side: str = "right", lengths: tuple[int, ...] = LENGTHS) -> dict[str, torch.Tensor]:
    """Random ids of unequal lengths, padded on one side with the backbone's own padding id."""
    generator = torch.Generator().manual_seed(1)
    sequence = max(*lengths, 4)
    input_ids = torch.randint(5, 99, (len(lengths), sequence), generator=generator)
    places = torch.arange(sequence).expand(len(lengths), sequence)
    counts = torch.tensor(lengths)[:, None]
    attention_mask = (places < counts if side == "right" else places >= sequence - counts).long()
    pad = model.config.backbone_config.pad_token_id
    return {"input_ids": input_ids.masked_fill(attention_mask == 0, pad), "attention_mask": attention_mask}


def count_packed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A list that grows with every packed pass."""
    calls, packed_pass = [], passes_multitask.packed_pass

    def counted(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        calls.append(True)
        return packed_pass(*args, **kwargs)

    monkeypatch.setattr(passes_multitask, "packed_pass", counted)
    return calls


def both(model: MultiTaskModel, inputs: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Outputs of the packed and of the padded pass."""
    calls, outputs = count_packed(monkeypatch), []
    for model.padding_free in (True, False):
        outputs.append(model(**inputs))
    assert len(calls) == 1, "one of the two passes should be packed, or nothing is compared"
    return outputs


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", PACKED)
def test_packed_states_equal_padded_states(architecture: str, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(architecture)
    inputs = batch(model, side)
    packed, padded = both(model, inputs, monkeypatch)
    is_token = inputs["attention_mask"].bool()
    assert packed.last_hidden_state[is_token].std() > 0.1, "states that are all alike would prove nothing"
    torch.testing.assert_close(
        packed.last_hidden_state[is_token], padded.last_hidden_state[is_token], rtol=0, atol=1e-5
    )
    torch.testing.assert_close(packed.sentence_embedding, padded.sentence_embedding, rtol=0, atol=1e-5)
    assert packed.last_hidden_state[~is_token].abs().max() == 0


@pytest.mark.parametrize("architecture", PACKED)
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooled_rows_equal_the_pooled_padded_batch(architecture: str, pooling: str) -> None:
    model = build(architecture)
    model.config.pooling = pooling
    inputs = batch(model, lengths=(9, 9, 7, 4, 4, 1))
    inputs["input_ids"][1, 3] = model.config.backbone_config.pad_token_id  # also among the real tokens
    token_ids = [ids[: mask.sum()].tolist() for ids, mask in zip(*inputs.values(), strict=True)]
    with torch.no_grad():
        found = model._pooled_batch(token_ids)
        in_batch = model(**inputs).sentence_embedding
        model.padding_free = False
        expected = model(**inputs).sentence_embedding
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(in_batch, expected, rtol=0, atol=1e-5)


def test_modernbert_looks_no_further_than_its_window() -> None:
    model = build("modernbert")
    kinds = [layer.attention_type for layer in model.backbone.layers]
    assert set(kinds) == {"full_attention", "sliding_attention"}
    inputs = batch(model)
    narrow = model(**inputs).sentence_embedding
    for layer in model.backbone.layers:
        layer.attn.sliding_window = None
    wide = model(**inputs).sentence_embedding
    is_long = inputs["attention_mask"].sum(dim=1) > 3
    assert is_long.any() and not is_long.all()
    assert (narrow - wide).abs().amax(dim=1)[is_long].min() > 1e-4
    torch.testing.assert_close(narrow[~is_long], wide[~is_long], rtol=0, atol=1e-6)


def test_sentences_without_tokens_are_zeros() -> None:
    model = build("bert")
    with torch.no_grad():
        pooled = model._pooled_batch([[5, 6, 7], [], []])
        assert model._pooled_batch([[], []]).abs().max() == 0
    assert pooled.shape == (3, 32)
    assert pooled[0].abs().max() > 0.1
    assert pooled[1:].abs().max() == 0


@pytest.mark.pretrained
def test_bfloat16_stays_close_to_float32(minilm: MultiTaskModel) -> None:
    sentences = ["A cat sleeps.", "Yes", "Markets fell sharply after the announcement, analysts said. " * 5, "🙂 #ok"]
    expected = minilm.encode(sentences)
    model = MultiTaskModel.from_backbone("sentence-transformers/all-MiniLM-L6-v2", dtype=torch.bfloat16)
    assert model._packs()
    cosines = (model.encode(sentences) * expected).sum(axis=1)  # both have length 1
    assert cosines.min() >= 0.9998


def test_which_way_passes_go_is_logged_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(passes_multitask.logger, "info_once", lines.append)
    model = build("bert")
    inputs = batch(model)
    model(**inputs)
    model.padding_free = False
    model(**inputs)
    model.padding_free = True
    model.set_attn_implementation("eager")
    model(**inputs)
    other = MultiTaskModel(MultiTaskConfig(backbone_config=PADDED["mpnet"]())).eval()
    other(**batch(other))
    assert [line.split(":")[0] for line in lines] == [
        "Passes run without padding (model.padding_free = False pads them).",
        *["Passes are padded"] * 3,
    ]
    for line, reason in zip(lines[1:], ["model.padding_free is False", "'eager'", "mpnet"], strict=True):
        assert reason in line


def test_padding_free_says_what_happens_and_why_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(passes_multitask.logger, "info_once", lines.append)
    model = build("bert")
    assert model.padding_free is True
    model.set_attn_implementation("eager")
    assert model.padding_free is False
    with pytest.raises(ValueError, match=r"cannot run without padding, because the attention is 'eager', not 'sdpa'"):
        model.padding_free = True
    model.set_attn_implementation("sdpa")
    model.padding_free = True
    assert model.padding_free is True
    model.padding_free = None
    assert model.padding_free is True
    other = MultiTaskModel(MultiTaskConfig(backbone_config=PADDED["mpnet"]())).eval()
    assert other.padding_free is False
    with pytest.raises(ValueError, match="because mpnet is no architecture whose packed pass was compared"):
        other.padding_free = True
    other.padding_free = False
    other(**batch(other))
    assert lines == ["Passes are padded: model.padding_free is False."]
    with pytest.raises(TypeError, match="padding_free is 'no', but should be True, False or None"):
        model.padding_free = "no"


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_token_types_reach_the_packed_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(architecture)
    inputs = batch(model)
    inputs["token_type_ids"] = torch.arange(inputs["input_ids"].numel()).view_as(inputs["input_ids"]) % 3 % 2
    packed, padded = both(model, inputs, monkeypatch)
    torch.testing.assert_close(packed.sentence_embedding, padded.sentence_embedding, rtol=0, atol=1e-5)
    del inputs["token_type_ids"]
    assert (model(**inputs).sentence_embedding - packed.sentence_embedding).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_masked_tokens_inside_a_sentence_are_left_out_alike(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(architecture)
    inputs = batch(model, lengths=(9, 9, 7))
    inputs["attention_mask"][0, 2] = inputs["attention_mask"][1, 5] = 0  # the ids stay those of real tokens
    packed, padded = both(model, inputs, monkeypatch)
    torch.testing.assert_close(packed.sentence_embedding, padded.sentence_embedding, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", PACKED)
def test_packed_gradients_equal_padded_gradients(architecture: str) -> None:
    model = build(architecture).double()
    inputs = batch(model)
    gradients = []
    for model.padding_free in (True, False):
        model.zero_grad()
        output = model(**inputs)
        (output.logits["mood"].square().sum() + output.sentence_embedding.square().mean()).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    largest = max(gradient.abs().max() for gradient in gradients[1].values())
    assert largest > 0.1
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-8 * max(1, largest), msg=name)


def test_fully_padded_row_neither_crashes_nor_touches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert")
    inputs = batch(model, lengths=(4, 0, 9))
    packed, padded = both(model, inputs, monkeypatch)
    torch.testing.assert_close(packed.sentence_embedding[[0, 2]], padded.sentence_embedding[[0, 2]], rtol=0, atol=1e-5)
    assert packed.sentence_embedding.isfinite().all()
    assert packed.sentence_embedding[1].abs().max() == 0


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = build("bert")
    inputs, gradients = batch(model), []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        model.zero_grad()
        model(**inputs).logits["mood"].square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", PADDED)
def test_other_architectures_take_the_padded_pass(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MultiTaskModel(MultiTaskConfig(backbone_config=PADDED[architecture]())).eval()
    calls = count_packed(monkeypatch)
    assert model.padding_free is False
    assert model(**batch(model)).last_hidden_state.shape == (6, 9, 32)
    assert not calls


@pytest.mark.parametrize("change", ["padding_free", "attention", "inputs_embeds", "position_ids"])
def test_padded_pass_where_packing_does_not_fit(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("bert")
    inputs = batch(model)
    expected = model(**inputs).sentence_embedding
    calls = count_packed(monkeypatch)
    if change == "padding_free":
        model.padding_free = False
    elif change == "attention":
        model.set_attn_implementation("eager")
    elif change == "inputs_embeds":
        inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    else:
        inputs["position_ids"] = torch.arange(9).expand(6, 9)
    torch.testing.assert_close(model(**inputs).sentence_embedding, expected, rtol=0, atol=1e-5)
    assert not calls


def test_without_a_mask_every_token_is_a_real_one() -> None:
    model = build("bert")
    input_ids = batch(model)["input_ids"]
    expected = model(input_ids, attention_mask=torch.ones_like(input_ids))
    torch.testing.assert_close(model(input_ids).sentence_embedding, expected.sentence_embedding, rtol=0, atol=0)


def test_attention_asked_for_by_the_user_is_kept(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path)
    model = MultiTaskModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.padding_free is False
    assert model.backbone.config._attn_implementation == "eager"
    assert MultiTaskModel.from_pretrained(tmp_path).padding_free is True


def test_config_of_another_copy_of_the_code_packs_as_well(tmp_path: Path) -> None:
    model = build("bert")
    model.save_pretrained(tmp_path)
    other = MultiTaskModel(AutoModel.from_pretrained(tmp_path, trust_remote_code=True).config).eval()
    assert other.padding_free
    other.load_state_dict(model.state_dict())
    expected = model(**batch(model)).sentence_embedding
    torch.testing.assert_close(other(**batch(model)).sentence_embedding, expected, rtol=0, atol=0)


def test_model_opens_on_a_torch_without_variable_length_attention(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("bert").save_pretrained(tmp_path / "without_variable_length")  # a name of its own, so that its code runs
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    opened = AutoModel.from_pretrained(tmp_path / "without_variable_length", trust_remote_code=True)
    code = sys.modules[type(opened).__module__.replace(".modeling_", ".padding_free_")]
    assert code.varlen_attn is None, "premise"
    assert opened.padding_free and opened(**batch(opened)).sentence_embedding.isfinite().all()


def test_code_of_another_repository_leaves_the_attention_alone(tmp_path: Path) -> None:
    model = build("bert")
    inputs = batch(model)
    expected = model(**inputs).sentence_embedding
    model.save_pretrained(tmp_path)
    code = tmp_path / "padding_free_multitask.py"
    changed = code.read_text(encoding="utf-8").replace("outputs.append(attended", "outputs.append(0 * attended")
    code.write_text(changed, encoding="utf-8")
    (tmp_path / "manifest.json").unlink()  # in which the change is a fault
    other = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert (other(**inputs).sentence_embedding - expected).abs().max() > 1e-3
    torch.testing.assert_close(model(**inputs).sentence_embedding, expected, rtol=0, atol=0)


def test_attention_dropout_acts_in_training_only() -> None:
    model = build("bert")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    attention = model.backbone.encoder.layer[0].attention.self
    attention.dropout.p = 0.5
    inputs = batch(model)
    first, second = (model(**inputs).sentence_embedding for _ in range(2))
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    model.train()
    first, second = (model(**inputs).sentence_embedding for _ in range(2))
    assert (second - first).abs().max() > 1e-3


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_with_dropout_of_nothing_is_attention(scaling: float | None, window: int | None) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = torch.arange(5)
    is_seen = None if window is None else (places[:, None] - places).abs() < window
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=is_seen, scale=scaling)
    found = attention_with_dropout(torch.nn.Identity(), query, key, value, is_seen, 0.0, scaling)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_attention_drops_weights_and_scales_up_the_others() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, 4, 6, 8)
    value = torch.eye(6).expand(2, 4, 6, 6)  # so that the weights themselves come out
    weights = F.scaled_dot_product_attention(query, key, value)
    dropped = attention_with_dropout(torch.nn.Identity(), query, key, value, None, 0.25, None)
    is_kept = dropped != 0
    assert 0.1 < 1 - is_kept.float().mean() < 0.4
    torch.testing.assert_close(dropped[is_kept], weights[is_kept] / 0.75)


# ---- on a GPU: PyTorch's variable-length attention ----


def attention_of_each(query, key, value, starts, starts_of_keys, longest, longest_key, *, scale, window_size):
    """What `torch.nn.attention.varlen.varlen_attn` promises, sentence by sentence; it has no kernel for CPUs."""
    assert starts is starts_of_keys and longest == longest_key == int(starts.diff().max())
    left, right = window_size
    attended = []
    for start, stop in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        places = torch.arange(stop - start)
        ahead = places - places[:, None]  # (length, length): of a key before a query it is negative
        is_seen = ((left < 0) | (ahead >= -left)) & ((right < 0) | (ahead <= right))
        sentence = (states[start:stop].transpose(0, 1) for states in (query, key, value))
        attended.append(F.scaled_dot_product_attention(*sentence, attn_mask=is_seen, scale=scale).transpose(0, 1))
    return torch.cat(attended)


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_variable_length_attention_is_grouped_attention(
    scaling: float | None, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding_free_module, "varlen_attn", attention_of_each)
    groups = [(9, 2), (5, 1), (1, 3)]
    states = torch.randn(3, 1, 4, 26, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = cumulate(groups, torch.device("cpu"))
    assert starts.tolist() == [0, 9, 18, 23, 24, 25, 26] and starts.dtype is torch.int32
    options = {"scaling": scaling, "sliding_window": window, "length_groups": groups}
    expected, _ = grouped_attention(torch.nn.Identity(), *states, None, **options)
    found, _ = grouped_attention(torch.nn.Identity(), *states, None, cumulative_lengths=starts, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", PACKED)
def test_variable_length_states_equal_padded_states(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(architecture)
    inputs = batch(model)
    model.padding_free = False
    expected = model(**inputs).sentence_embedding
    calls = []

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(kwargs["window_size"])
        return attention_of_each(*args, **kwargs)

    monkeypatch.setattr(padding_free_module, "varlen_attn", counted)
    monkeypatch.setattr(padding_free_module, "VARIABLE_LENGTH_DEVICE", "cpu")
    model.padding_free = True
    torch.testing.assert_close(model(**inputs).sentence_embedding, expected, rtol=0, atol=1e-5)
    everywhere = (-1, -1)
    assert calls == ([everywhere, *[(2, 2)] * 2, everywhere] if architecture == "modernbert" else [everywhere] * 2)


@pytest.mark.skipif(padding_free_module.varlen_attn is None, reason="needs torch's variable-length attention")
def test_the_kernel_takes_what_it_is_given() -> None:
    # Tensors without numbers, on a device that need not be there: PyTorch checks shapes, types and devices alike.
    with FakeTensorMode():
        starts = cumulate([(9, 2), (5, 1)], torch.device("cuda"))
        states = torch.empty(3, 1, 4, 23, 8, dtype=torch.bfloat16, device="cuda").unbind()
        options = {"length_groups": [(9, 2), (5, 1)], "cumulative_lengths": starts}
        attended, _ = grouped_attention(torch.nn.Identity(), *states, None, scaling=0.3, sliding_window=3, **options)
    assert (attended.shape, attended.device.type) == ((1, 23, 4, 8), "cuda")


@pytest.mark.skipif(padding_free_module.varlen_attn is None, reason="needs torch's variable-length attention")
def test_a_gpu_pads_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(passes_multitask.logger, "info_once", lines.append)
    model = build("bert")
    monkeypatch.setattr(PreTrainedModel, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with torch.no_grad():
        assert not model._packs()
        with pytest.raises(ValueError, match=r"cannot run without padding, because .* torch\.float32"):
            model.padding_free = True
        model.half()
        model.padding_free = True
        model.float()
        assert not model.padding_free
        assert not model._packs()  # float32
        model.half()
        assert model._packs()
        model.train()
        assert not model._packs()
        model.eval()
        for holder, name, value in (
            (torch.cuda, "get_device_capability", lambda device: (7, 5)),
            (torch.backends.cuda, "is_flash_attention_available", lambda: False),
            (torch.version, "hip", "6.4"),
            (padding_free_module, "varlen_attn", lambda query, key, value, starts, starts_of_keys, is_causal: None),
            (padding_free_module, "varlen_attn", None),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(holder, name, value)
                assert not model._packs()
    assert not model._packs()  # with gradients
    model.backbone.config.num_attention_heads = 8
    with torch.no_grad():
        assert not model._packs()
        monkeypatch.setattr(PreTrainedModel, "device", torch.device("mps"))
        assert not model._packs()
    reasons = [
        *("measured on CPUs only", "torch.float32", "Passes run without", "training mode", "8.0 or higher"),
        *("flash attention", "built for CUDA", "an older one", "an older one", "no dropout", "not 4", "is on mps"),
    ]
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", PACKED)
def test_packed_pass_on_a_gpu_equals_the_padded_pass(architecture: str) -> None:
    model = build(architecture).to("cuda", torch.bfloat16)
    inputs = {name: tensor.to("cuda") for name, tensor in batch(model).items()}
    found = {}
    with torch.no_grad():
        for model.padding_free in (True, False):
            assert model._packs() is model.padding_free
            found[model.padding_free] = model(**inputs).sentence_embedding
    assert F.cosine_similarity(found[True], found[False]).min() >= 0.9998
