# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for all rules."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_health_rules as rules
from ansible_collections.localfirst.llm_fleet.plugins.module_utils import gpu_state


def test_every_xid_has_an_action_that_is_judged():
    for code, xid in rules.XIDS.items():
        assert code == rules.RECOVERY_XID or xid.action in rules.ACTIONS, code
    assert {xid.action for xid in rules.XIDS.values()} - {"XID_154"} == set(rules.ACTIONS)


def test_whatever_is_told_comes_with_advice():
    for code in [*rules.XIDS, 999]:
        severity, advice = rules.judge_xid(code, "text")
        assert bool(severity) == bool(advice), code
    for name, rule in rules.RULES.items():
        # These come with the sentence of gpu_info, which says what to do.
        assert rule.advice or name in gpu_state.STATES, name


def test_what_ends_only_with_a_reset_is_not_milder_than_the_catalog():
    """Where this collection is of another opinion, it does not hide what the catalog wants somebody to act on."""
    for code, (severity, _advice) in rules.DIFFERENT.items():
        assert severity != rules.ACTIONS[rules.XIDS[code].action][0], f"XID {code} is the catalog's opinion"
        assert severity != rules.GOOD, code


def test_every_state_of_the_driver_has_a_rule():
    assert set(gpu_state.STATES) - {gpu_state.READY, gpu_state.NO_GPU} <= set(rules.RULES)


def test_every_action_that_the_driver_asks_for_has_a_rule():
    assert set(rules.RECOVERY.values()) <= set(rules.RULES)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)", "OS Reboot"),
        ("GPU recovery action changed from 0x0 (None) to 0x1 (PF FLR)", "PF FLR"),
        ("GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)", ""),
    ],
)
def test_what_xid_154_asks_for(text, asked):
    assert rules.asked_for(text) == asked
    assert rules.ends_reset(154, text) == (not asked)


def test_a_154_that_nobody_understands_is_a_warning():
    assert rules.judge_xid(154, "something new")[0] == rules.WARNING
    assert rules.judge_xid(154, "changed from 0x0 (None) to 0x9 (Dance)")[0] == rules.WARNING


def test_the_roles_readme_has_the_same_opinion():
    readme = (Path(__file__).resolve().parents[4] / "roles/gpu_health/README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in readme.splitlines() if line.startswith("| ")]
    told = {row[0].strip("`"): row[1] for row in rows}
    for name, rule in rules.RULES.items():
        [severity] = [told[cell] for cell in told if name in re.findall(r"\w+", cell) and told[cell] in rules.SEVERITIES]
        assert severity == rule.severity, name
    by_text = {rules.RECOVERY_XID, *range(144, 151)}
    listed = {severity: next(cell for cell in told if re.match(start, cell)) for start, severity in README_ROWS.items()}
    for severity, cell in listed.items():
        codes = {int(code) for code in re.findall(r"\d+", cell.partition(", and 144")[0])}
        assert codes == {code for code in rules.XIDS if code not in by_text and rules.judge_xid(code, "")[0] == severity}, cell


README_ROWS = {r"xid-46": rules.CRITICAL, r"xid-63": rules.WARNING, r"8, 11": rules.GOOD}


def test_the_worst_severity_wins():
    for milder, worse in combinations(rules.SEVERITIES, 2):
        assert rules.worst([worse, milder]) == rules.worst([milder, worse, milder]) == worse
