#!/bin/sh
# Runs in the new root. An engine's image needs neither package manager data nor documentation.
set -eu
ln -s /opt/doubles/ollama/ollama.py /bin/ollama
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
