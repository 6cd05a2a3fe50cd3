"""What must not leave this machine: keys and passwords, and where its folders are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

TEXT = (".cfg", ".csv", ".ini", ".jinja", ".json", ".jsonl", ".md", ".py", ".toml", ".txt", ".yaml", ".yml", "")
LARGEST = 64 * 2**20  # bytes of a text file; vocabularies have some

# repetitions that a search may begin anywhere in have an end, so that long lines take no time to speak of
SCHEME = r"[a-z][a-z0-9+.-]{0,30}://"
SECRETS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{16,}",
    "a GitHub token": r"\b(?:gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{16,}",
    "a Slack token": r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{30,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,}",
    "a private key": r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----",
    "a password in an address": rf"\b{SCHEME}[^\s/@:\"']{{0,200}}:(?!\d+(?:/|\s|$))[^\s@\"']{{1,2000}}@",
}
KEY = r"(?:[\w-]*_)?(?:password|passwd|passphrase|pwd|api_?key|access_?key|secret(?:_?key)?|auth_?token|access_?token)"
ASSIGNED = re.compile(
    rf"(?<![\w-])[\"']?(?P<key>{KEY})[\"']?\s*[:=]\s*[\"']?(?!(?:null|none|true|false|str)\b|[$*<])"
    r"(?P<value>[^\s\"',}{]{4,})",
    re.IGNORECASE,
)
LEADING = re.compile(r"([A-Za-z_][\w.-]{0,60})[\"']?\s*[:=]")
VOCABULARY = re.compile(r"tokenizer|vocab|added_tokens")  # JSON files that give numbers to words
FOUND = {kind: re.compile(pattern) for kind, pattern in SECRETS.items()}

ADDRESS = re.compile(SCHEME, re.IGNORECASE)
PLACE = re.compile(r"[/~\\]|[A-Za-z]:[/\\]|\$|%\w+%")  # absolute, of a user, of a variable
LOGIN = re.compile(r"[^/@]*:[^@]*@|[^/@]*@")  # before the host; a secret key may have slashes
HOST = re.compile(r"[^/@:]*(?::\d+)?(?:/|$)")
REMOTE = re.compile(r"[\w.-]+@[\w.-]+:\S*$")  # somebody@machine:folder
ADDRESSES = re.compile(rf"{SCHEME}[^\s\"'<>|,;)\]}}]+", re.IGNORECASE)
WORDS = re.compile(r"(?<![\w./:\\~-])(?:(?:~[\w-]*|[A-Za-z]:)?[\\/](?=[^\s/\\]+[\\/]))[^\s\"'<>|,;:)\]}]+")


def secrets_in(folder: Path) -> Iterator[str]:
    """Where text files of a folder hold what looks like a secret: file, line, key and kind, never the secret itself."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in TEXT or path.stat().st_size > LARGEST:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            for kind, start in _secrets_in_line(line, path):
                key = next(reversed(LEADING.findall(line[:start])), "")
                yield f"{path.relative_to(folder)}, line {number}{f', {key}' if key else ''}: {kind}"


def _secrets_in_line(line: str, path: Path) -> Iterator[tuple[str, int]]:
    for kind, pattern in FOUND.items():
        if match := pattern.search(line):
            yield kind, match.start()
    for match in ASSIGNED.finditer(line) if path.suffix != ".py" else ():  # code gives values to such names
        if not (match["value"].isdigit() and VOCABULARY.match(path.name)):
            yield f"a value of {match['key']}", match.start()


def looks_secret(key: str, value: Any) -> bool:
    """Whether an entry of a configuration is a secret by its key, or by its text."""
    if re.fullmatch(rf"{KEY}|(?:\w*_)?token", key, re.IGNORECASE) and isinstance(value, str):
        return True
    return isinstance(value, str) and any(
        pattern.search(value) for kind, pattern in FOUND.items() if kind != "a password in an address"
    )


def without_place(value: str) -> str:
    """A text without what tells of the machine or lets into another one.

    Of an address what comes before the host, the query and the fragment go; of a file's address, and of a path that is
    absolute, a user's or a variable's, the last part stays. Paths and addresses within a text are treated alike.
    """
    if REMOTE.match(value):
        return _last(value.partition(":")[2])
    if ADDRESS.match(value) and not re.search(r"\s", value):
        return _address(value)
    if PLACE.match(value) and not re.search(r"\s/|^/\w+(?:\s|$)", value) and re.search(r"[/\\]", value[1:]):
        return _last(value)
    text = ADDRESSES.sub(lambda match: _address(match[0]), value)
    return WORDS.sub(lambda match: _last(match[0]), text)


def _address(value: str) -> str:
    scheme = value.partition("://")[0].lower()
    rest = value.partition("://")[2]
    if scheme == "file":
        return _last(unquote(rest.partition("?")[0].partition("#")[0]))
    rest = rest.partition("?")[0].partition("#")[0]
    login = None if HOST.match(rest) else LOGIN.match(rest)
    return f"{scheme}://{rest[login.end() if login else 0 :]}"


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def without_places(value: Any) -> Any:
    """Plain data in which every text, also as a key, went through ``without_place``."""
    if isinstance(value, Mapping):
        return {
            without_place(key) if isinstance(key, str) else key: without_places(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    return without_place(value) if isinstance(value, str) else value


PLACES = ("_name_or_path", "name_or_path", "base_model_name_or_path", "tokenizer_file", "vocab_file", "cache_dir")
"""Keys of JSON files of diffusers, transformers and peft that tell where something was loaded from."""


def hide_places(folder: Path) -> None:
    """Let these keys of all JSON configurations in an export hold names in place of paths of this machine."""
    for path in folder.rglob("*.json"):
        if path.stat().st_size > LARGEST or not any(f'"{key}"' in (text := path.read_text("utf-8")) for key in PLACES):
            continue
        content = json.loads(text)
        hidden = _hidden(content)
        if hidden != content:
            path.write_text(json.dumps(hidden, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _hidden(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _hidden(item, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_hidden(item) for item in value]
    return without_place(value) if key in PLACES and isinstance(value, str) else value
