"""Shows Turnkeep at work on a real sandbox; the package beside this file has the parts."""

from demo.main import main

if __name__ == "__main__":
    raise SystemExit(main())
