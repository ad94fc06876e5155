# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Staging: each file once to each host that needs it, from where it should come, whatever breaks meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time

import pytest
import yaml

from ansible_collections.localfirst.llm_fleet.molecule.models.tests.conftest import CONTROLLER, STORE, changed, model, said
from ansible_collections.localfirst.llm_fleet.molecule.models.tests.outside import digest

LIMIT = 4_000_000  # bytes a second: 32 MB take eight seconds
SLOW = ("-e", f"llm_fleet_stage_bandwidth={LIMIT}")
NO_RESERVE = ("-e", "llm_fleet_disk_reserve=0")
FOREIGN = """
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout /tmp/foreign.key -out /tmp/foreign.pem \
    -subj /CN=gpu1 -days 1 2>/dev/null
"""
TLS = "/etc/llm_fleet/tls"


@pytest.fixture
def apart(fleet):
    """GPU nodes that cannot reach the outside world. Yields what counts the packets that they tried to send there."""
    rule = f"OUTPUT -d {fleet.address('upstream')} -j DROP"
    for host in fleet.hosts("gpu_nodes"):
        fleet.shell(host, f"iptables -I {rule}")

    def tried() -> dict[str, int]:
        lines = {host: fleet.shell(host, "iptables -nvxL OUTPUT | grep DROP | head -1") for host in fleet.hosts("gpu_nodes")}
        return {host: int(line.split()[0]) for host, line in lines.items()}

    yield tried
    for host in fleet.hosts("gpu_nodes"):
        fleet.shell(host, f"iptables -D {rule}")


@pytest.fixture
def small_disk(fleet):
    """`small_disk("gpu2", 8)`: the host's store is on a disk of its own, of so many MB, and empty."""
    hosts = []

    def mount(host: str, megabytes: int) -> None:
        fleet.shell(host, f"mount -t tmpfs -o size={megabytes}m,mode=0750 tmpfs {STORE}")
        hosts.append(host)

    yield mount
    for host in hosts:
        fleet.shell(host, f"umount {STORE}")


@pytest.fixture
def underway(operator, stores, wait_until):
    """Start to stage and wait until the file is on its way to a host; what still runs in the end is ended."""
    started = []

    def until_bytes(models, host: str, digest: str, *arguments: str, **options):
        run, output = operator.start("stage", models, *SLOW, *arguments, **options)
        started.append(run)

        def moving() -> bool:
            assert run.poll() is None, output.read_text()[-3000:]
            return stores.arrived(host, digest) > 500_000

        wait_until(moving, 120, 0.1)
        return run, output

    yield until_bytes
    for run in started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def restart(fleet, wait_until, host: str, *units: str) -> None:
    subprocess.run(["docker", "start", fleet.container(host)], check=True, capture_output=True)
    wait_until(lambda: set(fleet.shell(host, f"systemctl is-active ssh {' '.join(units)}", check=False).split()) == {"active"})


def first_byte(answer: dict) -> int:
    """Where a request for the rest of a file began."""
    found = re.fullmatch(r"bytes=(\d+)-", answer["range"])
    return int(found[1]) if found else 0


def test_each_file_gets_once_to_the_hosts_that_need_it(operator, outside, stores, fleet, bare, apart):
    folder = outside.safetensors("staged", 7)
    shutil.copy(outside.gguf(201), folder / "model.gguf")
    outside.hub_revision("fleet/staged", "v1", folder)
    path = "/stage/both.gguf"
    models = [
        model("both", outside.web(outside.gguf(202, small=False), path[1:]), host="gpu*", replicas=2),
        model("one", "hf://fleet/staged?files=*.gguf"),
        model("here", f"file://{outside.gguf(203)}", host="gpu2"),
    ]
    operator.lock(models)
    size, before, began = outside.gguf(202, small=False).stat().st_size, outside.fetched(path, by="depot1"), time.time()

    told = operator.stage(models, "--check")
    assert not set(operator.digests("both")) & (stores.blobs("depot1") | stores.blobs("gpu1"))
    assert "5.8 MiB" in told.stdout and "gpu1" in told.stdout, told.stdout[-4000:]

    operator.stage(models)
    for host, wanted in {"gpu1": {"both": 202, "one": 201}, "gpu2": {"both": 202, "here": 203}}.items():
        trees = stores.trees(host)
        for name, seed in wanted.items():
            have = {path: sha for path, sha in trees.items() if path.startswith(f"{name}/1.0.0/")}
            assert set(have.values()) == {digest(outside.gguf(seed, small=seed != 202))}, (host, name)
        assert stores.models(host) & {"both", "one", "here"} == set(wanted)
    assert set(operator.digests("both") + operator.digests("one") + operator.digests("here")) <= stores.blobs("depot1")
    # Once to each node, and nothing else; and from outside once at the most: the controller had it from locking.
    brought = outside.fetched(path, by="depot1")
    assert brought in (before, [*before, 200])
    for host in fleet.hosts("gpu_nodes"):
        assert sum(each["bytes"] for each in stores.served(operator.digests("both")[0], host, began)) == size
        assert outside.fetched(path, by=host) == []
    assert set(apart().values()) == {0}, "a node asked somebody outside"

    again = operator.stage(models)
    assert set(changed(again).values()) == {0}
    assert outside.fetched(path, by="depot1") == brought


