"""The routes of the server, as a FastAPI application.

    POST /predict         every task's answer for sentences or pairs, with embeddings on request
    POST /v1/embeddings   as OpenAI's (https://platform.openai.com/docs/api-reference/embeddings/create)
    GET  /v1/models       the one model, as OpenAI's
    GET  /health          whether the server answers, and what the model can do
    GET  /metrics         counts and times for Prometheus
    GET  /docs            all of it, to read and try

Every error has one form, `{"error": {"message": ..., "param": ..., "type": ...}}`, whose message is one line that
names the field: 400 for broken JSON, 401 without the token, 408 for a body that does not come, 413 for one that is too
large, 422 for a wrong field, 429 while too much waits, 500 for a failure of the server's own, 503 while it goes down.
"""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ..answers_multitask import farthest_labelled
from ..checks_multitask import suggest
from ..rows_multitask import without_lone_surrogates
from .batching import Abstain, Batcher, ClosedError, QueueFullError, Row
from .engine import Engine
from .limits import Limits

OPEN_PATHS = ("/health", "/metrics", "/docs", "/openapi.json")  # asked by machines of the house, without a token
# The nearest known name is searched for on the loop that reads all requests, which a name of megabytes would hold up.
TaskName = Annotated[str, Field(max_length=1_000)]


class FieldError(Exception):
    """A field of a request has a wrong value: answered with 422."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


class Abstention(BaseModel):
    """When a classification gives no label."""

    model_config = ConfigDict(extra="forbid")

    confidence: float | None = Field(None, ge=0, le=1, description="Labels of which the model is less sure are null.")
    out_of_scope: float | None = Field(
        None, ge=0, le=100, description="Labels of rows beyond this percentile out of a task's scope are null."
    )


class PredictRequest(BaseModel):
    """Sentences or pairs to answer."""

    model_config = ConfigDict(extra="forbid")

    sentences: str | list[str] | None = Field(None, description="One sentence or several.")
    pairs: list[tuple[str, str]] | None = Field(None, description="Pairs, for the tasks that compare two sentences.")
    tasks: TaskName | list[TaskName] | None = Field(
        None, description="The tasks to answer; all that read this kind of input."
    )
    embeddings: bool = Field(False, description="Whether to answer with the embeddings, too.")
    abstain: Abstention | Literal[False] | None = Field(
        None,
        description="When to give no label: as configured, below a confidence, or out of scope; false for never.",
    )


class EmbeddingsRequest(BaseModel):
    """OpenAI's request; `user` and the name of the model are taken and not looked at."""

    model_config = ConfigDict(extra="forbid")

    input: str | list[str] = Field(description="One sentence or several.")
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="Only the model's own.")
    user: str | None = None


def _failure(status: int, message: str, field: str | None = None, **headers: str) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    content = {"error": {"message": message, "type": kind, "param": field, "code": status}}
    return Response(json.dumps(content), status, headers, media_type="application/json")


def _where(location: Sequence[str | int]) -> str:
    """`sentences[3]` from a path of pydantic, without the kinds that it tried."""
    known = {*PredictRequest.model_fields, *EmbeddingsRequest.model_fields, *Abstention.model_fields}
    parts = [part for part in location[1:] if isinstance(part, int) or part in known or len(location) == 2]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".") or "body"


class _Metrics:
    """The server's own counts, which Prometheus reads."""

    def __init__(self, batcher: Batcher):
        self.registry = CollectorRegistry()
        own = {"namespace": "multitask_sentence", "registry": self.registry}
        self.requests = Counter("requests", "Answered requests", ["path", "status"], **own)
        self.seconds = Histogram("request_seconds", "From a request's arrival to its answer", ["path"], **own)
        counts = batcher.counts
        for name, what in (
            ("passes", "Batches that the model computed"),
            ("rows", "Sentences and pairs that the model computed"),
            ("refused", "Requests that were refused because too many rows waited"),
            ("waiting_rows", "Sentences and pairs that wait now"),
        ):
            Gauge(name, what, **own).set_function(lambda name=name: getattr(counts, name))


