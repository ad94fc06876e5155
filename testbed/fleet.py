#!/usr/bin/env python3
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Start and remove a fleet of systemd containers that stand for servers.

A fleet's definition is its Ansible inventory, read with ansible-inventory:
  testbed_network   {name, subnet}; the name is the fleet's, containers are called <name>-<host>. With `internal: true`
                    there is no way out: hosts reach each other and this machine
  testbed_state     directory for ssh key and known_hosts, relative to the repository (default .testbed/<name>)
  testbed_image     per host: debian12, debian13, upstream, … (hosts without it are not made)
  testbed_gpus      per host: its GPUs at first, a scenario of testbed/doubles/nvidia_smi; its image holds that double
  testbed_publish   per host: ports published on this machine, as docker run --publish takes them
  ansible_host      per host: its fixed address
All that it makes carries labels with the fleet's name and this checkout, and only that is ever removed.
"""
from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import ipaddress
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PREFIX = "llm-fleet-testbed"
FLEET_LABEL, CHECKOUT_LABEL, SPEC_LABEL = f"{PREFIX}.fleet", f"{PREFIX}.checkout", f"{PREFIX}.spec"
DOCKER = shlex.split(os.environ.get("DOCKER", "docker"))
# What systemd and a Docker engine need inside a container. By name: --privileged asks for all of
# them, and is refused on machines that themselves lack one.
CAPABILITIES = (
    "SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "AUDIT_CONTROL",
    "SETFCAP", "SYS_NICE", "SYS_TIME", "DAC_READ_SEARCH", "LINUX_IMMUTABLE", "IPC_LOCK", "SYSLOG",
)
RUN_FLAGS = [
    *(f"--cap-add={c}" for c in CAPABILITIES),
    "--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined",
    "--device-cgroup-rule=a *:* rwm", "--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw",
    "--tmpfs=/run", "--tmpfs=/run/lock", "--tmpfs=/tmp:exec",
    # A reboot ends PID 1; the policy starts it again.
    "--restart=always", "--stop-signal=SIGRTMIN+3",
]
# Images of hosts with a registry and a file server, for what a fleet gets from outside.
OUTSIDE = ("upstream", "sources", "mirror")
# Runs in a host each time it is brought up: lets the fleet's key in, plugs GPUs in where there are none yet, waits for the end of the
# boot, prints the state, the failed units and the host's own public key.
ENTER = r"""
install -d -m 0700 /root/.ssh && install -d -m 0700 -o ops -g ops /home/ops/.ssh
[ "$(cat /root/.ssh/authorized_keys 2>/dev/null)" = "$KEY" ] || echo "$KEY" > /root/.ssh/authorized_keys
[ "$(cat /home/ops/.ssh/authorized_keys 2>/dev/null)" = "$KEY" ] || echo "$KEY" > /home/ops/.ssh/authorized_keys
[ -z "$GPUS" ] || [ -e /etc/testbed/gpus.json ] || testbed-gpus use "$GPUS" >&2
timeout 60 systemctl is-system-running --wait 2>/dev/null || true
systemctl list-units --failed --plain --no-legend 2>/dev/null | awk '{printf "%s ", $1}'; echo
cat /etc/ssh/ssh_host_ed25519_key.pub 2>/dev/null
"""


class FleetError(Exception):
    """Something the person in front of the screen has to know or to mend."""


@dataclasses.dataclass(frozen=True)
class Host:
    name: str
    image: str
    address: str
    publish: tuple[str, ...]
    gpus: str


@dataclasses.dataclass(frozen=True)
class Fleet:
    name: str
    subnet: str
    state: Path
    hosts: tuple[Host, ...]
    internal: bool = False

    def container(self, host: Host) -> str:
        return f"{self.name}-{host.name}"

    def upstream(self) -> Host:
        """The host that stands for the outside world."""
        for host in self.hosts:
            if host.image in OUTSIDE:
                return host
        raise FleetError(f"fleet {self.name} has no host with testbed_image {' or '.join(OUTSIDE)}: no registry, no files")


def docker(*arguments: str, check: bool = True) -> str:
    done = subprocess.run([*DOCKER, *arguments], text=True, capture_output=True, check=False)
    if check and done.returncode:
        raise FleetError(f"docker {arguments[0]} {arguments[-1]}: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""


def write_if_changed(path: Path, text: str) -> bool:
    """Replace a file as a whole, and only if its content differs."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text)
    fresh.rename(path)
    return True


