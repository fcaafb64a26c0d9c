"""The gRPC side of the daemon."""
