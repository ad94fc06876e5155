# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts bring each other files: from outside nothing differs but the speed, whatever breaks meanwhile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.molecule.distribution.tests.conftest import LIMIT, P2P, UNIT
from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import STORE, changed, model, said

pytestmark = pytest.mark.usefixtures("gone")
PIECE = 128 * 1024  # of a torrent of these files


def both(outside, name: str, seed: int, **more) -> list[dict]:
    """A model on both nodes, large enough to be looked at on its way."""
    return [model(name, outside.web(outside.large(seed), f"stage/{name}.gguf"), host="gpu*", replicas=2, **more)]


def from_depot(stores, sha256: str, host: str, since: float) -> int:
    """Bytes of a content that a host got over HTTP."""
    return sum(each["bytes"] for each in stores.served(sha256, host, since) if each["status"] < 300)


def test_nodes_bring_each_other_what_the_depot_has_and_nothing_stays(operator, outside, stores, fleet, bare, peers):
    models = both(outside, "shared", 401)
    operator.lock(models)
    (sha256,), began = operator.digests("shared"), time.time()

    told = operator.stage(models, *P2P, "--check")
    assert "gpu1" in told.stdout and all(peers.there(host) == [] for host in fleet.hosts("gpu_nodes"))

    done = operator.stage(models, *P2P)
    for host in fleet.hosts("gpu_nodes"):
        assert stores.trees(host)["shared/1.0.0/shared.gguf"] == sha256
        assert from_depot(stores, sha256, host, began) == 0, said(done)[-3000:]
    assert "MiB" in said(done)
    for host in (*fleet.hosts("gpu_nodes"), *fleet.hosts("depots")):
        assert peers.there(host) == [], host
        assert fleet.shell(host, f"ls -A {STORE}/incoming | grep -v '^progress' || true") == ""

    again = operator.stage(models, *P2P)
    assert set(changed(again).values()) == {0}


def test_while_it_runs_the_program_is_shut_in(operator, outside, fleet, bare, peers, underway):
    """The unit as it is on a host: not root, writes nowhere else, closed to others; and it is there only meanwhile."""
    models = both(outside, "shut", 402)
    operator.lock(models)
    (sha256,) = operator.digests("shut")
    run, output = underway(models, "gpu1", sha256)
    user = fleet.shell("gpu1", f"ps -o user= -p $(systemctl show -p MainPID --value {UNIT})")
    assert user not in ("", "root")
    # Only root asks; a part that is on its way is nobody else's to read.
    assert fleet.shell("gpu1", f"stat -L -c '%a' /run/llm_fleet_peer {STORE}/incoming/{sha256}.part").split() == ["700", "600"]
    assert "peer.key" not in fleet.shell("gpu1", f"ls -l /proc/$(systemctl show -p MainPID --value {UNIT})/root/run 2>/dev/null || true")
    assert fleet.shell("gpu1", f"systemctl show -p ProtectSystem --value {UNIT}") == "strict"
    assert run.wait(timeout=240) == 0, output.read_text()[-3000:]


def test_a_stranger_gets_no_byte(operator, outside, stores, fleet, bare, peers, underway):
    """A peer with a certificate of another CA, on a host of the fleet, with the fleet's own torrent and program."""
    models = [model("closed", outside.web(outside.large(403), "stage/closed.gguf"), host="gpu1")]
    operator.lock(models)
    (sha256,) = operator.digests("closed")
    run, output = underway(models, "gpu1", sha256)
    depot, node = fleet.address("depot1"), fleet.address("gpu1")
    torrent = f"{STORE}/torrents/sha256/{sha256}.torrent"
    # The fleet's CA is no secret; a certificate of it is what a stranger lacks.
    config = {
        "address": depot, "port": 9555, "socket": "/tmp/stranger/s",
        "cert": "/tmp/stranger/x.pem", "key": "/tmp/stranger/x.key", "ca": "/etc/llm_fleet/tls/ca.pem",
    }
    ask = f"""
import base64, json, socket, time
def ask(**what):
    s = socket.socket(socket.AF_UNIX); s.connect("/tmp/stranger/s"); s.sendall(json.dumps(what).encode() + b"\\n")
    return json.loads(s.makefile().readline())
ask(do="join", lease="x", peers=[["{depot}", 8446], ["{node}", 8446]])
torrent = base64.b64encode(open("{torrent}", "rb").read()).decode()
ask(do="want", digest="d", torrent=torrent, path="/tmp/stranger/part", here=[])
time.sleep(6)
print(json.dumps(ask(do="status", digest="d")))
"""
    found = fleet.shell("depot1", f"""
        mkdir -p /tmp/stranger && cd /tmp/stranger && touch part
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout x.key -out x.pem -subj /CN=gpu1 \\
            -addext subjectAltName=DNS:llm-fleet-content -days 1 2>/dev/null
        cat > config.json <<'END'
{json.dumps(config)}
END
        python3 -I /usr/local/lib/llm_fleet/peer config.json >log 2>&1 & pid=$!
        sleep 3
        python3 - <<'END'
{ask}
END
        kill $pid; rm -rf /tmp/stranger
    """)
    assert json.loads(found.splitlines()[-1])["received"] == 0
    assert run.wait(timeout=240) == 0, output.read_text()[-3000:]
    assert stores.trees("gpu1")["closed/1.0.0/closed.gguf"] == sha256


