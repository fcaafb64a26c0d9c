"""The OCI runtime `turnkeep`: orders, the shim, its registration, on an engine of the tests' own."""
