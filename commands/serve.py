"""Answer requests over HTTP: every label and the embedding from one pass, requests that come together in one batch.

    multitask-sentence serve runs/quickstart --port 8000
    multitask-sentence serve user/name --revision COMMIT --dtype bfloat16
    multitask-sentence serve runs/quickstart --engine onnx --dtype int8     # after multitask-sentence export
    curl localhost:8000/predict -H 'Content-Type: application/json' -d '{"sentences": ["What a lovely evening!"]}'

POST /predict, POST /v1/embeddings (as OpenAI's), GET /health, /metrics and /docs. SIGTERM ends the server when all
that it has taken in is answered, or after --max_shutdown_seconds. Opening a model runs the Python files of its
repository: pin a Hub id with its --revision.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

from ..serving.limits import Limits
from ..training.run.mistakes import told_in_one_line
from ..training.run.pinned import add_pin_options, check_pinned

TOKEN_VARIABLE = "MULTITASK_SENTENCE_TOKEN"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="multitask-sentence serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="A folder or a Hub repository.")
    add_pin_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 answers other machines, too (%(default)s).")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s).")
    parser.add_argument("--engine", choices=["torch", "onnx", "openvino"], default="torch", help="(%(default)s)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="Of the weights (float32). torch has no int8, onnx no bfloat16, and neither export float16.",
    )
    parser.add_argument("--device", help="Of torch, such as cuda (a GPU if there is one).")
    parser.add_argument(
        "--token",
        default=os.environ.get(TOKEN_VARIABLE),
        help=f"What callers must send as a bearer token; better given as the environment variable {TOKEN_VARIABLE}.",
    )
    for limit in fields(Limits):
        parser.add_argument(f"--{limit.name}", type=int, default=limit.default, help="(%(default)s)")
    options = parser.parse_args(argv)
    if options.engine == "torch" and options.dtype == "int8":
        parser.error("--dtype int8 needs --engine onnx or openvino, and a folder that was exported with --int8")
    if options.engine != "torch" and options.device:
        parser.error("--device belongs to --engine torch: exports compute on the CPU")
    if not 0 <= options.port <= 65_535:
        parser.error(f"--port is {options.port}, but should be from 0, which takes a free one, to 65535")
    if options.token is not None and not options.token.strip():
        parser.error(
            f"the token is empty. Give one as {TOKEN_VARIABLE}, or unset the variable and leave --token out, so that "
            "everybody is answered"
        )
    try:
        import uvicorn

        from ..serving.app import make_app
    except ImportError as error:
        packages = "fastapi uvicorn httptools uvloop prometheus_client"
        sys.exit(f"error: serve needs {error.name}, which is not installed: pip install {packages}")
    from ..runtime.graphs import in_a_thread_of_its_own
    from ..serving.engine import RuntimeEngine, TorchEngine

    with told_in_one_line():
        limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
        check_pinned(options.source, options.revision, options.require_pinned)
        if options.engine == "torch":
            # The threads of OpenMP that loading starts would stay, and those that compute sleep after every operation
            # where there are more than cores (GOMP_SPINCOUNT). They end with the thread that they belong to.
            engine = in_a_thread_of_its_own(
                TorchEngine, options.source, options.revision, options.dtype, options.device
            )
        else:
            engine = RuntimeEngine(options.source, options.engine, options.revision, options.dtype)
    app = make_app(engine, limits, options.token)
    # While requests are read, the thread that computes waits for Python's lock; by default up to 5 ms, or longer.
    sys.setswitchinterval(0.0005)
    # Not a line for each request: /metrics counts them.
    log = {"log_level": "info", "access_log": False}
    end = limits.max_shutdown_seconds
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=end, **log)


if __name__ == "__main__":
    main()
