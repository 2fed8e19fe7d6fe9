"""A Hugging Face Hub on 127.0.0.1, in memory: all that huggingface_hub 2.4 asks of the real one to push and to load.

    with HubServer() as hub:
        environment = hub.environment(tmp_path)  # for a subprocess: HF_ENDPOINT, HF_HOME, HF_TOKEN
        ...                                      # push, load
        hub.repositories["team/model"].branches["main"][-1].files["config.json"]
        hub.count("POST", "/commit/")
    hub.add_dataset("team/set", {"train.parquet": b"..."})   # which is only read

It stores large files by LFS (no xet), and pages nothing. A new repository begins with the Hub's
own commit of `.gitattributes`. Errors carry the headers `X-Error-Code` and `X-Error-Message`, as the real ones do.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DATASETS = "datasets/"  # before the id of a data set
TOKEN, READ_TOKEN, OTHER_TOKEN = "hf_team", "hf_reader", "hf_other"
USERS = {
    TOKEN: {"name": "team", "role": "write"},
    READ_TOKEN: {"name": "team", "role": "read"},
    OTHER_TOKEN: {"name": "other", "role": "write"},
}


@dataclass
class File:
    """A file of a commit; binary ones are kept as large files, as the Hub does."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid


@dataclass
class Commit:
    """A commit: its 40 digits, its message, and all files of the repository by path."""

    oid: str
    message: str
    files: dict[str, File]


@dataclass
class Repository:
    """A model repository: each branch is the list of its commits."""

    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """The last commit of a branch, or the commit of that oid."""
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = (commit for branch in self.branches.values() for commit in branch)
        return next((commit for commit in commits if commit.oid == revision), None)

    def add(self, branch: str, message: str, files: dict[str, File]) -> Commit:
        self.branches.setdefault(branch, []).append(Commit(secrets.token_hex(20), message, files))
        return self.branches[branch][-1]


class HubError(Exception):
    """What a request is refused with."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class HubServer(ThreadingHTTPServer):
    """
    The server; a context manager that serves while it is open.

    Attributes:
        repositories: by id; `{}` at the start.
        requests: method and path of every request so far, in order.
        forbidden: `"create"` or `"commit"` in it: these are answered with 403.
        drops_uploads: whether the connection is cut in the middle of a large file.
        lost: paths of data files that answer with 404, as if they had been removed.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.forbidden: set[str] = set()
        self.drops_uploads = False
        self.lost: set[str] = set()
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def storage_url(self) -> str:
        """Where large files lie: another origin, so that clients stop there and leave their token behind."""
        return f"http://localhost:{self.server_port}"

    def add_dataset(self, name: str, files: dict[str, bytes]) -> None:
        """A public data set with a first commit."""
        repository = self.repositories[f"{DATASETS}{name}"] = Repository()
        repository.add("main", "rows", {path: File(content, is_large=False) for path, content in files.items()})

    def count(self, method: str, part: str) -> int:
        """How many requests of a method had this in their path."""
        return sum(found == method and part in path for found, path in self.requests)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that send a subprocess to this server with an empty cache in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **({"HF_TOKEN": token} if token else {}),
        }


