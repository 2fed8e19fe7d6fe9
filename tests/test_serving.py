"""The server over real HTTP: answers as the model's own, one line for every mistake, and an end that loses nothing."""

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from fastapi.testclient import TestClient

from helpers.every_task import TASKS
from multitask_sentence import MultiTaskModel
from multitask_sentence.commands.serve import main
from multitask_sentence.export.folder import export_folder
from multitask_sentence.serving.app import make_app
from multitask_sentence.serving.batching import Batcher, ClosedError, QueueFullError
from multitask_sentence.serving.engine import TorchEngine
from multitask_sentence.serving.limits import Limits
from multitask_sentence.training.calibration.scope import fit_scope

TOKEN = "a-word-between-friends"
LIMITS = {"max_rows": 50, "max_characters": 2_000, "max_body_bytes": 60_000}
SENTENCES = ["the cat sat on the mat", "a dog ran", "", "good film today and bad news " * 30, "the bank \N{ROCKET}"]


@dataclass
class Server:
    """A running server and the model that it was started on."""

    url: str
    model: MultiTaskModel
    process: subprocess.Popen

    def send(self, path: str, body: Any = None, token: str | None = TOKEN) -> tuple[int, Any]:
        """Status and content of an answer; bytes are sent as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                status, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        return status, content.decode() if path == "/metrics" else json.loads(content)

    def error(self, path: str, body: Any, **options: Any) -> tuple[int, str, str | None]:
        """Status, message and field of a refusal."""
        status, content = self.send(path, body, **options)
        return status, content["error"]["message"], content["error"]["param"]


def close(found: Any, expected: Any) -> bool:
    """Whether two answers have the same form and words, and numbers within 1e-5."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == (pytest.approx(expected, abs=1e-5) if isinstance(expected, float) else expected)


