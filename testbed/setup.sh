#!/bin/bash
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
#
# Install what the testbed needs and this machine lacks (Debian or Ubuntu), and see that a Docker engine answers.
# Docker is installed only where there is none, and one that runs is never touched.
# Writes the command that reaches Docker ("docker" or "sudo docker") to .cache/docker-command.
#
# usage: testbed/setup.sh [--tests|--bench]    also what only lint and tests, or only benches, need
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .cache

sudo=()
[ "$(id -u)" = 0 ] || sudo=(sudo)

say() { printf '  %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-/usr/bin/python3}
wanted=()
need() { # need <package> <command…>: install the package unless the command works
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || wanted+=("$package")
}

docker_command() { # print how Docker is reached, or fail
    if docker info >/dev/null 2>&1; then
        echo docker
    elif [ "$(id -u)" != 0 ] && sudo -n true 2>/dev/null && sudo docker info >/dev/null 2>&1; then
        echo "sudo docker"
    else
        return 1
    fi
}

need python3-venv "$python" -c 'import ensurepip, venv'
need mmdebstrap command -v mmdebstrap
# mmdebstrap checks Debian 13's and sid's signatures with it.
need debian-archive-keyring ls /usr/share/keyrings/debian-archive-trixie-automatic.gpg
need openssh-client command -v ssh-keygen
need iproute2 command -v ip
need curl command -v curl
need git command -v git
case "${1:-}" in
    --tests)
        need shellcheck command -v shellcheck
        # Unit tests start these themselves, each with a configuration of its own.
        need haproxy ls /usr/sbin/haproxy
        need docker-registry command -v docker-registry
        need nftables ls /usr/sbin/nft
        need prometheus-node-exporter command -v prometheus-node-exporter
        need python3-libtorrent /usr/bin/python3 -c 'import libtorrent'
        ;;
    --bench)
        need wrk command -v wrk
        need python3-libtorrent /usr/bin/python3 -c 'import libtorrent'
        ;;
esac
if ! docker=$(docker_command) && ! command -v dockerd >/dev/null; then
    wanted+=(docker.io)
    # Debian 13 has the client in a package of its own.
    if ! command -v docker >/dev/null && apt-cache show docker-cli >/dev/null 2>&1; then
        wanted+=(docker-cli)
    fi
fi

if [ ${#wanted[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "please install: ${wanted[*]} (this script does that on Debian and Ubuntu only)"
    say "installing ${wanted[*]}"
    "${sudo[@]}" apt-get update -q >.cache/apt.log 2>&1 || fail "apt-get update failed: $(tail -3 .cache/apt.log)"
    # The list is complete only now: a fresh machine's apt knows no package before its first update.
    if [[ " ${wanted[*]} " == *" docker.io "* && " ${wanted[*]} " != *" docker-cli "* ]] \
        && apt-cache show docker-cli 2>/dev/null | grep -q '^Version'; then
        wanted+=(docker-cli)
    fi
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${wanted[@]}" \
        >>.cache/apt.log 2>&1 || fail "apt-get install ${wanted[*]} failed; see .cache/apt.log: $(tail -3 .cache/apt.log)"
    # What came for tests only is not to serve here.
    for service in haproxy docker-registry prometheus-node-exporter; do
        if [[ " ${wanted[*]} " == *" $service "* && -d /run/systemd/system ]]; then
            "${sudo[@]}" systemctl disable --now "$service" >>.cache/apt.log 2>&1 || true
        fi
    done
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "$python is older than 3.11 (Debian 12 has 3.11)"

if [ -z "${docker:-}" ] && ! docker=$(docker_command); then
    if [ -d /run/systemd/system ]; then
        say "starting Docker"
        "${sudo[@]}" systemctl start docker
    else
        say "starting dockerd in the background (no systemd here); its log is .cache/dockerd.log"
        "${sudo[@]}" setsid dockerd >.cache/dockerd.log 2>&1 </dev/null &
    fi
    for _ in $(seq 120); do
        docker=$(docker_command) && break
        sleep 0.5
    done
    [ -n "${docker:-}" ] || fail "Docker does not answer after a minute: $(tail -3 .cache/dockerd.log 2>/dev/null)"
fi
if $docker info -f '{{.SecurityOptions}}' | grep -q rootless; then
    fail "this Docker is rootless; hosts with systemd and Docker inside need one that runs as root"
fi
echo "$docker" >.cache/docker-command

# Each server in a container holds about eight inotify instances, all counted for root, and 128 are the default:
# beyond them its systemd ends without a word. Raised until the machine's next boot, where that is allowed.
limit=/proc/sys/fs/inotify/max_user_instances
if [ "$(cat $limit)" -lt 1024 ] && echo 1024 | "${sudo[@]}" tee $limit >/dev/null 2>&1; then
    say "fs.inotify.max_user_instances is 1024 now, until the next boot"
fi
