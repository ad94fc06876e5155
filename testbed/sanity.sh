#!/bin/bash
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
#
# Run ansible-test sanity on a real copy of the collection: it refuses the symlink that everything else uses.
# usage: testbed/sanity.sh [arguments for ansible-test sanity]
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD
work=$repo/.cache/sanity
copy=$work/ansible_collections/localfirst/llm_fleet

rm -rf "$copy"
mkdir -p "$copy"
# What git has and what it would take, without what only developers of the collection run (galaxy.yml leaves
# that out of the tarball too).
git ls-files -z --cached --others --exclude-standard -- . \
    ':!testbed' ':!molecule' ':!.ci' ':!.config' ':!inventories/demo' ':!tests/unit' ':!tests/bench' | while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then printf '%s\0' "$file"; fi
done | tar -c --null -T - | tar -x --no-same-owner -C "$copy"
# Without a repository of its own, ansible-test would find the checkout's, which ignores .cache/.
git init -q "$copy"

# ansible-test wants a get-pip.py from a host that closed networks don't reach. This one is pip's own wheel
# from the package index, in a home of its own so that nothing of the user's is written.
export HOME=$work/home
version=24.2
wheel=$work/pip-$version-py3-none-any.whl
if [ ! -f "$wheel" ]; then
    "$repo/.venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$work" "pip==$version"
fi
mkdir -p "$HOME/.ansible/test/cache"
cat >"$HOME/.ansible/test/cache/get_pip_${version//./_}.py" <<PYTHON
import sys

sys.path.insert(0, "$wheel")
from pip._internal.cli.main import main

sys.exit(main(["install", "--no-index", "--no-deps", "$wheel"]))
PYTHON

cd "$copy"
# The distribution's interpreters only: version managers put placeholders into PATH that don't run.
export PATH=$repo/.venv/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin
unset ANSIBLE_COLLECTIONS_PATH ANSIBLE_CONFIG PYTHONDONTWRITEBYTECODE
exec ansible-test sanity --requirements "$@"
