# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""The module on a system of its own, with the real apt and dpkg, and the double of NVIDIA's repository."""

from __future__ import annotations

import pytest

from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, build_repository, usable

pytestmark = pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")

OPEN = ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"]
PROPRIETARY = ["nvidia-driver-cuda", "nvidia-kernel-dkms"]
COMPANIONS = [
    "nvidia-driver*", "nvidia-kernel*", "nvidia-persistenced", "nvidia-modprobe", "nvidia-fabricmanager*", "libnvidia-*", "libcuda1",
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return build_repository(tmp_path_factory.mktemp("double") / "repository")


@pytest.fixture
def bare(tmp_path):
    return AptRoot(tmp_path / "root")


@pytest.fixture
def host(bare, repository):
    bare.use(repository)
    return bare


def want(host: AptRoot, packages=OPEN, **arguments) -> dict:
    settings = {"name": "nvidia-driver", "packages": packages, "companions": COMPANIONS, "state_dir": str(host.root / "state")}
    return host.module("held_packages", **{**settings, **arguments})


def versions(host: AptRoot) -> set[str]:
    return {version for name, version in host.packages().items() if not name.startswith(("linux", "dkms"))}


def test_without_the_module_apt_takes_another_branch_than_the_one_that_was_named(host):
    """Why pinning is needed: the relations of NVIDIA's metapackages are `>=`."""
    host.run("apt-get", "install", "-y", "nvidia-open=580.95.05-1")
    installed = host.packages()
    assert installed["nvidia-open"] == "580.95.05-1" and installed["nvidia-driver-cuda"].startswith("590.")


def test_a_branch_is_installed_whole_at_one_version_and_held(host):
    done = want(host, version="580")
    assert done["changed"] and done["version"] == "580.105.08", done
    assert versions(host) == {"580.105.08-1"}
    assert set(OPEN) | {"libcuda1", "libnvidia-ml1", "nvidia-persistenced"} <= host.holds() == set(done["held"])
    again = want(host, version="580")
    assert not again["changed"] and again["actions"] == [] and again["version"] == "580.105.08"


def test_an_exact_version_comes_with_libraries_of_that_version(host):
    assert want(host, version="580.95.05")["version"] == "580.95.05"
    assert versions(host) == {"580.95.05-1"}
    assert want(host, version="580")["changed"] is False, "it is of the branch, and newer ones are not asked for"


def test_upgrades_leave_it_alone(host):
    want(host, version="580.95.05")
    host.run("apt-get", "install", "-y", "nvidia-container-toolkit=1.17.8-1", "nvidia-container-toolkit-base=1.17.8-1")
    for verb in ("upgrade", "dist-upgrade"):
        host.run("apt-get", verb, "-y")
        assert {host.packages()[name] for name in [*OPEN, "libcuda1"]} == {"580.95.05-1"}
    assert host.packages()["nvidia-container-toolkit"] == "1.18.0-1", "other packages are upgraded"


def test_a_hold_that_somebody_took_away_still_leaves_the_pin(host):
    want(host, version="580.95.05")
    host.run("apt-mark", "unhold", *host.holds())
    host.run("apt-get", "dist-upgrade", "-y")
    assert versions(host) == {"580.95.05-1"}
    assert want(host, version="580.95.05")["changed"], "and is put back"
    assert set(OPEN) <= host.holds()


def test_the_next_branch_and_back(host):
    want(host, version="580.95.05")
    up = want(host, version="590.44.01")
    assert up["version"] == "590.44.01" and up["before"]["nvidia-driver-cuda"] == "580.95.05-1"
    assert versions(host) == {"590.44.01-1"} and set(OPEN) <= host.holds()
    down = want(host, version="580.105.08")
    assert versions(host) == {"580.105.08-1"}, down
    assert set(OPEN) <= host.holds() and "580.105.08" in down["diff"]["after"]


def test_the_other_flavour_takes_the_place_of_the_first(host):
    want(host, version="580.95.05")
    changed = want(host, PROPRIETARY, version="580.95.05")
    assert changed["removes"] == ["nvidia-kernel-open-dkms"], changed
    assert "nvidia-kernel-open-dkms" not in host.packages() and "nvidia-kernel-dkms" in host.holds()


def test_a_package_that_joins_gets_the_version_of_the_set(host):
    want(host, version="580.95.05")
    joined = want(host, [*OPEN, "nvidia-fabricmanager"], version="580")
    assert joined["installs"] == ["nvidia-fabricmanager 580.95.05-1"]
    assert "nvidia-fabricmanager" in host.holds() and versions(host) == {"580.95.05-1"}


def test_check_mode_says_all_and_does_nothing(host):
    said = want(host, version="580.95.05", check_mode=True)
    assert said["changed"] and "install libcuda1 580.95.05-1" in said["actions"], said
    assert host.packages() == {} and host.holds() == set()
    assert list((host.root / "etc/apt/preferences.d").iterdir()) == list((host.root / "state").iterdir()) == []
    want(host, version="580.95.05")
    said = want(host, version="590.44.01", check_mode=True)
    assert "libcuda1 590.44.01-1" in said["installs"], said
    assert versions(host) == {"580.95.05-1"}


def test_check_mode_on_a_bare_host_without_the_repository(bare):
    said = want(bare, version="580", check_mode=True)
    assert said["changed"] and said["version"] == "" and "failed" not in said, said
    assert [action.split()[1] for action in said["actions"] if action.startswith("install")] == OPEN


def test_a_version_that_is_not_on_offer_is_told_with_those_that_are(host):
    failed = want(host, version="575.57.08")
    assert failed["failed"] and "575.57.08 is not on offer" in failed["msg"] and "580.95.05-1" in failed["msg"]
    assert want(host, ["nvidia-driver-cudo"])["msg"].startswith("nvidia-driver: no package source has nvidia-driver-cudo")
    assert host.packages() == {} and list((host.root / "etc/apt/preferences.d").iterdir()) == []


def test_a_package_whose_script_fails_is_named_and_the_way_back_works(host):
    want(host, version="580.95.05")
    failed = want(host, version="590.10.01")
    assert failed["failed"] and "nvidia-kernel-open-dkms" in failed["msg"] and "Bad return status" in failed["msg"], failed
    assert set(OPEN) <= host.holds(), "what is there is held nevertheless"
    assert want(host, version="580.95.05")["changed"]
    assert versions(host) == {"580.95.05-1"} and "half" not in host.run("dpkg", "--audit").stdout


def test_what_is_half_installed_is_not_taken_for_installed(host):
    assert want(host, version="590.10.01")["failed"]
    assert want(host, version="590.10.01")["failed"], "a second run says so again"


def test_a_hold_of_somebody_else_is_named_and_kept(host):
    host.run("apt-get", "install", "-y", "libcuda1=590.48.01-1", "libnvidia-ml1=590.48.01-1")
    host.run("apt-mark", "hold", "libcuda1")
    refused = want(host, version="580.95.05", companions=["nvidia-*"])
    assert refused["failed"] and "libcuda1" in refused["msg"], refused
    assert "held" in refused["msg"].lower() or "holds" in refused["msg"]
    assert host.packages()["libcuda1"] == "590.48.01-1" and not (host.root / "etc/apt/preferences.d/llm-fleet-nvidia-driver").exists()


def test_packages_that_do_not_fit_together_are_named(host):
    host.own("stubborn")
    status = host.root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("Package: stubborn\n", "Package: stubborn\nConflicts: libcuda1\nEssential: yes\n"))
    refused = want(host, version="580.95.05")
    assert refused["failed"] and "stubborn" in refused["msg"], refused
    assert host.packages() == {}


