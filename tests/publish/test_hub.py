"""Uploading through the real hub client, to a small stand-in for the hub on this machine."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sparsight.common.errors import ConfigurationError
from sparsight.publish import hub


class Hub(BaseHTTPRequestHandler):
    """Answers the few questions that an upload asks, and keeps what it is told."""

    created: list[dict[str, Any]]
    commits: list[list[dict[str, Any]]]
    tokens: set[str]
    refuse: bool

    def do_POST(self) -> None:
        self.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/student"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/me/student/preupload/main":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(
                {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]},
                status=403 if self.refuse else 200,
            )
        elif self.path == "/api/models/me/student/commit/main":
            self.commits.append([json.loads(line) for line in body.splitlines()])
            self.answer({"commitUrl": f"{constants.ENDPOINT}/me/student/commit/abc", "commitOid": "abc"})
        else:
            self.answer({"error": f"the stand-in knows no {self.path}"}, status=404)

    def do_GET(self) -> None:
        self.answer({"id": "me/student", "sha": "0" * 40, "siblings": []})

    def answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("FreshHub", (Hub,), {"created": [], "commits": [], "tokens": set(), "refuse": False})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield handler
        running.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "student" / "transformer").mkdir(parents=True)
    (tmp_path / "student" / "README.md").write_text("---\nlicense: mit\n---\n# Student\n")
    (tmp_path / "student" / "transformer" / "config.json").write_text("{}")
    return tmp_path / "student"


@pytest.mark.parametrize("private", [True, False])
def test_the_whole_folder_is_uploaded_in_one_commit(server: type[Hub], folder: Path, private: bool) -> None:
    assert hub.push(folder, "me/student", private=private) == f"{constants.ENDPOINT}/me/student/commit/abc"
    (made,) = server.created
    assert (made["visibility"] == "private" if "visibility" in made else made["private"]) is private
    assert server.tokens == {"Bearer hf_test"}
    (commit,) = server.commits
    header, *files = (entry["value"] for entry in commit)
    assert header["summary"] == "Export student with Sparsight"
    sent = {file["path"]: base64.b64decode(file["content"]) for file in files}
    assert sent == {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_refusal_by_the_hub_ends_in_one_message(
    server: type[Hub], folder: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(server, "do_POST", lambda self: self.answer({"error": "no"}, status=status))
    with pytest.raises(
        hub.PushFailed, match=r"complete, but could not be pushed .*hf upload me/student .*student --pr"
    ):
        hub.push(folder, "me/student", private=True)


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_is_not_there_ends_in_one_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(hub.PushFailed, match=r"complete, but could not be pushed") as caught:
        hub.push(folder, "me/student", private=False)
    assert "--private" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a/b/c", "a//b", "-x", "me/stu dent", ""])
def test_what_is_no_repository_is_said_before_anything_is_written(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"push_to_hub .* is no repository id"):
        hub.check_repo(name)
    hub.check_repo("me/student")
    hub.check_repo(None)


def test_a_folder_with_a_secret_is_not_pushed_and_a_dry_run_lists_the_others(server: type[Hub], folder: Path) -> None:
    listed = hub.would_go(folder, "me/student")
    assert "README.md" in listed and f"transformer{os.sep}config.json" in listed and "in 2 files" in listed
    secret = "hf_" + "aB3" * 9
    (folder / "transformer" / "config.json").write_text(json.dumps({"hub": {"key": secret}}))
    for act in (lambda: hub.push(folder, "me/student", private=True), lambda: hub.would_go(folder, "me/student")):
        with pytest.raises(hub.PushFailed, match=r"config\.json, line 1, key: a Hugging Face token") as caught:
            act()
        assert secret not in str(caught.value)
    assert not server.created and not server.commits


def test_a_refusal_says_that_the_folder_is_complete(server: type[Hub], folder: Path) -> None:
    server.refuse = True
    with pytest.raises(RuntimeError, match="is complete, but could not be pushed to me/student"):
        hub.push(folder, "me/student", private=True)
    assert not server.commits
