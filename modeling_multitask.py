"""The multi-task sentence model: one encoder, one sentence embedding, any number of task heads.

    backbone -> pooling -> projection -> sentence embedding -> one head per task

    MultiTaskHead    sentence embedding, or a pair of them, to a task's logits
    MultiTaskModel   starting, saving, tasks and forward; encode and predict are in inference_multitask.py

This file travels with every saved model (`trust_remote_code=True`): it needs torch, transformers and numpy.
"""

import glob
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import CONFIG_NAME, ModelOutput, cached_file, logging

from .adapter_multitask import BackboneAdapter
from .backbone_multitask import (
    find_backbone,
    load_dense_weights,
    longest_input,
    open_backbone_config,
    read_sentence_transformers,
)
from .configuration_multitask import (
    HEAD_PROBLEM_TYPES,
    POOLINGS,
    MultiTaskConfig,
    check_encoder,
    complete_task,
    extend_labels,
    new_task,
    suggest,
    target_scale,
)
from .dropout_multitask import use_fast
from .freezing_multitask import Freezing
from .inference_multitask import SentenceInference
from .padding_free_multitask import (
    cannot_pack,
    cannot_pack_on_gpu,
    install,
    is_installed,
    packed_pass,
    token_ids_explained,
)
from .pipeline_multitask import MultiTaskPipeline  # also registers it with transformers
from .processes_multitask import make_importable, use_one_thread_in_forked_children
from .sentence_transformers_multitask import sentence_transformers_files
from .tokenizer_multitask import is_gone, open_tokenizer
from .truncation_multitask import tokens_kept_at_start, truncate_batch

logger = logging.get_logger(__name__)


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


def mean_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Average over unmasked tokens: `(batch, sequence, hidden)` and `(batch, sequence)` give `(batch, hidden)`."""
    mask = attention_mask.unsqueeze(-1).to(hidden_states.dtype)  # (batch, sequence, 1)
    return (hidden_states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)


def cls_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """First unmasked token: `(batch, sequence, hidden)` and `(batch, sequence)` give `(batch, hidden)`."""
    first = attention_mask.to(torch.long).argmax(dim=1)  # (batch,)
    return hidden_states[torch.arange(hidden_states.shape[0], device=hidden_states.device), first]


def max_pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Largest value of each unit over unmasked tokens: `(batch, sequence, hidden)` gives `(batch, hidden)`."""
    masked = attention_mask.unsqueeze(-1) == 0  # (batch, sequence, 1)
    return hidden_states.masked_fill(masked, torch.finfo(hidden_states.dtype).min).amax(dim=1)


POOLING_FUNCTIONS = dict(zip(POOLINGS, (mean_pool, cls_pool, max_pool), strict=True))


class Projection(nn.Module):
    """Dense layer from the pooled vector to the sentence embedding: `(batch, hidden)` to `(batch, embedding_dim)`."""

    def __init__(self, config: MultiTaskConfig):
        super().__init__()
        projection = config.projection
        hidden_size = config.backbone_config.hidden_size
        self.linear = nn.Linear(hidden_size, projection["out_features"], bias=projection["bias"])
        self.activation = ACT2FN[projection["activation"]]

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(pooled))