def start(folder: Path, *arguments: str) -> tuple[str, subprocess.Popen]:
    """A server on a free port, and its address."""
    command = [sys.executable, "-m", "multitask_sentence", "serve", str(folder), "--port", "0", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MULTITASK_SENTENCE_TOKEN": TOKEN}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    said, limit = [], threading.Timer(120, process.kill)
    limit.start()
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"running on (http://[\d.:]+)", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it never waits for us
                return found[1], process
    finally:
        limit.cancel()
    raise AssertionError("".join(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    folder = tmp_path_factory.mktemp("served") / "model"
    MultiTaskModel.from_backbone(tiny_backbone, tasks=TASKS, projection={"out_features": 24}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    limits = [word for name, value in LIMITS.items() for word in (f"--{name}", str(value))]
    url, process = start(folder, *limits)
    yield Server(url, MultiTaskModel.from_pretrained(folder), process)
    process.kill()
    process.wait()


def test_predict_answers_as_the_model_does(server: Server) -> None:
    status, content = server.send("/predict", {"sentences": SENTENCES})
    assert status == 200
    assert close(content["answers"], server.model.predict(SENTENCES, as_list=True))


def test_embeddings_come_with_the_answers_on_request(server: Server) -> None:
    _, content = server.send("/predict", {"sentences": SENTENCES, "tasks": "mood", "embeddings": True})
    found = np.array([row["embedding"] for row in content["answers"]])
    np.testing.assert_allclose(found, server.model.encode(SENTENCES), atol=1e-5)
    assert {*content["answers"][0]} == {"embedding", "mood"}


def test_pairs_are_read_by_the_tasks_that_compare(server: Server) -> None:
    pairs = [("the cat sat", "a cat"), ("a dog ran", "the bank")]
    _, content = server.send("/predict", {"pairs": pairs})
    assert {*content["answers"][0]} == {"entails", "distance", "similarity", "search"}
    assert close(content["answers"], server.model.predict(pairs, as_list=True))


def test_labels_are_withheld_where_the_request_asks_for_more_confidence(server: Server) -> None:
    sure = server.model.predict(SENTENCES)["mood"]["probabilities"].max(axis=1)
    least = float(np.sort(sure)[1:3].mean())
    for abstain in ({"confidence": least}, False, None):
        _, content = server.send("/predict", {"sentences": SENTENCES, "abstain": abstain})
        assert close(content["answers"], server.model.predict(SENTENCES, as_list=True, abstain=abstain))
        given = [row["mood"]["label"] is not None for row in content["answers"]]
        assert given == ((sure >= least).tolist() if abstain else [True] * len(SENTENCES))


def test_labels_are_withheld_out_of_scope_where_the_request_asks_so(folder: Path, tmp_path: Path) -> None:
    model = MultiTaskModel.from_pretrained(folder)
    model.config.tasks["mood"] = replace(model.config.tasks["mood"], out_of_scope=True)
    labels = torch.arange(40) % len(model.config.tasks["mood"].labels)
    generator, own = torch.Generator().manual_seed(0), model.encode(SENTENCES, normalize=False, convert_to="tensor")
    embeddings, noise = (torch.randn(rows, own.shape[1], generator=generator) for rows in (40, 150))
    held_out = own.repeat(30, 1) + torch.linspace(0, 1, 150)[:, None] * own.std() * noise  # some near, some far
    model._set_scope("mood", fit_scope(model.config.tasks["mood"], embeddings, labels, held_out))
    model.save_pretrained(tmp_path)
    beyond = np.sort(model.predict(SENTENCES)["mood"]["out_of_scope"])
    assert beyond[1] < beyond[2]
    abstain = {"out_of_scope": float(beyond[1:3].mean())}
    with TestClient(make_app(TorchEngine(str(tmp_path)))) as client:
        content = client.post("/predict", json={"sentences": SENTENCES, "tasks": "mood", "abstain": abstain}).json()
        refused = [
            client.post("/predict", json={"sentences": SENTENCES, "tasks": task, "abstain": asked})
            for task, asked in (("tags", abstain), ("mood", {}), ("mood", {"out_of_scope": 101}))
        ]
    assert close(content["answers"], model.predict(SENTENCES, head="mood", as_list=True, abstain=abstain))
    assert sum(row["mood"]["label"] is None for row in content["answers"]) == len(SENTENCES) - 2
    errors = [answer.json()["error"] for answer in refused]
    assert [answer.status_code for answer in refused] == [422] * 3
    assert [error["param"] for error in errors] == ["abstain", "abstain", "abstain.out_of_scope"]
    assert "none of the tasks tags knows its scope" in errors[0]["message"] and "empty" in errors[1]["message"]


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_openai_client_gets_the_embeddings(server: Server, encoding_format: str) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=TOKEN)
    answer = client.embeddings.create(model="any", input=SENTENCES, encoding_format=encoding_format)
    found = [
        np.frombuffer(base64.b64decode(row.embedding), dtype="<f4")
        if isinstance(row.embedding, str)
        else row.embedding
        for row in answer.data
    ]
    np.testing.assert_allclose(found, server.model.encode(SENTENCES), atol=1e-5)
    tokens = server.model.tokenizer(SENTENCES, truncation=True, max_length=server.model.config.max_length)["input_ids"]
    assert answer.usage.prompt_tokens == sum(map(len, tokens))
    assert [model.id for model in client.models.list()] == [answer.model]


def test_half_a_character_is_read_as_predict_reads_it(server: Server) -> None:
    cut, mended = b'{"input": ["the cat \\ud83d"]}', {"input": ["the cat \ufffd"]}
    (status, found), (_, expected) = server.send("/v1/embeddings", cut), server.send("/v1/embeddings", mended)
    assert status == 200
    assert close(found, expected)


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "field"),
    [
        ("/predict", b'{"sentences": ["a"', 400, "The body is no JSON", None),
        ("/predict", ["a"], 422, "body: ", "body"),
        ("/predict", {}, 422, "send sentences or pairs", "sentences"),
        ("/predict", {"sentences": "a", "pairs": [["a", "b"]]}, 422, "send sentences or pairs", "sentences"),
        ("/predict", {"sentences": []}, 422, "sentences is empty", "sentences"),
        ("/predict", {"sentences": ["a", 3]}, 422, "sentences[1]: ", "sentences[1]"),
        ("/predict", {"sentences": ["a", None]}, 422, "sentences[1]: ", "sentences[1]"),
        ("/predict", {"pairs": [["a", "b"], ["a"]]}, 422, "pairs[1][1]: ", "pairs[1][1]"),
        ("/predict", {"sentences": "a", "tasks": "moood"}, 422, "Did you mean 'mood'?", "tasks"),
        ("/predict", {"sentences": "a", "tasks": "similarity"}, 422, "reads pairs. Send pairs instead", "tasks"),
        ("/predict", {"sentences": "a", "tasks": "m" * 1_001}, 422, "at most 1000 characters", "tasks"),
        ("/predict", {"sentences": "a", "tasks": ["mood", "m" * 1_001]}, 422, "at most 1000 characters", "tasks[1]"),
        ("/predict", {"sentences": "a", "task": "mood"}, 422, "task: Extra inputs", "task"),
        ("/predict", {"sentences": ["a"] * 51}, 422, "holds 51 rows, but a request may hold 50", "sentences"),
        ("/predict", {"sentences": ["a", "b" * 2_001]}, 422, "has 2001 characters", "sentences[1]"),
        ("/predict", {"sentences": ["a" * 60_000]}, 413, "more than 60000 bytes", None),
        ("/predict", {"sentences": "a", "abstain": {"confidence": 80}}, 422, "less than", "abstain.confidence"),
        ("/predict", {"sentences": "a", "abstain": {"risk": 0.05}}, 422, "Extra inputs", "abstain"),
        ("/v1/embeddings", {"input": [[1, 2]]}, 422, "input[0]: Input should be a valid string", "input[0]"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, 422, "the model has 24", "dimensions"),
        ("/nowhere", {}, 404, "POST /nowhere: Not Found", None),
    ],
)
def test_mistake_gets_one_line_that_names_the_field(
    server: Server, path: str, body: Any, status: int, message: str, field: str | None
) -> None:
    found, said, named = server.error(path, body)
    assert (found, named) == (status, field)
    assert message in said and "\n" not in said
    assert server.send("/health")[1]["status"] == "ok"


def test_token_is_asked_for_but_not_for_health_and_metrics(server: Server) -> None:
    paths = {*server.send("/openapi.json", token=None)[1]["paths"]}
    assert paths >= {"/predict", "/v1/embeddings", "/v1/models", "/health", "/metrics"}
    for path in ("/health", "/metrics"):
        assert server.send(path, token=None)[0] == 200
    for path in ("/nowhere", *paths - {"/health", "/metrics"}):
        for token in (None, "another"):
            status, message, _ = server.error(path, None if path == "/v1/models" else {"sentences": "a"}, token=token)
            assert status == 401 and TOKEN not in message, path


def test_metrics_count_requests_and_rows(server: Server) -> None:
    def rows() -> float:
        return float(re.search(r"^multitask_sentence_rows (\S+)", server.send("/metrics")[1], re.MULTILINE)[1])

    before = rows()
    server.send("/predict", {"sentences": SENTENCES})
    assert rows() == before + len(SENTENCES)
    assert re.search(r'requests_total{path="/predict",status="200"} [1-9]', server.send("/metrics")[1])


def test_failure_of_the_model_has_the_form_of_every_error_and_is_counted(folder: Path) -> None:
    class Failing(TorchEngine):
        def answer(self, *arguments: Any) -> list[dict[str, Any]]:
            raise RuntimeError("cannot allocate what nobody need know")

    with TestClient(make_app(Failing(str(folder))), raise_server_exceptions=False) as client:
        answer = client.post("/predict", json={"sentences": "a"})
        metrics = client.get("/metrics").text
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error == {"message": error["message"], "type": "server_error", "param": None, "code": 500}
    assert "the server's log" in error["message"] and "allocate" not in answer.text
    assert 'multitask_sentence_requests_total{path="/predict",status="500"} 1.0' in metrics
    assert 'multitask_sentence_request_seconds_count{path="/predict"} 1.0' in metrics


def test_many_callers_get_their_own_answers(server: Server) -> None:
    sentences = [
        f"the {first} {second}" for first in ("cat", "dog", "bank", "film") for second in ("ran", "sat", "news")
    ]
    embeddings, answers = server.model.encode(sentences), server.model.predict(sentences, as_list=True)
    pairs = [(sentence, sentences[0]) for sentence in sentences]
    compared = server.model.predict(pairs, tasks="similarity", as_list=True)

    def ask(number: int) -> None:
        place = number % len(sentences)
        if number % 3 == 0:
            _, content = server.send("/v1/embeddings", {"input": sentences[place]})
            np.testing.assert_allclose(content["data"][0]["embedding"], embeddings[place], atol=1e-5)
        elif number % 3 == 1:
            _, content = server.send("/predict", {"sentences": sentences[place], "tasks": ["mood"]})
            assert close(content["answers"], [{"mood": answers[place]["mood"]}])
        else:
            _, content = server.send("/predict", {"pairs": [pairs[place]], "tasks": "similarity"})
            assert close(content["answers"], [compared[place]])

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(ask, range(300)))) == 300


