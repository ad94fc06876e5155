# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows as an aligned table for people."""

from __future__ import annotations


def table(rows: list[dict], columns: list[str]) -> list[str]:
    """Return the lines of a table: a head, then a line for each row.

    Lines and not one text, because Ansible's default callback prints a list's elements below each other
    and a text's line breaks as ``\\n``.

    :param rows: dictionaries; a column that a row lacks stays empty.
    :param columns: the keys to show, in this order.
    """
    grid = [[column.upper().replace("_", " ") for column in columns]]
    grid += [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in grid) for index in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in grid]


def _cell(value: object) -> str:
    if value is None or value == [] or value == "":
        return "-"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)
