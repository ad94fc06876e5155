#!/bin/sh
set -eu
systemctl enable nvidia-repository.service
