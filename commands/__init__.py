"""What can be done with recipes and trained folders: one file a command, but for train.py, which stands at the top.

    multitask-sentence NAME ...
    python -m multitask_sentence NAME ...

Each file has a `main(argv)`, which reads the command's own arguments, and `--help` is its docstring. A new command is
a file here and a line in `COMMANDS`.
"""

COMMANDS = {
    "train": "train a model from a recipe",
    "evaluate": "score a trained model on labelled data, without training",
    "compare": "compare trained models on the same rows",
    "report": "write one HTML page about a run: scores, errors to search, confusion, calibration",
    "card": "write the model card of a finished folder anew",
    "push": "push a finished folder to the Hugging Face Hub",
    "label": "label a file, every row with all answers",
    "serve": "answer requests over HTTP",
    "export": "write the graphs that serve a trained folder without torch",
    "sign": "sign a folder, code included, with a private key",
    "verify": "check a folder's signature with the public key",
    "doctor": "open a folder or repository in every way there is, and compare the answers",
}

__all__ = ["COMMANDS"]
