#!/bin/sh
# Runs in the image of a host. Which GPUs the host has, /etc/testbed/gpus.json says; without that file it has the machine's own bus.
set -eu
ln -s /opt/doubles/nvidia_smi/testbed-gpus /usr/local/bin/testbed-gpus
install -m 0644 /opt/doubles/nvidia_smi/testbed-gpus.service /etc/systemd/system/
systemctl enable testbed-gpus.service
# systemd 252 gives a confined service a /proc of its own, on which a real driver is and what is mounted here is not.
install -d /etc/systemd/system/llm-fleet-gpu-health.service.d
printf '[Service]\nBindReadOnlyPaths=-/run/testbed/proc-driver:/proc/driver\n' > /etc/systemd/system/llm-fleet-gpu-health.service.d/testbed.conf
