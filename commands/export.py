"""Export a trained folder for serving: graphs for ONNX Runtime and OpenVINO, in the same folder.

    multitask-sentence export runs/quickstart
    multitask-sentence export runs/quickstart --engines onnx openvino

The folder gets onnx/ (openvino/) and runtime_multitask.py, which opens them without torch. Every output is compared
with the model's own before anything is kept.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..runtime.graphs import GRAPHS


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="multitask-sentence export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="The folder of a trained model.")
    parser.add_argument("--engines", nargs="+", choices=list(GRAPHS), default=["onnx"], help="What for (onnx).")
    options = parser.parse_args(argv)
    from ..export.folder import export_folder  # torch takes a while, and --help needs none of it

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201 - what this command is for

    started = time.time()
    try:
        export_folder(options.folder, options.engines, say)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    say(f"Took {time.time() - started:.0f} s. Open it with runtime_multitask.MultiTaskRuntime.from_pretrained.")


if __name__ == "__main__":
    main()
