"""The wire interface of the daemon, by version."""