class _Gate:
    """What every request passes, as plain ASGI: the token, the limits on bodies, and the counts for Prometheus."""

    def __init__(self, app: Any, token: str | None, limits: Limits, metrics: _Metrics, paths: Sequence[str]):
        self.app, self.token, self.limits = app, token, limits
        self.metrics, self.paths = metrics, set(paths)
        self.held = 0  # bytes of the bodies of all requests that are not answered

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        chunks: list[bytes] = []

        async def counted(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            refusal, body = await self._look_at(scope, receive, chunks)
            if refusal is not None:
                await refusal(scope, receive, counted)
            elif body is not None:
                messages = iter([{"type": "http.request", "body": body, "more_body": False}])

                async def replay() -> Any:
                    return next(messages, None) or await receive()

                # Every body is JSON, whatever its header says: curl -d and urllib call it a form.
                others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
                headers = [*others, (b"content-type", b"application/json")]
                status = 500  # until an answer begins: what fails before it is answered so, outside of this
                await self.app({**scope, "headers": headers}, replay, counted)
        finally:
            self.held -= sum(map(len, chunks))
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, str(status or "disconnected")).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    async def _look_at(
        self, scope: dict[str, Any], receive: Any, chunks: list[bytes]
    ) -> tuple[Response | None, bytes | None]:
        """A refusal, or the whole body; neither where the caller has gone. `chunks` gets what was read of the body."""
        headers, limits = dict(scope["headers"]), self.limits
        sent = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        if self.token and scope["path"] not in OPEN_PATHS and not secrets.compare_digest(sent, self.token.encode()):
            message = "The request needs the header Authorization: Bearer TOKEN with the right token."
            return _failure(401, message, **{"WWW-Authenticate": "Bearer"}), None
        announced = headers.get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > limits.max_body_bytes:
            return self._too_large(), None
        try:
            async with asyncio.timeout(limits.max_body_seconds):
                return await self._read(receive, chunks)
        except TimeoutError:
            said = f"The body did not come within {limits.max_body_seconds} seconds. Send all of it at once."
            return _failure(408, said, connection="close"), None

    async def _read(self, receive: Any, chunks: list[bytes]) -> tuple[Response | None, bytes | None]:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None, None
            chunks.append(message.get("body", b""))
            size, more = size + len(chunks[-1]), message.get("more_body", False)
            self.held += len(chunks[-1])
            if size > self.limits.max_body_bytes:
                return self._too_large(), None
            if size < self.held > self.limits.max_waiting_bytes:  # alone, a request is always taken in
                said = "Too much text is waiting. Try again in a moment."
                return _failure(429, said, connection="close", **{"Retry-After": "1"}), None
        return None, b"".join(chunks)

    def _too_large(self) -> Response:
        said = f"The body holds more than {self.limits.max_body_bytes} bytes. Send fewer or shorter sentences."
        return _failure(413, said, connection="close")


