"""What lets sentence-transformers open a saved folder: the small files in which it looks for its modules.

    sentence_transformers_files   path in the folder -> content, as JSON

A model without projection is what sentence-transformers expects: Transformer, Pooling and, where embeddings have
length 1, Normalize. Then token embeddings, prompts that pooling leaves out and every loss that looks at the layers
work as ever. A projection's weights belong to the model itself, so there the Transformer gives the finished embedding
and stands alone.
"""

from typing import Any

from .configuration_multitask import MultiTaskConfig

_MODULES = "sentence_transformers.models"  # the names that every version knows, older folders use them too


def sentence_transformers_files(config: MultiTaskConfig) -> dict[str, Any]:
    """The files by their path in the folder; `token_states` is the method of the model that is called."""
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
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{kind}"}
        for index, (path, kind) in enumerate(modules)
    ]
    files["sentence_bert_config.json"] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "token_states", "method_output_name": output}},
        "module_output_name": "token_embeddings" if has_pooling else "sentence_embedding",
        "unpad_inputs": False,
    }
    files["config_sentence_transformers.json"] = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "prompts": {},
        "default_prompt_name": None,
    }
    return files


__all__ = ["sentence_transformers_files"]
