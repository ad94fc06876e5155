# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""There is a gap: what the fleet's hosts reach, and what not."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.molecule.airgap.tests.conftest import OUTSIDE

HOSTS = ("gw1", "gpu1", "depot1")
# The outside of this test, a server of Debian's by name, and the internet by addresses: each is tried for real.
BEYOND = (OUTSIDE, "http://deb.debian.org/debian/dists/bookworm/Release", "https://pypi.org/simple/", "http://1.1.1.1/", "https://9.9.9.9/")


def test_this_machine_reaches_the_outside_before_the_bundles_are_written(fleet):
    """Or nothing below would say anything."""
    fetch = f"import urllib.request; urllib.request.urlopen({OUTSIDE!r}, timeout=10).read(4)"
    assert fleet.python(fetch).returncode == 0


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_reaches_anything_beyond(fleet, host):
    each = " ".join(f'(curl --silent --output /dev/null --max-time 4 --connect-timeout 3 {url}; echo "$? {url}") &' for url in BEYOND)
    tried = dict(reversed(line.split()) for line in fleet.shell(host, f"{each} wait").splitlines())
    # No name, no route, no answer in time: what curl says of each.
    assert tried.keys() == set(BEYOND) and set(tried.values()) <= {"6", "7", "28"}, f"{host} reaches something: {tried}"


@pytest.mark.parametrize("host", HOSTS)
def test_nor_by_way_of_a_proxy(fleet, host):
    """What apt, pip, Docker or a shell of the host would be told of one."""
    where = "/etc/apt/apt.conf /etc/apt/apt.conf.d /etc/environment /etc/profile.d /etc/pip.conf /etc/docker /etc/systemd/system"
    assert fleet.shell(host, f"grep -rilE 'https?[_:]+proxy|index-url|registry-mirrors' {where} 2>/dev/null || true") == ""
    assert fleet.shell(host, "env | grep -i proxy || true") == ""


@pytest.mark.long
@pytest.mark.parametrize("host", HOSTS)
def test_its_own_package_sources_are_out_of_reach(fleet, host):
    update = "apt-get update --error-on=any -o Acquire::Retries=0 -o Acquire::http::Timeout=3"
    assert fleet.shell(host, f"timeout 60 {update} >/dev/null 2>&1; echo $?") != "0"


def test_hosts_reach_each_other_and_the_controller(fleet):
    """So it is a gap, and not a broken network."""
    for host in HOSTS:
        for other in (*(fleet.address(name) for name in HOSTS if name != host), "10.203.4.1"):
            fleet.shell(host, f"ping -c 1 -W 3 {other}")
