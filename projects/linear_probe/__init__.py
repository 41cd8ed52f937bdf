"""A linear probe: does a trained LiFT help a task? README.md says how to run it."""
