"""Breaks replayed agent runs at random turns and restores them; bench/recovery has the parts."""

from bench.recovery.main import main

if __name__ == "__main__":
    raise SystemExit(main())
