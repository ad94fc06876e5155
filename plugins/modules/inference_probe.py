#!/usr/bin/python
# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

DOCUMENTATION = r"""
module: inference_probe
short_description: Puts the instances of a new release through their gates
version_added: 0.1.0
description:
  - Runs where engines can be reached, such as on a gateway, and asks them directly.
  - 'The gates: each instance answers and names the right model (B(ready)), its answers to golden prompts are as they must be
    (B(golden)), its times to the first token and for each further one are within limits (B(ttft_p95), B(tpot_p95)) and not
    much longer than the old release takes in the same minutes (B(slowdown)), and its requests do not fail (B(error_rate)).'
  - An answer counts only if it is complete, with a reason to finish, all tokens that were asked for (fewer only where the model
    itself came to an end), and C([DONE]). An error that the engine reports in a stream, after it has answered 200, is one too.
  - A gate that fails does not fail the module. See RV(passed), and have a task assert on it.
  - Nothing passes for lack of samples. Each new instance has to answer at least one of them.
  - An instance that is not ready is asked nothing more. A side that has had three errors, and more than it may have, is asked no more.
  - Changes nothing.
options:
  targets:
    description: Instances of the new release. Each of them is asked.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: The name of the instance.
        type: str
        required: true
      url:
        description: Where it answers, as V(http://address:port).
        type: str
        required: true
      release:
        description: The release that it runs.
        type: str
        required: true
  baseline:
    description: Instances of the old release, which are measured in turn with the new ones. There may be none.
    type: list
    elements: dict
    default: []
    suboptions:
      id:
        description: The name of the instance.
        type: str
        required: true
      url:
        description: Where it answers, as V(http://address:port).
        type: str
        required: true
      release:
        description: The release that it runs.
        type: str
        required: true
  model:
    description: The name of the model, as requests give it. An answer that names another one is an error.
    type: str
    required: true
  key:
    description: The API key of the engines. Empty where they have none.
    type: str
    default: ""
  path:
    description: What to ask. The body of requests follows from it.
    type: str
    choices: [/v1/chat/completions, /v1/completions]
    default: /v1/chat/completions
  smoke:
    description:
      - Golden prompts, each with at most one of O(smoke[].expect), O(smoke[].exact), O(smoke[].regex) and O(smoke[].schema).
        Without any, the answer must be complete and not empty.
      - Every new instance is asked each of them once, with temperature 0 and seed 0.
      - A model's thoughts, where it streams them apart, are no part of its answer.
    type: list
    elements: dict
    default: []
    suboptions:
      prompt:
        description: What to ask. Results name it by its place in the list, as V(smoke[0]), and never show it.
        type: str
        required: true
      expect:
        description: A text that the answer must contain.
        type: str
      exact:
        description: What the answer must be, apart from white space around it.
        type: str
      regex:
        description: A regular expression of Python's that must be found in the answer.
        type: str
      schema:
        description:
          - A JSON schema. The answer must be JSON, and nothing besides, that satisfies it.
          - It may use type, properties, required, additionalProperties (false only), items, enum, const, minItems, maxItems,
            minLength, maxLength, pattern, minimum and maximum, and annotations such as title. Anything else is refused.
        type: dict
      max_tokens:
        description: How long the answer may become, in tokens.
        type: int
        default: 64
  samples:
    description: How many requests to measure on each side, spread over its instances. Every instance gets one at least.
    type: int
    default: 20
  concurrency:
    description: How many requests to have under way at the same time, on both sides together.
    type: int
    default: 2
  max_tokens:
    description: How many tokens a sample asks for. Times for further tokens need two at least.
    type: int
    default: 32
  prompt:
    description: What samples ask. It goes to both sides unchanged.
    type: str
    default: Describe in plain words how a lighthouse works and why ships need it.
  limits:
    description:
      - What is allowed. A limit that is left out is not checked, apart from O(limits.error_rate).
      - A 95th percentile (p95) lies between the two nearest samples, in proportion. That of ten or twenty samples is close to
        the slowest of them.
    type: dict
    default: {}
    suboptions:
      ttft_p95:
        description: The greatest p95 of seconds to the first token.
        type: float
      tpot_p95:
        description: The greatest p95 of seconds for each further token.
        type: float
      error_rate:
        description: The greatest share of requests that may fail, from V(0) to V(1).
        type: float
        default: 0
      slowdown:
        description:
          - How many times the p95 of the old release's times those of the new one may be.
          - Checked where the old release has ten good samples. Where it has not, RV(notes) say so.
        type: float
  timeout:
    description: Seconds that one request may take.
    type: int
    default: 60
author:
  - localfirst.llm_fleet contributors (@localfirst)
seealso:
  - module: localfirst.llm_fleet.engine_ready
attributes:
  check_mode:
    description:
      - Asks nothing, because nothing was started. RV(skipped_probe) is then true, RV(passed) as well, and the lists are empty.
      - Wrong arguments are reported all the same.
    support: full
  diff_mode:
    description: It changes nothing, so there is never a difference to show.
    support: none
  idempotent:
    description: It only asks.
    support: full
"""

