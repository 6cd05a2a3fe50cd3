"""Nothing secret leaves with an export: keys, passwords, and where the machine's folders are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsight.publish.secrets import hide_places, secrets_in, without_place, without_places
from sparsight.publish.shared_config import shared_config

SECRETS = {
    "hf_" + "a1B2" * 8: "Hugging Face",
    "sk-" + "proj-" + "a1B2" * 8: "API key",
    "ghp_" + "a1B2" * 9: "GitHub",
    "github_pat_" + "a1B2_" * 9: "GitHub",
    "AKIA" + "A1B2" * 4: "AWS",
    "AIza" + "a1B2" * 9: "Google",
    "xoxb-" + "1234-" * 5 + "abc": "Slack",
    "eyJ" + "a1B2" * 5 + ".eyJ" + "a1B2" * 5 + ".x": "web token",
    "-----BEGIN OPENSSH " + "PRIVATE KEY-----": "private key",
    "https://somebody:" + "letmein9@example.org/x": "address",
    "s3://ID:" + "let/me/in9@bucket/x": "address",
}


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("form", ["{}", 'a: "{}"', '{{"a": ["{}"]}}', "see {}, please", "X={}"])
@pytest.mark.parametrize("name", ["code.py", ".env"])
def test_what_looks_like_a_secret_is_found_and_not_repeated(tmp_path: Path, secret: str, form: str, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / name).write_text(f"first\n{form.format(secret)}\n")
    found = list(secrets_in(tmp_path))
    assert found and str(Path("sub", name)) in found[0] and "line 2" in found[0] and SECRETS[secret] in found[0]
    assert not any(secret in text for text in found)


@pytest.mark.parametrize(
    "line",
    [
        "password: letmein9",
        '"api_key": "letmein9"',
        "DB_PASSWORD=letmein9",
        "wandb_api_key: letmein9",
        "passwd = 'abcd'",
    ],
)
def test_a_value_given_to_a_password_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "training.yaml").write_text(f"{line}\n")
    (found,) = secrets_in(tmp_path)
    assert "letmein9" not in found and "training.yaml, line 1" in found


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tokenizer.json", '"password": 9206, "secret": 4810, "hf_": 12'),
        ("config.json", '{"bos_token": "<s>", "token": "abc", "password": null, "num_key_value_heads": 8}'),
        ("README.md", "The secret of good tokens: patience. See https://example.org/a:b@c and hf_test."),
        ("code.py", 'password = read("password: ")'),
        ("model.safetensors", "hf_" + "a1B2" * 8),
    ],
)
def test_what_is_none_is_let_through(tmp_path: Path, name: str, line: str) -> None:
    (tmp_path / name).write_text(line)
    assert not list(secrets_in(tmp_path))


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("/home/somebody/data/x.tar", "x.tar"),
        ("/home/somebody/my data/", "my data"),
        ("~/models/base", "base"),
        ("~somebody/base", "base"),
        ("C:\\Users\\me\\pictures\\", "pictures"),
        ("C:/Users/me/pictures", "pictures"),
        ("\\\\server\\share\\x", "x"),
        ("$HOME/data/x", "x"),
        ("%USERPROFILE%\\x", "x"),
        ("file:///home/somebody/y", "y"),
        ("file:///C:/Users/me/y%20z", "y z"),
        ("https://user:PASS@example.org/d?token=PASS#PASS", "https://example.org/d"),
        ("https://PASS@example.org/d", "https://example.org/d"),
        ("s3://ID:PA/S+S@bucket/x@y", "s3://bucket/x@y"),
        ("s3://ID:PASS@bucket/x", "s3://bucket/x"),
        ("https://example.org:8080/@user/d", "https://example.org:8080/@user/d"),
        ("HTTPS://user:PASS@example.org:8080/d", "https://example.org:8080/d"),
        ("somebody@machine:/home/somebody/x", "x"),
        ("pipe:curl -s 'https://user:PASS@example.org/a.tar?k=PASS' |", "pipe:curl -s 'https://example.org/a.tar' |"),
        ("100 images, reference /home/somebody/r.npz, seed 0", "100 images, reference r.npz, seed 0"),
        ("data/val.jsonl", "data/val.jsonl"),
        ("owner/name", "owner/name"),
        ("/no_think What is this?", "/no_think What is this?"),
        ("a / b, 3/4 and A/B", "a / b, 3/4 and A/B"),
        ("*.attn1.*", "*.attn1.*"),
        ("", ""),
    ],
)
def test_places_become_names_and_addresses_lose_what_lets_in(value: str, kept: str) -> None:
    assert without_place(value) == kept
    assert without_places({"a": [{"b": value}]}) == {"a": [{"b": kept}]}


def test_configurations_in_an_export_name_no_folders(tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    content: dict[str, Any] = {
        "_name_or_path": "/home/somebody/.cache/x",
        "text_config": {"_name_or_path": "C:\\models\\y"},
        "base_model_name_or_path": "~/models/z",
        "tokenizer_file": "/home/somebody/tokenizer.json",
        "chat_template": "/home/somebody is part of a text {{ '/a/b' }}",
    }
    for name in ("config.json", "adapter/adapter_config.json"):
        (tmp_path / name).write_text(json.dumps(content))
    hide_places(tmp_path)
    for name in ("config.json", "adapter/adapter_config.json"):
        kept = json.loads((tmp_path / name).read_text())
        assert kept["_name_or_path"] == "x" and kept["text_config"] == {"_name_or_path": "y"}
        assert kept["base_model_name_or_path"] == "z" and kept["tokenizer_file"] == "tokenizer.json"
        assert kept["chat_template"] == content["chat_template"]


def test_only_what_repeats_a_run_travels() -> None:
    config = {
        "seed_everything": 0,
        "ckpt_path": "/home/somebody/last.ckpt",
        "mine": {"api_key": "KEY1"},
        "images": {"folder": "drawn"},
        "trainer": {
            "max_steps": 3,
            "default_root_dir": "/home/somebody/runs",
            "logger": {"class_path": "tracker.Tracker", "init_args": {"api_key": "KEY2", "address": "https://a:b@c/d"}},
            "plugins": ["x"],
            "callbacks": [
                {"class_path": "tracker.Notify", "init_args": {"hook": "https://hooks.example.org/KEY3"}},
                {"class_path": "callbacks.TrainableEMA", "init_args": {"decay": 0.9}},
                {"class_path": "LearningRateMonitor"},
            ],
        },
        "model": {
            "class_path": "lightning_modules.AttentionDistillation",
            "init_args": {
                "teacher": "https://user:KEY4@example.org/teacher",
                "mixer": {
                    "class_path": "my_blocks.Ripple",
                    "init_args": {"turns": 3, "note": "KEY5", "names": ["KEY6"]},
                },
                "stages": [{"objective": "layerwise", "steps": 3}],
            },
        },
        "data": {
            "class_path": "datamodules.ImageDataModule",
            "init_args": {
                "train": {
                    "class_path": "datamodules.HuggingFaceRecords",
                    "init_args": {"path": "owner/name", "token": "KEY7", "api_key": "KEY8", "split": "train"},
                },
                "val": {"class_path": "store.Bucket", "init_args": {"inner": {"secret": "KEY9"}, "size": 3}},
            },
        },
    }
    text = shared_config(yaml.safe_dump(config))
    assert "KEY" not in text and "somebody" not in text and "tracker" not in text
    kept = yaml.safe_load(text)
    assert set(kept) == {"seed_everything", "trainer", "model", "data"}
    assert kept["trainer"] == {"max_steps": 3, "callbacks": config["trainer"]["callbacks"][1:]}  # type: ignore[index]
    options = kept["model"]["init_args"]
    assert options["mixer"] == {"class_path": "my_blocks.Ripple", "init_args": {"turns": 3, "names": []}}
    assert options["stages"] == [{"objective": "layerwise", "steps": 3}]
    assert kept["data"]["init_args"]["train"]["init_args"] == {"path": "owner/name", "split": "train"}
    assert kept["data"]["init_args"]["val"] == {"class_path": "store.Bucket", "init_args": {"inner": {}, "size": 3}}
