"""Inspect, capture, commit: from a sandbox's present state to a checkpoint."""
