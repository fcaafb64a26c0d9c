"""The whole of Turnkeep against a real engine and real containers."""