def test_the_seed_is_killed_and_the_rest_comes_over_http(operator, outside, stores, fleet, bare, peers, underway):
    """Nodes go on among themselves, and with the depot's HTTP for what neither has: no run is needed for that, and no byte comes twice."""
    models = both(outside, "seedless", 404)
    operator.lock(models)
    (sha256,), size, began = operator.digests("seedless"), outside.large(404).stat().st_size, time.time()
    run, output = underway(models, "gpu1", sha256, "-e", "model_store_peer_patience=3")
    peers.end("depot1")
    assert run.wait(timeout=300) == 0, output.read_text()[-3000:]
    for host in fleet.hosts("gpu_nodes"):
        assert stores.trees(host)["seedless/1.0.0/seedless.gguf"] == sha256
    over_http = [from_depot(stores, sha256, host, began) for host in fleet.hosts("gpu_nodes")]
    assert sum(over_http) > 0 and max(over_http) < size


@pytest.mark.long
def test_a_killed_peer_goes_on_where_it_was(operator, outside, stores, fleet, bare, peers, underway, wait_until):
    models = both(outside, "resumed", 405)
    operator.lock(models)
    (sha256,), size, began = operator.digests("resumed"), outside.large(405).stat().st_size, time.time()
    run, output = underway(models, "gpu1", sha256)
    wait_until(lambda: fleet.shell("gpu1", f"cat {STORE}/incoming/{sha256}.have 2>/dev/null || true") not in ("", "[]"), 60, 0.2)
    kept = sum(end - begin for begin, end in json.loads(fleet.shell("gpu1", f"cat {STORE}/incoming/{sha256}.have")))
    peers.kill("gpu1")
    # systemd starts it again, and the staging that waits tells it what is on the disk.
    wait_until(lambda: peers.status("gpu1", sha256)["state"] in ("bringing", "here"), 60, 0.1)
    assert peers.status("gpu1", sha256)["done"] >= kept
    assert run.wait(timeout=240) == 0, output.read_text()[-3000:]
    assert stores.trees("gpu1")["resumed/1.0.0/resumed.gguf"] == sha256
    assert from_depot(stores, sha256, "gpu1", began) < size


@pytest.mark.long
def test_what_a_run_says_holds_though_one_was_killed_before_it(operator, outside, stores, fleet, bare, peers, underway):
    """What it left on the hosts goes on bringing the file, by the settings of whoever came after it."""
    models = both(outside, "again", 412)
    operator.lock(models)
    (sha256,) = operator.digests("again")
    run, _output = underway(models, "gpu1", sha256)
    os.killpg(run.pid, signal.SIGKILL)
    told = {host: json.loads(fleet.shell(host, "cat /run/llm-fleet-peer.json"))["download"] for host in fleet.hosts("gpu_nodes")}
    assert set(told.values()) == {LIMIT}
    operator.stage(models, *P2P)
    for host in fleet.hosts("gpu_nodes"):
        assert stores.trees(host)["again/1.0.0/again.gguf"] == sha256
        # The killed run never gave its program back.
        assert "running" in peers.there(host) and json.loads(fleet.shell(host, "cat /run/llm-fleet-peer.json"))["download"] == 0


@pytest.mark.long
def test_a_corrupt_piece_comes_again_alone(operator, outside, stores, fleet, bare, peers):
    """What an earlier run left, with a byte that the disk has lost."""
    models = both(outside, "corrupt", 406)
    operator.lock(models)
    (sha256,), size, began = operator.digests("corrupt"), outside.large(406).stat().st_size, time.time()
    operator.stage(models, *P2P)
    part = f"{STORE}/incoming/{sha256}"
    fleet.shell("gpu1", f"""
        cp {STORE}/blobs/sha256/{sha256} {part}.part; echo '[[0, {size}]]' > {part}.have
        byte=$(od -An -tu1 -j1000000 -N1 {part}.part | tr -d ' ')
        printf "$(printf '\\\\%03o' $((byte ^ 1)))" | dd of={part}.part bs=1 seek=1000000 conv=notrunc status=none
        rm -rf {STORE}/models/corrupt {STORE}/blobs/sha256/{sha256} {STORE}/verified/{sha256}
    """)
    done = operator.stage(models, *P2P)
    assert stores.trees("gpu1")["corrupt/1.0.0/corrupt.gguf"] == sha256, said(done)[-3000:]
    assert from_depot(stores, sha256, "gpu1", began) == 0, said(done)[-3000:]
    # The report counts what came: one piece, and what two peers sent of it at the same time.
    brought = re.search(r"gpu1 +([\d.]+) KiB in", done.stdout)
    assert brought and float(brought[1]) * 1024 <= 2 * PIECE, said(done)[-3000:]


