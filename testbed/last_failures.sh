#!/bin/sh
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
#
# Print the tasks that failed last in a log of Ansible (ANSIBLE_LOG_PATH), each with the beginning of what it said.
#
# usage: testbed/last_failures.sh <log>
set -eu
[ -s "$1" ] || exit 0
sed -E 's/^[0-9-]+ [0-9:,]+ p=[0-9]+ u=[^ ]+ n=[^|]*\| //' "$1" | awk '
    /^(TASK|PLAY|RUNNING HANDLER) / { task = $0; shown = 0 }
    /^(fatal|failed): \[/ { if (task) print task; task = ""; shown = 25 }
    shown-- > 0 { print substr($0, 1, 400) }
' | tail -n 60
