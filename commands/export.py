"""Export a trained folder for serving: graphs for ONNX Runtime and OpenVINO, in the same folder.

    multitask-sentence export runs/quickstart
    multitask-sentence export runs/quickstart --engines onnx openvino
    multitask-sentence export runs/quickstart --int8 --recipe recipes/quickstart.yaml
    multitask-sentence export runs/quickstart --plain
    multitask-sentence export runs/quickstart --space demo

The folder gets onnx/ (openvino/) and runtime_multitask.py, which opens them without torch. Every output is compared
with the model's own before anything is kept. With --int8, the smallest int8 graph is added that keeps every task's
validation score within 0.3 points. With --plain, FOLDER/plain/ gets ordinary folders without custom code instead: the
embedding for sentence-transformers, and each head that a sequence classifier of transformers has with equal numbers.
With --space, a new folder gets a Gradio app with the model beside it: push it as a Space of the Hub.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from ..runtime.graphs import GRAPHS
from ..training.run.mistakes import told_in_one_line


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="multitask-sentence export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="The folder of a trained model.")
    parser.add_argument("--engines", nargs="+", choices=list(GRAPHS), default=["onnx"], help="What for (onnx).")
    parser.add_argument("--int8", action="store_true", help="Also write an int8 graph that passes the gate.")
    parser.add_argument("--recipe", type=Path, help="Whose validation rows int8 is measured on (FOLDER/recipe.yaml).")
    parser.add_argument("--data_root", type=Path, help="What relative data paths start from (the recipe's folder).")
    parser.add_argument("--accept_loss", nargs="+", default=[], metavar="TASK", help="Tasks that int8 may cost more.")
    parser.add_argument("--plain", action="store_true", help="Write ordinary folders without custom code instead.")
    parser.add_argument("--space", type=Path, metavar="DIR", help="Write a demo into this new folder instead.")
    options = parser.parse_args(argv)
    if options.plain + options.int8 + (options.space is not None) > 1:
        parser.error("--plain writes float32 folders, --int8 graphs, and --space a demo. Give one at a time.")
    if not options.int8 and (options.accept_loss or options.recipe or options.data_root):
        parser.error("--recipe, --data_root and --accept_loss belong to --int8.")
    # torch takes a while, and --help needs none of it
    from ..export.folder import check_engines, export_folder, open_model
    from ..export.gate import load_rows
    from ..export.int8 import CALIBRATION_SENTENCES

    def say(text: str) -> None:
        print(text, flush=True)  # noqa: T201 - what this command is for

    started = time.time()
    with told_in_one_line():
        if options.space:
            from ..export.space import write_space

            write_space(options.folder, options.space)
            say(f"{options.space} is a Space. Try it: pip install gradio, then python {options.space}/app.py.")
            return
        if options.plain:
            from ..export.plain import export_plain

            for name, found in export_plain(open_model(options.folder), options.folder / "plain").items():
                place = options.folder / "plain" / name
                say(f"No {place}: {found}." if isinstance(found, str) else f"{place}: largest difference {found:.1e}.")
            return
        rows = None
        if options.int8:
            check_engines(options.engines, int8=True)
            model = open_model(options.folder)
            rows = load_rows(model, options.folder, options.recipe, options.data_root, CALIBRATION_SENTENCES)
        export_folder(options.folder, options.engines, rows, options.accept_loss, say)
    say(f"Took {time.time() - started:.0f} s. Open it with runtime_multitask.MultiTaskRuntime.from_pretrained.")


if __name__ == "__main__":
    main()
