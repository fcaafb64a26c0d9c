"""Evidence: which files changed, which processes lived and ran."""
