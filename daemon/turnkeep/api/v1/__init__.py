"""Generated from protos/turnkeep/api/v1/turnkeep.proto; `make protos` makes it anew."""