def read_hostvars(inventory: Path) -> dict[str, dict]:
    """Each host's variables as the inventory has them, templates not filled in."""
    tool = Path(sys.executable).with_name("ansible-inventory")
    command = [str(tool if tool.exists() else "ansible-inventory"), "-i", str(inventory), "--list"]
    done = subprocess.run(command, text=True, capture_output=True, check=False, cwd=REPO)
    if done.returncode:
        raise FleetError(f"{inventory}: {done.stderr.strip()}")
    return json.loads(done.stdout)["_meta"]["hostvars"]


def read_fleet(inventory: Path) -> Fleet:
    """Read the fleet from its inventory. Only literal values are used, so nothing needs to be templated."""
    hostvars = {h: v for h, v in read_hostvars(inventory).items() if "testbed_image" in v}
    if not hostvars:
        raise FleetError(f"{inventory}: no host has testbed_image, so there is nothing to start")
    network = next(iter(hostvars.values())).get("testbed_network")
    if not isinstance(network, dict) or not {"name", "subnet"} <= set(network):
        raise FleetError(f"{inventory}: testbed_network must be set for all hosts, with name and subnet")
    subnet, hosts = ipaddress.ip_network(network["subnet"]), []
    for name, values in sorted(hostvars.items()):
        address = values.get("ansible_host", "")
        try:
            inside = ipaddress.ip_address(address) in subnet
        except ValueError:
            inside = False
        if not inside:
            raise FleetError(f"{inventory}: host {name}: ansible_host must be an address in {subnet}, not {address!r}")
        hosts.append(Host(name, values["testbed_image"], address, tuple(values.get("testbed_publish", [])),
                          values.get("testbed_gpus", "")))
    state = REPO / next(iter(hostvars.values())).get("testbed_state", f".testbed/{network['name']}")
    return Fleet(network["name"], str(subnet), state, tuple(hosts), bool(network.get("internal")))


def labels(fleet_name: str) -> list[str]:
    return [f"--label={FLEET_LABEL}={fleet_name}", f"--label={CHECKOUT_LABEL}={REPO}"]


def ours(fleet_name: str | None) -> list[str]:
    """Filters for what belongs to one fleet of this checkout, or to any of them."""
    fleet = f"{FLEET_LABEL}={fleet_name}" if fleet_name else FLEET_LABEL
    return [f"--filter=label={fleet}", f"--filter=label={CHECKOUT_LABEL}={REPO}"]


def ensure_key(fleet: Fleet) -> str:
    """Make the fleet's ssh key once and return the public half."""
    private, public = fleet.state / "ssh_key", fleet.state / "ssh_key.pub"
    fleet.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (private.exists() and public.exists()):
        fresh = fleet.state / "ssh_key.new"
        for leftover in (fresh, fresh.with_suffix(".new.pub"), private, public):
            leftover.unlink(missing_ok=True)
        comment = f"testbed {fleet.name}"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(fresh)]
        subprocess.run(command, check=True)
        fresh.with_suffix(".new.pub").rename(public)
        fresh.rename(private)
    return public.read_text().strip()


def ensure_network(fleet: Fleet) -> None:
    wanted = ipaddress.ip_network(fleet.subnet)
    known = json.loads(docker("network", "inspect", *docker("network", "ls", "-q").split()))
    for network in known:
        subnets = [c["Subnet"] for c in network["IPAM"]["Config"] or [] if "Subnet" in c]
        if network["Name"] == fleet.name:
            owner = (network["Labels"] or {}).get(CHECKOUT_LABEL)
            if owner != str(REPO):
                raise FleetError(
                    f"the Docker network {fleet.name} belongs to {owner or 'somebody else'}; remove that fleet first"
                )
            if subnets == [fleet.subnet] and network.get("Internal", False) == fleet.internal:
                return
            way = "without a way out" if fleet.internal else "with a way out"
            raise FleetError(f"network {fleet.name} has subnet {subnets}, wanted is {fleet.subnet}, {way}: run down first")
        for subnet in map(ipaddress.ip_network, subnets):
            if subnet.version == wanted.version and subnet.overlaps(wanted):
                raise FleetError(
                    f"the subnet {wanted} is in use: the Docker network {network['Name']} has {subnet}; "
                    f"remove that network, or give this fleet another subnet in its inventory"
                )
    for route in local_routes():
        if route.version == wanted.version and route.subnet_of(wanted):
            raise FleetError(f"the subnet {wanted} is in use: this machine has a route to {route}")
    internal = ["--internal"] if fleet.internal else []
    docker("network", "create", *labels(fleet.name), *internal, f"--subnet={fleet.subnet}", fleet.name)


