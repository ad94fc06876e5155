#!/bin/sh
# Runs in the new root. An engine's image needs neither package manager data nor documentation.
set -eu
mkdir -p /sgl-workspace
ln -s /opt/doubles/sglang /usr/lib/python3/dist-packages/sglang
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
