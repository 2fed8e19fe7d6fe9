"""One head of a multi-task model as a plain sequence classifier, for tools that know nothing of several tasks.

    model = AutoModelForSequenceClassification.from_pretrained(repo, task="sentiment", trust_remote_code=True)

`pipeline("text-classification")`, evaluators and serving tools then work as with any fine-tuned classifier.
"""

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from .checks_multitask import suggest
from .configuration_multitask import MultiTaskConfig
from .modeling_multitask import MultiTaskModel
from .problem_types_multitask import PROBLEM_TYPES
from .saving_multitask import MultiTaskPreTrainedModel
from .tasks_multitask import target_scale


class MultiTaskForSequenceClassification(MultiTaskPreTrainedModel):
    """
    A view of one task that reads single sentences: `logits`, `id2label`, and a `loss` where `labels` are given.

    Which one is `config.task`: the `task` given to `from_pretrained`, stored when the view is saved. Without any, the
    only one that fits is taken.

    Args:
        config: of the model. An `id2label` of as many names as the task has labels renames what the view shows.
        head: the same as `task`, for `pipeline(..., model_kwargs={"head": "sentiment"})`: transformers' pipeline calls
            its own task `task`, and no model argument can have that name there.

    Raises:
        ValueError: the task is unknown or compares two sentences, or none was named where several fit;
            `num_labels` or `id2label` contradicts the task's labels.
    """

    def __init__(self, config: MultiTaskConfig, head: str | None = None):
        super().__init__(config)
        config.task = head or config.task
        self.task = self._choose_task(config)
        settings = config.tasks[self.task]
        labels = self._labels_to_show(config, settings.get("labels", [self.task]))
        config.task = self.task
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = settings["problem_type"]
        self.multitask = MultiTaskModel(config)
        self.post_init()

    def _labels_to_show(self, config: MultiTaskConfig, labels: list[str]) -> list[str]:
        """The task's labels, or the other names that `id2label` gives them; a ValueError where it contradicts them."""
        stored = [settings.get("labels", [name]) for name, settings in config.tasks.items()]
        given = config.id2label and [config.id2label.get(index) for index in range(len(config.id2label))]
        if not given or given in stored:  # nothing, or what a saved view of some task has stored
            return labels
        if len(given) != len(labels):
            raise ValueError(
                f"num_labels or id2label asks for {len(given)} labels, but task {self.task!r} has {len(labels)}: "
                f"{', '.join(labels)}. Leave them out, or give id2label as many names."
            )
        if given == [f"LABEL_{index}" for index in range(len(labels))]:  # num_labels, which is right
            return labels
        moved = [name for index, name in enumerate(given) if name in labels and labels[index] != name]
        if None in given or moved:
            raise ValueError(
                f"id2label is {config.id2label}, but task {self.task!r} was trained on {dict(enumerate(labels))}. "
                "Names may be others, but ids run from 0 and keep what they mean."
            )
        return given

    @staticmethod
    def _choose_task(config: MultiTaskConfig) -> str:
        fitting = [
            name
            for name, settings in config.tasks.items()
            if PROBLEM_TYPES[settings["problem_type"]].has_head and not settings["pair"]
        ]
        if config.task is None and len(fitting) == 1:
            return fitting[0]
        if config.task not in fitting:
            found = "No task was named" if config.task is None else f"There is no task {config.task!r} of this kind"
            raise ValueError(
                f"{found}.{suggest(config.task, fitting)} Name one that classifies single sentences, as in "
                f"from_pretrained(..., task={fitting[0] if fitting else 'name'!r}). There are: "
                f"{', '.join(fitting) or 'none'}."
            )
        return config.task

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
    ) -> SequenceClassifierOutput | tuple:
        """
        Logits of the one task.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as in `MultiTaskModel.forward`.
            labels: class numbers `(batch,)`, multi-hot `(batch, num_labels)`, or values `(batch,)`.
            return_dict: `False` for a plain tuple; `None` does what `config.return_dict` says.
            output_attentions, output_hidden_states: as in `MultiTaskModel.forward`.

        Returns `loss` (where labels are given) and `logits` of shape `(batch, num_labels)`, for regression the value
        in the units of the labels.
        """
        output = self.multitask(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            task=self.task,
            return_dict=True,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = output.logits[self.task]
        logits = logits.unsqueeze(-1) if logits.dim() == 1 else logits  # (batch, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
            # Of standardised values, as in training: the units of the labels do not set the length of the gradient.
            loss = loss / target_scale(self.config.tasks[self.task])[1] ** 2
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return result if is_dict else result.to_tuple()


MultiTaskForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["MultiTaskForSequenceClassification"]
