#!/bin/sh
# Runs in the root of a new host image.
set -eu
# The operator's account: hosts are reached as a real fleet is, not as root.
useradd --create-home --shell /bin/bash ops
chown root:root /etc/sudoers.d/testbed
chmod 0440 /etc/sudoers.d/testbed
# Each host makes keys of its own at its first start.
rm -f /etc/ssh/ssh_host_*
systemctl enable testbed-ssh-keys.service testbed-proc-sys.service ssh.service
# No kernel of its own: nothing to load, no consoles, and no timer that takes apt's lock in the middle of a test.
systemctl mask systemd-modules-load.service console-getty.service getty.target systemd-udevd.service \
    apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer
systemctl set-default multi-user.target
: > /etc/machine-id
# What testbed_bytecode.py keeps; modules run as the operator and as root.
install -d -m 0777 /var/cache/testbed-bytecode
rm -rf /usr/share/doc/* /usr/share/man/* /usr/share/locale/* /var/cache/debconf/*-old