def local_routes() -> list[ipaddress.IPv4Network | ipaddress.IPv6Network]:
    done = subprocess.run(["ip", "-json", "route"], text=True, capture_output=True, check=False)
    routes = json.loads(done.stdout) if done.returncode == 0 and done.stdout.strip() else []
    return [ipaddress.ip_network(r["dst"], strict=False) for r in routes if r["dst"][:1].isdigit()]


def ensure_container(fleet: Fleet, host: Host) -> str:
    """Create or start one host's container. Return what was done, or an empty string."""
    name, image = fleet.container(host), f"{PREFIX}/{host.image}"
    image_id = docker("image", "inspect", "-f", "{{.Id}}", image, check=False)
    if not image_id:
        raise FleetError(f"host {host.name}: the image {image} is not there; build it with testbed/images.py")
    arguments = [
        *RUN_FLAGS, f"--name={name}", f"--hostname={host.name}", f"--volume={name}-docker:/var/lib/docker",
        f"--network={fleet.name}", f"--ip={host.address}", f"--network-alias={host.name}",
        *(f"--publish={p}" for p in host.publish), *labels(fleet.name),
    ]
    spec = hashlib.sha256(json.dumps([image_id, arguments]).encode()).hexdigest()[:16]
    found = json.loads(docker("container", "inspect", name, check=False) or "[]")
    done = "created"
    if found:
        has = found[0]["Config"]["Labels"]
        if has.get(CHECKOUT_LABEL) != str(REPO):
            raise FleetError(f"the container {name} is not of this checkout; remove it first")
        if has.get(SPEC_LABEL) == spec:
            if found[0]["State"]["Running"]:
                return ""
            start(name, host)
            return "started"
        # Another image or other ports: a host cannot be changed in place, so it begins anew.
        remove_containers([name])
        done = "created anew, its definition or image changed"
    docker("volume", "create", *labels(fleet.name), f"{name}-docker")
    docker("create", *arguments, f"--label={SPEC_LABEL}={spec}", image)
    start(name, host)
    return done


def start(container: str, host: Host) -> None:
    try:
        docker("start", container)
    except FleetError as error:
        if "already allocated" in str(error) or "address already in use" in str(error):
            raise FleetError(
                f"host {host.name}: one of the ports {', '.join(host.publish)} is taken on this machine; stop what "
                f"listens there, or change testbed_publish in the inventory ({error})"
            ) from None
        raise


def wait_for_host(fleet: Fleet, host: Host, public_key: str, deadline: float) -> str:
    """Wait until systemd is up and sshd answers. Return the host's line for known_hosts."""
    name, last = fleet.container(host), "no answer"
    while time.monotonic() < deadline:
        output = docker("exec", "-e", f"KEY={public_key}", "-e", f"GPUS={host.gpus}", name, "sh", "-c", ENTER, check=False).splitlines()
        if len(output) == 3 and output[0] in ("running", "degraded"):
            if output[1].strip():
                print(f"  {host.name:<14} failed units: {output[1]}", flush=True)
            try:
                with socket.create_connection((host.address, 22), timeout=2) as connection:
                    if connection.recv(4) == b"SSH-":
                        return f"{host.address} {' '.join(output[2].split()[:2])}"
            except OSError as error:
                output = [f"ssh: {error}"]
        last = output[0] if output else last
        time.sleep(0.3)
    hint = f"look at: docker logs {name}"
    if docker("inspect", "-f", "{{.State.ExitCode}}", name, check=False) == "255":
        # What systemd does when it gets no inotify instance; it has nowhere to say so.
        hint = "its systemd ends at once, perhaps for lack of inotify instances: sysctl fs.inotify.max_user_instances=1024"
    raise FleetError(f"host {host.name} did not come up ({last}); {hint}")


def wait_for_fleet(fleet: Fleet, timeout: float) -> None:
    public_key, deadline = ensure_key(fleet), time.monotonic() + timeout
    with concurrent.futures.ThreadPoolExecutor(max_workers=16) as pool:
        lines = list(pool.map(lambda h: wait_for_host(fleet, h, public_key, deadline), fleet.hosts))
    write_if_changed(fleet.state / "known_hosts", "".join(f"{line}\n" for line in lines))


def up(fleet: Fleet, timeout: float) -> None:
    begun = time.monotonic()
    ensure_key(fleet)
    ensure_network(fleet)
    wanted = {fleet.container(h) for h in fleet.hosts}
    existing = docker("ps", "-a", "--format={{.Names}}", *ours(fleet.name)).split()
    remove_containers([name for name in existing if name not in wanted])
    for host in fleet.hosts:
        done = ensure_container(fleet, host)
        if done:
            # What Ansible remembers of a host of this name is not about this one.
            for folder in (REPO / ".cache" / "facts", fleet.state / "facts"):
                for facts in folder.glob(f"*_{host.name}"):
                    facts.unlink()
            print(f"  {host.name:<14} {host.address:<15} {host.image:<14} {done}", flush=True)
    wait_for_fleet(fleet, timeout)
    print(f"  fleet {fleet.name}: {len(fleet.hosts)} hosts up ({time.monotonic() - begun:.0f} s)", flush=True)