class HubHandler(BaseHTTPRequestHandler):
    """Answers one connection; each method below `ROUTES` names is one call of the Hub's protocol."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    # ---- receiving and answering ----

    def _dispatch(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        length = int(self.headers.get("Content-Length", 0))
        if self.command == "PUT" and self.server.drops_uploads:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.body = self.rfile.read(length)
        try:
            for method, pattern, answer in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split():
                    answer(self, **{name: unquote(value or "") for name, value in found.groupdict().items()})
                    return
            raise HubError(404, f"Not found: {self.command} {path}")
        except HubError as error:
            headers = {"X-Error-Message": error.message, **({"X-Error-Code": error.code} if error.code else {})}
            self.answer({"error": error.message}, error.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _dispatch

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Send bytes as they are, anything else as JSON."""
        is_bytes = isinstance(content, bytes)
        payload = content if is_bytes else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if is_bytes else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    # ---- who may do what ----

    def user(self) -> dict[str, str] | None:
        """Who asks, by token; `None` without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise HubError(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        user, repository = self.user(), self.server.repositories.get(repo_id)
        owns = user is not None and user["name"] == repo_id.split("/")[0]
        if repository is None or (repository.private and not owns):
            raise HubError(401 if user is None else 404, "Repository not found", "RepoNotFound")
        if write and not (owns and user["role"] == "write"):
            raise HubError(403, "You don't have write access to this repository")
        return repository

    def commit(self, repo_id: str, revision: str, write: bool = False) -> Commit:
        found = self.repository(repo_id, write).find(revision)
        if found is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    # ---- calls under /api ----

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}}
        self.answer({"type": "user", "name": user["name"], "orgs": [{"name": f"{user['name']}-lab"}], "auth": access})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        if content.startswith("---\n") and "\n---" not in content[3:]:
            self.answer({"errors": [{"message": "the metadata block does not end"}], "warnings": []}, 400)
        else:
            self.answer({"errors": [], "warnings": []})

    def create_repository(self) -> None:
        user, wanted = self.user(), json.loads(self.body)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        owner = wanted.get("organization") or user["name"]
        if "create" in self.server.forbidden or owner != user["name"] or user["role"] != "write":
            raise HubError(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.server.url}/{repo_id}"
        with self.server.lock:
            if repo_id in self.server.repositories:
                self.answer({"error": "You already created this model repo", "url": url}, 409)
                return
            repository = Repository(private=wanted.get("visibility") == "private")
            attributes = File(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n", is_large=False)
            repository.add("main", "initial commit", {".gitattributes": attributes})
            self.server.repositories[repo_id] = repository
        self.answer({"url": url, "name": repo_id})

    def information(self, repo_id: str, revision: str = "main") -> None:
        commit, repository = self.commit(repo_id, revision or "main"), self.server.repositories[repo_id]
        about = {"id": repo_id, "modelId": repo_id, "sha": commit.oid, "private": repository.private, "tags": []}
        siblings = [{"rfilename": path} for path in commit.files]
        self.answer({**about, "gated": repository.gated and "manual", "disabled": False, "siblings": siblings})

    def tree(self, repo_id: str, revision: str, folder: str = "") -> None:
        """The files below a folder; a listing that is not recursive leaves deeper ones out."""
        files = self.commit(repo_id, revision).files
        inside = f"{folder.rstrip('/')}/" if folder else ""
        found = {path: file for path, file in files.items() if path.startswith(inside)}
        if not found:
            raise HubError(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        if "recursive=true" not in urlsplit(self.path).query.lower():
            found = {path: file for path, file in found.items() if "/" not in path.removeprefix(inside)}
        entries = []
        for path, file in found.items():
            entries.append({"type": "file", "path": path, "size": len(file.content), "oid": file.git_oid})
            if file.is_large:
                entries[-1]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 134}
        self.answer(entries)

    def information_of_paths(self, repo_id: str, revision: str) -> None:
        """Those of the paths that are there."""
        files = self.commit(repo_id, revision).files
        wanted = json.loads(self.body)["paths"]
        found = [(path, files[path]) for path in wanted if path in files]
        self.answer(
            [{"type": "file", "path": path, "size": len(file.content), "oid": file.git_oid} for path, file in found]
        )

    def references(self, repo_id: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
            for name, commits in self.repository(repo_id).branches.items()
        ]
        self.answer({"branches": branches, "converts": [], "tags": []})

    def create_branch(self, repo_id: str, branch: str) -> None:
        repository = self.repository(repo_id, write=True)
        if branch in repository.branches:
            raise HubError(409, f"Reference already exists: {branch}")
        repository.branches[branch] = list(repository.branches["main"])
        self.answer({})

    # ---- pushing ----

    def preupload(self, repo_id: str, revision: str) -> None:
        """How each file is to be sent, and what the branch has of it already."""
        known, modes = self.commit(repo_id, revision, write=True).files, []
        for file in json.loads(self.body)["files"]:
            is_large = b"\0" in base64.b64decode(file["sample"]) or file["path"].endswith(".safetensors")
            modes.append({"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False})
            if file["path"] in known:
                modes[-1]["oid"] = known[file["path"]].etag
        self.answer({"files": modes})

    def large_file_batch(self, repo_id: str) -> None:
        self.repository(repo_id, write=True)
        objects = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in json.loads(self.body)["objects"]]
        for entry in objects:
            if entry["oid"] not in self.server.large_files:
                path = f"/lfs/{entry['oid']}"
                entry["actions"] = {
                    "upload": {"href": self.server.storage_url + path, "header": {}},
                    "verify": {"href": f"{self.server.url}{path}/verify"},
                }
        self.answer({"transfer": "basic", "objects": objects})

    def receive_large_file(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "The content does not have this sha256")
        self.server.large_files[oid] = self.body
        self.answer({})

    def verify_large_file(self, oid: str) -> None:
        if len(self.server.large_files.get(oid, b"")) != json.loads(self.body)["size"]:
            raise HubError(404, "No such large file")
        self.answer({})

    def receive_commit(self, repo_id: str, revision: str) -> None:
        repository = self.repository(repo_id, write=True)
        if "commit" in self.server.forbidden:
            raise HubError(403, "You don't have write access to this repository")
        if revision not in repository.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        with self.server.lock:
            files, message = dict(repository.branches[revision][-1].files), ""
            for line in self.body.splitlines():
                key, value = json.loads(line)["key"], json.loads(line)["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    files[value["path"]] = File(base64.b64decode(value["content"]), is_large=False)
                elif key == "lfsFile" and value["oid"] in self.server.large_files:
                    files[value["path"]] = File(self.server.large_files[value["oid"]], is_large=True)
                else:
                    raise HubError(400, f"This operation cannot be done: {key} {value}")
            commit = repository.add(revision, message, files)
        url = f"{self.server.url}/{repo_id}/commit/{commit.oid}"
        self.answer({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    # ---- loading ----

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        """A small file itself; for a large one, where it lies."""
        commit, repository = self.commit(repo_id, revision), self.server.repositories[repo_id]
        if repository.gated and (self.user() or {}).get("name") != repo_id.split("/")[0]:
            raise HubError(403, "Access to this model is restricted", "GatedRepo")
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            headers |= {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self.answer({"error": "Entry not found"}, 404, headers)
            return
        if path in self.server.lost:
            raise HubError(404, "The file is gone", "EntryNotFound")
        file = commit.files[path]
        headers |= {"ETag": f'"{file.etag}"'}
        if file.is_large:
            size = str(len(file.content))
            headers |= {"X-Linked-Size": size, "X-Linked-ETag": f'"{file.etag}"'}
            self.answer(b"", 302, {**headers, "Location": f"{self.server.storage_url}/lfs/{file.sha256}"})
        else:
            self.send_range(file.content, headers)

    def send_large_file(self, oid: str) -> None:
        if "Authorization" in self.headers:
            raise HubError(400, "The storage takes no token")
        if oid not in self.server.large_files:
            raise HubError(404, "No such large file")
        self.send_range(self.server.large_files[oid], {"ETag": f'"{oid}"'})

    def send_range(self, content: bytes, headers: dict[str, str]) -> None:
        """All of it, or the bytes that a `Range` header asks for."""
        headers = {**headers, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.answer(content, 200, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
        if start >= len(content):
            raise HubError(416, "Range not satisfiable")
        about = {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
        self.answer(content[start:stop], 206, {**headers, **about})


def of_dataset(answer: Callable[..., None]) -> Callable[..., None]:
    """The same call for a data set."""
    return lambda handler, repo_id, **found: answer(handler, f"{DATASETS}{repo_id}", **found)


REPO, REVISION = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/api/whoami-v2", HubHandler.whoami),
    ("POST", "/api/validate-yaml", HubHandler.validate_yaml),
    ("POST", "/api/repos/create", HubHandler.create_repository),
    ("GET", f"/api/models/{REPO}/revision/{REVISION}", HubHandler.information),
    ("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", HubHandler.tree),
    ("GET", f"/api/models/{REPO}/refs", HubHandler.references),
    ("POST", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)", HubHandler.create_branch),
    ("POST", f"/api/models/{REPO}/preupload/{REVISION}", HubHandler.preupload),
    ("POST", f"/api/models/{REPO}/commit/{REVISION}", HubHandler.receive_commit),
    ("GET", f"/api/models/{REPO}", HubHandler.information),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", HubHandler.large_file_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", HubHandler.receive_large_file),
    ("POST", "/lfs/(?P<oid>[0-9a-f]{64})/verify", HubHandler.verify_large_file),
    ("GET HEAD", "/lfs/(?P<oid>[0-9a-f]{64})", HubHandler.send_large_file),
    ("GET HEAD", f"/datasets/{REPO}/resolve/{REVISION}/(?P<path>.+)", of_dataset(HubHandler.resolve)),
    ("GET", f"/api/datasets/{REPO}(?:/revision/{REVISION})?", of_dataset(HubHandler.information)),
    ("GET", f"/api/datasets/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", of_dataset(HubHandler.tree)),
    ("POST", f"/api/datasets/{REPO}/paths-info/{REVISION}", of_dataset(HubHandler.information_of_paths)),
    ("GET HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", HubHandler.resolve),
]
