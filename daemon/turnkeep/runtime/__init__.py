"""Docker containers as sandboxes: the engine, mounts, cgroups. Nothing else knows Docker."""
