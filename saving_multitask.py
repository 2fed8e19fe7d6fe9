"""How transformers opens, saves and publishes a multi-task model.

sentence_transformers_files   the small files in which sentence-transformers looks for its modules
MultiTaskPreTrainedModel      from_pretrained, save_pretrained and push_to_hub of the model and of a view of one head
"""

import glob
import json
import logging
import os
import re
import shutil
import tempfile
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from .adapter_multitask import ADAPTER_FOLDER, cached_commit
from .configuration_multitask import MultiTaskConfig
from .manifest_multitask import (
    MANIFEST_FILE,
    WEIGHTS,
    check_opened,
    listed,
    read_older_manifest,
    sha256_of,
    update_manifest,
)
from .model_adapter_multitask import BackboneAdapter
from .pipeline_multitask import MultiTaskPipeline  # also registers it with transformers
from .processes_multitask import make_importable, use_one_thread_in_forked_children
from .staging_multitask import check_moved, files_of
from .stale_heads_multitask import HeadsOrigin
from .tokenizer_multitask import is_gone

logger = logging.getLogger(__name__)

# Named, not imported: the file imports this one.
MODEL_CLASSES = {
    "AutoModel": "modeling_multitask.MultiTaskModel",
    "AutoModelForSequenceClassification": "modeling_multitask.MultiTaskForSequenceClassification",
}
SENTENCE_TRANSFORMERS_SETTINGS = "config_sentence_transformers.json"
_SENTENCE_TRANSFORMERS = "sentence_transformers.models"  # the names that every version knows, older folders use them


def _reference(remote_class: type) -> str:
    """`file.Class`, as config.json names the code beside it."""
    return f"{remote_class.__module__.rsplit('.', 1)[-1]}.{remote_class.__name__}"


def sentence_transformers_files(config: MultiTaskConfig) -> dict[str, Any]:
    """
    What lets sentence-transformers open a saved folder: path in the folder -> content, as JSON.

    A model without projection is what sentence-transformers expects: Transformer, Pooling and, where embeddings have
    length 1, Normalize. Then token embeddings, prompts that pooling leaves out and every loss that looks at the layers
    work as ever. A projection's weights belong to the model itself, so there the Transformer gives the finished
    embedding and stands alone. It calls the model's `token_states`.
    """
    has_pooling = config.projection is None
    output = "last_hidden_state" if has_pooling else "sentence_embedding"
    modules = [("", "Transformer")]
    files: dict[str, Any] = {}
    if has_pooling:
        modules.append(("1_Pooling", "Pooling"))
        files["1_Pooling/config.json"] = {
            "embedding_dimension": config.embedding_dim,
            "pooling_mode": config.pooling,
            "include_prompt": True,
        }
        if config.normalize:
            modules.append(("2_Normalize", "Normalize"))
    files["modules.json"] = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_SENTENCE_TRANSFORMERS}.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    files["sentence_bert_config.json"] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "token_states", "method_output_name": output}},
        "module_output_name": "token_embeddings" if has_pooling else "sentence_embedding",
        "unpad_inputs": False,
    }
    files[SENTENCE_TRANSFORMERS_SETTINGS] = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": {},
        "default_prompt_name": None,
    }
    return files