@pytest.mark.long
def test_a_disk_that_fills_up_is_told_as_over_http(operator, outside, stores, fleet, bare, peers, small_disk, underway):
    models = [model("filled", outside.web(outside.large(407), "stage/filled.gguf"), host="gpu2")]
    operator.lock(models)
    (sha256,) = operator.digests("filled")
    small_disk("gpu2", 48)
    run, output = underway(models, "gpu2", sha256, "-e", "llm_fleet_disk_reserve=0")
    fleet.shell("gpu2", f"dd if=/dev/zero of={STORE}/filler bs=64k status=none || true", check=False)
    assert run.wait(timeout=240) != 0
    assert "no space left" in output.read_text().lower() and "free some space" in " ".join(output.read_text().split())
    assert fleet.shell("gpu2", f"ls {STORE}/incoming/{sha256}.part 2>/dev/null || true") == ""
    # Also where it failed, nobody goes on handing out.
    assert peers.there("depot1") == [] and peers.there("gpu2") == []


@pytest.mark.long
def test_two_versions_share_files(operator, outside, stores, fleet, bare):
    """A second version brings only the file that differs: the other one is there by its digest."""
    first, second = outside.large(408), outside.large(409)
    name = "versions"
    folder = outside.made / name
    folder.mkdir(exist_ok=True)
    for version, weights in (("1.0.0", first), ("1.1.0", second)):
        (folder / version).mkdir(exist_ok=True)
        for target, source in (("a.gguf", first), ("b.gguf", weights)):
            link = folder / version / target
            link.unlink(missing_ok=True)
            link.hardlink_to(source)
    entry = model(name, f"file://{folder}/1.0.0/", host="gpu*", replicas=2)
    operator.lock([entry])
    operator.stage([entry], *P2P)
    entry["versions"]["1.1.0"] = {"source": f"file://{folder}/1.1.0/"}
    entry["version"] = "1.1.0"
    operator.lock([entry])
    began = time.time()
    operator.stage([entry], *P2P)
    shared, new = operator.digests(name, "1.1.0")
    for host in fleet.hosts("gpu_nodes"):
        trees = stores.trees(host)
        assert (trees[f"{name}/1.1.0/a.gguf"], trees[f"{name}/1.1.0/b.gguf"]) == (shared, new)
        assert stores.served(shared, host, began) == []


@pytest.mark.long
def test_a_depot_that_cannot_hand_out_gives_back_what_it_took(operator, outside, stores, fleet, bare, peers):
    """Nodes have the file from it over HTTP, and the run says what failed."""
    models = both(outside, "unoffered", 413)
    operator.lock(models)
    (sha256,) = operator.digests("unoffered")
    torrents = f"{STORE}/torrents"
    fleet.shell("depot1", f"rm -rf {torrents}; touch {torrents}")
    try:
        done = operator.run("stage", models, *P2P, check=False)
    finally:
        fleet.shell("depot1", f"rm {torrents}")
    assert done.returncode != 0 and "torrents" in said(done), said(done)[-3000:]
    for host in fleet.hosts("gpu_nodes"):
        assert stores.trees(host)["unoffered/1.0.0/unoffered.gguf"] == sha256
    assert [peers.there(host) for host in (*fleet.hosts("gpu_nodes"), *fleet.hosts("depots"))] == [[], [], []]


@pytest.mark.long
def test_hosts_let_each_other_in_where_their_rules_are_older_than_the_inventory(operator, outside, stores, fleet, bare, guarded):
    """One that dials is enough, so all have rules: gpu2 came later than those of the others, and its own are of another time still."""
    guarded("depot1", "depot1", "gpu1")
    guarded("gpu1", "depot1", "gpu1")
    guarded("gpu2", "gpu2")
    models = both(outside, "late", 411)
    operator.lock(models)
    (sha256,), began = operator.digests("late"), time.time()
    done = operator.stage(models, *P2P)
    assert from_depot(stores, sha256, "gpu2", began) == 0, said(done)[-3000:]
    again = operator.stage(models, *P2P)
    assert set(changed(again).values()) == {0}


@pytest.mark.long
def test_a_limited_bandwidth_holds(operator, outside, bare, fleet):
    models = both(outside, "limited", 410)
    operator.lock(models)
    began = time.monotonic()
    operator.stage(models, *P2P, "-e", f"llm_fleet_stage_bandwidth={LIMIT}")
    # From above nothing can be said: machines are slow at times.
    assert time.monotonic() - began > 0.7 * outside.large(410).stat().st_size / LIMIT


def test_p2p_without_a_depot_is_a_fault_before_anything_is_done(fleet, operator, tmp_path):
    source = fleet.state.parents[1] / "molecule" / "inventory"
    shutil.copytree(source, tmp_path / "inventory")
    hosts = yaml.safe_load((source / "hosts.yml").read_text())
    hosts["all"]["children"].pop("depots")
    (tmp_path / "inventory" / "hosts.yml").write_text(yaml.safe_dump(hosts))
    arguments = ("-e", f"testbed_state_dir={fleet.state}")
    done = operator.run("preflight", [], *P2P, *arguments, inventory=tmp_path / "inventory", check=False)
    assert done.returncode != 0 and "p2p needs a host that has the files first" in said(done)
