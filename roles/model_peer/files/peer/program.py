# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""What the program does with what it is told, and when it ends by itself.

It is there for runs of the playbooks, which hold leases on it. With the last lease it ends; also when nobody asked for
anything and nothing moved for a long time, because a playbook may have been killed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import time
from typing import Callable

from swarm import Swarm, Trouble, decoded

FORGOTTEN = 120.0  # seconds after which what nobody asks about is no longer brought: whoever wanted it is gone
LOOK = 15.0  # seconds between two looks at whether anything moves


class Program:
    """Leases, wishes and offers."""

    def __init__(self, config: dict, swarm: Swarm, clock: Callable[[], float] = time.monotonic) -> None:
        self.swarm = swarm
        self.clock = clock
        self.idle = config.get("idle", 3600)
        self.state = config.get("state", "")
        self.leases: dict[str, list] = {}  # peers by lease
        self.offers: dict[str, dict] = {}
        self.wishes: dict[str, float] = {}  # when somebody last asked about what is being brought
        self.ended = False
        self._active = self._looked = clock()
        self._moved = 0
        self._take_up()

    def answer(self, asked: dict) -> dict:
        """One request."""
        self._active = self.clock()
        name = asked.get("do")
        try:
            if name not in ("join", "leave", "seed", "want", "flush", "drop", "recheck", "status"):
                raise Trouble(f"unknown request {name!r}")
            if asked.get("digest") in self.wishes:
                self.wishes[asked["digest"]] = self.clock()
            return {"ok": True, **getattr(self, f"_{name}")(asked)}
        except Trouble as trouble:
            return {"error": str(trouble)}
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            return {"error": f"{name}: {type(error).__name__}: {error}"}
        except (OSError, RuntimeError) as error:  # the latter is libtorrent's
            return {"error": f"{name}: {error}"}

    def tick(self) -> None:
        """What has to happen from time to time."""
        self.swarm.watch()
        now = self.clock()
        for digest, asked in list(self.wishes.items()):
            # One that is complete is being read and compared, which takes as long as it takes.
            if now - asked > FORGOTTEN and not self._complete(digest):
                with contextlib.suppress(Trouble):
                    self._drop({"digest": digest})
        if now - self._looked > LOOK:
            self._looked, moved = now, self.swarm.moved()
            if moved != self._moved:
                self._moved, self._active = moved, now
        if now - self._active > self.idle:
            print(f"nobody asked for anything for {self.idle:.0f} seconds, and nothing moved", flush=True)
            self.leases.clear()
            self.ended = True

    def _complete(self, digest: str) -> bool:
        content = self.swarm.contents.get(digest)
        return content is not None and content.status()["state"] == "here"

    def _join(self, asked: dict) -> dict:
        self.leases[str(asked["lease"])] = [[_address(address), _port(port)] for address, port in asked["peers"]]
        self._meet()
        return {}

    def _leave(self, asked: dict) -> dict:
        self.leases.pop(str(asked["lease"]), None)
        self._meet()
        self.ended = not self.leases
        return {"leases": len(self.leases)}

    def _seed(self, asked: dict) -> dict:
        digest, path = asked["digest"], asked["path"]
        torrent = decoded(asked["torrent"])
        self.swarm.add(digest, torrent, path, [[0, os.stat(path).st_size]])
        self.wishes.pop(digest, None)
        self.offers[digest] = {"torrent": asked["torrent"], "path": path}
        self._remember()
        return {}

    def _want(self, asked: dict) -> dict:
        digest = asked["digest"]
        if digest in self.swarm.contents:
            self.swarm.drop(digest)
        if self.offers.pop(digest, None) is not None:
            self._remember()
        self.swarm.add(digest, decoded(asked["torrent"]), asked["path"], asked.get("here"))
        self.wishes[digest] = self.clock()
        return {}

    def _flush(self, asked: dict) -> dict:
        return {"here": self.swarm.flush(asked["digest"])}

    def _drop(self, asked: dict) -> dict:
        digest = asked["digest"]
        self.wishes.pop(digest, None)
        if self.offers.pop(digest, None) is not None:
            self._remember()
        return {"here": self.swarm.drop(digest)}

    def _recheck(self, asked: dict) -> dict:
        self.swarm.recheck(asked["digest"])
        return {}

    def _status(self, asked: dict) -> dict:
        digest = asked.get("digest")
        if digest is None:
            contents = {digest: content.status() for digest, content in self.swarm.contents.items()}
            return {"contents": contents, "leases": sorted(self.leases)}
        return self.swarm.content(digest).status()

    def _meet(self) -> None:
        self.swarm.peers = {(address, port) for peers in self.leases.values() for address, port in peers}
        self._remember()

    # A program that crashed is started again, and goes on handing out what it had. What it brought is asked for again.

    def _remember(self) -> None:
        if not self.state:
            return
        draft = f"{self.state}.new"
        with open(draft, "w", encoding="utf-8") as handle:
            json.dump({"leases": self.leases, "offers": self.offers}, handle)
        os.replace(draft, self.state)

    def _take_up(self) -> None:
        try:
            with open(self.state, encoding="utf-8") as handle:
                data = json.load(handle)
        except (OSError, ValueError):
            return
        self.leases, self.offers = data["leases"], data["offers"]
        for digest, offer in list(self.offers.items()):
            answer = self.answer({"do": "seed", "digest": digest, **offer})
            if "error" in answer:
                del self.offers[digest]
                print(f"{digest} is no longer handed out: {answer['error']}", flush=True)
        self._meet()


def _address(told: object) -> str:
    """As libtorrent writes it, so that whoever is connected is known by it."""
    try:
        return str(ipaddress.ip_address(str(told)))
    except ValueError:
        raise Trouble(f"a peer cannot be dialled at {told!r}: that is no IP address") from None


def _port(told: object) -> int:
    port = int(told)
    if not 0 < port < 65536:
        raise Trouble(f"a peer cannot be dialled at port {port}")
    return port
