# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Keeps what Python compiles out of zip archives, on hosts of the testbed only.

Ansible sends a module as a zip archive, and Python compiles each file in it anew at every call: a third of what a call costs. A
fleet's own hosts do that each for itself; those of the testbed share the cores of one machine. The same source gives the same code,
so tests see nothing of it but the time.
"""

import contextlib
import marshal
import os
import zipimport
from _blake2 import blake2b  # hashlib takes longer to import than most files to compile

FOLDER = os.environ.get("TESTBED_BYTECODE", "/var/cache/testbed-bytecode")
_compile_source = zipimport._compile_source


def _compiled(pathname, source):
    path = f"{FOLDER}/{blake2b(source, digest_size=16).hexdigest()}"
    try:
        with open(path, "rb") as file:
            return marshal.load(file)
    except (OSError, EOFError, ValueError, TypeError):
        code = _compile_source(pathname, source)
    draft = f"{path}.{os.getpid()}"
    # A full or read-only disk is some test's point.
    with contextlib.suppress(OSError):
        try:
            with open(draft, "wb") as file:
                marshal.dump(code, file)
            os.replace(draft, path)
        except OSError:
            os.unlink(draft)
    return code


if os.path.isdir(FOLDER):
    zipimport._compile_source = _compiled