def remove_containers(names: list[str]) -> None:
    """Remove containers with the volumes of their Docker engines."""
    if names:
        docker("rm", "-fv", *names)
        for name in names:
            docker("volume", "rm", "-f", f"{name}-docker")


def down(fleet_name: str | None, state: Path | None) -> None:
    """Remove exactly what carries this fleet's labels (or any fleet's of this checkout), and its keys."""
    containers = docker("ps", "-aq", *ours(fleet_name)).split()
    if containers:
        docker("rm", "-fv", *containers)
    volumes = docker("volume", "ls", "-q", *ours(fleet_name)).split()
    if volumes:
        docker("volume", "rm", *volumes)
    networks = docker("network", "ls", "-q", *ours(fleet_name)).split()
    if networks:
        docker("network", "rm", *networks)
    for file in ("ssh_key", "ssh_key.pub", "ssh_key.new", "ssh_key.new.pub", "known_hosts", "known_hosts.new"):
        if state:
            (state / file).unlink(missing_ok=True)
    if state and state.is_dir() and not any(state.iterdir()):
        state.rmdir()
    removed = f"{len(containers)} containers, {len(networks)} networks, {len(volumes)} volumes"
    print(f"  {fleet_name or 'all fleets'}: removed {removed}", flush=True)


def push_image(fleet: Fleet, image: str, reference: str | None = None) -> str:
    """Push an image into the registry of the fleet's upstream host, as <its name>:latest or as `reference`. Return its digest there.

    LLM_FLEET_IMAGE_OLLAMA=… in the environment puts that image in the place of the one called `ollama`, and so for others.
    """
    name = image.rsplit("/", 1)[-1]
    image = os.environ.get(f"LLM_FLEET_IMAGE_{name.upper().replace('-', '_')}") or image
    upstream = fleet.upstream()
    published = docker("port", fleet.container(upstream), "5000/tcp", check=False).splitlines()
    if not published:
        raise FleetError(f'host {upstream.name}: publish its registry with testbed_publish: ["127.0.0.1::5000"]')
    # Docker takes a registry on 127.0.0.1 without TLS and without configuration.
    target = f"127.0.0.1:{published[0].rsplit(':', 1)[1]}/{reference or f'{name}:latest'}"
    if image.startswith(f"{PREFIX}/") and not docker("image", "inspect", image, check=False):
        raise FleetError(f"the image {image} is not there; build it with testbed/images.py {name}")
    docker("tag", image, target)
    try:
        output = docker("push", target)
    finally:
        docker("image", "rm", target, check=False)
    digest = next((w for w in output.split() if w.startswith("sha256:")), "")
    if not digest:
        raise FleetError(f"docker push {target} named no digest:\n{output}")
    return digest


def main() -> int:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = cli.add_subparsers(dest="command", required=True)
    for name, text in {
        "up": "start the hosts, wait for systemd and ssh", "wait": "wait for them, after a reboot say",
        "down": "remove the fleet", "push-image": "push an image to the upstream host's registry, print its digest",
    }.items():
        sub = commands.add_parser(name, help=text)
        sub.add_argument("-i", "--inventory", type=Path, help="inventory file or directory that defines the fleet")
        if name in ("up", "wait"):
            sub.add_argument("--timeout", type=float, default=180, help="seconds for all hosts to come up")
        if name == "down":
            sub.add_argument("--name", help="the fleet's name, where no Ansible is installed to read the inventory")
            sub.add_argument("--all", action="store_true", help="all fleets that this checkout started")
        if name == "push-image":
            sub.add_argument("image", nargs="?", default=f"{PREFIX}/llamacpp")
    args = cli.parse_args()
    try:
        if not shutil.which(DOCKER[0]):
            raise FleetError(f"{DOCKER[0]} is not installed; `make setup` does that")
        if args.command == "down" and (args.name or args.all):
            down(args.name, None)
            return 0
        if args.inventory is None:
            cli.error("--inventory is missing")
        fleet = read_fleet(args.inventory.resolve())
        if args.command == "up":
            up(fleet, args.timeout)
        elif args.command == "wait":
            wait_for_fleet(fleet, args.timeout)
        elif args.command == "push-image":
            print(push_image(fleet, args.image))
        else:
            down(fleet.name, fleet.state)
    except FleetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
