# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""What no HAProxy can be made to do at will: a socket that is there and takes nobody, as for a moment in each reload."""

from __future__ import annotations

import socket
import threading

import pytest

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.haproxy_runtime import HAProxyRuntime, RuntimeFailure


@pytest.fixture
def bound(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "admin.sock"))
        yield sock


def test_a_socket_that_takes_nobody_for_a_moment_is_asked_again(bound):
    def answer():
        bound.listen()
        connection, _address = bound.accept()
        with connection:
            connection.recv(100)
            connection.sendall(b"Pid: 42\n")

    later = threading.Timer(0.3, answer)
    later.start()
    assert HAProxyRuntime(bound.getsockname(), bound.getsockname()).pid() == "42"
    later.join()


def test_one_that_never_takes_anybody_is_an_error(bound):
    with pytest.raises(RuntimeFailure, match="does not answer"):
        HAProxyRuntime(bound.getsockname(), bound.getsockname()).pid()


def test_one_that_is_not_there_is_one_at_once(tmp_path):
    with pytest.raises(RuntimeFailure, match="does not answer"):
        HAProxyRuntime(str(tmp_path / "no.sock"), str(tmp_path / "no.sock")).pid()
