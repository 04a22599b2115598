"""Examples: domains built on the core, without a change to it."""
