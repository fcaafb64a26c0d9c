"""Replays recorded agent runs with Turnkeep and without; bench/replay has the parts."""

from bench.replay.main import main

if __name__ == "__main__":
    raise SystemExit(main())