def test_export_answers_as_the_model_does(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    exported = tmp_path / "exported"
    shutil.copytree(folder, exported)
    export_folder(exported, ["onnx"], None, [], lambda text: None)
    url, process = start(exported, "--engine", "onnx")
    server = Server(url, MultiTaskModel.from_pretrained(folder), process)
    try:
        assert server.send("/health")[1]["engine"] == "onnx"
        _, content = server.send("/predict", {"sentences": SENTENCES, "embeddings": True})
        found = np.array([row.pop("embedding") for row in content["answers"]])
        np.testing.assert_allclose(found, server.model.encode(SENTENCES), atol=1e-5)
        assert close(content["answers"], server.model.predict(SENTENCES, as_list=True))
        _, content = server.send("/v1/embeddings", {"input": SENTENCES})
        tokens = server.model.tokenizer(SENTENCES, truncation=True, max_length=server.model.config.max_length)
        assert content["usage"]["prompt_tokens"] == sum(map(len, tokens["input_ids"]))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "int8"), "needs --engine onnx or openvino"),
        (("--engine", "onnx", "--device", "cuda"), "--device belongs to --engine torch"),
        (("--engine", "onnx"), "it was not exported"),
        (("--device", "cud"), "device is 'cud', but should be one that torch computes with here, such as cpu"),
        (("--device", "cuda:99"), "device is 'cuda:99', but should be one that torch computes with here"),
        (("--token", " "), "the token is empty"),
        (("--port", "70000"), "--port is 70000, but should be from 0"),
        (("--max_rows", "0"), "--max_rows is 0, but should be at least 1."),
        (("--max_body_seconds", "-1"), "--max_body_seconds is -1, but should be at least 1."),
    ],
)
def test_settings_that_cannot_be_are_one_line(folder: Path, capsys, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(SystemExit) as exited:
        main([str(folder), *arguments])
    assert message in str(exited.value) + capsys.readouterr().err


def test_sigterm_ends_the_server_when_all_is_answered(folder: Path) -> None:
    url, process = start(folder)
    server = Server(url, None, process)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(server.send, "/predict", {"sentences": SENTENCES * 100}) for _ in range(8)]
        while "multitask_sentence_waiting_rows 0" in server.send("/metrics")[1]:
            assert not all(request.done() for request in asked), "premise: some wait when the signal comes"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        found = [request.result() for request in asked]
    assert [status for status, _ in found] == [200] * 8
    assert all(len(content["answers"]) == 100 * len(SENTENCES) for _, content in found)
    assert process.wait(timeout=30) == -signal.SIGTERM or process.returncode == 0


