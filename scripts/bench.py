"""Measures Turnkeep beside docker commit; the package beside this file has the parts."""

from bench.main import main

if __name__ == "__main__":
    raise SystemExit(main())
