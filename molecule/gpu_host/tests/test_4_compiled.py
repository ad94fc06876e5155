# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""A driver whose modules dkms compiles, with a real compiler for a real kernel. Nobody can load them here."""

from __future__ import annotations

import pytest


@pytest.mark.long
def test_the_distributions_driver_is_compiled_and_held(fleet):
    done = fleet.playbook("../molecule/gpu_host/compile", check=False, timeout=2400)
    # All is there but the kernel that it was compiled for: a reboot would bring that, and that is what the role says.
    assert done.returncode == 0, done.stdout[-5000:]
    assert "a reboot is needed: the kernel module is not loaded" in " ".join(done.stdout.split()), done.stdout[-5000:]
    version = fleet.shell("kmod1", "dpkg-query -W -f '${source:Upstream-Version}' nvidia-open-kernel-dkms")
    modules = fleet.shell("kmod1", "find /lib/modules -path '*dkms*' -name 'nvidia*.ko*'").splitlines()
    assert len(modules) == 5, modules
    for module in modules:
        assert fleet.shell("kmod1", f"modinfo -F version {module}") == version
        assert fleet.shell("kmod1", f"modinfo -F license {module}") in ("Dual MIT/GPL", "Dual BSD/GPL")
    held = fleet.shell("kmod1", "apt-mark showhold").split()
    assert {"nvidia-open-kernel-dkms", "nvidia-smi", "libcuda1"} <= set(held)
