# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The contents that this host brings or hands on, through libtorrent.

Nobody is asked who the peers are: the inventory knows. Each connection is TLS with certificates of the fleet's CA on both
sides, because each torrent says so.
"""

from __future__ import annotations

import base64
import os
import time
from pathlib import Path

import libtorrent as lt

# Seconds between two calls to peers that are not connected, later and at first: libtorrent forgets those that failed.
DIAL, DIAL_FIRST = 5.0, 1.0
AT_FIRST = 60.0  # seconds
TURN = 0.5  # seconds by which one of two hosts waits for the other to dial: where both do at once, both connections are closed
LISTEN = 10.0  # seconds
FLUSH = 30.0  # seconds within which what has arrived gets to the disk, or something is wrong with that

# docs/distribution.md says what was measured, and which of these mattered.
SETTINGS = {
    "user_agent": "llm_fleet",
    "listen_system_port_fallback": False,
    "max_retry_port_bind": 0,
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "mixed_mode_algorithm": 0,
    "request_queue_time": 1,
    "max_allowed_in_request_queue": 64,
    "whole_pieces_threshold": 0,
    "unchoke_slots_limit": 8,
    "unchoke_interval": 5,
    "optimistic_unchoke_interval": 10,
    "predictive_piece_announce": 1000,
    "allowed_fast_set_size": 0,
    "send_buffer_watermark": 500000,
    "send_buffer_low_watermark": 50000,
    "send_buffer_watermark_factor": 50,
    "piece_timeout": 30,
    "request_timeout": 30,
    "peer_timeout": 20,
    "peer_connect_timeout": 5,
    "min_reconnect_time": 1,
    "max_failcount": 100000,
    "connection_speed": 500,
    "smooth_connects": False,
    "torrent_connect_boost": 60,
}
# The standard's own parameters (RFC 7919). They are not used where both sides speak TLS 1.3, but libtorrent wants some.
DH = str(Path(__file__).with_name("ffdhe2048.pem"))


class Trouble(Exception):
    """What cannot be done, in words for whoever asked."""


class Content:
    """One content: where it lies, and how far it is."""

    def __init__(self, digest: str, path: str, handle: lt.torrent_handle, pieces: int, length: int, size: int) -> None:
        self.digest = digest
        self.path = path
        self.handle = handle
        self.pieces = pieces
        self.length = length
        self.size = size
        self.error = ""
        self.errno = 0
        self.begun = time.monotonic()
        self.next_dial = 0.0

    def status(self) -> dict:
        status = self.handle.status()
        state = "checking" if status.state in (lt.torrent_status.checking_files, lt.torrent_status.checking_resume_data) else "bringing"
        if status.is_seeding:
            state = "here"
        return {
            "state": "failed" if self.error else state,
            "trouble": self.error,
            "errno": self.errno,
            "done": min(self.size, status.total_done),
            "received": status.total_payload_download,
            "sent": status.total_payload_upload,
            "wasted": status.total_redundant_bytes + status.total_failed_bytes,
            "peers": status.num_peers,
            "copies": status.distributed_copies,
        }

    def ranges(self) -> list[list[int]]:
        """The bytes that are here and right, as [begin, end)."""
        found: list[list[int]] = []
        for piece, here in enumerate(self.handle.status().pieces):
            if not here:
                continue
            begin, end = piece * self.length, min((piece + 1) * self.length, self.size)
            if found and found[-1][1] == begin:
                found[-1][1] = end
            else:
                found.append([begin, end])
        return found


class Swarm:
    """All contents of this host, and the session that moves them."""

    def __init__(self, config: dict) -> None:
        self.config = config
        self.ca = Path(config["ca"]).read_bytes().decode()
        address = f"[{config['address']}]" if ":" in config["address"] else config["address"]
        settings = {
            **SETTINGS,
            "listen_interfaces": f"{address}:{config['port']}s",
            "outgoing_interfaces": config["address"],
            "download_rate_limit": config.get("download", 0),
            "upload_rate_limit": config.get("upload", 0),
            "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.storage_notification
            | lt.alert.category_t.status_notification,
            **config.get("settings", {}),
        }
        self.session = lt.session(settings)
        # As it comes, libtorrent counts private addresses as one's own network, and limits neither rates nor slots there.
        everybody = lt.ip_filter()
        for first, last in (("0.0.0.0", "255.255.255.255"), ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")):
            everybody.add_rule(first, last, 1 << lt.session.global_peer_class_id)
        self.session.set_peer_class_filter(everybody)
        self._wait_until_listening(f"{address}:{config['port']}")
        self.contents: dict[str, Content] = {}
        self.peers: set[tuple[str, int]] = set()
        self.told: set[str] = set()  # what was said of calls that failed
        self.alerts: list = []

    def _wait_until_listening(self, where: str) -> None:
        deadline, said = time.monotonic() + LISTEN, ""
        while time.monotonic() < deadline and not said:
            self.session.wait_for_alert(200)
            for alert in self.session.pop_alerts():
                if isinstance(alert, lt.listen_succeeded_alert):
                    return
                if isinstance(alert, lt.listen_failed_alert):
                    said = alert.message()
        raise Trouble(f"cannot listen at {where}: {said or 'no answer'}")

    # What is asked

    def add(self, digest: str, torrent: bytes, path: str, here: list[list[int]] | None) -> Content:
        """Take a content up. `here`: the bytes that are known to be right; None: what lies there is read."""
        if digest in self.contents:
            if self.contents[digest].path == path and not self.contents[digest].error:
                return self.contents[digest]
            self.drop(digest)
        params = self._params(torrent, path, here)
        size = params.ti.files().file_size(0)
        if here and here[-1][1] > size:
            raise Trouble(f"there are {here[-1][1]} bytes, and the torrent is for {size}")
        handle = self.session.add_torrent(params)
        info = params.ti
        content = Content(digest, path, handle, info.num_pieces(), info.piece_length(), size)
        self.contents[digest] = content
        handle.set_ssl_certificate(self.config["cert"], self.config["key"], DH, "")
        self.watch()
        handle.resume()
        return content

    def _params(self, torrent: bytes, path: str, here: list[list[int]] | None) -> lt.add_torrent_params:
        try:
            info = lt.torrent_info(lt.bdecode(torrent))
        except (RuntimeError, ValueError) as error:
            raise Trouble(f"this is no torrent: {error}") from error
        files = info.files()
        # What fills up the last piece is a file too, for libtorrent.
        real = [index for index in range(files.num_files()) if not files.file_flags(index) & lt.file_flags_t.flag_pad_file]
        # Who is asked, and what may be connected to, is for the inventory to say.
        strange = not info.priv() or info.ssl_cert() != self.ca or list(info.trackers()) or info.web_seeds()
        if real != [0] or info.info_hashes().has_v1() or strange:
            raise Trouble("only private torrents of one file are taken: BitTorrent v2, for the fleet's CA, no trackers, no web seeds")
        params = lt.add_torrent_params()
        params.ti = info
        params.save_path = os.path.dirname(path)
        params.renamed_files = {0: os.path.basename(path)}
        params.storage_mode = lt.storage_mode_t.storage_mode_sparse
        flags = lt.torrent_flags
        params.flags = flags.paused | flags.disable_dht | flags.disable_lsd | flags.disable_pex | flags.duplicate_is_error
        if here is not None:
            params.have_pieces = _pieces(here, info.num_pieces(), info.piece_length(), info.files().file_size(0))
        return params

    def drop(self, digest: str) -> list[list[int]]:
        """Let go of a content; returns what is on the disk of it. Its file is closed afterwards."""
        content = self.content(digest)
        content.handle.pause()
        ranges = self.flush(digest)
        del self.contents[digest]
        self.session.remove_torrent(content.handle)
        self._await(lambda alert: isinstance(alert, lt.torrent_removed_alert))
        return ranges

    def flush(self, digest: str) -> list[list[int]]:
        """The bytes that are right, and in the file for whoever reads it."""
        content = self.content(digest)
        ranges = content.ranges()
        content.handle.flush_cache()
        self._await(lambda alert: isinstance(alert, lt.cache_flushed_alert) and alert.handle == content.handle)
        return ranges

    def recheck(self, digest: str) -> None:
        """Read all that lies there again: what is wrong is brought anew, and nothing else."""
        content = self.content(digest)
        content.handle.force_recheck()
        # It is done by and by; until it has begun, the content would pass for what it was.
        self._await(lambda alert: isinstance(alert, lt.state_changed_alert) and alert.handle == content.handle)

    # What goes on

    def watch(self) -> None:
        """Dial who is not connected, and note what went wrong."""
        self._listen(self.session.pop_alerts())
        for content in self.contents.values():
            self._dial(content, time.monotonic())

    def _dial(self, content: Content, now: float) -> None:
        """Whoever lacks something dials. One that has all of it only answers."""
        if now < content.next_dial or content.handle.status().is_seeding:
            return
        age = now - content.begun
        content.next_dial = now + (TURN if age < TURN else DIAL_FIRST if age < AT_FIRST else DIAL)
        connected = {peer.ip[0] for peer in content.handle.get_peer_info()}
        for address, port in self.peers:
            if address not in connected and (self.config["address"] < address or age >= TURN):
                self._call(content, address, port)

    def _call(self, content: Content, address: str, port: int) -> None:
        """That one peer cannot be called is no reason to end for all the others."""
        try:
            content.handle.connect_peer((address, port))
        except (OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:  # libtorrent's are among them
            said = f"{address}, port {port}, cannot be called: {type(error).__name__}"
            if said not in self.told:
                self.told.add(said)
                print(said, flush=True)

    def moved(self) -> int:
        """Bytes that came or went since this program began."""
        return sum(each["received"] + each["sent"] for each in (content.status() for content in self.contents.values()))

    def content(self, digest: str) -> Content:
        if digest not in self.contents:
            raise Trouble("unknown content")
        return self.contents[digest]

    def _await(self, wanted) -> None:
        deadline = time.monotonic() + FLUSH
        while time.monotonic() < deadline:
            self.session.wait_for_alert(200)
            alerts = self.session.pop_alerts()
            self._listen(alerts)
            if any(wanted(alert) for alert in alerts):
                return
        raise Trouble(f"the disk did not take what has arrived within {FLUSH:.0f} seconds")

    def _listen(self, alerts) -> None:
        for alert in alerts:
            if isinstance(alert, (lt.file_error_alert, lt.torrent_error_alert)):
                for content in self.contents.values():
                    if content.handle == alert.handle:
                        content.error, content.errno = alert.message(), alert.error.value()
            if self.config.get("debug"):
                print(type(alert).__name__, alert.message(), flush=True)


def _pieces(ranges: list[list[int]], count: int, length: int, size: int) -> list[bool]:
    here = [False] * count
    for begin, end in ranges:
        for piece in range(-(-begin // length), count):
            if min((piece + 1) * length, size) > end:
                break
            here[piece] = True
    return here


def decoded(text: str) -> bytes:
    """A torrent as it comes over the socket."""
    return base64.b64decode(text, validate=True)