def test_callers_that_do_not_send_or_do_not_read_cannot_keep_the_server_from_ending(folder: Path) -> None:
    url, process = start(folder, "--max_body_seconds", "1", "--max_shutdown_seconds", "2")
    address, _, port = url.removeprefix("http://").partition(":")
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: "
    body = json.dumps({"sentences": ["the cat"] * 1_000, "embeddings": True})
    try:
        with socket.socket() as deaf, socket.socket() as slow:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for caller in (deaf, slow):
                caller.settimeout(30)
                caller.connect((address, int(port)))
            deaf.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode() * 4)
            assert deaf.recv(12) == b"HTTP/1.1 200", "its answer is there, of which it reads no more"
            slow.sendall(f'{head}100\r\n\r\n{{"sentences": "th'.encode())
            assert Server(url, None, process).send("/health")[0] == 200, "what came before has been taken in"
            process.send_signal(signal.SIGTERM)
            assert slow.recv(65_536).startswith(b"HTTP/1.1 408")
            process.wait(timeout=30)
    finally:
        process.kill()
        process.wait()


def test_text_that_waits_or_is_on_its_way_is_limited_and_a_request_alone_is_taken(folder: Path) -> None:
    inside, ended = threading.Event(), threading.Event()

    class Waiting(TorchEngine):
        def answer(self, *arguments: Any) -> list[dict[str, Any]]:
            inside.set()
            ended.wait(30)
            return super().answer(*arguments)

    limits = Limits(max_waiting_bytes=1_000)
    with TestClient(make_app(Waiting(str(folder)), limits)) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", json={"sentences": "a" * 2_000})
        inside.wait(30)
        refused = client.post("/predict", json={"sentences": "b"})
        ended.set()
        assert first.result().status_code == 200
        assert client.post("/predict", json={"sentences": "b"}).status_code == 200
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
    assert "Too much text is waiting" in refused.json()["error"]["message"]


# ---- the queue ----


