# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the role's variables and templates come to, rendered as Ansible does, and the script that runs at boot."""

from __future__ import annotations

import fnmatch
import os
import subprocess

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template

from ansible_collections.localfirst.llm_fleet.plugins.filter.nvidia import FilterModule
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.apt_packages import companions, parse_installed, pin_text
from ansible_collections.localfirst.llm_fleet.tests.unit.support.apt_root import AptRoot, build_repository, usable
from ansible_collections.localfirst.llm_fleet.tests.unit.support.gpu_hosts import VARS, catalog, gpu, machine, mig

ROLE = VARS.parent

# nvidia-smi as the script at boot asks it: which mode, which number, are there parts; it writes down what it is told to change.
SMI = """#!/bin/sh
case "$*" in
*mig.mode.current*) cat mode ;;
*query-gpu=index*) echo "${2#GPU-}" ;;
*-lgi*) test -e parts ;;
*) echo "$*" >> told; case "$*" in *-cgi*) touch parts ;; *"-mig 1"*) echo Enabled > mode ;; esac ;;
esac
"""


@pytest.fixture(scope="module", autouse=True)
def _plugins():
    init_plugin_loader([])


def trusted(value):
    if isinstance(value, dict):
        return {name: trusted(item) for name, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def render(text: str, **changes):
    """A template with the role's defaults and vars, what it finds on a host, and `changes`."""
    values = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text()), **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        "__nvidia_driver_catalog": catalog("debian-12"), "__nvidia_driver_gpu": machine("hopper", "hopper"),
        "ansible_facts": {"distribution": "Debian", "distribution_major_version": "12", "distribution_version": "12.8",
                          "os_family": "Debian", "architecture": "x86_64"},
        "ansible_managed": "managed", "inventory_hostname": "gpu1", **changes,
    }
    return Templar(loader=DataLoader(), variables=trusted(values)).template(trust_as_template(text))


def variable(name: str, **changes):
    return render("{{ " + name + " }}", **changes)


def template(name: str, **changes) -> str:
    return render((ROLE / "templates" / name).read_text(), **changes)


def source(**changes) -> dict:
    """What the module apt_source is told of the repository."""
    (told,) = [task[module] for task in yaml.safe_load((ROLE / "tasks/repository.yml").read_text())
               if (module := "localfirst.llm_fleet.apt_source") in task]
    return {name: render(value, **{"__nvidia_driver_offer": {}, **changes}) for name, value in told.items()}


def test_every_filter_is_described():
    documented = {path.stem for path in (ROLE.parents[1] / "plugins/filter").glob("*.yml")}
    assert set(FilterModule().filters()) <= documented


@pytest.mark.parametrize(
    ("changes", "url", "key"),
    [
        ({}, "https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/", "3bf863cc.pub"),
        ({"nvidia_driver_source": "distribution"}, "http://deb.debian.org/debian", "debian-archive-keyring.gpg"),
        ({"nvidia_driver_repository": {"url": "https://m.example/", "key": "/k.asc"}}, "https://m.example/", "/k.asc"),
        ({"nvidia_driver_source": "local", "nvidia_driver_folder": "/srv/nvidia"}, "file:/srv/nvidia", ""),
        ({"nvidia_driver_source": "local"}, "", ""),
    ],
)
def test_the_repository_is_the_operator_s_or_that_of_the_source(changes, url, key):
    assert variable("__nvidia_driver_url", **changes) == url
    assert str(variable("__nvidia_driver_key", **changes)).endswith(key)


def test_servers_with_arm_processors_have_trees_of_their_own():
    facts = {"distribution": "Ubuntu", "distribution_major_version": "24", "distribution_version": "24.04", "os_family": "Debian",
             "architecture": "aarch64"}
    changed = {"ansible_facts": facts, "__nvidia_driver_catalog": catalog("ubuntu-24.04")}
    assert variable("__nvidia_driver_url", **changed) == "https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2404/sbsa/"
    assert variable("__nvidia_driver_catalogs", **changed) == ["ubuntu-24.04.yml"]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["URIs: https://developer.download.nvidia.com/compute/cuda/repos/debian12/x86_64/", "Suites: /",
              "Signed-By: {root}/etc/apt/keyrings/llm-fleet-nvidia.asc"]),
        ({"nvidia_driver_source": "distribution"},
         ["Suites: bookworm", "Components: contrib non-free non-free-firmware",
          "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg"]),
        ({"nvidia_driver_source": "local", "nvidia_driver_folder": "/srv/n"}, ["URIs: file:/srv/n", "Suites: /", "Trusted: yes"]),
    ],
)
@pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")
def test_the_source_for_apt(tmp_path, changes, lines):
    host = AptRoot(tmp_path / "root")
    done = host.module("apt_source", check_mode=True, **source(**changes))
    assert done["path"] == f"{host.root}/etc/apt/sources.list.d/llm-fleet-nvidia.sources", done
    stanza = [line for line in done["diff"][-1]["after"].splitlines() if not line.startswith("#")]
    assert {line.format(root=host.root) for line in lines} | {"Types: deb"} <= set(stanza), stanza
    assert len(stanza) == len(lines) + (1 if "URIs" in lines[0] else 2)


