# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Options that the modules about a host's store have in common; their specifications are in module_utils/store_arguments.py.

A module that means something of its own by one of them gives its own description, and takes the rest from here.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Fragments by name: `store`, or `store.version`, `store.artifacts`, ... for those with another name than DOCUMENTATION.

    Each is plain text, as ansible-test reads them without running this file.
    """

    # The store itself.
    DOCUMENTATION = """\
options:
  store:
    description: Directory of the store. All of it has to be on one file system.
    type: path
    default: /var/lib/llm_fleet/store
"""

    # One model version as the lockfile has it.
    VERSION = """\
options:
  model:
    description: Name of the model.
    type: str
    required: true
  version:
    description: Version of the model.
    type: str
    required: true
  source:
    description: The pinned source, as the lockfile has it. Needed with O(sources) only.
    type: str
    default: ""
  files:
    description: The files as the lockfile names them.
    type: list
    elements: dict
    suboptions:
      path:
        description: Path of the file in the tree, relative and without C(..).
        type: str
        required: true
      size:
        description: Size in bytes.
        type: int
        required: true
      sha256:
        description: SHA-256 of the contents, 64 lower-case hexadecimal digits.
        type: str
        required: true
      from:
        description: Path of the file at the source, where it differs.
        type: str
      content:
        description: All of the file, where the lockfile holds it. Such a file is not fetched.
        type: str
"""

    # Several of them.
    ARTIFACTS = """\
options:
  artifacts:
    description: The model versions to bring, with their files as the lockfile names them.
    type: list
    elements: dict
    required: true
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: Version of the model.
        type: str
        required: true
      source:
        description: The pinned source, as the lockfile has it. Needed with C(sources) only.
        type: str
        default: ""
      files:
        description: The files of the version.
        type: list
        elements: dict
        required: true
        suboptions:
          path:
            description: Path of the file in the tree, relative and without C(..).
            type: str
            required: true
          size:
            description: Size in bytes.
            type: int
            required: true
          sha256:
            description: SHA-256 of the contents, 64 lower-case hexadecimal digits.
            type: str
            required: true
          from:
            description: Path of the file at the source, where it differs.
            type: str
          content:
            description: All of the file, where the lockfile holds it. Such a file is not fetched.
            type: str
      format:
        description: Format of the files. Not used here; it is accepted so that an entry of the lockfile can be given as it is.
        type: str
      size:
        description: Size of all files in bytes. Not used here.
        type: int
      signature:
        description: Signature of the version with what it takes to verify it, as M(localfirst.llm_fleet.fleet_plan) returns it for depots.
        type: dict
        suboptions:
          content:
            description: Text of the signature file.
            type: str
            required: true
          sha256:
            description: SHA-256 of O(artifacts[].signature.content).
            type: str
            required: true
          signer:
            description: Fingerprint of the key that signed, C(sha256:) and 64 hexadecimal digits.
            type: str
            required: true
          left_out:
            description: Signed files that the version does without.
            type: list
            elements: str
            default: []
          file:
            description: What the signature is called at the source.
            type: str
            default: model.sig
          format:
            description: Format of the files.
            type: str
            default: ""
          by:
            description: Whether O(artifacts[].signature.trust) is a public key, or the certificate of a CA.
            type: str
            choices: [key, ca]
            required: true
          trust:
            description: Whom to trust, in PEM.
            type: str
            required: true
          identity:
            description: Name of the holder of a certificate. Any, where it is empty.
            type: str
            default: ""
"""

    # Model versions that the fleet knows, under the names that modules have for them.
    KNOWN = """\
