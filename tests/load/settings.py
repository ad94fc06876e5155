# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What a load is: whom it asks, for what, how often, and how long at most. Both as a value and as a command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

TOKEN = "LLM_FLEET_TOKEN"
# However it is called: nobody is to find a load that was forgotten.
MOST_SECONDS = 3600
MOST_REQUESTS = 1_000_000
MOST_CLIENTS = 256


class LoadError(Exception):
    """The load cannot be, or was not, what it is asked to be."""


@dataclasses.dataclass(frozen=True)
class Settings:
    gateways: tuple[str, ...]
    ca: str
    token: str = dataclasses.field(repr=False)
    models: tuple[str, ...]
    clients: int = 8
    seconds: float = 600.0
    requests: int = 100_000
    tokens: tuple[int, int] = (16, 64)
    # Seconds between an answer and the client's next request: half of it to one and a half times that. Clients are people.
    pause: float = 0.2
    # The same after a refusal or an error.
    retry: float = 0.5
    stall: float = 10.0
    timeout: float = 120.0
    seed: int = 0
    unstreamed: float = 0.1
    # The share of requests that name the model in the path.
    by_path: float = 0.5
    exact: bool = True
    resend: bool = True
    # {version: how its answers begin}, or "sha256:" and the beginning of that text's digest.
    tell: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, most in (("clients", MOST_CLIENTS), ("seconds", MOST_SECONDS), ("requests", MOST_REQUESTS)):
            if not 0 < getattr(self, name) <= most:
                raise LoadError(f"{name} is {getattr(self, name)}: set it to more than 0 and at most {most}")
        if not self.gateways or not self.models:
            raise LoadError("neither gateways nor models may be empty")
        if not 1 <= self.tokens[0] <= self.tokens[1]:
            raise LoadError(f"tokens is {self.tokens}: the least is 1 and not more than the most")
        if not self.token or not self.token.isprintable() or not self.token.isascii():
            raise LoadError(f"no token, or no proper one: name a file with it, or set {TOKEN}")
        if not Path(self.ca).is_file():
            raise LoadError(f"the CA file {self.ca} is not there")
        for gateway in self.gateways:
            address_of(gateway)

    def arguments(self) -> list[str]:
        """This as a command line. The token is not on it: every user of a machine can read those."""
        given = ["--ca", self.ca, "--tokens", str(self.tokens[0]), str(self.tokens[1])]
        for option in ("clients", "seconds", "requests", "pause", "retry", "stall", "timeout", "seed", "unstreamed", "by_path"):
            given += [f"--{option.replace('_', '-')}", str(getattr(self, option))]
        given += [f"--gateway={gateway}" for gateway in self.gateways] + [f"--model={model}" for model in self.models]
        given += [f"--tell={name}={text}" for name, text in self.tell.items()]
        return given + ["--may-stop"] * (not self.exact) + ["--no-resend"] * (not self.resend)


def address_of(gateway: str) -> tuple[str, int]:
    """Host and port of `host`, `host:port` or `[host]:port`."""
    host, found, port = gateway.rpartition(":")
    if not found or gateway.endswith("]"):
        host, port = gateway, "443"
    if not port.isdigit() or not host.strip("[]"):
        raise LoadError(f"{gateway} is no address of a gateway: write host:port, IPv6 in brackets")
    return host.strip("[]"), int(port)


def parser(description: str) -> argparse.ArgumentParser:
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    cli = argparse.ArgumentParser(description=description)
    add = cli.add_argument
    add("--gateway", action="append", required=True, metavar="HOST:PORT", help="a gateway; several are asked in turn")
    add("--ca", required=True, help="file with the certificate of the CA that signed theirs")
    add("--token-file", type=Path, help=f"file with the token; without it, the token is in {TOKEN}")
    add("--model", action="append", required=True, help="a model, or model@version; several are asked at random")
    add("--tokens", type=int, nargs=2, metavar=("LEAST", "MOST"), help="length of answers, at random")
    for name, kind, text in (
        ("clients", int, f"how many ask at the same time, at most {MOST_CLIENTS}"),
        ("seconds", float, f"end after this time, at most {MOST_SECONDS}"),
        ("requests", int, f"end after so many requests, at most {MOST_REQUESTS}"),
        ("pause", float, "seconds between an answer and the next request, on average"),
        ("retry", float, "the same after a refusal or an error"),
        ("stall", float, "an answer is late when it is silent for longer"),
        ("timeout", float, "an answer is broken when it takes longer in all"),
        ("seed", int, "what all that is at random begins with"),
        ("unstreamed", float, "share of requests that are not streamed"),
        ("by-path", float, "share of requests that name the model in the path"),
    ):
        add(f"--{name}", type=kind, help=f"{text} (default {defaults[name.replace('-', '_')]})")
    add("--tell", action="append", default=[], metavar="VERSION=TEXT", help="how answers of a version begin, or sha256:<digest of that>")
    add("--may-stop", action="store_true", help="answers may end before they are as long as they may be")
    add("--no-resend", action="store_true", help="a request that meets a connection that is just closing is broken, not sent again")
    return cli


def from_arguments(given: argparse.Namespace) -> Settings:
    token = given.token_file.read_text() if given.token_file else os.environ.get(TOKEN, "")
    chosen = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(Settings)
        if field.name not in ("tell", "token", "tokens") and getattr(given, field.name, None) is not None
    }
    if given.tokens:
        chosen["tokens"] = tuple(given.tokens)
    for told in given.tell:
        if "=" not in told:
            raise LoadError(f"--tell {told}: write version=text")
    tell = dict(told.split("=", 1) for told in given.tell)
    return Settings(
        gateways=tuple(given.gateway),
        models=tuple(given.model),
        token=token.strip(),
        tell=tell,
        exact=not given.may_stop,
        resend=not given.no_resend,
        **chosen,
    )