def test_strangers_get_nothing_from_a_depot(fleet, stores):
    url = f"https://{fleet.address('depot1')}:8444/blobs/sha256/{sorted(stores.blobs('depot1'))[0]}"
    refused_to_strangers(fleet, url)


def refused_to_strangers(fleet, url: str) -> None:
    """No certificate, one of somebody else that claims to be the node, no TLS; the node itself, and no writing for it either."""
    curl = f"curl -s -o /dev/null -w '%{{http_code}} ' --max-time 10 --cacert {TLS}/ca.pem -r 0-0"
    ours = f"--cert {TLS}/client.pem --key {TLS}/client.key"
    status = fleet.shell("gpu1", f"""{FOREIGN}
        {curl} {url} || true
        {curl} --cert /tmp/foreign.pem --key /tmp/foreign.key {url} || true
        {curl} {url.replace('https:', 'http:')} || true
        {curl} {ours} -X PUT --data x {url} || true
        {curl} {ours} {url.rpartition('/')[0]}/ || true
        {curl} {ours} {url}
    """).split()
    *refused, allowed = status
    assert len(refused) == 5 and not any(code.startswith("2") for code in refused), status
    assert allowed == "206"


def test_a_killed_controller_loses_nothing(operator, outside, stores, fleet, bare, underway):
    """What runs on the hosts goes on by itself; the same command takes it up, and nothing is moved twice."""
    path = "/stage/controller.gguf"
    models = [model("controller", outside.web(outside.large(204), path[1:]))]
    operator.lock(models)
    (sha256,), size, began = operator.digests("controller"), outside.large(204).stat().st_size, time.time()
    before = outside.fetched(path, by="depot1")
    run, _output = underway(models, "gpu1", sha256)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    done = operator.stage(models)
    assert stores.trees("gpu1")["controller/1.0.0/controller.gguf"] == sha256
    assert sum(each["bytes"] for each in stores.served(sha256, "gpu1", began)) == size, said(done)[-2000:]
    # The depot gets from the controller what was downloaded there to be locked.
    assert outside.fetched(path, by="depot1") == before


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(operator, outside, stores, fleet, bare, small_disk):
    """Each file alone would fit; all that the host needs does not."""
    models = [model("large", outside.web(outside.gguf(205, small=False), "stage/large.gguf"), host="gpu2")]
    operator.lock(models)
    small_disk("gpu2", 8)
    done = operator.stage(models, *NO_RESERVE, check=False)
    assert done.returncode != 0
    assert "gpu2" in said(done) and re.search(r"free", said(done)), said(done)[-3000:]
    assert stores.blobs("gpu2") == set() and stores.arrived("gpu2", operator.digests("large")[0]) == 0


@pytest.fixture
def without_depots(fleet, tmp_path):
    """The same fleet with nobody in the group `depots`; arguments and inventory for a run."""
    source = fleet.state.parents[1] / "molecule" / "inventory"
    shutil.copytree(source, tmp_path / "inventory")
    hosts = yaml.safe_load((source / "hosts.yml").read_text())
    hosts["all"]["children"].pop("depots")
    (tmp_path / "inventory" / "hosts.yml").write_text(yaml.safe_dump(hosts))
    # What a run that was killed has started would go on for a while, for the case that others need it.
    note = fleet.state / "ca" / "serving" / "server.json"
    if note.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(note.read_text())["pid"], signal.SIGTERM)
    return ("-e", f"testbed_state_dir={fleet.state}"), tmp_path / "inventory"


def test_without_depots_the_controller_hands_out_what_it_fetched_once(
    operator, outside, stores, fleet, bare, apart, underway, without_depots, wait_until
):
    arguments, inventory = without_depots
    path = "/stage/served.gguf"
    models = [
        model("served", outside.web(outside.large(206), path[1:]), host="gpu*", replicas=2),
        model("mine", f"file://{outside.gguf(207)}"),
    ]
    before = outside.fetched(path, by=CONTROLLER)
    operator.lock(models, *arguments, inventory=inventory)
    (sha256,) = operator.digests("served")
    run, output = underway(models, "gpu1", sha256, *arguments, inventory=inventory)
    server = json.loads((fleet.state / "ca" / "serving" / "server.json").read_text())
    refused_to_strangers(fleet, f"{server['url']}/blobs/sha256/{sha256}")
    assert run.wait(timeout=120) == 0, output.read_text()[-3000:]
    for host in fleet.hosts("gpu_nodes"):
        assert stores.trees(host)["served/1.0.0/served.gguf"] == sha256
    assert stores.trees("gpu1")[f"mine/1.0.0/{outside.gguf(207).name}"] == operator.digests("mine")[0]
    assert sha256 not in stores.blobs("depot1")
    # To be hashed it had to be downloaded; what was kept then is what was handed out.
    assert [status for status in outside.fetched(path, by=CONTROLLER)[len(before) :] if status < 300] == [200]
    assert set(apart().values()) == {0}

    def silent() -> bool:
        address, port = server["url"].rpartition("//")[2].rsplit(":", 1)
        with socket.socket() as probe:
            return probe.connect_ex((address, int(port))) != 0

    wait_until(silent, 10)  # not by its process number: what has ended may wait there for its parent


