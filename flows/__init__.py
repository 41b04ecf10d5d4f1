"""Prefect flows: when things run. What they do is in `pipeline`."""
