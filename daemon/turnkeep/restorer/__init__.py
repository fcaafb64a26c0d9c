"""Bringing a sandbox back to a checkpoint: live, cold, or as a new container."""
