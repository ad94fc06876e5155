#!/bin/sh
set -eu
systemctl disable docker.service docker.socket containerd.service haproxy.service
