# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What the doubles of NVIDIA's packages are called, depend on, hold and do: data for build.py.

Names and dependencies follow NVIDIA's repository for Debian. What matters is kept as it is there: metapackages depend on
`>=` their version, so that apt takes the newest branch unless it is pinned; the two flavours exclude each other; the pinning
packages share one file and exclude each other; libraries of one version go with each other by `=`.
"""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

BRANCHES = {"580": ("580.95.05", "580.105.08"), "590": ("590.44.01", "590.48.01")}
# Its postinst fails. It is the oldest of its branch, so that nobody gets it who does not ask for it.
BAD_VERSION = "590.10.01"
TOOLKITS = ("1.17.8", "1.18.0")
DCGM = "4.4.1"

STATE = "/usr/lib/testbed-nvidia"
"""Where a driver's double says which version it is: kernel-version (of the module), library-version, flavour."""

# The module that is loaded stays until the next boot. A first installation loads nothing by itself, as the original.
MODPROBE = """# modprobe runs this in place of loading a module that there is none of.
install nvidia test -s /proc/driver/nvidia/version || testbed-gpus load
install nvidia-uvm /bin/true
install nvidia-modeset /bin/true
"""
LOAD_UNIT = """[Unit]
Description=Stands for udev, which loads the NVIDIA kernel module at boot
After=testbed-gpus.service
Before=nvidia-persistenced.service nvidia-fabricmanager.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=testbed-gpus load

[Install]
WantedBy=multi-user.target
"""
PERSISTENCED_UNIT = """[Unit]
Description=NVIDIA Persistence Daemon (double)
After=nvidia-load-double.service

[Service]
ExecStart=/usr/bin/nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""
FABRIC_UNIT = """[Unit]
Description=NVIDIA fabric manager service (double)
After=nvidia-load-double.service

[Service]
ExecStart=/usr/bin/nv-fabricmanager

[Install]
WantedBy=multi-user.target
"""
# Ends at once where its version is not that of the loaded module, as the original.
FABRIC_PROGRAM = """#!/bin/sh
# A double of NVIDIA's fabric manager {version}: it compares versions, and then waits to be stopped.
if [ "${{1:-}}" = --version ]; then echo "Fabric Manager version is : {version}"; exit 0; fi
if ! grep -q " {version} " /proc/driver/nvidia/version 2>/dev/null; then
    echo "fabric manager NVIDIA GPU driver interface version {version} don't match with driver version." \
        "Please update with matching NVIDIA driver package." >&2
    exit 1
fi
exec sleep infinity
"""
PERSISTENCED_PROGRAM = """#!/bin/sh
# A double of nvidia-persistenced {version}: turns persistence mode on, and waits to be stopped.
if [ "${{1:-}}" = --version ]; then echo "nvidia-persistenced:  version {version}"; exit 0; fi
nvidia-smi -pm 1 >/dev/null || exit 1
trap 'nvidia-smi -pm 0 >/dev/null; exit 0' TERM INT
sleep infinity & wait $!
"""
SMI = """#!/bin/sh
exec python3 /usr/lib/testbed-nvidia/nvidia_smi/nvidia_smi.py "$@"
"""
CTK = """#!/bin/sh
exec python3 /usr/lib/testbed-nvidia/nvidia_ctk.py "$@"
"""
# An nvidia-smi inside of a container: lists what the container was given. #GIVEN is where the hook writes what that is. With CDI it
# stands in the environment of the container's first process, which `docker exec` does not hand on.
CONTAINER_SMI = """#!/bin/sh
#GIVEN
{ env; tr '\\0' '\\n' </proc/1/environ; } 2>/dev/null |
sed -n 's/^TESTBED_GPU_\\([0-9]*\\)=/\\1 /p' | sort -nu | while read -r number uuid; do
    case $uuid in
    MIG-*) echo "  MIG 1g    Device  $number: (UUID: $uuid)" ;;
    *) echo "GPU $number: NVIDIA GPU (UUID: $uuid)" ;;
    esac
