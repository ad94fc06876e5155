#!/bin/sh
set -eu
install -d /srv/files
systemctl enable docker-registry.service nginx.service
