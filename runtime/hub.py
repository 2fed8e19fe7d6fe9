"""An exported repository of the Hub: only the files that one engine reads are downloaded."""

import contextlib
import json
from pathlib import Path
from typing import Any

from .graphs import GRAPHS
from .record import ADAPTER_WEIGHTS, EXPORT_IT, RECORD_FILE, TOKENIZER_SETTINGS, hash_weights, read_json

SHA256_DIGITS = 64  # of the etag of a large file; others have one of git


def _find_record(source: str, engine: str | None, options: dict[str, Any]) -> Path:
    """The record of the wanted export, or of the first that there is."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    names = list(GRAPHS) if engine is None else [engine]
    for name in names:
        try:
            return Path(hf_hub_download(source, f"{name}/{RECORD_FILE}", **options))
        except EntryNotFoundError:
            continue
    raise ValueError(f"{source} holds no {' or '.join(names)}/{RECORD_FILE}, so it was not exported. {EXPORT_IT}")


def download(source: str, engine: str | None, precision: str, **options: Any) -> tuple[Path, str, dict[str, str]]:
    """
    What the runtime reads of a Hub repository, into the cache.

    Args:
        source: the repository's id.
        engine: `onnx` or `openvino`; `None` for the first of them that there is.
        precision: which graph.
        options: `revision`, `token` and `cache_dir`, as of `hf_hub_download`.

    Returns the folder, the engine, and the sha256 of each file of weights as the Hub knows it: they are not
    downloaded.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    path = _find_record(source, engine, options)
    folder, engine = path.parents[1], path.parent.name
    record = json.loads(path.read_text(encoding="utf-8"))
    options["revision"] = folder.name  # the commit, so that all files are of one
    graphs = [record["graphs"].get("int8" if precision == "int8" else "float32"), record["graphs"].get("pairs")]
    stems = [graph.rsplit(".", 1)[0] for graph in [*graphs, record.get("scopes")] if graph]
    files = [f"{engine}/{file}" for file in record["files"] if file.split(".", 1)[0] in stems]
    for file in ("config.json", "tokenizer.json", *files):
        hf_hub_download(source, file, **options)
    with contextlib.suppress(EntryNotFoundError):  # a repository of graphs alone
        hf_hub_download(source, TOKENIZER_SETTINGS, **options)
    is_adapter = bool(read_json(folder / "config.json").get("base_name_or_path"))
    try:
        etags = {
            name: get_hf_file_metadata(hf_hub_url(source, name, revision=folder.name), token=options.get("token")).etag
            for name in {*record["weights"], *([ADAPTER_WEIGHTS] if is_adapter else [])}
        }
    except EntryNotFoundError:
        return folder, engine, {}  # a repository of graphs alone
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return folder, engine, hash_weights(folder)  # of those that were downloaded some time
    return folder, engine, {name: etag for name, etag in etags.items() if etag and len(etag) == SHA256_DIGITS}
