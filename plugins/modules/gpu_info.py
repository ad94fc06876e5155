#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Reads a host's NVIDIA GPUs, their driver and what is wrong with them
version_added: 0.1.0
description:
  - GPUs are known from the PCI bus (sysfs) before any driver is installed; C(lspci) is not needed. What only a driver can tell comes
    from C(nvidia-smi), XID errors come from the journal.
  - Never fails for what it finds. No driver, a module that is not loaded, versions that differ, a GPU that fell off the bus and an
    C(nvidia-smi) that hangs are states in RV(state), each with a sentence in RV(problem) that says what to do.
  - Reads the XML of all driver versions since 340, in any locale of the host.
  - Needs root to see the kernel's messages. Without it RV(xids) is empty.
options:
  timeout:
    description: How many seconds C(nvidia-smi) gets to answer.
    type: int
    default: 30
author:
  - localfirst.llm_fleet contributors (@localfirst)
attributes:
  check_mode:
    description: The module changes nothing, so check mode makes no difference.
    support: full
  diff_mode:
    description: There is never a difference to show.
    support: none
  idempotent:
    description: Calling it twice has the effect of calling it once.
    support: full
"""

EXAMPLES = r"""
- name: See the host's GPUs
  localfirst.llm_fleet.gpu_info:
  become: true
  register: gpu

- name: Stop unless every GPU is ready
  ansible.builtin.assert:
    that: gpu.state == 'ready'
    fail_msg: "{{ gpu.problem }}"
"""

RETURN = r"""
state:
  description:
    - V(ready), every GPU answers.
    - V(no_gpu), there is no NVIDIA GPU on the PCI bus.
    - V(no_driver), there is a GPU, and no driver or no C(nvidia-smi).
    - V(not_loaded), the driver is installed, and its module is not loaded or does not take the GPU.
    - V(mismatch), the kernel module and the user libraries have different versions.
    - V(lost), a GPU fell off the bus or does not answer.
    - V(failing), C(nvidia-smi) hangs or says anything else.
  type: str
  returned: always
  sample: ready
problem:
  description: What is wrong and what to do about it; an empty string with RV(state=ready) and RV(state=no_gpu).
  type: str
  returned: always
  sample: "a GPU at 0000:53:00.0 fell off the bus or does not answer. Look into `journalctl -k | grep NVRM` for its XIDs, drain and reboot
    the host, and have the card, its power and its slot checked if it happens again"
pci:
  description:
    - GPUs and NVSwitches on the PCI bus, by address, with or without a driver. Virtual functions are left out.
    - C(driver) is the one that holds the device (C(nvidia), C(nouveau), C(vfio-pci)), or an empty string. C(architecture) is C(kepler),
      C(maxwell), C(pascal), C(volta), C(turing), C(ampere), C(ada), C(hopper), C(blackwell), C(rubin) or, where the id is not known, an
      empty string. C(numa_node) is -1 where the machine has none.
  type: list
  elements: dict
  returned: always
  sample:
    - address: "0000:53:00.0"
      device_id: "0x2330"
      class: "0x030200"
      driver: nvidia
      numa_node: 0
      architecture: hopper
      kind: gpu
driver:
  description:
    - C(version) of the user libraries and C(module_version) of the kernel module that is loaded, C(cuda_version) that the driver supports,
      and C(flavour) of the module, C(open) or C(proprietary). Empty strings where nothing says it.
  type: dict
  returned: always
  sample: {"version": "580.105.08", "module_version": "580.105.08", "cuda_version": "13.0", "flavour": "open"}
gpus:
  description:
    - The GPUs as C(nvidia-smi) tells them, in its order, and those that are lost. Memory is in bytes, power in watts, temperature in
      degrees Celsius. What a GPU does not say is null, or an empty string for words.
    - C(ecc) counts errors since the driver was loaded. C(mode) and C(pending) are C(enabled), C(disabled), or empty.
    - C(throttle) has the active reasons for low clocks that mean trouble, C(hw_slowdown), C(hw_thermal_slowdown),
      C(hw_power_brake_slowdown) and C(sw_thermal_slowdown). The power limit under load is no trouble.
    - C(fabric) is what the GPU says of its NVSwitch fabric, as C(nvidia-smi) words it. C(recovery) is the action that the driver asks for,
      such as C(Reset) or C(Reboot). C(repair) is C(pending) where worn memory is remapped or retired at the next reset, C(failed) where
      that is no longer possible, or empty.
    - C(numa_node) is as under RV(pci). C(island) is the lowest C(index) of the GPUs that NVLink joins with this one; null with one or two
      GPUs, where there is nothing to choose, and where nothing says it.
    - A GPU of which only the address is known has C(index) -1 and no C(uuid). C(state) is C(ready) or C(lost).
  type: list
  elements: dict
  returned: always
  sample:
    - index: 0
      uuid: GPU-4f1b2c3d-0000-0000-0000-000000000000
      name: NVIDIA H100 80GB HBM3
      address: "0000:53:00.0"
      memory_total: 85520809984
      memory_free: 85018542080
      compute_capability: "9.0"
      ecc: {"mode": "enabled", "pending": "enabled", "corrected": 0, "uncorrected": 0}
      mig:
        mode: enabled
        pending: enabled
        devices:
          - uuid: MIG-5f1b2c3d-0000-0000-0000-000000000000
            profile: 3g.40gb
            memory_total: 42144366592
            memory_free: 42110812160
      power: {"limit": 700.0, "default": 700.0, "min": 200.0, "max": 700.0, "draw": 68.92}
      temperature: 29
      throttle: []
      nvlink: {"links": 18, "active": 18}
      numa_node: 0
      island: 0
      persistence: true
      fabric: {"state": "Completed", "status": "Success"}
      recovery: ""
      repair: ""
      state: ready
fabric_manager:
  description: Whether the GPUs need NVIDIA's fabric manager (there are NVSwitches), its version if it is installed, and whether it runs.
  type: dict
  returned: always
  sample: {"needed": true, "version": "580.105.08", "active": true}
xids:
  description: XID errors of GPUs since the machine started, oldest first, the newest 200 at most. C(time) is UTC.
  type: list
  elements: dict
  returned: always
  sample: [{"time": "2026-11-28T17:10:14Z", "address": "0000:53:00.0", "code": 79, "text": "pid=1122, GPU has fallen off the bus."}]
kernel:
  description:
    - The kernel that runs (C(release)), whether its C(headers) are there, whether C(nouveau) is loaded, and whether Secure Boot is
      C(enabled), C(disabled) or C(unsupported) by the firmware.
  type: dict
  returned: always
  sample: {"release": "6.1.0-32-amd64", "headers": true, "nouveau": false, "secure_boot": "disabled"}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gpu_survey import GpuSurvey


def main() -> None:
    module = AnsibleModule(argument_spec={"timeout": {"type": "int", "default": 30}}, supports_check_mode=True)
    module.exit_json(changed=False, **GpuSurvey(timeout=module.params["timeout"]).collect())


if __name__ == "__main__":
    main()