@pytest.fixture
def answer_when_told() -> tuple[Callable[..., list[dict[str, Any]]], threading.Event, threading.Event, list[int]]:
    """An answer that sets an event and waits for another, both events, and the sizes of its batches."""
    taken, event, sizes = threading.Event(), threading.Event(), []

    def answer(rows: list[str], tasks: list[str], embeddings: bool, abstain: Any) -> list[dict[str, Any]]:
        taken.set()
        event.wait(30)
        sizes.append(len(rows))
        if "poison" in rows:
            raise RuntimeError("bad row")
        return [dict.fromkeys(tasks, (row, abstain) if abstain else row) for row in rows]

    return answer, taken, event, sizes


def test_waiting_requests_are_answered_together_and_a_full_queue_refuses(answer_when_told) -> None:
    answer, taken, event, sizes = answer_when_told
    batcher = Batcher(answer, max_waiting_rows=5, max_batch_rows=4)

    async def ask() -> None:
        first = asyncio.create_task(batcher.submit(["0"], ["mood"], False))
        assert await asyncio.to_thread(taken.wait, 30)
        others = [
            asyncio.create_task(batcher.submit([str(number)], [f"task{number}"], False)) for number in range(1, 6)
        ]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(["6"], ["mood"], False)
        event.set()
        assert await first == [{"mood": "0"}]
        assert await asyncio.gather(*others) == [[{f"task{row}": row}] for row in "12345"]

    asyncio.run(ask())
    assert sizes == [1, 4, 1]
    batcher.close()
    with pytest.raises(ClosedError):
        asyncio.run(batcher.submit(["7"], ["mood"], False))


def test_callers_that_ask_again_and_again_are_answered_together() -> None:
    taken, sizes = threading.Event(), []

    def answer(rows: list[str], tasks: list[str], embeddings: bool, abstain: Any) -> list[dict[str, Any]]:
        taken.set()
        time.sleep(0.16)  # of which the next pass waits an eighth
        sizes.append(len(rows))
        return [{"mood": row} for row in rows]

    async def call(batcher: Batcher) -> None:
        for number in range(5):
            assert await batcher.submit([str(number)], ["mood"], False) == [{"mood": str(number)}]

    async def call_all() -> None:
        batcher = Batcher(answer, max_waiting_rows=50, max_batch_rows=40)
        first = asyncio.create_task(call(batcher))
        assert await asyncio.to_thread(taken.wait, 30)  # it is computed alone
        await asyncio.gather(first, *(call(batcher) for _ in range(7)))
        batcher.close()

    asyncio.run(call_all())
    assert len(sizes) < 9, f"by turns, two halves need 10 passes; found {sizes}"


def test_requests_that_abstain_otherwise_are_computed_apart(answer_when_told) -> None:
    answer, taken, event, sizes = answer_when_told
    batcher = Batcher(answer, max_waiting_rows=50, max_batch_rows=40)
    asked = [None, {"confidence": 0.5}, None, {"confidence": 0.9}, {"confidence": 0.5}]

    async def ask() -> list[Any]:
        first = asyncio.create_task(batcher.submit(["first"], ["mood"], False))
        assert await asyncio.to_thread(taken.wait, 30)
        others = [asyncio.create_task(batcher.submit(["a"], ["mood"], False, abstain)) for abstain in asked]
        await asyncio.sleep(0)
        event.set()
        await first
        return await asyncio.gather(*others)

    assert asyncio.run(ask()) == [[{"mood": ("a", abstain) if abstain else "a"}] for abstain in asked]
    assert sizes == [1, 2, 2, 1]
    batcher.close()


def test_failing_request_does_not_spoil_those_in_its_batch(answer_when_told) -> None:
    answer, taken, event, sizes = answer_when_told
    batcher = Batcher(answer, max_waiting_rows=50, max_batch_rows=40)

    async def ask() -> list[Any]:
        first = asyncio.create_task(batcher.submit(["first"], ["mood"], False))
        assert await asyncio.to_thread(taken.wait, 30)
        tasks = [asyncio.create_task(batcher.submit([row], ["mood"], False)) for row in ("a", "b", "poison", "c")]
        await asyncio.sleep(0)
        event.set()
        await first
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(ask())
    assert [found[place] for place in (0, 1, 3)] == [[{"mood": "a"}], [{"mood": "b"}], [{"mood": "c"}]]
    assert isinstance(found[2], RuntimeError)
    assert sizes == [1, 4, 1, 1, 1, 1], "together, then each alone"
    batcher.close()
