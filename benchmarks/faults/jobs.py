"""The runs that are killed: tiny models and data, made here, and a forked process for each run.

    make_backbone   a random BERT with a tokenizer
    make_job        the recipe and the data of one kind of run
    train           train.py in forked processes, watched, and ended at a moment
    random_moment   a random event of a random one of `STAGES`

Everything is imported before a process is forked, and pictures are written without being drawn, so that a run of a
tiny model takes a second or two, not twenty. An event is a training step, a batch of an evaluation, or an access to a
file of the run or of its caches: the same run has the same events, so that a moment is a number.
"""

import contextlib
import gc
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import constants
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Trainer

from multitask_sentence import train as command
from multitask_sentence.training.evaluation import best_checkpoints
from multitask_sentence.training.trainer import MultiTaskTrainer

VOCABULARY = """
    [PAD] [UNK] [CLS] [SEP] [MASK] the a cat dog bird sat ran sang on in under mat park today it is was good bad very
    fine film market news price bank story and but , . ! ? ##s ##ed ##ing
"""
WORDS = VOCABULARY.split()
KINDS = {"cat": "animal", "dog": "animal", "bird": "animal", "bank": "money", "market": "money"}
MOODS = {"good": "positive", "fine": "positive", "bad": "negative"}
STAGES = (
    "start",
    "training",
    "evaluation",
    "checkpoint",
    "best of task",
    "settling",
    "final folder",
    "card",
    "push",
    "finished",
)
HANGS = 124  # the status of a run that had to be ended, as of `timeout`
FROZEN = {"strategy": {"freeze": "backbone"}}
STAGED = {"strategy": {"unfreeze": [{"epochs": 1, "train": "heads"}, {"train": "all"}]}}
KINDS_OF_RUN: dict[str, dict[str, Any]] = {
    "plain": {},
    "frozen": FROZEN,
    "unfreezing": {**STAGED, "training": {"num_train_epochs": 5, "early_stopping_patience": 1, "learning_rate": 0.01}},
    "augmentation": {"augmentation": {"method": "said_by.say", "share": 0.5}},
    "two processes": {"processes": 2, "training": {"per_device_train_batch_size": 4}},
}


def make_backbone(folder: Path) -> Path:
    """A random BERT of 2 layers and 32 dimensions with dropout, and a WordPiece tokenizer of 40 words."""
    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names).save_pretrained(folder)
    return folder


