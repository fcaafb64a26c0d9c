"""The OCI runtime `turnkeep`: what `turnkeep install` copies to a place of its own."""
