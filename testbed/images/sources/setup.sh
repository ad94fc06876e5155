#!/bin/sh
set -eu
# Written as this user, so that no service of the outside world runs as root.
useradd --system --home-dir /srv --shell /usr/sbin/nologin sources
install -d -o sources -g sources /srv/hub /srv/ollama /srv/mlflow
install -d /srv/files
# Programs are loaded and the database is made once here, so that no test waits for it on a fresh host.
cd /
export PYTHONPATH=/opt/sources
python3 -W ignore -c 'import mlflow.cli, mlflow.server.fastapi_app
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
SqlAlchemyStore("sqlite:////srv/mlflow/mlflow.db", "mlflow-artifacts:/")'
python3 -c 'import moto.server, moto.s3.urls, moto.iam.urls, moto.sts.urls'
chown -R sources:sources /srv/mlflow
systemctl enable s3.service mlflow.service hub.service ollama-registry.service
