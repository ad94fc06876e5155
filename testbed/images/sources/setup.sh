#!/bin/sh
set -eu
# Written as this user, so that no service of the outside world runs as root.
useradd --system --home-dir /srv --shell /usr/sbin/nologin sources
install -d -o sources -g sources /srv/hub /srv/ollama /srv/mlflow
install -d /srv/files
# Loaded once here, so that a fresh host does not compile them while a test waits.
cd /
PYTHONPATH=/opt/sources python3 -W ignore -c 'import mlflow.server.fastapi_app, mlflow.store.tracking.sqlalchemy_store'
PYTHONPATH=/opt/sources python3 -c 'import moto.server, moto.s3.urls, moto.iam.urls, moto.sts.urls'
systemctl enable s3.service mlflow.service hub.service ollama-registry.service
