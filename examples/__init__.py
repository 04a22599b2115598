"""Examples: domains built on the core, without a change to it."""

from core.startup import import_quickly

import_quickly(__name__)
