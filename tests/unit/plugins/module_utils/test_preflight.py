# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import preflight

GIB = 1024**3


def host(**changes):
    """A gateway on which nothing is wrong, but for the changes."""
    description = {
        "name": "gw1",
        "address": "10.0.0.10",
        "distribution": {"id": "debian", "version": "12", "codename": "bookworm"},
        "clock_skew": 0.2,
        "call_seconds": 0.0,
        "haproxy_version": "2.6.12-1+deb12u4",
        "store": {"path": "/var/lib/llm_fleet/store", "total_bytes": 100 * GIB, "free_bytes": 10 * GIB},
        "fleet_ca": "",
    }
    return {**description, **changes}


def distribution(name, version):
    return {"id": name, "version": version, "codename": ""}


def only(faults):
    assert len(faults) == 1, faults
    return faults[0]


def test_a_good_host_has_no_fault():
    assert preflight.check_host(host(), is_gateway=True) == []
    assert preflight.check_host(host(haproxy_version=""), is_gateway=False) == []


@pytest.mark.parametrize("version", ["2.6.11-1", "2.4.30-0ubuntu1", "1.8.27"])
def test_an_old_haproxy_is_a_fault_of_gateways_only(version):
    fault = only(preflight.check_host(host(haproxy_version=version), is_gateway=True))
    assert "HAProxy 2.6.12" in fault.what and version in fault.what
    assert fault.where == "host gw1"
    assert preflight.check_host(host(haproxy_version=version), is_gateway=False) == []


@pytest.mark.parametrize("version", ["", "2.6.12-1", "2.6.100", "3.0.11-1+deb13u3", "10.0.0"])
def test_versions_compare_as_numbers_and_none_is_not_known_yet(version):
    assert preflight.check_host(host(haproxy_version=version), is_gateway=True) == []


@pytest.mark.parametrize(
    ("name", "version", "node", "gateway"),
    [
        ("debian", "12", True, True),
        ("debian", "13", True, True),
        ("debian", "11", False, False),
        ("ubuntu", "22.04", True, False),
        ("ubuntu", "24.04", True, True),
        ("rocky", "9.4", True, False),
        ("rhel", "8.10", False, False),
        ("alpine", "3.20.1", False, False),
        ("", "", False, False),
    ],
)
def test_each_kind_of_host_has_its_distributions(name, version, node, gateway):
    changed = host(distribution=distribution(name, version))
    assert (preflight.check_host(changed, is_gateway=False) == []) is node
    assert (preflight.check_host(changed, is_gateway=True) == []) is gateway


@pytest.mark.parametrize("skew", [-5.1, 5.1, 3600.0])
def test_a_wrong_clock_is_a_fault(skew):
    assert f"{skew:.1f} s" in only(preflight.check_host(host(clock_skew=skew), is_gateway=False)).what


@pytest.mark.parametrize(
    ("measured", "call_seconds", "faulty"),
    [(9.0, 9.5, False), (9.0, 3.0, True), (5.2, 0.1, True), (-5.2, 20.0, True), (-4.9, 20.0, False), (30.0, 20.0, True)],
)
def test_a_slow_call_is_no_wrong_clock(measured, call_seconds, faulty):
    found = preflight.check_host(host(clock_skew=measured, call_seconds=call_seconds), is_gateway=False)
    assert bool(found) is faulty


@pytest.mark.parametrize("address", ["gw1.example", "", "10.0.0.256", "localhost"])
def test_a_name_is_no_address(address):
    assert "llm_fleet_address" in only(preflight.check_host(host(address=address), is_gateway=False)).fix


def test_ipv6_is_an_address():
    assert preflight.check_host(host(address="fd00::10"), is_gateway=False) == []


def test_gpus_are_a_list_of_uuids():
    assert preflight.check_host(host(gpus=None), is_gateway=False) == []
    assert preflight.check_host(host(gpus=["MIG-GPU-5c89852c-d268-c3f3-1b07-005d5ae1dc3f/7/0"]), is_gateway=False) == []
    assert preflight.check_host(host(gpus=["GPU-11111111-1111-1111-1111-111111111111", "MIG-1"]), is_gateway=False) == []
    assert "not a list: 'GPU-1'" in only(preflight.check_host(host(gpus="GPU-1"), is_gateway=False)).what
    line = "GPU 0: NVIDIA H200 (UUID: GPU-1)"
    fault = only(preflight.check_host(host(gpus=["GPU-2", line]), is_gateway=False))
    assert repr(line) in fault.what and "nvidia-smi -L" in fault.fix


@pytest.mark.parametrize("port_range", [[20000], [], [1, 2, 3], [29999, 20000], [0, 10], [60000, 70000]])
def test_a_range_of_ports_has_a_first_and_a_last(port_range):
    assert preflight.check_port_range([20000, 29999]) == []
    assert only(preflight.check_port_range(port_range)).where == "llm_fleet_port_range"


def test_all_faults_of_a_host_come_at_once():
    broken = host(address="gw1", clock_skew=60.0, haproxy_version="1.8.0", distribution=distribution("debian", "10"))
    assert len(preflight.check_host(broken, is_gateway=True)) == 4


