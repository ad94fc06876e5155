#!/bin/sh
# Runs in the new root. An engine's image needs neither package manager data nor documentation.
set -eu
mkdir -p /usr/src /usr/local/bin /data
ln -s /opt/doubles/tgi/launcher.py /usr/local/bin/text-generation-launcher
printf '#!/bin/sh\nexec text-generation-launcher "$@"\n' > /tgi-entrypoint.sh
chmod 0755 /tgi-entrypoint.sh
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /usr/share/doc/* /usr/share/man/* /usr/share/locale/*
