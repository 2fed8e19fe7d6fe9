"""How tests call the benchmarks: on a handful of sentences."""

from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SHORT = ["--dtypes", "float32", "--rounds", "1", "--threads", "1"]
ARGUMENTS = {
    "encode": ["--sentences", "6", "--batch_sizes", "3", "4"],
    "predict": ["--sentences", "6", "--batch_sizes", "3", "--tasks", "2"],
    "latency": ["--sentences", "4"],
    "scaling": [
        "--sentences",
        "6",
        "--batch_sizes",
        "3",
        "--lengths",
        "4",
        "9",
        "--tokens",
        "18",
        "--heads",
        "1",
        "3",
    ],
    "padding": ["--rows", "16"],
    "training": ["--rows", "60", "--batch_size", "4", "--max_length", "20"],
}