@pytest.mark.long
def test_a_limited_bandwidth_holds(operator, outside, bare):
    models = [model("limited", outside.web(outside.large(208), "stage/limited.gguf"))]
    operator.lock(models)
    done = operator.stage(models, *SLOW)
    size = outside.large(208).stat().st_size
    for host in ("depot1", "gpu1"):
        found = re.search(rf"{host} +[\d.]+ MiB in ([\d.]+) s", done.stdout)
        # From above nothing can be said: machines are slow at times.
        assert float(found[1]) > 0.7 * size / LIMIT, found[0]


@pytest.mark.long
def test_a_killed_node_goes_on_where_it_stopped(operator, outside, stores, fleet, bare, underway, wait_until):
    models = [model("node", outside.web(outside.large(209), "stage/node.gguf"))]
    operator.lock(models)
    (sha256,), began = operator.digests("node"), time.time()
    run, output = underway(models, "gpu1", sha256)
    arrived = stores.arrived("gpu1", sha256)
    subprocess.run(["docker", "kill", fleet.container("gpu1")], check=True, capture_output=True)
    assert run.wait(timeout=240) != 0 and "gpu1" in output.read_text()
    restart(fleet, wait_until, "gpu1", "docker")
    operator.stage(models)
    assert stores.trees("gpu1")["node/1.0.0/node.gguf"] == sha256
    assert first_byte(stores.served(sha256, "gpu1", began)[-1]) >= arrived


@pytest.mark.long
@pytest.mark.parametrize("kill", ["nginx", "host"])
def test_a_depot_that_goes_away_costs_a_run_and_no_bytes(
    operator, outside, stores, fleet, bare, underway, wait_until, kill, tmp_path
):
    seed = {"nginx": 210, "host": 211}[kill]
    models = [model(f"depot-{kill}", outside.web(outside.large(seed), f"stage/depot-{kill}.gguf"))]
    operator.lock(models)
    (sha256,), began = operator.digests(f"depot-{kill}"), time.time()
    # Its own download is what ends with the host; that of a node is what ends with its server.
    host = {"nginx": "gpu1", "host": "depot1"}[kill]
    before = outside.fetched(f"/stage/depot-{kill}.gguf", by="depot1")
    # As if it had been locked by somebody else: the depot has to ask the source.
    elsewhere = ("-e", f"llm_fleet_store_dir={tmp_path}")
    run, output = underway(models, host, sha256, *elsewhere)
    arrived = stores.arrived(host, sha256)
    if kill == "nginx":
        # Stopped as well: systemd would start it again, and then all of it succeeds.
        fleet.shell("depot1", "systemctl kill -s KILL llm-fleet-depot; systemctl stop llm-fleet-depot")
        try:
            failed = run.wait(timeout=240) != 0
        finally:
            fleet.shell("depot1", "systemctl start llm-fleet-depot")
        assert failed and "10.203.1.31" in output.read_text(), output.read_text()[-3000:]
    else:
        subprocess.run(["docker", "kill", fleet.container("depot1")], check=True, capture_output=True)
        assert run.wait(timeout=240) != 0
        restart(fleet, wait_until, "depot1", "llm-fleet-depot")
    operator.stage(models, *elsewhere)
    assert stores.trees("gpu1")[f"depot-{kill}/1.0.0/depot-{kill}.gguf"] == sha256
    if kill == "nginx":
        assert first_byte(stores.served(sha256, "gpu1", began)[-1]) >= arrived
    else:
        assert outside.fetched(f"/stage/depot-{kill}.gguf", by="depot1")[len(before) :][-1] == 206


@pytest.mark.long
def test_a_disk_that_fills_up_meanwhile_is_told_and_gone_on_with(
    operator, outside, stores, fleet, bare, small_disk, underway
):
    models = [model("filled", outside.web(outside.large(212), "stage/filled.gguf"), host="gpu2")]
    operator.lock(models)
    (sha256,) = operator.digests("filled")
    small_disk("gpu2", 48)
    run, output = underway(models, "gpu2", sha256, *NO_RESERVE)
    fleet.shell("gpu2", f"dd if=/dev/zero of={STORE}/filler bs=64k status=none || true", check=False)
    assert run.wait(timeout=240) != 0
    assert "no space left" in output.read_text().lower() and "free some space" in " ".join(output.read_text().split())
    # What had arrived makes room: the host needs it more than the next run needs a head start.
    assert stores.arrived("gpu2", sha256) == 0
    fleet.shell("gpu2", f"rm {STORE}/filler")
    operator.stage(models, *NO_RESERVE)
    assert stores.trees("gpu2")["filled/1.0.0/filled.gguf"] == sha256
