# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import semver

# The example of https://semver.org, rule 11, and what surrounds it.
ORDERED = [
    "0.0.1", "0.9.0", "1.0.0-0", "1.0.0-1", "1.0.0-10", "1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta",
    "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0-rc.1", "2.0.0", "2.1.0", "2.1.1",
]


def test_the_order_is_that_of_semver_org():
    for before, after in itertools.combinations(ORDERED, 2):
        assert semver.parse(before) < semver.parse(after), (before, after)


@given(st.permutations(ORDERED))
def test_sorting_finds_the_order_from_any_other(shuffled):
    assert sorted(shuffled, key=semver.order) == ORDERED


def test_build_metadata_have_no_part_in_the_order():
    assert semver.parse("1.0.0+a") == semver.parse("1.0.0+b.5") == semver.parse("1.0.0")


@pytest.mark.parametrize("text", ["1", "1.0", "v1.0.0", "01.0.0", "1.0.0-01", "1.0.0-", "1.0.0-a..b", "1.0.0 ", "", "latest", "1.0.0\n"])
def test_what_is_no_version_is_refused(text):
    assert not semver.is_version(text)
    with pytest.raises(ValueError, match="not a semantic version"):
        semver.parse(text)


@pytest.mark.parametrize(
    "text",
    ["1", "1.2", "", " ", "~", "~1.2.3.4", ">=1  <2", ">=1 <2 ", "1.x", "*", "~1 or ^2", ">=1,<2", "~1.2-rc", "Latest", 1, None],
)
def test_what_is_no_constraint_is_refused(text):
    assert not semver.is_constraint(text)


@pytest.mark.parametrize(
    ("constraint", "allowed"),
    [
        ("1.2.3", ["1.2.3"]),
        ("=1.2", ["1.2.0", "1.2.3"]),
        ("~1", ["1.0.0", "1.2.0", "1.2.3", "1.3.0"]),
        ("~1.2", ["1.2.0", "1.2.3"]),
        ("~1.2.1", ["1.2.3"]),
        ("^1.2", ["1.2.0", "1.2.3", "1.3.0"]),
        ("^0", ["0.0.3", "0.0.4", "0.2.3", "0.2.9", "0.3.0"]),
        ("^0.0", ["0.0.3", "0.0.4"]),
        ("^0.2.3", ["0.2.3", "0.2.9"]),
        ("^0.0.3", ["0.0.3"]),
        (">=1.3", ["1.3.0", "2.0.0"]),
        (">1.2", ["1.3.0", "2.0.0"]),
        (">1.2.0", ["1.2.3", "1.3.0", "2.0.0"]),
        ("<=1.2", ["0.0.3", "0.0.4", "0.2.3", "0.2.9", "0.3.0", "1.0.0", "1.2.0", "1.2.3"]),
        ("<0.2.3", ["0.0.3", "0.0.4"]),
        (">=1.2 <1.3", ["1.2.0", "1.2.3"]),
        ("^1.2.4-rc.1", ["1.2.4-rc.2", "1.3.0"]),
        (">=2.0.0-rc.1", ["2.0.0", "2.0.0-rc.1"]),
        ("1.2.4-rc.2", ["1.2.4-rc.2"]),
        (">2", []),
        (">=2 <1", []),
        ("latest", ["0.0.3", "0.0.4", "0.2.3", "0.2.9", "0.3.0", "1.0.0", "1.2.0", "1.2.3", "1.3.0", "2.0.0"]),
    ],
)
def test_a_constraint_allows_what_it_says(constraint, allowed):
    there = [
        "0.0.3", "0.0.4", "0.2.3", "0.2.9", "0.3.0", "1.0.0", "1.2.0", "1.2.3", "1.2.4-rc.2", "1.3.0", "1.3.1-rc.1",
        "2.0.0-rc.1", "2.0.0",
    ]
    assert sorted(v for v in there if semver.satisfies(v, constraint)) == sorted(allowed)
    assert semver.select(constraint, there) == (max(allowed, key=semver.order) if allowed else None)


NUMBER = st.integers(0, 3)
PRE = st.lists(st.sampled_from(["0", "2", "11", "a", "b", "rc", "-"]), max_size=2).map(".".join)
VERSIONS = st.builds(lambda a, b, c, pre: f"{a}.{b}.{c}" + (f"-{pre}" if pre else ""), NUMBER, NUMBER, NUMBER, PRE)
PARTS = st.one_of(st.lists(NUMBER, min_size=1, max_size=3).map(lambda numbers: ".".join(map(str, numbers))), VERSIONS)
TERMS = st.builds("{}{}".format, st.sampled_from(["~", "^", ">", ">=", "<", "<=", "="]), PARTS)
CONSTRAINTS = st.one_of(st.just("latest"), VERSIONS, st.lists(TERMS, min_size=1, max_size=3).map(" ".join))


@given(CONSTRAINTS, st.lists(VERSIONS, max_size=12, unique=True), st.randoms())
def test_the_same_versions_in_any_order_lead_to_the_same_choice(constraint, versions, random):
    shuffled = [*versions, *versions]
    random.shuffle(shuffled)
    chosen = semver.select(constraint, versions)
    assert semver.is_constraint(constraint)
    assert semver.select(constraint, shuffled) == chosen
    if chosen is None:
        assert not any(semver.satisfies(version, constraint) for version in versions)
    else:
        assert all(semver.order(v) <= semver.order(chosen) for v in versions if semver.satisfies(v, constraint))


@given(st.lists(TERMS, min_size=2, max_size=3), VERSIONS)
def test_more_terms_never_allow_more_releases(terms, version):
    release = version.partition("-")[0]
    together = semver.satisfies(release, " ".join(terms))
    assert together == all(semver.satisfies(release, term) for term in terms)


@given(CONSTRAINTS, VERSIONS)
def test_a_pre_release_is_never_a_surprise(constraint, version):
    if "-" in version and semver.satisfies(version, constraint):
        assert f"{version.partition('-')[0]}-" in constraint
