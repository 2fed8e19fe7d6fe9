"""Resident memory of a server whose requests change in length, after more and more of them.

    python benchmarks/memory.py [--backbone FOLDER_OR_ID] [--requests 200] [--rows 16] [--words 120] [--json FILE]

Each contender runs in a process of its own: our `encode` as it is, the same without oneDNN
(`torch.backends.mkldnn.flags(enabled=False)`), and sentence-transformers. All get the same requests: 1 to `--rows`
texts of one length each, of 1 to `--words` words, drawn with a fixed seed.
"""

import argparse
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import measuring
import torch

OURS, WITHOUT, THEIRS = "ours", "ours, without oneDNN", "sentence-transformers"


def resident_megabytes() -> int:
    """Memory of this process that is in RAM now, as Linux tells it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise RuntimeError("/proc/self/status has no VmRSS: this benchmark needs Linux.")


def request(generator: random.Random, rows: int, words: int) -> list[str]:
    """Texts of one request."""
    return [" ".join(["word"] * generator.randint(1, words)) for _ in range(generator.randint(1, rows))]


def encoder(contender: str, backbone: str) -> Callable[[list[str]], object]:
    if contender == THEIRS:
        from sentence_transformers import SentenceTransformer

        from multitask_sentence.backbone_multitask import find_backbone

        return SentenceTransformer(find_backbone(backbone), device="cpu").encode
    from multitask_sentence import MultiTaskModel

    return MultiTaskModel.from_backbone(backbone).encode


def measure(contender: str, backbone: str, requests: int, rows: int, words: int) -> list[str]:
    """Megabytes after opening, after a quarter, half and all of the requests, and requests a second."""
    torch.set_num_threads(1)
    encode, generator = encoder(contender, backbone), random.Random(0)
    found, started = [str(resident_megabytes())], time.perf_counter()
    plain = torch.backends.mkldnn.flags(enabled=False) if contender == WITHOUT else contextlib.nullcontext()
    with plain:
        for number in range(1, requests + 1):
            encode(request(generator, rows, words))
            if number in (requests // 4, requests // 2, requests):
                found.append(str(resident_megabytes()))
    return [*found, f"{requests / (time.perf_counter() - started):.1f}"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--requests", type=int, default=200, help="at least 4")
    parser.add_argument("--rows", type=int, default=16, help="most texts of a request")
    parser.add_argument("--words", type=int, default=120, help="most words of a text")
    names = [OURS, WITHOUT, THEIRS]
    parser.add_argument("--contenders", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--contender", choices=names, help="only this one, in this process")
    parser.add_argument("--json", type=Path, help="also write the table into this file, beside those that it holds")
    options = parser.parse_args(argv)
    if options.requests < 4:
        parser.error(f"--requests is {options.requests}, but should be at least 4.")
    sizes = [options.requests, options.rows, options.words]
    if options.contender:
        measuring.say("\t".join(measure(options.contender, options.backbone, *sizes)))
        return
    table: list[Sequence[str]] = []
    for contender in options.contenders:
        arguments = ["--backbone", options.backbone, "--contender", contender]
        for name, size in zip(("--requests", "--rows", "--words"), sizes, strict=True):
            arguments += [name, str(size)]
        command = [sys.executable, __file__, *arguments]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        measuring.add_row(table, [contender, *printed.splitlines()[-1].split("\t")])
    after = [f"after {number}" for number in (options.requests // 4, options.requests // 2, options.requests)]
    title = f"memory in MB: {options.backbone}, {measuring.machine(1)}"
    measuring.report(title, ["", "opened", *after, "requests/s"], table, options.json)


if __name__ == "__main__":
    main()