def test_empty_groups_are_named():
    assert preflight.check_groups(["gw1"], ["gpu1"]) == []
    assert "`gpu_nodes`" in only(preflight.check_groups(["gw1"], [])).what
    assert len(preflight.check_groups([], [])) == 2


def test_paths_are_set_and_absolute():
    assert preflight.check_paths({"llm_fleet_lockfile": "/srv/models.lock.yml"}) == []
    unset, relative = preflight.check_paths({"llm_fleet_ca_dir": "", "llm_fleet_lockfile": "models.lock.yml"})
    assert unset.where == "llm_fleet_ca_dir" and "not set" in unset.what
    assert relative.where == "llm_fleet_lockfile" and "'models.lock.yml'" in relative.what


def test_secrets_below_an_inventory_that_is_a_directory_are_a_fault(tmp_path):
    """Or the next run would list a key among the hosts."""
    inventory = str(tmp_path / "fleet")
    [fault] = preflight.check_inventories([inventory], {"llm_fleet_ca_dir": f"{inventory}/ca"})
    assert fault.where == "llm_fleet_ca_dir" and f"-i {inventory}/hosts.yml" in fault.fix
    for elsewhere in (f"{inventory}/.state/ca", str(tmp_path / "ca"), f"{inventory}-ca", "", "ca"):
        assert preflight.check_inventories([inventory], {"llm_fleet_ca_dir": elsewhere}) == []
    assert preflight.check_inventories([], {"llm_fleet_ca_dir": f"{inventory}/ca"}) == []


def test_a_silent_gateway_is_a_fault_unless_it_is_out_or_left_out_of_the_run():
    both, asked = ["gw1", "gw2"], {"gw1", "gw2"}
    assert preflight.check_reachable(both, [], asked, {"gw1", "gw2"}) == []
    assert only(preflight.check_reachable(both, [], asked, {"gw1"})).where == "host gw2"
    assert preflight.check_reachable(both, ["gw2"], asked, {"gw1"}) == []
    assert preflight.check_reachable(both, [], {"gw1"}, {"gw1"}) == []


def test_gateways_out_are_gateways_and_not_all_of_them():
    assert "gw9 is no gateway" in only(preflight.check_reachable(["gw1"], ["gw9"], {"gw1"}, {"gw1"})).what
    assert "no gateway is left" in only(preflight.check_reachable(["gw1"], ["gw1"], {"gw1"}, set())).what


def test_the_store_has_room_for_what_comes_and_for_the_reserve():
    assert preflight.check_disk(host(), 9 * GIB, GIB) == []
    fault = only(preflight.check_disk(host(), 9 * GIB + 1, GIB))
    assert "10.0 GiB free" in fault.what and "9.0 GiB are to come" in fault.what


def test_a_full_disk_is_no_fault_where_nothing_comes():
    assert preflight.check_disk(host(store={"path": "/s", "total_bytes": GIB, "free_bytes": 0}), 0, GIB) == []


def test_a_controller_that_lost_the_ca_does_not_make_another():
    known, other = host(fleet_ca="PEM A\n"), host(name="gw2", fleet_ca="PEM B\n")
    assert preflight.check_ca([known, host(name="gw3")], "PEM A") == []
    assert only(preflight.check_ca([known, other], "PEM A\n")).where == "host gw2"
    assert only(preflight.check_ca([known], "")).where == "host gw1"


def test_a_depot_runs_what_nginx_and_the_role_were_written_for():
    assert preflight.check_host(host(), is_gateway=False, is_depot=True) == []
    fault = only(preflight.check_host(host(distribution=distribution("rocky", "9.4")), is_gateway=False, is_depot=True))
    assert "a depot on rocky 9.4" in fault.what


def test_where_there_are_depots_one_has_to_answer():
    assert preflight.check_depots([], []) == [] and preflight.check_depots(["d1", "d2"], ["d2"]) == []
    assert "d1, d2" in only(preflight.check_depots(["d2", "d1"], [])).what


def test_peers_need_a_depot_and_a_port_of_their_own():
    assert preflight.check_distribution("http", 1, [], [20000, 29999]) == []
    assert preflight.check_distribution("p2p", 8446, ["d1"], [20000, 29999]) == []
    faults = preflight.check_distribution("p2p", 20000, [], [20000, 29999])
    assert [fault.where for fault in faults] == ["llm_fleet_distribution", "llm_fleet_peer_port"]
    assert "group `depots`" in faults[0].what and "20000 to 29999" in faults[1].what
    assert only(preflight.check_distribution("p2p", 443, ["d1"], [])).where == "llm_fleet_peer_port"


def placed(**rules) -> dict:
    return {"name": "tiny", "placement": {"labels": {}, "spread": None, **rules}}


def test_a_label_that_no_node_has_is_a_slip_of_the_pen():
    hosts = [{"labels": {"rack": "r1"}}, {"labels": {}}, {}]
    assert preflight.check_labels([placed(labels={"rack": ["r9"]}, spread="rack")], hosts) == []
    faults = preflight.check_labels([placed(labels={"rak": ["r1"]}), placed(spread="zone")], hosts)
    assert [fault.where for fault in faults] == ["llm_fleet_models[tiny].placement.labels", "llm_fleet_models[tiny].placement.spread"]
    assert "did you mean 'rack'?" in faults[0].fix and all("llm_fleet_labels" in fault.fix for fault in faults)