EXAMPLES = r"""
- name: Put the new instances through their gates
  localfirst.llm_fleet.inference_probe:
    targets:
      - {id: tiny-0-b, url: "http://10.0.0.5:20001", release: 0f3a5c7e9b1d}
    baseline:
      - {id: tiny-0-a, url: "http://10.0.0.5:20000", release: 8b2d4f6a1c3e}
    model: tiny
    key: "{{ llm_fleet_engine_keys['tiny'] }}"
    smoke:
      - prompt: What is the capital of France? One word.
        expect: Paris
      - prompt: 'Give me {"ok": true} as JSON.'
        schema: {type: object, required: [ok], properties: {ok: {const: true}}}
    limits:
      ttft_p95: 2
      tpot_p95: 0.1
      slowdown: 1.5
  register: gates

- name: Go on only if all of them hold
  ansible.builtin.assert:
    that: gates.passed
    fail_msg: "{{ gates.failures | join('\n') }}"
"""

RETURN = r"""
passed:
  description: Whether all gates hold.
  type: bool
  returned: success
  sample: false
failures:
  description: For each gate that does not hold, which it is, where, what was measured and what is allowed.
  type: list
  elements: str
  returned: success
  sample: ["ttft_p95: 2.315 s to the first token (p95 of 20 samples, tiny-0-b), 2 s is allowed"]
notes:
  description: What was to be compared and could not be, and why. They fail nothing.
  type: list
  elements: str
  returned: success
  sample: ["slowdown: seconds to the first token were not compared: 0 samples of the old release show them, 10 are needed"]
skipped_probe:
  description: Whether nothing was asked, as in check mode.
  type: bool
  returned: success
  sample: false
golden:
  description: For each new instance and golden prompt (by its place in O(smoke)), whether it passed, and why not.
  type: list
  elements: dict
  returned: success
  sample:
    - {target: tiny-0-b, index: 0, passed: false, why: 'the answer does not contain "Paris"; it is "London."'}
samples:
  description:
    - The figures of each sample.
    - C(side) is V(new) or V(old), C(error) is empty for a good one, times are in seconds and null where the answer does not
      show them.
  type: list
  elements: dict
  returned: success
  sample:
    - target: tiny-0-b
      release: 0f3a5c7e9b1d
      side: new
      ok: true
      error: ""
      ttft_s: 0.081
      tpot_s: 0.0124
      tokens: 32
      seconds: 0.466
summary:
  description: Requests, errors and times of both sides, under C(new) and C(old). What there are no samples for is null.
  type: dict
  returned: success
  sample:
    new:
      requests: 20
      errors: 0
      error_rate: 0.0
      ttft_p50_s: 0.08
      ttft_p95_s: 0.092
      tpot_p50_s: 0.0121
      tpot_p95_s: 0.0133
    old:
      requests: 0
      errors: 0
      error_rate: null
      ttft_p50_s: null
      ttft_p95_s: null
      tpot_p50_s: null
      tpot_p95_s: null
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.localfirst.llm_fleet.plugins.module_utils.gates import summary
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.inference_client import CHAT, PATHS
from ansible_collections.localfirst.llm_fleet.plugins.module_utils.release_probe import (
    NEW,
    OLD,
    ReleaseProbe,
    Settings,
    faults,
)

PROMPT = "Describe in plain words how a lighthouse works and why ships need it."
HIDDEN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"


def text(**rest) -> dict:
    return {"type": "str", **rest}


def arguments() -> dict:
    """The argument specification; what has 'token' in its name here is a number."""
    target = {"id": text(required=True), "url": text(required=True), "release": text(required=True)}
    targets = {"type": "list", "elements": "dict", "options": target}
    matchers = {"expect": text(), "exact": text(), "regex": text(), "schema": {"type": "dict"}}
    golden = {"prompt": text(required=True, no_log=True), **matchers, "max_tokens": {"type": "int", "default": 64, "no_log": False}}
    limit = {"type": "float"}
    return {
        "targets": {**targets, "required": True},
        "baseline": {**targets, "default": []},
        "model": text(required=True),
        "key": text(default="", no_log=True),
        "path": text(choices=list(PATHS), default=CHAT),
        "smoke": {"type": "list", "elements": "dict", "default": [], "options": golden},
        "samples": {"type": "int", "default": 20},
        "concurrency": {"type": "int", "default": 2},
        "max_tokens": {"type": "int", "default": 32, "no_log": False},
        "prompt": text(default=PROMPT, no_log=True),
        "limits": {
            "type": "dict",
            "default": {},
            "options": {"ttft_p95": limit, "tpot_p95": limit, "error_rate": {"type": "float", "default": 0}, "slowdown": limit},
        },
        "timeout": {"type": "int", "default": 60},
    }


def shown(module: AnsibleModule, settings: Settings) -> dict:
    """The arguments as results may show them.

    Ansible would mask a prompt's letters wherever they occur, in numbers and names too: a short one would spoil the result.
    Here only free text can hold a prompt, and that has been masked already.
    """
    module.no_log_values.difference_update({settings.prompt, *(golden["prompt"] for golden in settings.smoke)} - {settings.key})
    smoke = [{**golden, "prompt": HIDDEN} for golden in settings.smoke]
    return {"module_args": {**module.params, "prompt": HIDDEN, "smoke": smoke}}


def main() -> None:
    module = AnsibleModule(argument_spec=arguments(), supports_check_mode=True)
    settings = Settings(**module.params)
    invocation = shown(module, settings)
    wrong = faults(settings)
    if wrong:
        module.fail_json(msg="\n".join(wrong), invocation=invocation)
    if module.check_mode:
        nothing = {"failures": [], "notes": [], "golden": [], "samples": [], "summary": {NEW: summary([]), OLD: summary([])}}
        module.exit_json(changed=False, passed=True, skipped_probe=True, **nothing, invocation=invocation)
    module.exit_json(changed=False, skipped_probe=False, **ReleaseProbe(settings).run(), invocation=invocation)


if __name__ == "__main__":
    main()
