"""The soak: many sandboxes, random work, random faults, compared with a model (`make soak`)."""
