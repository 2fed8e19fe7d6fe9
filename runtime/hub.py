"""An exported repository of the Hub: only the files that one engine reads are downloaded."""

import contextlib
import json
from pathlib import Path
from typing import Any

from .graphs import GRAPHS
from .record import ADAPTER_WEIGHTS, EXPORT_IT, MANIFEST, RECORD_FILE, TOKENIZER_SETTINGS, hash_weights, read_json

SHA256_DIGITS = 64  # of the etag of a large file; others have one of git


def _find_record(source: str, engine: str | None, options: dict[str, Any]) -> Path:
    """The record of the wanted export, or of the first that there is."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    names = list(GRAPHS) if engine is None else [engine]
    unreached = None
    for name in names:
        try:
            return Path(hf_hub_download(source, f"{name}/{RECORD_FILE}", **options))
        except LocalEntryNotFoundError as error:  # nobody knows whether there is one
            unreached = error
        except EntryNotFoundError:
            continue
    if unreached is not None:
        raise OSError(f"{source} cannot be reached, and is not in the cache: {unreached}") from unreached
    raise ValueError(f"{source} holds no {' or '.join(names)}/{RECORD_FILE}, so it was not exported. {EXPORT_IT}")


def download(
    source: str, engine: str | None, precision: str, verify: bool = False, **options: Any
) -> tuple[Path, str, dict[str, str]]:
    """
    What the runtime reads of a Hub repository, into the cache.

    Args:
        source: the repository's id.
        engine: `onnx` or `openvino`; `None` for the first of them that there is.
        precision: which graph.
        verify: whether the manifest is read, too.
        options: `revision`, `token` and `cache_dir`, as of `hf_hub_download`.

    Returns the folder, the engine, and the sha256 of each file of weights as the Hub knows it: they are not
    downloaded.

    Raises:
        ValueError: it was not exported.
        OSError: the Hub cannot be reached, and the cache lacks a file.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HTTPError,  # of httpx or httpx2, whichever it uses; without a network it passes them on
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

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
    if verify:
        try:
            hf_hub_download(source, MANIFEST, **options)
        except LocalEntryNotFoundError as error:  # nobody knows whether there is one
            raise OSError(f"{source} cannot be verified: {MANIFEST} is not in the cache. {error}") from error
        except EntryNotFoundError:
            pass  # an export without one
    is_adapter = bool(read_json(folder / "config.json").get("base_name_or_path"))
    try:
        etags = {
            name: get_hf_file_metadata(hf_hub_url(source, name, revision=folder.name), token=options.get("token")).etag
            for name in {*record["weights"], *([ADAPTER_WEIGHTS] if is_adapter else [])}
        }
    except EntryNotFoundError:
        return folder, engine, {}  # a repository of graphs alone
    except (OfflineModeIsEnabled, HTTPError, OSError):
        return folder, engine, hash_weights(folder)  # of those that were downloaded some time
    return folder, engine, {name: etag for name, etag in etags.items() if etag and len(etag) == SHA256_DIGITS}
