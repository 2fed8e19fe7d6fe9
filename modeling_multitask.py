"""The multi-task sentence model: one encoder, one sentence embedding, any number of task heads.

    backbone -> pooling -> projection -> sentence embedding -> one head per task

    MultiTaskModel                      starting and forward
    MultiTaskForSequenceClassification  one head of it as a plain sequence classifier

The other parts of the model have files of their own: passes of the backbone, pooling and heads, encoding, prediction,
tokenizer, freezing, adapter, saving.

This file travels with every saved model (`trust_remote_code=True`): it needs torch, transformers and numpy.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import AutoModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from .answers_multitask import one_word
from .backbone_multitask import (
    SentenceTransformersSettings,
    choose_max_length,
    find_backbone,
    load_dense_weights,
    open_backbone,
    open_backbone_config,
    open_backbone_tokenizer,
    read_sentence_transformers,
)
from .configuration_multitask import MultiTaskConfig, ProjectionConfig, check_encoder
from .encoding_multitask import SentenceEncoding
from .freezing_multitask import Freezing
from .heads_multitask import (
    MultiTaskHead,
    Projection,
    TaskHeads,
    calibrated,
    choose_head,
    labels_to_show,
    task_logits,
)
from .passes_multitask import BackbonePass
from .prediction_multitask import TaskPrediction
from .saving_multitask import MultiTaskPreTrainedModel
from .stale_heads_multitask import Origin
from .tasks_multitask import TaskConfig, complete_task
from .tokenizer_multitask import ModelTokenizer


@dataclass
class MultiTaskOutput(ModelOutput):
    """
    What `forward` returns.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sequence, hidden)`):
            The backbone's token states; absent where `forward` was given pooled vectors.
        sentence_embedding (`torch.FloatTensor` of shape `(batch, embedding_dim)`):
            The pooled and projected vector, of length 1 where `config.normalize` says so.
        logits (`dict[str, torch.FloatTensor]`):
            For each task that was asked for: `(rows, num_labels)` for classification, the value `(rows,)` in the
            units of the labels for regression, and the cosine `(rows,)` for similarity and contrastive tasks.
        hidden_states (`tuple(torch.FloatTensor)`):
            With `output_hidden_states`: the embeddings and each layer's states, `(batch, sequence, hidden)` each.
        attentions (`tuple(torch.FloatTensor)`):
            With `output_attentions`: each layer's attention weights, `(batch, heads, sequence, sequence)` each.
    """

    last_hidden_state: torch.FloatTensor | None = None
    sentence_embedding: torch.FloatTensor | None = None
    logits: dict[str, torch.FloatTensor] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None

    def to_tuple(self) -> tuple:
        """The fields in order, each task's logits a tensor of its own, as `MultiTaskModel.output_names` names them."""
        fields = []
        for name, value in self.items():
            fields.extend(value.values() if name == "logits" else [value])
        return tuple(fields)


class MultiTaskModel(
    TaskPrediction, SentenceEncoding, BackbonePass, TaskHeads, ModelTokenizer, Freezing, MultiTaskPreTrainedModel
):
    """
    One encoder, one sentence embedding, any number of task heads.

    Start one with [`MultiTaskModel.from_backbone`], open a saved one with
    `AutoModel.from_pretrained(path_or_repo, trust_remote_code=True)`.
    """

    def __init__(self, config: MultiTaskConfig):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config)
        self._adopt_backbone()
        self.projection = Projection(config) if config.projection else None
        self.heads = nn.ModuleDict(
            {
                name: MultiTaskHead(config.embedding_dim, task)
                for name, task in config.tasks.items()
                if task.kind.has_head
            }
        )
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._hub_options: dict[str, Any] = {}  # how the repository was reached that the model was opened from
        self._vocab_size_of_base = config.vocab_size  # of where the model is started or opened from
        self._origin: Origin | None = None  # what the heads were trained on
        if config.base_name_or_path:
            self._keys_to_ignore_on_load_missing = [r"^(multitask\.)?backbone\."]  # they come from the base
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        tasks: dict[str, TaskConfig | dict[str, Any]] | None = None,
        pooling: str | None = None,
        projection: ProjectionConfig | dict[str, Any] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        dtype: str | torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        _stored: SentenceTransformersSettings | None = None,  # where a run has read it before
    ) -> "MultiTaskModel":
        """
        Start a model from a pretrained encoder, with new heads.

        Args:
            backbone: Hub id or folder of any encoder that `AutoModel` loads. What a sentence-transformers repository
                says about pooling, projection, normalisation and maximum length is the default of those below.
            tasks: task settings by name, each a `TaskConfig` or a mapping.
            pooling: `mean` (the default without any other), `cls` or `max`.
            projection: `{"out_features": ..., "bias": ..., "activation": ...}`.
            normalize: whether embeddings are handed out with length 1.
            max_length: longest sentence in tokens, 128 where nothing else says so.
            dtype: of the weights, or its name.
            trust_remote_code: whether the tokenizer may run code of its own, and weights are read that are pickled.
                The encoder itself is always transformers' own code.

        Raises:
            ValueError: the backbone is no encoder, a setting is wrong, `max_length` is beyond its positions, or
                weights are pickled that nobody trusts.
        """
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype is {dtype!r}, but should be a type of torch such as 'float32' or 'bfloat16'.")
        path = find_backbone(backbone)
        backbone_config = open_backbone_config(path)
        check_encoder(backbone_config)
        stored = _stored or read_sentence_transformers(path, unless_given=pooling)
        max_length = choose_max_length(backbone, backbone_config, max_length, stored)
        pretrained = open_backbone(path, backbone_config, dtype, trust_remote_code)
        # Absolute, wherever the process goes before an adapter is put on it.
        pretrained.config._name_or_path = os.path.abspath(backbone) if os.path.isdir(backbone) else os.fspath(backbone)
        config = MultiTaskConfig(
            backbone_config=pretrained.config,
            pooling=pooling or stored.pooling or "mean",
            projection=projection or stored.projection,
            normalize=normalize if normalize is not None else bool(stored.normalize),
            max_length=max_length,
            tasks={name: complete_task(name, task, is_new=True) for name, task in (tasks or {}).items()},
        )
        model = cls(config).to(dtype)
        model.backbone = pretrained
        model._adopt_backbone()
        if stored.dense_path and projection is None:
            model.projection.load_state_dict(load_dense_weights(path, stored.dense_path, trust_remote_code))
        model.tokenizer = open_backbone_tokenizer(path, trust_remote_code)
        model._note_origin()
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        head: str | Sequence[str] | None = None,
        task_rows: dict[str, torch.LongTensor] | None = None,
        return_dict: bool | None = None,
        pooled: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        normalize: bool | None = None,
        task: str | Sequence[str] | None = None,
    ) -> MultiTaskOutput | tuple:
        """
        One pass of the backbone, then the embedding and the heads that are asked for.

        A text of more than `config.max_length` tokens is cut to those that the tokenizer keeps when it truncates.

        Args:
            input_ids: `(batch, sequence)`.
            attention_mask: `(batch, sequence)`, 0 for padding; absent means no padding.
            token_type_ids: `(batch, sequence)`, where the backbone has them.
            position_ids: `(batch, sequence)`.
            inputs_embeds: `(batch, sequence, hidden)`, in place of `input_ids`.
            head: name of the task to answer, or a list of names; `None` for every task that answers a single sentence,
                `"embedding"` for none.
            task_rows: which rows of the batch each task reads: `(rows,)` for single sentences, `(rows, 2)` for pairs,
                `(rows, 2 + negatives)` for contrastive tasks. Tasks that are not named are left out.
            return_dict: `False` for a plain tuple of tensors, as exports and tracing need it; `output_names` names
                them. `None` does what `config.return_dict` says.
            pooled: `(batch, hidden)`, pooled vectors of an earlier pass in place of `input_ids`: the backbone is then
                not called, and there is no `last_hidden_state`.
            output_attentions: whether to return attention weights; `None` does what the configuration says.
            output_hidden_states: whether to return the states of all layers, or of those with these numbers; `None`
                does what the configuration says. Either makes the pass a padded one.
            normalize: whether `sentence_embedding` has length 1; `None` does what `config.normalize` says.
            task: the same as `head`, as older code spells it.

        Raises:
            TypeError: `head` is no name, nor a list of names.
            ValueError: the task is unknown, a task that compares two sentences was named without `task_rows`, or
                `pooled` came together with tokens.
        """
        head = one_word(head, task, "task")
        heads = self._heads_to_answer(head)
        if task_rows is not None:
            self._check_tasks(task_rows)
            heads = [name for name in task_rows if head is None or name in heads]
        inputs = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        inputs = {name: value for name, value in inputs.items() if value is not None}
        if pooled is not None:
            if inputs or attention_mask is not None:
                given = ", ".join([*inputs, *(["attention_mask"] if attention_mask is not None else [])])
                raise ValueError(f"forward was given pooled vectors and {given}. Give one or the other.")
            states, embedding = BaseModelOutput(), self._project(pooled.to(self.dtype))
        else:
            if attention_mask is None:
                tokens = input_ids if input_ids is not None else inputs_embeds
                attention_mask = torch.ones(tokens.shape[:2], dtype=torch.long, device=tokens.device)
            if token_type_ids is not None and not self._takes_token_types:
                del inputs["token_type_ids"]
            if self._is_too_long(attention_mask):
                inputs, attention_mask = self._truncate(inputs, attention_mask)
            recorded = self._recorded(output_attentions, output_hidden_states)
            states, pooled = self._backbone_pass(attention_mask, inputs, recorded)
            embedding = self._project(pooled)
        return self._output(states, embedding, task_logits(self, embedding, heads, task_rows), return_dict, normalize)

    def _output(
        self,
        states: BaseModelOutput,
        embedding: torch.Tensor,
        logits: dict[str, torch.Tensor] | None,
        return_dict: bool | None,
        normalize: bool | None = None,
    ) -> MultiTaskOutput | tuple:
        """What `forward` returns, from the backbone's output and the embedding before normalisation."""
        normalize = self.config.normalize if normalize is None else normalize
        output = MultiTaskOutput(
            last_hidden_state=states.last_hidden_state,
            sentence_embedding=F.normalize(embedding, dim=-1) if normalize else embedding,
            logits=logits,
            hidden_states=states.hidden_states,
            attentions=states.attentions,
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return output if is_dict else output.to_tuple()

    def output_names(self, head: str | Sequence[str] | None = None) -> list[str]:
        """
        Names of the tensors that `forward` returns with `return_dict=False`, in their order, for exports.

        Args:
            head: as for `forward`.

        Raises:
            ValueError: there is no such task.
        """
        logits = [f"logits.{name}" for name in self._heads_to_answer(head)]
        return ["last_hidden_state", "sentence_embedding", *logits]

    def token_states(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.LongTensor | None = None,
        return_dict: bool | None = None,
    ) -> MultiTaskOutput | tuple:
        """
        `forward` without heads, and of texts as long as they are: what sentence-transformers calls.

        Its own `max_seq_length` says where a text is cut, and may be above `config.max_length`. Arguments, shapes and
        what is returned are those of `forward`, without `logits`.
        """
        inputs = {"input_ids": input_ids}
        if token_type_ids is not None and self._takes_token_types:
            inputs["token_type_ids"] = token_type_ids
        states, pooled = self._backbone_pass(attention_mask, inputs, self._recorded())
        return self._output(states, self._project(pooled), None, return_dict)


class MultiTaskForSequenceClassification(MultiTaskPreTrainedModel):
    """
    A view of one task that reads single sentences: `logits`, `id2label`, and a `loss` where `labels` are given.

    `head` says which one, here as at every other door: `from_pretrained(repo, head="sentiment")`, and
    `pipeline("text-classification", model=repo, model_kwargs={"head": "sentiment"})`. A saved view remembers it as
    `config.task`, under which name `from_pretrained` takes it, too. Without any, the only one that fits is taken.

    Args:
        config: of the model. An `id2label` of as many names as the task has labels renames what the view shows.
        head: the task's name.

    Raises:
        ValueError: the task is unknown or compares two sentences, or none was named where several fit;
            `num_labels` or `id2label` contradicts the task's labels.
    """

    def __init__(self, config: MultiTaskConfig, head: str | None = None):
        super().__init__(config)
        config.task = head or config.task
        config.task = self.task = choose_head(config)
        config.show_labels(labels_to_show(config))
        config.problem_type = config.tasks[self.task].problem_type
        self.multitask = MultiTaskModel(config)
        self.post_init()

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
        Logits of the one task, divided by its temperatures where it has any; the loss is of those before that.

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
            head=self.task,
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
            loss = loss / self.config.tasks[self.task].target_scale[1] ** 2
        logits = calibrated(self.config.tasks[self.task], logits)
        result = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )
        is_dict = self.config.return_dict if return_dict is None else return_dict
        return result if is_dict else result.to_tuple()


MultiTaskModel.register_for_auto_class("AutoModel")
MultiTaskForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["MultiTaskForSequenceClassification", "MultiTaskModel", "MultiTaskOutput"]
