"""Scoring the prefix, the frozen base and the champion on the same rows, and the metrics over the scores."""