def test_the_key_is_fetched_again_whenever_something_is_to_be_installed():
    assert source(__nvidia_driver_offer={"skipped": True})["force"] is False
    assert source(__nvidia_driver_offer={"offered": {}})["force"] is True


def test_parameters_of_the_kernel_module():
    text = template("llm-fleet-nvidia.conf.j2", nvidia_driver_module_parameters={"NVreg_B": True, "NVreg_A": 5})
    assert text.rstrip().splitlines()[-1] == "options nvidia NVreg_A=5 NVreg_B=1"


def test_companions_are_the_driver_s_and_not_the_toolkit_s():
    patterns = variable("__nvidia_driver_companions")
    mine = ("libcuda1", "libnvidia-ml1", "libnvidia-compute-580", "libnvidia-cfg1-580", "libnvidia-common-580", "nvidia-kernel-open-dkms",
            "nvidia-dkms-580-server-open", "nvidia-persistenced", "nvidia-fabricmanager-570", "firmware-nvidia-gsp", "nvidia-firmware-580")
    others = ("libnvidia-container1", "libnvidia-container-tools", "nvidia-container-toolkit", "nvidia-container-toolkit-base",
              "nvidia-driver-pinning-580", "datacenter-gpu-manager-4-core", "linux-headers-amd64", "docker.io")
    matched = [name for name in (*mine, *others) if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    assert matched == list(mine)
    listed = parse_installed("".join(f"ii \t{name}\t580.95.05-1\n" for name in mine))
    assert companions(listed, patterns, "580.95.05") == sorted(mine) and companions(listed, patterns, "590.48.01") == []


def test_the_layout_for_boot_has_large_parts_first_and_later_entries_win():
    layout = variable("__nvidia_driver_layout", nvidia_driver_mig=[
        {"gpu": "all", "profiles": ["1g.10gb", "3g.40gb"]}, {"gpu": "1", "profiles": []},
    ])
    assert layout == [{"uuid": "GPU-0", "profiles": ["3g.40gb", "1g.10gb"]}]


@pytest.fixture
def boot(tmp_path):
    """Runs the script of a boot, and tells what nvidia-smi was told to change."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "mode").write_text("Enabled\n")

    def run(**changes) -> list[str]:
        script = tmp_path / "script"
        script.write_text(template("gpu-settings.sh.j2", **changes))
        (tmp_path / "told").write_text("")
        environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
        subprocess.run(["sh", "-eu", script], cwd=tmp_path, env=environment, check=True, capture_output=True)
        return (tmp_path / "told").read_text().splitlines()

    run.folder = tmp_path
    return run


def test_at_boot_power_and_parts_come_back(boot):
    divided = {"nvidia_driver_mig": [{"gpu": "1", "profiles": ["1g.10gb", "3g.40gb"]}], "nvidia_driver_power_limit": 400}
    assert boot(**divided) == ["-pl 400", "mig -i 1 -cgi 3g.40gb,1g.10gb -C"]
    assert boot(**divided) == ["-pl 400"], "parts that are there stay"


def test_at_boot_mig_mode_comes_back_where_it_was_lost(boot):
    (boot.folder / "mode").write_text("Disabled\n")
    assert boot(nvidia_driver_mig=[{"gpu": "1", "profiles": ["7g.80gb"]}]) == ["-i GPU-1 -mig 1", "mig -i 1 -cgi 7g.80gb -C"]


def test_filters_take_what_the_role_hands_them():
    filters = FilterModule().filters()
    assert filters["nvidia_faults_after"](machine("hopper"), machine("hopper"), "gpu1", "580.95.05") == ""
    assert "1. host gpu1: GPUs that were there" in filters["nvidia_faults_after"](machine("hopper"), machine("hopper", "hopper"), "gpu1")
    refused = filters["nvidia_mig_changes"]([gpu(mig=mig("7g.80gb"))], [{"gpu": "all", "profiles": []}], "gpu1", engines=["tiny-0-a"])
    assert refused["steps"] == [] and "the engine tiny-0-a" in refused["waits"][0]


@pytest.mark.skipif(not usable(), reason="needs apt, dpkg, gpg and root")
def test_apt_reads_the_names_of_companions_as_they_are_meant(tmp_path):
    """The patterns are the role's; that apt takes them for a pin, and not for the toolkit, only apt can say."""
    host = AptRoot(tmp_path / "root")
    host.use(build_repository(tmp_path / "repository"))
    pin = pin_text("nvidia-driver", variable("__nvidia_driver_companions"), "580.95.05-1")
    (host.root / "etc/apt/preferences.d/llm-fleet-nvidia-driver").write_text(pin)

    def candidate(name: str) -> str:
        return next(line.split()[1] for line in host.run("apt-cache", "policy", name).stdout.splitlines() if "Candidate:" in line)

    pinned = ("libnvidia-ml1", "libnvidia-nscq", "libcuda1", "nvidia-kernel-support", "nvidia-fabricmanager", "nvidia-driver-cuda")
    assert {candidate(name) for name in pinned} == {"580.95.05-1"}
    assert candidate("libnvidia-container1") == candidate("nvidia-container-toolkit") == "1.18.0-1"