def make_app(engine: Engine, limits: Limits | None = None, token: str | None = None) -> FastAPI:
    """
    The application.

    Args:
        engine: the opened model.
        limits: how much is taken in.
        token: what callers must send as `Authorization: Bearer TOKEN`; nothing is asked where there is none.
    """
    limits = limits or Limits()
    batcher = Batcher(engine.answer, limits.max_waiting_rows, limits.max_batch_rows)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(batcher.close)

    app = FastAPI(
        title="multitask-sentence", description=f"Model: {engine.name}", lifespan=lifespan, strict_content_type=False
    )
    app.state.batcher = batcher
    metrics = _Metrics(batcher)

    def check_rows(field: str, rows: Sequence[Row]) -> None:
        if not rows:
            raise FieldError(field, f"{field} is empty. Send at least one sentence.")
        if len(rows) > limits.max_rows:
            raise FieldError(field, f"{field} holds {len(rows)} rows, but a request may hold {limits.max_rows}.")
        for place, row in enumerate(rows):
            for text in (row,) if isinstance(row, str) else row:
                if len(text) > limits.max_characters:
                    raise FieldError(
                        f"{field}[{place}]",
                        f"{field}[{place}] has {len(text)} characters, but a sentence may have "
                        f"{limits.max_characters}.",
                    )

    def tasks_for(asked: str | list[str] | None, is_pair: bool) -> list[str]:
        fitting = [name for name, task in engine.tasks.items() if task.pair == is_pair]
        if asked is None:
            return fitting
        names = [asked] if isinstance(asked, str) else asked
        for name in names:
            if name not in engine.tasks:
                known = ", ".join(engine.tasks) or "none"
                raise FieldError(
                    "tasks", f"tasks: there is no task {name!r}.{suggest(name, engine.tasks)} Known tasks: {known}."
                )
            if name not in fitting:
                right = "sentences" if is_pair else "pairs"
                raise FieldError("tasks", f"tasks: {name!r} reads {right}. Send {right} instead.")
        return names

    def abstention_for(asked: Abstention | Literal[False] | None, names: Sequence[str]) -> Abstain:
        if not isinstance(asked, Abstention):
            return asked
        abstain = asked.model_dump(exclude_none=True)
        try:
            farthest_labelled(engine.tasks, names, abstain)
        except ValueError as error:
            raise FieldError("abstain", str(error)) from error
        return abstain

    async def answers(
        rows: Sequence[Row], tasks: Sequence[str], embeddings: bool, abstain: Abstain = None
    ) -> list[dict[str, Any]]:
        if not tasks and not embeddings:
            return [{} for _ in rows]
        return await batcher.submit(rows, tasks, embeddings, abstain)

    @app.exception_handler(FieldError)
    async def wrong_field(request: Request, error: FieldError) -> Response:
        return _failure(422, str(error), error.field)

    @app.exception_handler(RequestValidationError)
    async def wrong_body(request: Request, error: RequestValidationError) -> Response:
        found = max(error.errors(), key=lambda found: len(found["loc"]))  # of the forms that a field may have
        if found["type"] == "json_invalid":
            return _failure(400, f"The body is no JSON: {found['ctx']['error']}.")
        field = _where(found["loc"])
        return _failure(422, f"{field}: {found['msg']}", field)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return _failure(error.status_code, f"{request.method} {request.url.path}: {error.detail}. See /docs.")

    @app.exception_handler(QueueFullError)
    async def full(request: Request, error: QueueFullError) -> Response:
        return _failure(429, "Too many rows are waiting. Try again in a moment.", **{"Retry-After": "1"})

    @app.exception_handler(ClosedError)
    async def closed(request: Request, error: ClosedError) -> Response:
        return _failure(503, "The server is going down.")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _failure(500, "The server failed to answer; what went wrong is in the server's log.")

    @app.post("/predict")
    async def predict(body: PredictRequest) -> Response:
        """Answers in the order of the rows: `{"answers": [{"sentiment": {"label": ..., "score": ...}, ...}, ...]}`."""
        if (body.sentences is None) == (body.pairs is None):
            raise FieldError("sentences", "sentences: send sentences or pairs, one of the two.")
        is_pair = body.pairs is not None
        rows = body.pairs if is_pair else [body.sentences] if isinstance(body.sentences, str) else body.sentences
        check_rows("pairs" if is_pair else "sentences", rows)
        names = tasks_for(body.tasks, is_pair)
        found = await answers(rows, names, body.embeddings, abstention_for(body.abstain, names))
        for row in found if body.embeddings else ():
            row["embedding"] = row["embedding"].tolist()
        return Response(json.dumps({"model": engine.name, "answers": found}), media_type="application/json")

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> Response:
        """Embeddings of sentences, for OpenAI's own client and whatever speaks as it does."""
        if body.dimensions not in (None, engine.embedding_dim):
            raise FieldError(
                "dimensions", f"dimensions is {body.dimensions}, but the model has {engine.embedding_dim}."
            )
        rows = without_lone_surrogates([body.input] if isinstance(body.input, str) else body.input)
        check_rows("input", rows)
        found = await answers(rows, [], True)
        tokens = await run_in_threadpool(engine.count_tokens, rows)
        data = []
        for place, row in enumerate(found):
            vector = row["embedding"]
            is_text = body.encoding_format == "base64"
            written = base64.b64encode(vector.astype("<f4").tobytes()).decode() if is_text else vector.tolist()
            data.append({"object": "embedding", "index": place, "embedding": written})
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        content = {"object": "list", "data": data, "model": engine.name, "usage": usage}
        return Response(json.dumps(content), media_type="application/json")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": engine.name, "object": "model", "created": 0, "owned_by": ""}]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        reads = {True: "pairs", False: "sentences"}
        return {
            "status": "ok",
            "model": engine.name,
            "engine": engine.kind,
            "embedding_dim": engine.embedding_dim,
            "tasks": {name: reads[task.pair] for name, task in engine.tasks.items()},
        }

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    paths = [route.path for route in app.routes]
    app.add_middleware(_Gate, token=token, limits=limits, metrics=metrics, paths=paths)
    return app


__all__ = ["make_app"]
