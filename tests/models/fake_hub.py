"""A hub on this machine: one repository, served as huggingface.co serves it, and a hub cache without it."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any

import pytest
from huggingface_hub import constants

from models import hub as hub_module

CLOSED = "http://127.0.0.1:9"
"""An address where nothing listens."""


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let the library ask `url`, without a login and with no answer kept from before."""
    for variable in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "_answers", {})


def fill_cache(cache: Path, repo_id: str, source: Path, commit: str = "c0ffee") -> Path:
    """A hub cache as a copy without links has it, with one snapshot."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    shutil.copytree(source, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def empty_cache(cache: Path) -> bool:
    """Whether nothing was fetched."""
    return not any(each.is_file() for each in cache.rglob("*"))


@contextmanager
def silent_hub() -> Iterator[str]:
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class FakeHub:
    """Serves the files of a folder as the repository `repo_id`; or refuses it.

    Args:
        repo_id: owner/name.
        source: what it holds; weights are named by SHA-256, as in large-file storage, and the rest as git does.
        commit: the only one, which every revision means but those in `unknown`.
        more: further files.
        refuses: status and X-Error-Code of every answer.
        files_refused: status and X-Error-Code of files only, as for a gated repository.
        gated: what the repository says of itself.
        unknown: a revision that is not there.
    """

    def __init__(
        self,
        repo_id: str,
        source: Path | None = None,
        *,
        commit: str = "1" * 40,
        more: Mapping[str, bytes] | None = None,
        refuses: tuple[int, str] | None = None,
        files_refused: tuple[int, str] | None = None,
        gated: str | bool = False,
        unknown: str | None = None,
    ) -> None:
        files = [] if source is None else [file for file in sorted(source.rglob("*")) if file.is_file()]
        self.files = {file.relative_to(source).as_posix(): file.read_bytes() for file in files if source is not None}
        self.files |= more or {}
        self.repo_id, self.commit, self.gated, self.unknown = repo_id, commit, gated, unknown
        self.refuses, self.files_refused = refuses, files_refused
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fake._answer(self)

            def do_HEAD(self) -> None:
                fake._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 64  # files come side by side; a connection that is dropped waits for a second

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if self.repo_id in path:  # the library asks other things too
            self.asked.append(path)
        api, place = f"/api/models/{self.repo_id}", f"/{self.repo_id}/resolve/{self.commit}/"
        if self.refuses is not None:
            _send(request, self.refuses[0], headers={"X-Error-Code": self.refuses[1]})
        elif self.unknown is not None and path.endswith(f"/{self.unknown}"):
            _send(request, 404, headers={"X-Error-Code": "RevisionNotFound"})
        elif path == api or path.startswith(f"{api}/revision/"):
            about = {"id": self.repo_id, "sha": self.commit, "gated": self.gated, "siblings": []}
            _send(request, 200, json.dumps(about).encode())
        elif path.startswith(f"{api}/tree/"):
            _send(request, 200, json.dumps([_listed(name, content) for name, content in self.files.items()]).encode())
        elif path.startswith(place) and self.files_refused is not None:
            _send(request, self.files_refused[0], headers={"X-Error-Code": self.files_refused[1]})
        elif path.startswith(place) and (name := path.removeprefix(place)) in self.files:
            content = self.files[name]
            headers = {"ETag": f'"{_blob(name, content)}"', "X-Repo-Commit": self.commit}
            _send(request, 200, content, headers=headers)
        else:
            _send(request, 404, headers={"X-Error-Code": "RepoNotFound"})


def _blob(name: str, content: bytes) -> str:
    if name.endswith((".safetensors", ".bin")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _listed(name: str, content: bytes) -> dict[str, Any]:
    blob = _blob(name, content)
    large = {"lfs": {"oid": blob, "size": len(content), "pointerSize": 134}} if len(blob) == 64 else {}
    return {"type": "file", "path": name, "size": len(content), "oid": blob[:40], **large}


def _send(
    request: BaseHTTPRequestHandler, status: int, body: bytes = b"", *, headers: Mapping[str, str] | None = None
) -> None:
    request.send_response(status)
    for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
        request.send_header(key, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(body)