options:
  known:
    description: Model versions that the fleet knows, as the filter P(localfirst.llm_fleet.known_artifacts#filter) tells them.
    type: list
    elements: dict
    default: []
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: Version of the model.
        type: str
        required: true
      files:
        description: Its files as the lockfile names them.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: Path of the file in the tree, relative and without C(..).
            type: str
            required: true
          size:
            description: Size in bytes.
            type: int
            required: true
          sha256:
            description: SHA-256 of the contents, 64 lower-case hexadecimal digits.
            type: str
            required: true
          from:
            description: Path of the file at the source, where it differs.
            type: str
      signature:
        description: Signature of the version with what it takes to verify it, as M(localfirst.llm_fleet.fleet_plan) returns it for depots.
        type: dict
        suboptions:
          content:
            description: Text of the signature file.
            type: str
            required: true
          sha256:
            description: SHA-256 of O(known[].signature.content).
            type: str
            required: true
          signer:
            description: Fingerprint of the key that signed, C(sha256:) and 64 hexadecimal digits.
            type: str
            required: true
          left_out:
            description: Signed files that the version does without.
            type: list
            elements: str
            default: []
          file:
            description: What the signature is called at the source.
            type: str
            default: model.sig
          format:
            description: Format of the files.
            type: str
            default: ""
          by:
            description: Whether O(known[].signature.trust) is a public key, or the certificate of a CA.
            type: str
            choices: [key, ca]
            required: true
          trust:
            description: Whom to trust, in PEM.
            type: str
            required: true
          identity:
            description: Name of the holder of a certificate. Any, where it is empty.
            type: str
            default: ""
      reasons:
        description: What it is known as, for example V(current) or V(locked).
        type: list
        elements: str
        default: []
"""

    KEEP = """\
options:
  keep:
    description: Model versions to keep, as the filter P(localfirst.llm_fleet.known_artifacts#filter) tells them.
    type: list
    elements: dict
    required: true
    suboptions:
      model:
        description: Name of the model.
        type: str
        required: true
      version:
        description: Version of the model.
        type: str
        required: true
      files:
        description: Its files as the lockfile names them.
        type: list
        elements: dict
        default: []
        suboptions:
          path:
            description: Path of the file in the tree, relative and without C(..).
            type: str
            required: true
          size:
            description: Size in bytes.
            type: int
            required: true
          sha256:
            description: SHA-256 of the contents, 64 lower-case hexadecimal digits.
            type: str
            required: true
          from:
            description: Path of the file at the source, where it differs.
            type: str
      signature:
        description: Signature of the version with what it takes to verify it, as M(localfirst.llm_fleet.fleet_plan) returns it for depots.
        type: dict
        suboptions:
          content:
            description: Text of the signature file.
            type: str
            required: true
          sha256:
            description: SHA-256 of O(keep[].signature.content).
            type: str
            required: true
          signer:
            description: Fingerprint of the key that signed, C(sha256:) and 64 hexadecimal digits.
            type: str
            required: true
          left_out:
            description: Signed files that the version does without.
            type: list
            elements: str
            default: []
          file:
            description: What the signature is called at the source.
            type: str
            default: model.sig
          format:
            description: Format of the files.
            type: str
            default: ""
          by:
            description: Whether O(keep[].signature.trust) is a public key, or the certificate of a CA.
            type: str
            choices: [key, ca]
            required: true
          trust:
            description: Whom to trust, in PEM.
            type: str
            required: true
          identity:
            description: Name of the holder of a certificate. Any, where it is empty.
            type: str
            default: ""
      reasons:
        description: What it is known as, for example V(current) or V(locked).
        type: list
        elements: str
        default: []
"""

    # Where contents come from, and how they arrive.
    TRANSFER = """\
options:
  stores:
    description: Directories of other stores on the same host. What they have is taken from there.
    type: list
    elements: path
    default: []
  suppliers:
    description: "Addresses of hosts that serve contents at C(<address>/blobs/sha256/<digest>), for example a depot."
    type: list
    elements: str
    default: []
  sources:
    description:
      - How sources are asked, the variable C(llm_fleet_sources) as JSON. Give V({}) to ask sources without any settings;
        without this option, sources are not asked at all.
      - Its secrets appear in no output.
    type: str
  client_cert:
    description: File on the host with the certificate to show to suppliers (PEM).
    type: path
  client_key:
    description: File on the host with the key of O(client_cert) (PEM).
    type: path
  ca_path:
    description: File on the host with the CA certificates that suppliers are checked with (PEM). The host's own ones if not set.
    type: path
  bandwidth:
    description: Bytes a second that may be fetched, all together. V(0) sets no limit.
    type: int
    default: 0
  link:
    description: Whether to link a tree for each version. A host that only hands contents on needs none.
    type: bool
    default: true
  owner:
    description: User that owns files and directories. The user who runs the module if not set.
    type: str
  group:
    description: Group that may read files and directories. Left as it is if not set.
    type: str
  reserve:
    description: Bytes that have to stay free on the file system of the store.
    type: int
    default: 1073741824
  lock_timeout:
    description: Seconds to wait for another run on the same store that comes no further.
    type: int
    default: 3600
  timeout:
    description: Seconds that a supplier may stay silent before the attempt counts as failed. Sources have their own setting.
    type: int
    default: 30
  retries:
    description: How many attempts in a row may fail at one supplier without a byte before it is given up.
    type: int
    default: 5
"""
