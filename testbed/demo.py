#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo: from bare hosts to a streamed answer over TLS. Each step finds what an earlier run left, and goes on."""
from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import openai

import fleet as testbed

REPO = testbed.REPO
INVENTORY = REPO / "inventories" / "demo"
STATE = REPO / ".demo"
TOKEN, CA, STATUS = STATE / "token", STATE / "ca.pem", STATE / "status.json"
ENDPOINT = "https://127.0.0.1:8443"
MODEL, OTHER = "tiny", "llama"  # under llama.cpp, and in Ollama's format
QUESTION = "What does a fleet of small models dream of?"
COLUMNS = ("host", "model", "version", "engine", "port", "state")
BIN = Path(sys.executable).parent


class DemoError(Exception):
    """A step did not do what it should; the message says what to look at."""


def step(title: str) -> None:
    print(f"\n\033[1m▸ {title}\033[0m" if sys.stdout.isatty() else f"\n▸ {title}", flush=True)


def playbook(name: str, *variables: str) -> None:
    """Run one of the collection's playbooks, its output as an operator sees it."""
    command = ["ansible-playbook", f"playbooks/{name}.yml", "-i", "inventories/demo"]
    command += [part for variable in variables for part in ("-e", variable)]
    print(f"$ .venv/bin/{shlex.join(command).replace(str(REPO) + '/', '')}", flush=True)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    if sys.stdout.isatty():
        environment["ANSIBLE_FORCE_COLOR"] = "1"
    done = subprocess.run([BIN / command[0], *command[1:]], cwd=REPO, env=environment, check=False)
    if done.returncode:
        raise DemoError(f"playbooks/{name}.yml failed (exit status {done.returncode}); its output is above")


def client():
    """A client of the endpoint, as a user of the fleet would make one."""
    os.environ["SSL_CERT_FILE"] = str(CA)
    return openai.OpenAI(base_url=f"{ENDPOINT}/v1", api_key=TOKEN.read_text().strip(), max_retries=0, timeout=30)


def token_works() -> bool:
    """Whether there is a token and the gateway takes it. A fleet that was made anew knows none of the old ones."""
    if not (TOKEN.exists() and CA.exists()):
        return False
    try:
        return any(model.id == MODEL for model in client().models.list())
    except openai.OpenAIError:
        return False


def get_token() -> None:
    if token_works():
        print(f"  the token in {TOKEN.relative_to(REPO)} works")
        return
    TOKEN.unlink(missing_ok=True)
    playbook("tokens", "do=issue", "client=demo", f"token_file={TOKEN}")
    TOKEN.chmod(0o600)


def copy_ca() -> None:
    """Clients need the CA's certificate only, and never its directory."""
    certificate = STATE / "ca" / "ca.pem"
    if not CA.exists() or CA.read_bytes() != certificate.read_bytes():
        shutil.copyfile(certificate, CA)
    CA.chmod(0o600)


def ask(model: str, seconds: float = 120) -> None:
    """Ask a question and print the answer as it comes; a model that still loads is asked again."""
    asked = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 48, "stream": True}
    deadline = time.monotonic() + seconds
    while True:
        try:
            stream = client().chat.completions.create(**asked)
            break
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            if time.monotonic() > deadline:
                raise DemoError(f"{model} does not answer at {ENDPOINT}: {error}") from error
            print("  waiting for the model …", flush=True)
            time.sleep(1)
    print(f"  you:   {QUESTION}\n  {model}:  ", end="", flush=True)
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()


def show_table() -> None:
    rows = [[str(row.get(c, "")) for c in COLUMNS] for row in json.loads(STATUS.read_text())["instances"]]
    if not rows:
        raise DemoError("the fleet runs nothing; see the output of site.yml above")
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, ["-" * width for width in widths], *rows):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show_how() -> None:
    print(f"""
  endpoint        {ENDPOINT}
  CA certificate  {CA.relative_to(REPO)}
  token           {TOKEN.relative_to(REPO)}

Ask it yourself, from {REPO}:

curl -s --cacert .demo/ca.pem {ENDPOINT}/v1/chat/completions -H "Authorization: Bearer $(cat .demo/token)" \\
  -H 'Content-Type: application/json' -d '{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}], \
"max_tokens": 16}}'

SSL_CERT_FILE=.demo/ca.pem .venv/bin/python - <<'END'
from openai import OpenAI
fleet = OpenAI(base_url="{ENDPOINT}/v1", api_key=open(".demo/token").read().strip())
print(fleet.chat.completions.create(model="{MODEL}", messages=[{{"role": "user", "content": "Hello"}}], \
max_tokens=16).choices[0].message.content)
END

`make demo-rollout` brings it a new version of {MODEL} while clients stream, and `make demo-upgrade` its nodes another driver.
`make demo-down` removes the fleet and .demo/.""")


def read_plan(fleet: testbed.Fleet) -> dict:
    """The plan that the fleet has; without models where it has none."""
    gateway = next(fleet.container(host) for host in fleet.hosts if host.name == "gw1")
    plan = json.loads(testbed.docker("exec", gateway, "cat", "/var/lib/llm_fleet/plan.json", check=False) or "{}")
    return {"models": {}, "rollouts": {}, "maintenance": {}, **plan}


def serves(fleet: testbed.Fleet) -> bool:
    """Whether the demo runs, and somebody can ask."""
    running = testbed.docker("ps", "--format={{.Names}}").split()
    here = {fleet.container(host) for host in fleet.hosts} <= set(running)
    return here and MODEL in read_plan(fleet)["models"] and token_works()


def say_what_is_double() -> None:
    print("  (GPUs and NVIDIA's packages are doubles: what asks for a GPU finds one, and the engines compute on the CPU)", flush=True)


def bring_up() -> None:
    """All that has to be there before somebody can ask."""
    step("Servers: one gateway, two GPU nodes, a depot, and a host that stands for the outside world")
    testbed.up(testbed.read_fleet(INVENTORY), timeout=180)
    say_what_is_double()
    step("Outside: tiny models on a web server, the engines' images in a registry")
    subprocess.run([sys.executable, REPO / "testbed" / "supply.py", "-i", INVENTORY], check=True)
    step("The lockfile: every file and every image by digest")
    playbook("lock")
    step("The nodes: driver, Docker and container toolkit, and a reboot where one is needed")
    playbook("hosts", "prepare=all", "reboot=if_required")
    step("The fleet: the depot fetches each file once, the nodes take it from there")
    playbook("site")
    step("A token for the client `demo`")
    copy_ca()
    get_token()


def demo() -> None:
    begun = time.monotonic()
    bring_up()
    step("A question")
    ask(MODEL)
    ask(OTHER)
    print("  (random weights: real engine, real stream, no sense)")
    step("What runs where")
    playbook("status", f"status_file={STATUS}")
    print()
    show_table()
    show_how()
    print(f"\n({time.monotonic() - begun:.0f} s)")


def main() -> int:
    try:
        demo()
    except (DemoError, testbed.FleetError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    except KeyboardInterrupt:
        print("\ninterrupted; `make demo` goes on from here, `make demo-down` removes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
