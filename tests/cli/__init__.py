"""Tests of the CLI against the client tests' fake daemon."""