done
"""
DCGMI = """#!/bin/sh
exec python3 /usr/lib/testbed-nvidia/dcgmi.py "$@"
"""
# Scripts run without chroot in a private root too: everything they touch is below DPKG_ROOT.
ENABLE = """#!/bin/sh
set -e
if [ "$1" = configure ] && [ -z "${{DPKG_ROOT:-}}" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl enable {unit}
    {then}
fi
"""
DISABLE = """#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "${{DPKG_ROOT:-}}" ] && [ -d /run/systemd/system ]; then
    systemctl disable --now {unit} || true
fi
"""
FAIL = """#!/bin/sh
echo "Building initial module for $(uname -r)" >&2
echo "Error! Bad return status for module build on kernel: $(uname -r)" >&2
exit 10
"""


class Package(NamedTuple):
    """One package of the double."""

    name: str
    version: str
    fields: dict = {}  # further fields of the control file
    files: dict = {}  # path -> text; a text that begins with #! is a program
    scripts: dict = {}  # postinst and so on -> text
    trees: dict = {}  # directory on the host -> directory here that is copied


def pinning(label: str, pattern: str, version: str) -> Package:
    """The package with nothing but a pin for one branch or one version."""
    pin = f"Package: *nvidia* *cuda* firmware-nvidia*\nPin: version {pattern}\nPin-Priority: 1000\n"
    together = {"Provides": "nvidia-driver-pinning", "Conflicts": "nvidia-driver-pinning"}
    return Package(f"nvidia-driver-pinning-{label}", version, together, {"/etc/apt/preferences.d/nvidia-driver-pin": pin})


def driver(version: str, smi: Path) -> list[Package]:
    """All packages of one version of the driver."""
    full, exactly = f"{version}-1", f"(= {version}-1)"

    def module(flavour: str, name: str, other: str) -> Package:
        files = {
            f"{STATE}/kernel-version": f"{version}\n",
            f"{STATE}/flavour": f"{flavour}\n",
            "/usr/lib/modprobe.d/nvidia-double.conf": MODPROBE,
            "/usr/lib/systemd/system/nvidia-load-double.service": LOAD_UNIT,
        }
        scripts = {
            "postinst": FAIL if version == BAD_VERSION else ENABLE.format(unit="nvidia-load-double.service", then=":"),
            "prerm": DISABLE.format(unit="nvidia-load-double.service"),
        }
        relations = {
            "Depends": f"nvidia-kernel-support (>= {version})",
            "Conflicts": other, "Replaces": other, "Provides": f"nvidia-kernel-{version}",
        }
        return Package(name, full, relations, files, scripts)

    return [
        pinning(version, f"{version}-*", full),
        Package("libnvidia-ml1", full, {}, {f"{STATE}/library-version": f"{version}\n"}),
        Package("libcuda1", full, {"Depends": f"libnvidia-ml1 {exactly}"}),
        Package("nvidia-modprobe", full),
        Package("nvidia-kernel-support", full, {"Depends": f"nvidia-modprobe (>= {version})"}),
        module("open", "nvidia-kernel-open-dkms", "nvidia-kernel-dkms"),
        module("proprietary", "nvidia-kernel-dkms", "nvidia-kernel-open-dkms"),
        Package(
            "nvidia-persistenced", full, {"Depends": f"libnvidia-ml1 (>= {version})"},
            {
                "/usr/bin/nvidia-persistenced": PERSISTENCED_PROGRAM.format(version=version),
                "/usr/lib/systemd/system/nvidia-persistenced.service": PERSISTENCED_UNIT,
            },
            {
                "postinst": ENABLE.format(unit="nvidia-persistenced.service", then="systemctl restart nvidia-persistenced || true"),
                "prerm": DISABLE.format(unit="nvidia-persistenced.service"),
            },
        ),
        Package(
            "nvidia-driver-cuda", full,
            {
                "Depends": f"libcuda1 {exactly}, libnvidia-ml1 {exactly}, nvidia-persistenced (>= {version}), python3,"
                f" nvidia-kernel-open-dkms (>= {version}) | nvidia-kernel-dkms (>= {version})",
                "Provides": "nvidia-smi", "Conflicts": "nvidia-smi",
            },
            {"/usr/bin/nvidia-smi": SMI},
            {},
            {f"{STATE}/nvidia_smi": smi},
        ),
        Package("nvidia-driver", full, {"Depends": f"nvidia-kernel-open-dkms (>= {version}) | nvidia-kernel-dkms (>= {version})"}),
        Package(
            "nvidia-open", full,
            {"Depends": f"nvidia-driver (>= {version}), nvidia-driver-cuda (>= {version}), nvidia-kernel-open-dkms (>= {version})"},
        ),
        Package(
            "cuda-drivers", full,
            {"Depends": f"nvidia-driver (>= {version}), nvidia-driver-cuda (>= {version}), nvidia-kernel-dkms (>= {version})"},
        ),
        Package("libnvidia-nscq", full),
        # Enabled by nobody but who installs it, as the original.
        Package(
            "nvidia-fabricmanager", full, {},
            {
                "/usr/bin/nv-fabricmanager": FABRIC_PROGRAM.format(version=version),
                "/usr/lib/systemd/system/nvidia-fabricmanager.service": FABRIC_UNIT,
            },
            {"prerm": DISABLE.format(unit="nvidia-fabricmanager.service")},
        ),
    ]


def toolkit(version: str, ctk: str) -> list[Package]:
    """NVIDIA's container toolkit, whose four packages go with each other by `=`."""
    full, exactly = f"{version}-1", f"(= {version}-1)"
    runtime = CTK.replace('"$@"', '--as-runtime "$@"')
    hook = CTK.replace('"$@"', '--as-hook "$@"')
    return [
        Package("libnvidia-container1", full),
        Package("libnvidia-container-tools", full, {"Depends": f"libnvidia-container1 (>= {full})"}),
        Package(
            "nvidia-container-toolkit-base", full, {"Depends": "python3"},
            {
                "/usr/bin/nvidia-ctk": CTK,
                "/usr/bin/nvidia-container-runtime": runtime,
                f"{STATE}/container-nvidia-smi": CONTAINER_SMI,
                f"{STATE}/nvidia_ctk.py": ctk.replace("@VERSION@", version),
            },
        ),
        Package(
            "nvidia-container-toolkit", full,
            {"Depends": f"nvidia-container-toolkit-base {exactly}, libnvidia-container-tools (>= {full})"},
            {"/usr/bin/nvidia-container-runtime-hook": hook},
        ),
    ]


def dcgm(version: str, dcgmi: str) -> list[Package]:
    """NVIDIA's Data Center GPU Manager: the program that diagnoses, and what pulls it in for a CUDA version."""
    full = f"1:{version}-1"
    files = {"/usr/bin/dcgmi": DCGMI, f"{STATE}/dcgmi.py": dcgmi.replace("@VERSION@", version)}
    return [
        Package("datacenter-gpu-manager-4-core", full, {"Depends": "python3"}, files),
        *(
            Package(f"datacenter-gpu-manager-4-cuda{cuda}", full, {"Depends": f"datacenter-gpu-manager-4-core (= {full})"})
            for cuda in ("12", "13")
        ),
    ]


def headers(kernel: str) -> list[Package]:
    """The headers of the kernel that runs here, which no distribution has for the kernel of a container's machine.

    And a dkms that is preferred to the distribution's: with that one come compilers that have nothing to compile.
    """
    version = "1.0-1"
    note = "# Stands for the headers of this kernel. Nothing can be compiled with it.\n"
    return [
        Package("dkms", "1:99-1", {}, {"/usr/sbin/dkms": "#!/bin/sh\nexit 0\n"}),
        Package(
            f"linux-headers-{kernel}", version, {},
            {f"/usr/src/linux-headers-{kernel}/Makefile": note, f"/usr/lib/modules/{kernel}/build/Makefile": note},
        ),
    ]


def everything(kernel: str, smi: Path, ctk: str, dcgmi: str) -> list[Package]:
    """All packages of the repository."""
    found = [pinning(branch, f"{branch}.*", f"{branch}-1") for branch in BRANCHES]
    for version in (*(version for versions in BRANCHES.values() for version in versions), BAD_VERSION):
        found += driver(version, smi)
    for version in TOOLKITS:
        found += toolkit(version, ctk)
    return [*found, *dcgm(DCGM, dcgmi), *headers(kernel)]