def make_job(folder: Path, backbone: Path, kind: str, hub_model_id: str | None = None) -> Path:
    """
    Write recipe and data of a run of three tasks: labels, several labels, and pairs with a score.

    Args:
        folder: a new one; the run's result goes into `result` in it.
        backbone: a folder.
        kind: of `KINDS_OF_RUN`.
        hub_model_id: where the run ends with a push.

    Returns the recipe's path.
    """
    folder.mkdir(parents=True)
    for split, verb in (("train", "ran"), ("validation", "sang"), ("test", "sat")):
        texts, pairs = ["text,mood,tags"], ["a,b,score"]
        for place, (subject, tag) in enumerate(KINDS.items()):
            for word, mood in MOODS.items():
                texts.append(f"the {subject} {verb} {word} today,{'' if len(texts) % 4 == 0 else mood},{tag}")
            pairs.append(f"a {subject} {verb} in the park,the {subject} {verb} in a park,{4 + place / 5}")
            pairs.append(f"a {subject} {verb} in the park,it is news of film {place * 'very '}story,{place / 5}")
        for name, rows in (("texts", texts), ("pairs", pairs)):
            (folder / f"{name}_{split}.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "said_by.py").write_text(
        'def say(sentences):\n    return [f"{sentence} and it is good" for sentence in sentences]\n', encoding="utf-8"
    )
    changes = KINDS_OF_RUN[kind]

    def files(name: str) -> dict[str, Any]:
        return {
            "path": "csv",
            "data_files": {split: f"{name}_{split}.csv" for split in ("train", "validation", "test")},
        }

    def task(problem_type: str, name: str, **columns: str) -> dict[str, Any]:
        return {"problem_type": problem_type, "dataset": files(name), "columns": columns}

    mood = task("single_label_classification", "texts", sentence="text", label="mood")
    if "augmentation" in changes:
        mood["augmentation"] = changes["augmentation"]
    recipe = {
        "backbone": str(backbone),
        "max_length": 20,
        "tasks": {
            "mood": mood,
            "tags": task("multi_label_classification", "texts", sentence="text", label="tags"),
            "similarity": task("similarity", "pairs", sentence1="a", sentence2="b", label="score"),
        },
        "training": {
            "output_dir": str(folder / "result"),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "save_total_limit": 2,
            "disable_tqdm": True,
            "use_cpu": True,
            **({"push_to_hub": True, "hub_model_id": hub_model_id} if hub_model_id else {}),
            **changes.get("training", {}),
        },
        **({"strategy": changes["strategy"]} if "strategy" in changes else {}),
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


@dataclass
class Moment:
    """
    When a run is killed.

    Attributes:
        event: after so many events of the main process.
        signal: SIGKILL or SIGTERM.
        delay: so many seconds after the event.
    """

    event: int
    signal: int
    delay: float


@dataclass
class Ended:
    """
    How a run ended.

    Attributes:
        status: the exit status; negative, the signal that ended it.
        stage: of `STAGES`, the one that it was in.
        stages: the stage of every event, in their order.
        said: what it printed.
    """

    status: int
    stage: str
    stages: bytes
    said: str = field(repr=False)


class Watch:
    """Counts the events of a process, and ends it at one of them; what it knows lies in memory that outlives it."""

    ROOM = 1 << 18

    def __init__(self, folder: Path, moment: Moment | None):
        self.folder, self.moment = str(folder), moment
        self.memory = mmap.mmap(-1, self.ROOM)  # shared: count (8 bytes), then the stage of each event
        self.stack = [0]

    def count(self) -> int:
        return int.from_bytes(self.memory[:8], "little")

    def note(self) -> None:
        count = self.count() + 1
        self.memory[:8] = count.to_bytes(8, "little")
        self.memory[7 + count] = self.stack[-1]
        if self.moment is not None and count == self.moment.event:
            self.kill(self.moment)

    def kill(self, moment: Moment) -> None:
        """End all processes of the run, at once or a little later."""
        if moment.delay and os.fork():
            return
        time.sleep(moment.delay)
        os.killpg(0, moment.signal)

    def on_audit(self, event: str, arguments: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            path = arguments[0]
            path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
            if path.startswith(self.folder):
                self.note()

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        self.stack.append(STAGES.index(stage))
        try:
            yield
        finally:
            self.stack.pop()

    def wrap(self, holder: Any, name: str, stage: str | None) -> None:
        """Let a function count as a stage, or without one as an event."""
        plain: Callable[..., Any] = getattr(holder, name)

        def watched(*args: Any, **options: Any) -> Any:
            if stage is None:
                self.note()
                return plain(*args, **options)
            with self.during(stage):
                return plain(*args, **options)

        setattr(holder, name, watched)

    def begin(self) -> None:
        """In the process that is watched."""
        Figure.savefig = lambda _, path, **options: Path(path).write_bytes(b"a picture")
        for holder, name, stage in (
            (command, "train", "training"),
            (MultiTaskTrainer, "evaluate_and_answer", "evaluation"),
            (command, "evaluate", "evaluation"),
            (MultiTaskTrainer, "_save_checkpoint", "checkpoint"),
            (best_checkpoints, "keep_models", "best of task"),
            (command, "settle", "settling"),
            (command, "save_result", "final folder"),
            (command, "write_predictions", "final folder"),
            (command, "write_model_card", "card"),
            (command, "publish", "push"),
            (MultiTaskTrainer, "training_step", None),
            (MultiTaskTrainer, "_embed_split", None),
            (MultiTaskTrainer, "_answer", None),
            (Trainer, "floating_point_ops", None),
        ):
            self.wrap(holder, name, stage)
        sys.addaudithook(self.on_audit)

    def ended(self, status: int, said: str) -> Ended:
        stages = bytes(self.memory[8 : 8 + self.count()])
        return Ended(status, STAGES[stages[-1]] if stages else STAGES[0], stages, said)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def use_hub(url: str, token: str, cache: Path) -> None:
    """Send what this process asks of the Hub to a server on its own machine, and keep what comes from there apart."""
    constants.HF_HUB_CACHE = str(cache)
    constants.ENDPOINT = url
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
    os.environ["HF_TOKEN"] = token


def train(
    job: Path,
    *flags: str,
    processes: int = 1,
    moment: Moment | None = None,
    limit: float = 300,
    hub: tuple[str, str] | None = None,
) -> Ended:
    """
    Run train.py on a recipe in forked processes of their own group, with caches beside the recipe.

    Args:
        job: the recipe.
        flags: of the command line.
        processes: how many.
        moment: when to end them; `None` to let them run.
        limit: seconds after which a run is ended with SIGKILL, and its status is `HANGS`.
        hub: URL and token of a local Hub to push to.
    """
    import datasets

    tqdm.set_lock(threading.RLock())  # else forked processes share one, and a killed one may hold it for ever
    gc.freeze()  # the children need not go through what was imported here
    watch, log = Watch(job.parent, moment), job.with_name("said.txt")
    log.unlink(missing_ok=True)
    port, children = free_port(), []
    for rank in range(processes):
        child = os.fork()
        if child:
            children.append(child)
            os.setpgid(child, children[0])
            continue
        status = 1
        try:
            with contextlib.suppress(PermissionError):
                os.setpgid(0, children[0] if children else 0)
            output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if processes > 1:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in place.items()})
            datasets.config.HF_DATASETS_CACHE = job.parent / "cache"
            if hub:
                use_hub(*hub, job.parent / "hub")
            if rank == 0:
                watch.begin()
            command.main([str(job), *flags])
            status = 0
        except SystemExit as exited:
            status = exited.code if isinstance(exited.code, int) else 1
            if isinstance(exited.code, str):
                os.write(2, f"{exited.code}\n".encode())
        except BaseException:
            import traceback

            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return watch.ended(wait_for(children, limit), log.read_text(encoding="utf-8", errors="replace"))


def wait_for(children: list[int], limit: float) -> int:
    """The exit status of the first of some processes that ended otherwise than well, `HANGS` after so many seconds;
    all have ended then."""
    statuses, ends, hangs = {}, time.monotonic() + limit, False
    while len(statuses) < len(children):
        hangs = time.monotonic() > ends
        if hangs or any(statuses.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(children[0], signal.SIGKILL)
        for child in children:
            if child not in statuses:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return HANGS if hangs else next((status for status in statuses.values() if status), 0)


def random_moment(stages: bytes, chance: random.Random) -> Moment:
    """A random event of a random stage of a run, so that short stages are hit as often as long ones."""
    stage = chance.choice(sorted(set(stages)))
    event = chance.choice([place for place, found in enumerate(stages, 1) if found == stage])
    delay = chance.choice([0, chance.uniform(0, 0.05)])
    return Moment(event, chance.choice([signal.SIGKILL, signal.SIGTERM]), delay)
