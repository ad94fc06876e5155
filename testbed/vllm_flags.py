# Copyright (c) localfirst.llm_fleet contributors
# SPDX-License-Identifier: Apache-2.0
"""Print what vLLM's own parser takes, as JSON, or let it parse a command. Runs in vLLM's image, for it needs vLLM and nothing else:

    docker run --rm -i --entrypoint python3 llm-fleet-testbed/vllm - < testbed/vllm_flags.py >
        tests/unit/plugins/module_utils/vllm_flags.json
    docker run --rm -i --entrypoint python3 llm-fleet-testbed/vllm - MODEL --port 8000 … < testbed/vllm_flags.py

The second ends with 2, and says why, where the parser refuses the command.
"""
from __future__ import annotations

import json
import sys

import vllm
from vllm.utils.argparse_utils import FlexibleArgumentParser

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:  # where earlier versions have it
    from vllm.entrypoints.openai.cli_args import make_arg_parser


def flags(parser) -> dict:
    """{flag: {"choices", "values": whether it takes one}} of all flags, each under each of its names."""
    return {
        name: {"choices": [str(choice) for choice in action.choices] if action.choices else None, "values": action.nargs != 0}
        for action in parser._actions
        for name in action.option_strings
        if name.startswith("--")
    }


def main() -> None:
    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    if len(sys.argv) > 1:
        parsed = parser.parse_args(sys.argv[1:])
        json.dump({name: str(value) for name, value in sorted(vars(parsed).items())}, sys.stdout, indent=1)
    else:
        json.dump({"version": vllm.__version__, "flags": dict(sorted(flags(parser).items()))}, sys.stdout, indent=1)
    print()


main()
