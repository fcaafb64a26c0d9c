"""Fails for a named point that the code never comes by, or that no crash test has a case for."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from turnkeep.points import Point  # noqa: E402
from turnkeep_store.points import StorePoint  # noqa: E402

from tests.e2e.crash_cases import CASES  # noqa: E402


def _reached() -> Iterator[str]:
    """Yield the name of every point that some code says was reached, as `Enum.MEMBER`."""
    for folder in ("daemon", "snapshots"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "reached":
                    yield ast.unparse(node.args[0])


def main() -> int:
    """Print what is wrong; return 1 if anything is."""
    places = Counter(_reached())
    problems = []
    for point in (*StorePoint, *Point):
        name = f"{type(point).__name__}.{point.name}"
        if not places.pop(name, 0):
            problems.append(f"{name}: nothing in daemon/ or snapshots/ says that it was reached")
        if point not in CASES:
            problems.append(f"{name}: tests/e2e/crash_cases.py has no case for it")
    problems += [f"reached({name}): no such point" for name in places]
    for problem in problems:
        print(f"check-points: {problem}")
    return bool(problems)


if __name__ == "__main__":
    raise SystemExit(main())
