#!/bin/sh
# Runs in the new root. An exporter's image needs neither package manager data nor documentation.
set -eu
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
