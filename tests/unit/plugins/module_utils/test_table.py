# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.table import table


def test_columns_are_as_wide_as_their_widest_cell():
    rows = [{"host": "gpu1", "port": 20000}, {"host": "a-long-name", "port": 1}]
    assert table(rows, ["host", "port"]) == ["HOST         PORT", "gpu1         20000", "a-long-name  1"]


def test_missing_and_empty_cells_show_a_dash_and_lists_are_joined():
    rows = [{"gpus": []}, {"gpus": ["GPU-1", "GPU-2"]}, {}]
    assert table(rows, ["gpus"]) == ["GPUS", "-", "GPU-1,GPU-2", "-"]


def test_zero_and_false_are_values():
    assert table([{"n": 0, "on": False}], ["n", "on"]) == ["N  ON", "0  False"]


def test_without_rows_there_is_a_head():
    assert table([], ["wanted_release"]) == ["WANTED RELEASE"]