class MultiTaskPreTrainedModel(HeadsOrigin, BackboneAdapter, PreTrainedModel):
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
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, verify: bool = False, **kwargs
    ):
        """
        Open a saved model: complete, from safetensors, or not at all.

        Args:
            verify: whether the sha256 of every file is compared with the folder's manifest, weights too. Without it,
                sizes of weights and hashes of code have to be right; see `manifest_multitask`.

        Raises:
            OSError: there are no safetensors, they are damaged or others than were saved, or saving was interrupted.
            ValueError: weights are missing, or have other shapes than config.json says.
            ImportError: the model was saved as an adapter, and peft is not installed.
        """
        name_or_path = pretrained_model_name_or_path
        kwargs.setdefault("use_safetensors", True)  # never unpickle
        if kwargs.get("subfolder") and name_or_path is not None and os.path.isdir(name_or_path):
            name_or_path = os.path.join(name_or_path, kwargs.pop("subfolder"))
        if name_or_path is not None:
            check_moved(name_or_path)
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
        reached = ("token", "cache_dir", "subfolder", "local_files_only", "proxies")
        options = {name: kwargs[name] for name in reached if name in kwargs}
        options["revision"] = kwargs.get("revision")
        if name_or_path is not None:
            options["revision"] = cached_commit(name_or_path, options) or options["revision"]
            without = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors")}
            manifest = cached_file(name_or_path, MANIFEST_FILE, **options, **without)
            if manifest is not None:
                check_opened(os.path.dirname(manifest), name_or_path, all_files=verify)
        # The tokenizer comes from the commit of the weights, with the same token, and before the folder can change.
        model.base_model._hub_options = options
        # Absolute, wherever the process goes before something else is read from there.
        if name_or_path is not None and os.path.isdir(name_or_path):
            model.config.name_or_path = os.path.abspath(name_or_path)
        # AutoModel keeps `trust_remote_code` to itself, but runs this file from where remote code lies only with it.
        trusted = kwargs.get("trust_remote_code", cls.__module__.startswith("transformers_modules."))
        model.base_model._find_tokenizer(bool(trusted))
        if model.config.base_name_or_path:
            model._open_adapter(name_or_path, options)
        # Matrix products of the same numbers differ in the last bit where memory is aligned differently, and weights
        # mapped from a file start anywhere: align them, so that a loaded model equals the saved one to the last bit.
        for parameter in model.parameters():
            if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        model._note_origin(name_or_path)
        return (model, report) if output_loading_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs) -> None:
        """
        Save weights, configuration, code, tokenizer and what sentence-transformers needs to open the folder.

        An error or a full disk leaves the folder as it was. (Not with `distributed_checkpoint`, where all processes
        write.) With `push_to_hub`, the folder is complete before anything is asked of the Hub.
        """
        if kwargs.get("push_to_hub"):
            self._check_can_push()
            kwargs.setdefault("repo_id", os.path.basename(os.path.abspath(save_directory)))
        self.config.auto_map = {"AutoConfig": _reference(type(self.config)), **MODEL_CLASSES}
        self.config.custom_pipelines = {
            "multitask": {"impl": _reference(MultiTaskPipeline), "pt": ["AutoModel"], "type": "text"}
        }
        if os.path.isfile(save_directory):
            raise ValueError(f"{save_directory} is a file, so a model cannot be saved there. Give a folder.")
        if not is_main_process:
            return super().save_pretrained(save_directory, is_main_process=False, **kwargs)
        self.base_model._find_tokenizer()
        self._settle_origin(kwargs.get("state_dict"))
        settings = self._choose_settings(save_directory)
        if kwargs.get("distributed_checkpoint"):
            return self._save_into(os.fspath(save_directory), save_directory, settings, **kwargs)
        with listed(save_directory) as folder:
            self._save_into(folder, save_directory, settings, **{**kwargs, "push_to_hub": False})
        if kwargs.get("push_to_hub"):  # from another folder, after the model is safe: an upload may fail
            settings = os.path.join(save_directory, SENTENCE_TRANSFORMERS_SETTINGS)
            with tempfile.TemporaryDirectory() as folder:
                self._save_into(folder, save_directory, settings, **kwargs)

    def _choose_settings(self, folder: str | os.PathLike) -> str | None:
        """
        The file with prompts, similarity and truncation that goes along; `None` for the defaults.

        sentence-transformers writes it into the folder before it lets the model be saved there. Any other is what was
        saved there before, maybe of another model: the one that stands where this model was opened takes its place.
        """
        path = os.path.join(folder, SENTENCE_TRANSFORMERS_SETTINGS)
        saved = read_older_manifest(folder).get(SENTENCE_TRANSFORMERS_SETTINGS, {}).get("sha256")
        if os.path.isfile(path) and sha256_of(path) != saved:
            return path
        return self._find_in_source(SENTENCE_TRANSFORMERS_SETTINGS, _raise_exceptions_for_connection_errors=False)

    def _save_into(
        self, folder: str | os.PathLike, save_directory: str | os.PathLike, settings: str | None, **kwargs
    ) -> None:
        """Write all files of the model into a folder, as they are meant for `save_directory`."""
        place = os.path.join(folder, SENTENCE_TRANSFORMERS_SETTINGS)
        if settings is not None and not (os.path.exists(place) and os.path.samefile(settings, place)):
            os.makedirs(folder, exist_ok=True)
            shutil.copyfile(settings, place)
        self._save_adapter(folder, kwargs.get("state_dict"))
        with self._base_relative_to(save_directory):
            super().save_pretrained(folder, **kwargs)
        self._save_companions(folder)
        # safetensors writes files that only their owner can read; config.json has what the umask gives.
        for path in glob.glob(os.path.join(glob.escape(folder), "*.safetensors")):
            shutil.copymode(os.path.join(folder, CONFIG_NAME), path)
        update_manifest(folder)

    def push_to_hub(self, *args, **kwargs) -> str:
        """
        Push the model to the Hub; arguments as of any transformers model.

        Raises:
            ValueError: it has an adapter whose base is a folder of this machine.
        """
        self._check_can_push()
        return super().push_to_hub(*args, **kwargs)

    def _save_companions(self, save_directory: str | os.PathLike) -> None:
        """Save what stands beside weights, configuration and code."""
        tokenizer = self.base_model._find_tokenizer()
        if tokenizer is not None:
            tokenizer.model_max_length = self.config.max_length  # it may have changed, or be another model's
            if tokenizer.is_fast:  # how it was called last would stand in its file
                tokenizer.backend_tokenizer.no_truncation()
                tokenizer.backend_tokenizer.no_padding()
            tokenizer.save_pretrained(save_directory)
        for filename, content in sentence_transformers_files(self.config).items():
            path = os.path.join(save_directory, filename)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if filename == SENTENCE_TRANSFORMERS_SETTINGS and os.path.isfile(path):
                continue
            with open(path, "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)

    def _find_in_source(self, filename: str, **lookup: bool) -> str | None:
        """A file that stands beside the weights, where the model was opened."""
        if not self.config.name_or_path or is_gone(self.config.name_or_path):
            return None
        options = {"_raise_exceptions_for_missing_entries": False, **lookup, **self.base_model._hub_options}
        return cached_file(self.config.name_or_path, filename, **options)

    def _copy_from_source(self, filename: str, folder: str | os.PathLike) -> None:
        """Copy a file that stands beside the weights, where the model was opened, if there is one."""
        source = self._find_in_source(filename)
        if source is not None:
            shutil.copyfile(source, os.path.join(folder, filename))

    def _copy_papers(self, folder: str | os.PathLike, saved: dict[str, str]) -> None:
        """Copy the card of where the model was opened, and what belongs to it, if they are of the saved weights."""
        card = self._find_in_source("README.md")
        if card is None:
            return
        found = {name: self._find_in_source(name) for name in saved}
        if any(path is None or sha256_of(path) != saved[name] for name, path in found.items()):
            logger.warning(
                f"{self.config.name_or_path}: README.md and results belong to other weights than those that are "
                "pushed, so they stay behind. Measure the model anew: multitask-sentence evaluate FOLDER RECIPE"
            )
            return
        with open(card, encoding="utf-8") as file:
            pictures = re.findall(r"\]\(([\w-]+\.png)\)", file.read())
        for filename in ("README.md", "results.json", "recipe.yaml", "row_hashes.parquet", *pictures):
            self._copy_from_source(filename, folder)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike, repo_id: str, files_timestamps: dict[str, float], **kwargs
    ):
        # push_to_hub and save_pretrained(push_to_hub=True) both come here, the latter before the rest is saved, and
        # both with a card that transformers made up where the repository has none.
        self._save_companions(working_dir)
        card = os.path.join(working_dir, "README.md")
        with open(card, encoding="utf-8") as file:
            is_made_up = "This model card has been automatically generated" in file.read()
        saved = {
            name: sha256_of(os.path.join(working_dir, name))
            for name in files_of(working_dir)
            if name.endswith(WEIGHTS) and os.path.dirname(name) in ("", ADAPTER_FOLDER)
        }
        if is_made_up:
            self._copy_papers(working_dir, saved)
        self._copy_exports(working_dir, saved)
        update_manifest(working_dir)
        written_first = (ADAPTER_FOLDER, SENTENCE_TRANSFORMERS_SETTINGS)  # before transformers notes what is there
        files_timestamps = {name: time for name, time in files_timestamps.items() if name not in written_first}
        return super()._upload_modified_files(working_dir, repo_id, files_timestamps, **kwargs)

    def _copy_exports(self, folder: str | os.PathLike, saved: dict[str, str]) -> None:
        """Copy the exported graphs of where the model was opened, if they are of the weights that were saved now."""
        source = self.config.name_or_path
        if not source or not os.path.isdir(source):
            return
        for engine in ("onnx", "openvino"):
            record = os.path.join(source, engine, "export.json")
            if not os.path.isfile(record):
                continue
            try:
                with open(record, encoding="utf-8") as file:
                    weights = json.load(file)["weights"]
            except (ValueError, TypeError, KeyError):
                weights = None
            if weights != saved:
                logger.warning(
                    f"{source}/{engine} was exported from other weights than those that are pushed, or its "
                    "export.json is damaged, so it stays behind. Export again: multitask-sentence export FOLDER"
                )
                continue
            shutil.copytree(os.path.join(source, engine), os.path.join(folder, engine), dirs_exist_ok=True)
            for name in ("runtime_multitask.py", "handler.py", "requirements.txt"):
                self._copy_from_source(name, folder)


__all__ = ["MultiTaskPreTrainedModel"]