class MultiTaskHead(nn.Module):
    """
    Sentence embedding to a task's logits: linear, or an MLP with `hidden_dims`.

    A pair of sentences enters as `concat(u, v, |u - v|)` (Sentence-BERT, arXiv 1908.10084, section 3). Dropout stands
    before the last layer.

    Args of `forward`:
        embeddings: `(rows, embedding_dim)`, or `(rows, 2, embedding_dim)` for pairs.

    Returns `(rows, num_labels)`, or `(rows,)` for regression: standardised values, see `target_scale`.
    """

    def __init__(self, embedding_dim: int, task: dict[str, Any]):
        super().__init__()
        self.pair = task["pair"]
        self.is_regression = task["problem_type"] == "regression"
        size = 3 * embedding_dim if self.pair else embedding_dim
        layers: list[nn.Module] = []
        for hidden_dim in task["head"]["hidden_dims"]:
            layers += [nn.Linear(size, hidden_dim), ACT2FN[task["head"]["activation"]]]
            size = hidden_dim
        layers += [
            nn.Dropout(task["head"]["dropout"]),
            nn.Linear(size, 1 if self.is_regression else len(task["labels"])),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        if self.pair:
            u, v = embeddings.unbind(dim=1)  # (rows, embedding_dim) each
            embeddings = torch.cat([u, v, (u - v).abs()], dim=-1)  # (rows, 3 * embedding_dim)
        logits = self.layers(embeddings)  # (rows, num_labels)
        return logits.squeeze(-1) if self.is_regression else logits


def _reference(remote_class: type) -> str:
    """`file.Class`, as config.json names the code beside it."""
    return f"{remote_class.__module__.rsplit('.', 1)[-1]}.{remote_class.__name__}"


class MultiTaskPreTrainedModel(BackboneAdapter, PreTrainedModel):
    """How transformers loads, saves and initialises a multi-task model."""

    config_class = MultiTaskConfig
    base_model_prefix = "multitask"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MultiTaskConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        use_one_thread_in_forked_children()
        for kind in (type(self), type(config)):
            make_importable(kind)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """
        Open a saved model: complete, from safetensors, or not at all.

        Raises:
            OSError: there are no safetensors, or they are damaged.
            ValueError: weights are missing, or have other shapes than config.json says.
            ImportError: the model was saved as an adapter, and peft is not installed.
        """
        name_or_path = pretrained_model_name_or_path
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        sizes_may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        try:
            model, report = super().from_pretrained(
                name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            raise OSError(
                f"{name_or_path}: the weights are damaged or not complete ({error}). Download or save them again."
            ) from error
        if report["mismatched_keys"] and not sizes_may_differ:
            name, found, expected = sorted(report["mismatched_keys"])[0]
            raise ValueError(
                f"{name_or_path}: {name} has the shape {tuple(found)}, but config.json asks for {tuple(expected)}. "
                "Labels, hidden_dims and sizes in config.json should be those that the weights were saved with."
            )
        if report["missing_keys"]:
            raise ValueError(
                f"{name_or_path}: weights are missing for {', '.join(sorted(report['missing_keys'])[:4])}. Save the "
                "model again, or start a new one with MultiTaskModel.from_backbone."
            )
        # The tokenizer comes from the commit of the weights, with the same token, and before the folder can change.
        reached = ("token", "cache_dir", "subfolder", "local_files_only", "proxies")
        options = {name: kwargs[name] for name in reached if name in kwargs}
        options["revision"] = getattr(model.config, "_commit_hash", None) or kwargs.get("revision")
        model.base_model._hub_options = options
        # Absolute, wherever the process goes before something else is read from there.
        if name_or_path is not None and os.path.isdir(name_or_path):
            model.config.name_or_path = os.path.abspath(name_or_path)
        # AutoModel keeps `trust_remote_code` to itself, but runs this file from where remote code lies only with it.
        trusted = kwargs.get("trust_remote_code") or cls.__module__.startswith("transformers_modules.")
        model.base_model._find_tokenizer(bool(trusted))
        if model.config.base_name_or_path:
            model._open_adapter(name_or_path, options)
        # Matrix products of the same numbers differ in the last bit where memory is aligned differently, and weights
        # mapped from a file start anywhere: align them, so that a loaded model equals the saved one to the last bit.
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """Save weights, configuration, code, tokenizer and what sentence-transformers needs to open the folder."""
        # Named only here, it travels with the model all the same: the saver follows relative imports.
        from .classification_multitask import MultiTaskForSequenceClassification

        self.config.auto_map = {
            "AutoConfig": _reference(type(self.config)),
            "AutoModel": _reference(MultiTaskModel),
            "AutoModelForSequenceClassification": _reference(MultiTaskForSequenceClassification),
        }
        self.config.custom_pipelines = {
            "multitask": {"impl": _reference(MultiTaskPipeline), "pt": ["AutoModel"], "type": "text"}
        }
        if is_main_process:
            self.base_model._find_tokenizer()  # one that cannot be read leaves no folder that is saved by half
            self._save_adapter(save_directory, kwargs.get("state_dict"))
        with self._base_relative_to(save_directory):
            super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self._save_companions(save_directory)
            # safetensors writes files that only their owner can read; config.json has what the umask gives.
            for path in glob.glob(os.path.join(glob.escape(os.fspath(save_directory)), "*.safetensors")):
                shutil.copymode(os.path.join(save_directory, CONFIG_NAME), path)

    def _save_companions(self, save_directory: str | os.PathLike) -> None:
        """Save what stands beside weights, configuration and code."""
        tokenizer = self.base_model._find_tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(save_directory)
        for filename, content in sentence_transformers_files(self.config).items():
            path = os.path.join(save_directory, filename)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # sentence-transformers saves prompts, similarity and truncation there before it lets the model be saved.
            if filename == "config_sentence_transformers.json" and os.path.isfile(path):
                continue
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)

    def _copy_from_source(self, filename: str, folder: str | os.PathLike) -> bool:
        """Copy a file that stands beside the weights, where the model was opened; whether there is one."""
        if not self.config.name_or_path or is_gone(self.config.name_or_path):
            return False
        options = {"_raise_exceptions_for_missing_entries": False, **self.base_model._hub_options}
        source = cached_file(self.config.name_or_path, filename, **options)
        if source is not None:
            shutil.copyfile(source, os.path.join(folder, filename))
        return source is not None

    def _upload_modified_files(self, working_dir: str | os.PathLike, *args, **kwargs):
        # push_to_hub and save_pretrained(push_to_hub=True) both come here, the latter before the rest is saved, and
        # both with a card that transformers made up where the repository has none.
        self._save_companions(working_dir)
        card = os.path.join(working_dir, "README.md")
        with open(card, encoding="utf-8") as file:
            is_made_up = "This model card has been automatically generated" in file.read()
        if is_made_up and self._copy_from_source("README.md", working_dir):
            with open(card, encoding="utf-8") as file:
                pictures = re.findall(r"\]\(([\w-]+\.png)\)", file.read())
            for filename in ("results.json", "recipe.yaml", *pictures):
                self._copy_from_source(filename, working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class MultiTaskModel(SentenceInference, Freezing, MultiTaskPreTrainedModel):
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
                if task["problem_type"] in HEAD_PROBLEM_TYPES
            }
        )
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._hub_options: dict[str, Any] = {}  # how the repository was reached that the model was opened from
        if config.base_name_or_path:
            self._keys_to_ignore_on_load_missing = [r"^(multitask\.)?backbone\."]  # they come from the base
        self.post_init()

    def _adopt_backbone(self) -> None:
        """Leave out BERT's own pooler, which nothing reads, and let padding-free batches in where the backbone can."""
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None
        use_fast(self.backbone)
        # None: where packed passes were measured to be faster, on CPUs. True: also on a GPU. False: never.
        self.padding_free: bool | None = None if cannot_pack(self.backbone) is None else False
        if self.padding_free is None:
            install(self.backbone)

    # ---- starting, opening and saving ----

    @classmethod
    def from_backbone(
        cls,
        backbone: str,
        tasks: dict[str, dict[str, Any]] | None = None,
        pooling: str | None = None,
        projection: dict[str, Any] | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        dtype: str | torch.dtype = torch.float32,
        trust_remote_code: bool = False,
    ) -> "MultiTaskModel":
        """
        Start a model from a pretrained encoder, with new heads.

        Args:
            backbone: Hub id or folder of any encoder that `AutoModel` loads. What a sentence-transformers repository
                says about pooling, projection, normalisation and maximum length is the default of those below.
            tasks: task settings by name; see `complete_task` for the keys.
            pooling: `mean` (the default without any other), `cls` or `max`.
            projection: `{"out_features": ..., "bias": ..., "activation": ...}`.
            normalize: whether embeddings are handed out with length 1.
            max_length: longest sentence in tokens, 128 where nothing else says so.
            dtype: of the weights, or its name.
            trust_remote_code: whether the tokenizer may run code of its own, and a pickled Dense layer is read. The
                encoder itself is always transformers' own code.

        Raises:
            ValueError: the backbone is no encoder, a setting is wrong, or `max_length` is beyond its positions.
        """
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, dtype)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype is {dtype!r}, but should be a type of torch such as 'float32' or 'bfloat16'.")
        path = find_backbone(backbone)
        backbone_config = open_backbone_config(path)
        check_encoder(backbone_config)
        stored = read_sentence_transformers(path, unless_given=pooling)
        limit = longest_input(backbone_config)
        if max_length is None:
            max_length = stored.max_length or 128
            max_length = min(max_length, limit) if limit else max_length
        elif limit and max_length > limit:
            raise ValueError(
                f"max_length is {max_length}, but the backbone {backbone} has positions for {limit} tokens."
            )

        try:
            pretrained = AutoModel.from_pretrained(path, config=backbone_config, dtype=dtype, trust_remote_code=False)
        except SafetensorError as error:
            raise OSError(f"backbone: the weights of {backbone} are damaged ({error}). Fetch them again.") from error
        pretrained.config._name_or_path = os.fspath(backbone)
        config = MultiTaskConfig(
            backbone_config=pretrained.config,
            pooling=pooling or stored.pooling or "mean",
            projection=projection or stored.projection,
            normalize=normalize if normalize is not None else bool(stored.normalize),
            max_length=max_length,
            tasks={name: new_task(task) for name, task in (tasks or {}).items()},
        )
        model = cls(config).to(dtype)
        model.backbone = pretrained
        model._adopt_backbone()
        if stored.dense_path and projection is None:
            model.projection.load_state_dict(load_dense_weights(path, stored.dense_path, trust_remote_code))
        model.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        return model.eval()

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer."""
        return self._tokenizer is not None

    def _find_tokenizer(self, trust_remote_code: bool = False) -> PreTrainedTokenizerBase | None:
        """The tokenizer, read from where the model was opened unless there is one already; `None` without any."""
        if self._tokenizer is None and self.config.name_or_path:
            found = open_tokenizer(self.config.name_or_path, self.config, self._hub_options, trust_remote_code)
            if found is not None:
                self.tokenizer = found
        return self._tokenizer

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that belongs to the model. One that was missing when it was opened is looked for again."""
        if self._find_tokenizer() is None:
            where = f", and there is none in {self.config.name_or_path}" if self.config.name_or_path else ""
            raise ValueError(
                f"The model has no tokenizer yet{where}. Set model.tokenizer = AutoTokenizer.from_pretrained(...)."
            )
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        tokenizer.model_max_length = self.config.max_length
        self._tokenizer = tokenizer

    # ---- tasks ----

    def add_task(self, name: str, task: dict[str, Any]) -> None:
        """
        Add a task with a new head; every other output stays bit-identical.

        Args:
            name: an identifier that no task has yet.
            task: its settings; see `complete_task` for the keys.
        """
        if name in self.config.tasks:
            raise ValueError(f"There is a task {name!r} already. Remove it first, or choose another name.")
        task = complete_task(name, new_task(task))
        if task["problem_type"] in HEAD_PROBLEM_TYPES:
            with torch.device("cpu"):  # whatever the default is
                head = MultiTaskHead(self.config.embedding_dim, task).float()
            head.apply(self._init_weights)
            self.heads[name] = head.to(self.device, self.dtype).train(self.training)
        self.config.tasks = {**self.config.tasks, name: task}

    def remove_task(self, name: str) -> None:
        """Remove a task and its head; every other output stays bit-identical."""
        self._check_tasks([name])
        self.config.tasks = {task: settings for task, settings in self.config.tasks.items() if task != name}
        if name in self.heads:
            del self.heads[name]

    def add_labels(self, name: str, labels: list[str]) -> None:
        """
        Append labels to those of a classification task.

        The ones it has keep their ids and their weights, bit for bit, with thresholds and weights in the loss; the new
        rows of the last layer are random, so that the task has to be trained on. Every other task stays as it is.

        Args:
            name: the task's name.
            labels: names that the task does not have yet.

        Raises:
            ValueError: there is no such task, it has no labels, or has one of these already.
        """
        self._check_tasks([name])
        settings = extend_labels(name, self.config.tasks[name], labels)
        layers = self.heads[name].layers
        old = layers[-1]
        wider = nn.Linear(old.in_features, len(settings["labels"]), device=old.weight.device, dtype=old.weight.dtype)
        self._init_weights(wider)
        with torch.no_grad():
            wider.weight[: old.out_features] = old.weight
            wider.bias[: old.out_features] = old.bias
        layers[-1] = wider.requires_grad_(old.weight.requires_grad).train(old.training)
        self.config.tasks = {**self.config.tasks, name: settings}

    def _check_tasks(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.config.tasks:
                raise ValueError(
                    f"There is no task {name!r}.{suggest(name, self.config.tasks)} "
                    f"Known tasks: {', '.join(self.config.tasks) or 'none'}."
                )

    # ---- tensors in, tensors out ----

    def train(self, mode: bool = True) -> "MultiTaskModel":
        """Set training mode; modules without any trainable parameter stay in eval mode, so that frozen is frozen."""
        if not mode or not self.training:
            super().train(mode)
        waiting: list[nn.Module] = [self] if mode else []
        while waiting:  # the Trainer calls this in every step, so a module whose mode is right costs nothing
            module = waiting.pop()
            parameters = list(module.parameters())
            if not parameters or any(parameter.requires_grad for parameter in parameters):
                if not module.training:
                    module.training = True
                waiting.extend(module.children())
            elif any(part.training for part in module.modules()):
                module.train(False)
        return self

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
        task: str | None = None,
        task_rows: dict[str, torch.LongTensor] | None = None,
        return_dict: bool | None = None,
        pooled: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        normalize: bool | None = None,
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
            task: `None` for every task that answers a single sentence, `"embedding"` for none, or one task's name.
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

        Raises:
            ValueError: the task is unknown, a task that compares two sentences was named without `task_rows`, or
                `pooled` came together with tokens.
        """
        if task is not None and task != "embedding":
            self._check_tasks([task])
        self._check_tasks(task_rows or ())
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
            states, embedding = BaseModelOutput(), self.project(pooled.to(self.dtype))
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
            embedding = self.project(pooled)
        return self._output(states, embedding, self.task_logits(embedding, task, task_rows), return_dict, normalize)

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

    def _recorded(
        self, output_attentions: bool | None = None, output_hidden_states: bool | list[int] | None = None
    ) -> dict[str, Any]:
        """What the backbone is asked to hand out beside its last states; arguments win over the configuration."""
        asked = {"output_attentions": output_attentions, "output_hidden_states": output_hidden_states}
        asked = {name: getattr(self.config, name) if value is None else value for name, value in asked.items()}
        return {name: value for name, value in asked.items() if value}

    def output_names(self, task: str | None = None) -> list[str]:
        """
        Names of the tensors that `forward` returns with `return_dict=False`, in their order, for exports.

        Args:
            task: as for `forward`.
        """
        logits = [f"logits.{name}" for name in self._tasks_of_one_sentence(task)]
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
        return self._output(states, self.project(pooled), None, return_dict)

    def _is_too_long(self, attention_mask: torch.Tensor) -> bool:
        """Whether a text may have more tokens than the model reads; an exported graph takes any length."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():
            return False
        return attention_mask.dim() == 2 and attention_mask.shape[1] > self.config.max_length

    def _truncate(
        self, inputs: dict[str, torch.Tensor], attention_mask: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        max_length = self.config.max_length
        positions = {name: inputs[name][:, :max_length] for name in inputs.keys() & {"position_ids"}}
        inputs = {name: value for name, value in inputs.items() if name not in positions}
        kept_at_start = tokens_kept_at_start(self.tokenizer if self.has_tokenizer else None, max_length)
        inputs, attention_mask = truncate_batch(inputs, attention_mask, max_length, kept_at_start)
        return inputs | positions, attention_mask

    def states_and_embedding(
        self, attention_mask: torch.Tensor, **inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Token states `(batch, sequence, hidden)` and the embedding `(batch, embedding_dim)` before normalisation.

        Args:
            attention_mask: `(batch, sequence)`, 0 for padding.
            inputs: `input_ids` and what else the backbone takes.
        """
        states, pooled = self.states_and_pooled(attention_mask, **inputs)
        return states, self.project(pooled)

    def states_and_pooled(
        self, attention_mask: torch.Tensor, **inputs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states `(batch, sequence, hidden)` and pooled vectors `(batch, hidden)`; arguments as above."""
        output, pooled = self._backbone_pass(attention_mask, inputs, {})
        return output.last_hidden_state, pooled

    def _backbone_pass(
        self, attention_mask: torch.Tensor, inputs: dict[str, torch.Tensor], recorded: dict[str, Any]
    ) -> tuple[BaseModelOutput, torch.Tensor]:
        """The backbone's output with what is to be `recorded` of it, and pooled vectors `(batch, hidden)`."""
        can_pack = not recorded and set(inputs) <= {"input_ids", "token_type_ids"} and attention_mask.dim() == 2
        if can_pack and self.packs():
            states, pooled = packed_pass(self.backbone, self.config.pooling, attention_mask=attention_mask, **inputs)
            return BaseModelOutput(last_hidden_state=states), pooled
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # graphs do not catch errors
            output = self.backbone(attention_mask=attention_mask, **inputs, **recorded)
        else:
            with token_ids_explained(self.backbone, inputs.get("input_ids")):
                output = self.backbone(attention_mask=attention_mask, **inputs, **recorded)
        states = output.last_hidden_state
        # An offloaded backbone leaves its states on the device that it was computed on.
        return output, POOLING_FUNCTIONS[self.config.pooling](states, attention_mask.to(states.device))

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """The embedding `(batch, embedding_dim)` before normalisation, from pooled vectors `(batch, hidden)`."""
        return self.projection(pooled) if self.projection is not None else pooled

    def packs(self) -> bool:
        """
        Whether passes run without padding; which way they go, and why, is logged once.

        A graph that is traced, exported or compiled is a padded one: a packed pass depends on the lengths in a batch.
        """
        if torch.jit.is_tracing() or torch.compiler.is_compiling():  # exporting is compiling, too
            return False
        if self.padding_free is False:
            reason = cannot_pack(self.backbone) or "model.padding_free is False"
        elif not is_installed(self.backbone):
            reason = cannot_pack(self.backbone) or "another attention was chosen with set_attn_implementation"
        elif self.device.type != "cpu" and not self.padding_free:
            reason = f"packed passes were measured on CPUs only (model.padding_free = True runs them on {self.device})"
        elif self.device.type != "cpu" and (missing := cannot_pack_on_gpu(self.backbone)):
            reason = missing
        else:
            logger.info_once("Passes run without padding (model.padding_free = False pads them).")
            return True
        logger.info_once(f"Passes are padded: {reason}.")
        return False

    @property
    def _takes_token_types(self) -> bool:
        return bool(getattr(self.config.backbone_config, "type_vocab_size", 0))

    def _tasks_of_one_sentence(self, task: str | None) -> list[str]:
        """The tasks that answer a single sentence, or of them the one that is asked for."""
        names = [name for name, settings in self.config.tasks.items() if not settings["pair"]]
        return [name for name in names if task in (None, name)]

    def task_logits(
        self, embedding: torch.Tensor, task: str | None = None, task_rows: dict[str, torch.LongTensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Logits of the asked-for tasks from embeddings `(batch, embedding_dim)` that were not normalised.

        `task` and `task_rows` are those of `forward`, and so is what comes back.
        """
        if task_rows is None:
            if task in self.config.tasks and self.config.tasks[task]["pair"]:
                raise ValueError(
                    f"Task {task!r} compares two sentences. Say which rows of the batch belong together: "
                    f"task_rows={{{task!r}: tensor of shape (pairs, 2)}}, or use model.predict."
                )
            task_rows = dict.fromkeys(self._tasks_of_one_sentence(task))
        logits = {}
        for name, rows in task_rows.items():
            if task not in (None, name):
                continue
            chosen = embedding if rows is None else embedding[rows]  # (rows, [sentences,] embedding_dim)
            if name in self.heads:
                logits[name] = self._in_units(name, self.heads[name](chosen))
            else:
                logits[name] = F.cosine_similarity(chosen[:, 0], chosen[:, 1], dim=-1)  # (rows,)
        return logits

    def _in_units(self, name: str, logits: torch.Tensor) -> torch.Tensor:
        """A regression task's values in the units of its labels, never in half precision: it has no room for years."""
        mean, deviation = target_scale(self.config.tasks[name])
        if (mean, deviation) == (0.0, 1.0):
            return logits
        return mean + deviation * logits.to(torch.promote_types(logits.dtype, torch.float32))


MultiTaskModel.register_for_auto_class("AutoModel")

__all__ = ["MultiTaskModel", "MultiTaskOutput"]
