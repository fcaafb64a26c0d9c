"""Tests of following what changes: nothing that changed is left out."""