def test_apt_may_not_remove_what_is_not_ours(host):
    host.run("apt-get", "install", "-y", "nvidia-driver-pinning-590")
    host.own("operators-tool")
    status = host.root / "var/lib/dpkg/status"
    status.write_text(status.read_text().replace("Package: operators-tool\n", "Package: operators-tool\nConflicts: nvidia-persistenced\n"))
    refused = want(host, version="580.95.05")
    assert refused["failed"] and "would remove operators-tool" in refused["msg"], refused


def test_a_pin_of_another_origin_loses_against_ours(host):
    host.run("apt-get", "install", "-y", "nvidia-driver-pinning-590")
    assert want(host, version="580.95.05")["version"] == "580.95.05"
    assert {host.packages()[name] for name in [*OPEN, "libcuda1"]} == {"580.95.05-1"}


def test_absent_takes_away_what_it_brought_and_no_more(host):
    host.run("apt-get", "install", "-y", "nvidia-modprobe=580.95.05-1")
    want(host, version="580.95.05")
    said = want(host, state="absent", check_mode=True)
    assert set(OPEN) <= set(said["removes"]) and set(OPEN) <= set(host.packages()), said
    gone = want(host, state="absent")
    assert gone["changed"] and host.packages() == {"nvidia-modprobe": "580.95.05-1"}, gone
    assert host.holds() == set() and list((host.root / "state").iterdir()) == []
    assert not want(host, state="absent")["changed"]


def test_absent_refuses_where_something_else_needs_it(host):
    want(host, version="580.95.05")
    host.run("apt-get", "install", "-y", "nvidia-driver=580.95.05-1")
    refused = want(host, state="absent")
    assert refused["failed"] and "nvidia-driver need what would be removed" in refused["msg"], refused
    assert set(OPEN) <= set(host.packages())


def test_without_holding_it_only_installs_what_is_missing(host):
    done = want(host, ["dkms", "linux-headers-6.1.0-99-amd64"], name="nvidia-build", hold=False, companions=[])
    assert done["changed"] and done["held"] == [] and host.holds() == set(), done
    assert (host.root / "usr/lib/modules/6.1.0-99-amd64/build/Makefile").exists()
    assert not want(host, ["dkms", "linux-headers-6.1.0-99-amd64"], name="nvidia-build", hold=False, companions=[])["changed"]


def test_the_toolkit_is_held_the_same_way(host):
    packages = ["nvidia-container-toolkit", "nvidia-container-toolkit-base", "libnvidia-container-tools", "libnvidia-container1"]
    toolkit = {"name": "nvidia-container-toolkit", "companions": [], "version": "1.17.8"}
    assert want(host, packages, **toolkit)["held"] == sorted(packages)
    host.run("apt-get", "dist-upgrade", "-y")
    assert {host.packages()[name] for name in packages} == {"1.17.8-1"}


def test_a_repository_signed_with_another_key_is_told_in_plain_words(host, tmp_path, repository):
    from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_packages import explain

    rotated = build_repository(tmp_path / "rotated")
    (rotated / "nvidia-double.asc").write_bytes((repository / "nvidia-double.asc").read_bytes())
    source = host.root / "etc/apt/sources.list.d/nvidia.sources"
    source.write_text(source.read_text().replace(str(repository), str(rotated)))
    silent = host.run("apt-get", "update", check=False)
    refused = host.run("apt-get", "update", "--error-on=any", check=False)
    assert refused.returncode != 0
    said = explain(refused.stdout + refused.stderr)
    assert "a key that this host does not have (NO_PUBKEY" in said and str(rotated) in said and "`key`" in said, (said, silent.returncode)
