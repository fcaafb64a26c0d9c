"""Room for process images (CRIU). Nothing is here yet: checkpoints hold files only."""
