# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""The views of the plan as filters for playbooks and templates."""

from __future__ import annotations

import functools

from ansible.errors import AnsibleFilterError

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import plan_picture, views


def _filter(view):
    """The view, with its refusals as errors that Ansible shows in one line."""

    @functools.wraps(view)
    def run(*args, **kwargs):
        try:
            return view(*args, **kwargs)
        except ValueError as error:
            raise AnsibleFilterError(str(error)) from error

    return run


class FilterModule:
    """Filters of M(localfirst.llm_fleet)."""

    def filters(self):
        public = (
            plan_picture.plan_picture,
            views.host_instances,
            views.gateway_view,
            views.gateway_servers,
            views.settled_instances,
            views.engine_key,
            views.engine_keys,
            views.status_rows,
        )
        return {view.__name__: _filter(view) for view in public}
