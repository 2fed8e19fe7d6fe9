"""New labels for an old task: the old ones keep ids, weights and settings."""

import pytest
import torch

from multitask_sentence import MultiTaskModel


def test_added_labels_come_after_the_old_ones_whose_weights_and_settings_stay(tiny_model: MultiTaskModel):
    tiny_model.config.change_task("tags", loss_options={"pos_weight": [2.0, 3.0, 4.0, 5.0]})
    tiny_model.config.change_task("tags", thresholds=[0.1, 0.2, 0.3, 0.4])
    tiny_model.heads["mood"].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    inputs = tiny_model.tokenizer(["the cat sat"], return_tensors="pt")
    logits = tiny_model(**inputs).logits
    tiny_model.add_labels("tags", ["sport", "art"])
    tiny_model.add_labels("mood", ["angry"])

    settings = tiny_model.config.tasks["tags"]
    assert settings.labels == ["animal", "place", "money", "time", "sport", "art"]
    assert settings.thresholds == [0.1, 0.2, 0.3, 0.4, 0.5, 0.5]
    assert settings.loss_options == {"pos_weight": [2.0, 3.0, 4.0, 5.0, 1.0, 1.0]}
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor[: len(before[name])] if tensor.dim() else tensor, before[name]), name
    after = tiny_model(**inputs).logits
    torch.testing.assert_close(after["tags"][:, :4], logits["tags"])
    assert after["mood"].shape == (1, 4)
    assert torch.equal(after["rating"], logits["rating"])
    assert not any(parameter.requires_grad for parameter in tiny_model.heads["mood"].parameters())
    assert all(parameter.requires_grad for parameter in tiny_model.heads["tags"].parameters())


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("mood", ["positive", "angry"], r"tasks\.mood has the labels 'positive' already"),
        ("mood", ["angry", "angry"], "lists 'angry' more than once"),
        ("mood", [], "should list at least 1 label names"),
        ("rating", ["high"], r"tasks\.rating \(regression\) has no labels, so none can be added"),
        ("mod", ["angry"], r"There is no task 'mod'\. Did you mean 'mood'"),
    ],
)
def test_labels_that_cannot_be_added_are_refused(tiny_model: MultiTaskModel, task, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.add_labels(task, labels)
    assert tiny_model.config.tasks["mood"].labels == ["negative", "neutral", "positive"]


def test_model_with_added_labels_opens_again(tiny_model: MultiTaskModel, tmp_path):
    tiny_model.add_labels("mood", ["angry"])
    tiny_model.save_pretrained(tmp_path)
    reopened = MultiTaskModel.from_pretrained(tmp_path)
    inputs = tiny_model.tokenizer(["the cat sat"], return_tensors="pt")
    assert torch.equal(reopened(**inputs).logits["mood"], tiny_model(**inputs).logits["mood"])
