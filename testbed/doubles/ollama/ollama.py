#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A double: stands for Ollama (the server and the commands ps, list and run), whose image cannot be had offline.

The answers come from a real llama-server behind it, as the original's do since 0.33. Like the original it
  * serves the store in OLLAMA_MODELS: manifests/<registry>/<namespace>/<model>/<tag> and blobs/sha256-<hex>, whose
    directories it makes where they are missing, and of which it removes old blobs at each start unless OLLAMA_NOPRUNE=1;
  * makes a key pair in $HOME/.ollama at its first start, and does not start where it cannot;
  * loads a model when it is first asked for, or by an empty /api/generate, /api/chat or /api/embed; a client that leaves
    meanwhile ends the loading; unloads after OLLAMA_KEEP_ALIVE, or when keep_alive in a body says so; loads anew for
    another num_ctx in a body; takes the name of a model in any letter case, and no other name;
  * gives each of OLLAMA_NUM_PARALLEL requests OLLAMA_CONTEXT_LENGTH tokens; answers 503 beyond OLLAMA_MAX_QUEUE waiting;
  * cuts all streams on SIGTERM and ends;
  * answers 403 to pages of other origins than OLLAMA_ORIGINS, and to names ending in :cloud with OLLAMA_NO_CLOUD=1.
It is stricter in one thing: it reads every blob before it loads a model, and refuses it where a sha256 is wrong. The
original checks digests when it pulls, and never again.
It leaves out: GPUs, /api/{pull,push,create,copy,delete,blobs,me,signout,status}, the cloud, templates, system prompts and
messages of a manifest (llama-server uses the template in the GGUF file), adapters, images, tools, thinking, metadata in
/api/show, telling embedding models from others, durations and counts in native answers. Its key is no key.

    LLAMA_SERVER   the command that starts llama-server (default: llama-server)

Whoever has the real thing leaves this out: with LLM_FLEET_IMAGE_OLLAMA=<image> the same scenarios run against it.
Standard library only.
"""
from __future__ import annotations

import base64
import http.client
import json
import os
import secrets
import sys
from pathlib import Path

from scheduler import number, variable
from server import VERSION, serve
from store import Store

COMMANDS = "commands of this double: serve, ps, list, run MODEL [PROMPT], --version"


class Failed(Exception):
    """What the original prints after 'Error: '."""


def address() -> tuple[str, int]:
    """OLLAMA_HOST as host and port."""
    text = variable("OLLAMA_HOST").rpartition("://")[2].partition("/")[0]
    host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return host.strip("[]") or "127.0.0.1", int(port) if port.isdigit() else 11434


def make_key() -> None:
    home = os.environ.get("HOME")
    if not home:
        raise Failed("$HOME is not defined")
    private = Path(home) / ".ollama" / "id_ed25519"
    if private.exists():
        return
    print(f"Couldn't find '{private}'. Generating new private key.", flush=True)
    try:
        private.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"could not create directory mkdir {error.filename}: {error.strerror.lower()}") from error
    text = base64.b64encode(secrets.token_bytes(64)).decode()
    try:
        private.touch(0o600)
        private.write_text(f"-----BEGIN OPENSSH PRIVATE KEY-----\n{text}\n-----END OPENSSH PRIVATE KEY-----\n")
        private.with_suffix(".pub").write_text(f"ssh-ed25519 {text}\n")
    except OSError as error:
        raise Failed(f"open {error.filename}: {error.strerror.lower()}") from error


def run_server() -> None:
    make_key()
    root = Path(variable("OLLAMA_MODELS") or Path.home() / ".ollama" / "models")
    try:
        store = Store(root)
    except OSError as error:
        what = f"mkdir {error.filename}: {error.strerror.lower()}"
        raise Failed(f"{what}: ensure path elements are traversable") from error
    if not number("OLLAMA_NOPRUNE", 0):
        print(f'level=INFO msg="total unused blobs removed: {store.prune()}"', flush=True)
    try:
        serve(address(), store)
    except OSError as error:
        host, port = address()
        raise Failed(f"listen tcp {host}:{port}: bind: {(error.strerror or str(error)).lower()}") from error


def ask(method: str, path: str, body: dict | None = None) -> dict:
    host, port = address()
    connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port)
    try:
        connection.request(method, path, json.dumps(body) if body else None)
        answer = connection.getresponse()
        data = json.loads(answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise Failed("could not connect to ollama server, run 'ollama serve' to start it") from error
    if answer.status != 200:
        raise Failed(str(data["error"]))
    return data


def show_models(path: str, columns: tuple[str, ...]) -> None:
    rows = [columns]
    for model in ask("GET", path)["models"]:
        size = f"{model['size'] / 1e6:.1f} MB"
        left = ["100% CPU", str(model["context_length"]), model["expires_at"]] if "expires_at" in model else [model["modified_at"]]
        rows.append((model["name"], model["digest"][:12], size, *left))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def run_model(model: str, words: list[str]) -> None:
    """Answer a prompt; the original would pull a model that is not there."""
    text = "" if sys.stdin.isatty() else sys.stdin.read()
    prompt = " ".join([*filter(None, [text]), *words])
    ask("POST", "/api/show", {"model": model})
    print(ask("POST", "/api/generate", {"model": model, "prompt": prompt, "stream": False})["response"])


def main(arguments: list[str]) -> int:
    command, *rest = arguments or ["--help"]
    try:
        if command in ("serve", "start"):
            run_server()
        elif command == "ps":
            show_models("/api/ps", ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"))
        elif command in ("list", "ls"):
            show_models("/api/tags", ("NAME", "ID", "SIZE", "MODIFIED"))
        elif command == "run" and rest:
            run_model(rest[0], rest[1:])
        elif command in ("--version", "-v"):
            print(f"ollama version is {VERSION}")
        else:
            raise Failed(f"unknown command \"{' '.join(arguments)}\" for \"ollama\"; {COMMANDS}")
    except Failed as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
