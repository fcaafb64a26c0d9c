"""Tests of Turnkeep."""
