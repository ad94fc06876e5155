# SPDX-License-Identifier: Apache-2.0
# Copyright (c) localfirst.llm_fleet contributors
"""Images as nodes pull them, as filters for the role engine."""

from __future__ import annotations

from ansible_collections.localfirst.llm_fleet.plugins.module_utils import images


class FilterModule:
    """Filters of the role engine."""

    def filters(self):
        public = (images.mirrored_image, images.image_supply, images.images_to_load, images.image_names)
        return {image_filter.__name__: image_filter for image_filter in public}
