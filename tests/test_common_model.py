"""What a user of any PreTrainedModel expects, of the model and of the view of one head.

transformers tests its own models with a common tester. Two things that it asks for cannot apply here (5.23):

* Missing weights are refused, not drawn at random (`test_model_weights_reload_no_missing_tied_weights`): a model with
  random parts answers like a trained one.
* `MultiTaskModel` has no `loss` (`test_training` and its relatives, which skip transformers' own base models): losses
  need the mixture of tasks and are the trainer's. The view of one head has one.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertConfig, PreTrainedModel

from multitask_sentence import MultiTaskConfig, MultiTaskModel
from multitask_sentence.modeling_multitask import MultiTaskForSequenceClassification

LAYERS, HEADS, BATCH, LENGTH = 2, 4, 3, 7
CLASSES = [MultiTaskModel, MultiTaskForSequenceClassification]


def new_model(kind: type[PreTrainedModel], **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    backbone = BertConfig(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        vocab_size=99,
        intermediate_size=37,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    tasks = {"mood": {"problem_type": "single_label_classification", "labels": ["bad", "so", "good"]}}
    return kind(MultiTaskConfig(backbone_config=backbone, tasks=tasks, **settings)).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
    mask[0, 3:] = mask[1, 5:] = 0
    return {"input_ids": torch.randint(5, 99, (BATCH, LENGTH), generator=generator), "attention_mask": mask}


def first_output(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **kwargs: Any) -> torch.Tensor:
    output = model(**inputs, **kwargs)
    return output.logits if isinstance(output.logits, torch.Tensor) else output.sentence_embedding


@pytest.mark.parametrize("kind", CLASSES)
def test_hidden_states_and_attentions_come_back_and_change_nothing_else(kind: type, inputs: dict) -> None:
    model = new_model(kind)
    plain = first_output(model, inputs)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(states.shape) for states in output.hidden_states] == [(BATCH, LENGTH, 32)] * (LAYERS + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(BATCH, HEADS, LENGTH, LENGTH)] * LAYERS
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(BATCH, HEADS, LENGTH))
        assert not weights[0, :, :, 3:].any(), "no attention goes to padding"
    torch.testing.assert_close(
        first_output(model, inputs, output_hidden_states=True, output_attentions=True), plain, rtol=0, atol=1e-5
    )


def test_hidden_states_and_attentions_are_those_of_the_backbone(inputs: dict) -> None:
    model = new_model(MultiTaskModel)
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    model.set_attn_implementation("eager")
    expected = model.backbone(**inputs, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        for found, wanted in zip(output[name], expected[name], strict=True):
            torch.testing.assert_close(found[2], wanted[2])  # the sentence without padding
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


@pytest.mark.parametrize("kind", CLASSES)
def test_single_layers_can_be_chosen_as_of_the_backbone(kind: type, inputs: dict) -> None:
    model = new_model(kind)
    chosen = model(**inputs, output_hidden_states=[1]).hidden_states
    expected = model.base_model.backbone(**inputs, output_hidden_states=[1]).hidden_states
    assert chosen[0] is None and chosen[1] is not None
    for found, wanted in zip(chosen, expected, strict=True):  # transformers 5.19 lists fewer than 5.23
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", CLASSES)
def test_configuration_asks_for_them_as_arguments_do(kind: type, inputs: dict) -> None:
    model = new_model(kind, output_hidden_states=True, attn_implementation="eager", output_attentions=True)
    output = model(**inputs)
    assert (len(output.hidden_states), len(output.attentions)) == (LAYERS + 1, LAYERS)
    silent = model(**inputs, output_hidden_states=False, output_attentions=False)
    assert silent.hidden_states is None
    assert silent.attentions is None


@pytest.mark.parametrize("kind", CLASSES)
def test_from_pretrained_asks_for_them_too(kind: type, inputs: dict, tmp_path: Path) -> None:
    saved = new_model(kind)
    saved.save_pretrained(tmp_path)
    opened = kind.from_pretrained(
        pretrained_model_name_or_path=tmp_path, output_hidden_states=True, output_attentions=True
    )
    output = opened(**inputs)
    assert (len(output.hidden_states), len(output.attentions)) == (LAYERS + 1, LAYERS)
    torch.testing.assert_close(first_output(opened, inputs), first_output(saved, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
def test_return_dict_of_the_configuration_gives_the_tuple_of_the_output(kind: type, inputs: dict) -> None:
    model = new_model(kind)
    expected = model(**inputs, output_hidden_states=True).to_tuple()
    model.config.return_dict = False
    found = model(**inputs, output_hidden_states=True)
    assert type(found) is tuple
    assert len(found) == len(expected)
    assert torch.equal(found[0], expected[0])
    assert set(model(**inputs, return_dict=True)) >= {"logits"}


@pytest.mark.parametrize("kind", CLASSES)
def test_eager_attention_gives_what_sdpa_and_packed_passes_give(kind: type, inputs: dict) -> None:
    model = new_model(kind)
    packed = first_output(model, inputs)
    model.set_attn_implementation("sdpa")
    sdpa = first_output(model, inputs)
    model.set_attn_implementation("eager")
    for found in (sdpa, first_output(model, inputs)):
        torch.testing.assert_close(found, packed, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant: bool, inputs: dict) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = new_model(MultiTaskForSequenceClassification)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("kind", CLASSES)
def test_token_embeddings_grow_and_shrink_with_the_configuration(kind: type, inputs: dict, tmp_path: Path) -> None:
    model = new_model(kind)
    before = first_output(model, inputs)
    assert model.config.vocab_size == 99
    model.resize_token_embeddings(107)
    assert model.config.vocab_size == model.config.backbone_config.vocab_size == 107
    assert model.get_input_embeddings().weight.shape == (107, 32)
    assert torch.equal(first_output(model, inputs), before), "old tokens mean what they meant"
    grown = first_output(model, {**inputs, "input_ids": inputs["input_ids"].clamp(min=104)})
    model.save_pretrained(tmp_path)
    opened = kind.from_pretrained(tmp_path)
    assert opened.config.vocab_size == 107
    found = first_output(opened, {**inputs, "input_ids": inputs["input_ids"].clamp(min=104)})
    assert torch.equal(found, grown)
    assert AutoConfig.from_pretrained(tmp_path, trust_remote_code=True).vocab_size == 107


def test_embeddings_of_the_backbone_that_grew_by_itself_are_saved_too(
    tiny_model: MultiTaskModel, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "first")
    for model in (tiny_model, MultiTaskModel.from_pretrained(tmp_path / "first")):
        model.backbone.resize_token_embeddings(111)
        model.save_pretrained(tmp_path / "second")
        assert MultiTaskModel.from_pretrained(tmp_path / "second").config.vocab_size == 111


@pytest.mark.parametrize("padding_free", [None, False])
def test_added_tokens_without_embeddings_are_named_with_the_way_out(
    tiny_model: MultiTaskModel, padding_free: bool | None
) -> None:
    tiny_model.padding_free = padding_free
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.add_tokens(["wolpertinger"])
    tiny_model.tokenizer = tokenizer
    inputs = tokenizer(["a wolpertinger ran"], return_tensors="pt")
    for use in (lambda: tiny_model.encode("a wolpertinger ran"), lambda: tiny_model(**inputs)):
        with pytest.raises(ValueError, match=r"id 99, but the model has embeddings for 99 tokens.*resize_token"):
            use()
    tiny_model.resize_token_embeddings(len(tokenizer))
    assert tiny_model.encode("a wolpertinger ran").shape == (24,)


@pytest.mark.parametrize("padding_free", [None, False])
def test_token_without_embedding_is_named_before_a_backbone_that_would_not_say_so_sees_it(
    tiny_model: MultiTaskModel, padding_free: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.padding_free = padding_free
    tiny_model.tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tiny_model.tokenizer.add_tokens(["wolpertinger"])
    seen = []
    monkeypatch.setattr(tiny_model.backbone, "forward", lambda **inputs: seen.append(inputs))  # as on a GPU
    with pytest.raises(ValueError, match=r"id 99, but the model has embeddings for 99 tokens"):
        tiny_model.encode("a wolpertinger ran")
    assert not seen
