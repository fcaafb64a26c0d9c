"""Fuzz what reads bytes that somebody else may have made, with Atheris (libFuzzer for Python).

    fuzz.py                        every target for a minute
    fuzz.py --seconds 600 tree     one target for ten minutes
    fuzz.py --runs 2000            every target, so many inputs

Inputs that reached something new are kept in build/fuzz/TARGET, and the next run
goes on from there and from tests/fuzz/corpus/TARGET. An input that broke a target
is left in build/fuzz as crash-*, and the program exits with 1.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

_LONGEST_BYTES = 8192
_ONE_INPUT_S = 20


def main() -> int:
    """Fuzz what the command line says; return 1 if something broke."""
    if sys.argv[1:2] == ["--only"]:
        return _fuzz(sys.argv[2], sys.argv[3:])
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument(
        "--runs", type=int, default=0, help="so many inputs for each target, however long that takes"
    )
    options = parser.parse_args()
    if unknown := set(options.targets) - TARGETS.keys():
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or list(TARGETS)
    broken = [name for name in names if not _run(name, options.seconds, options.runs)]
    print(f"fuzz: {len(names)} targets, {len(broken)} broken {' '.join(broken)}".rstrip())
    return bool(broken)


def _run(name: str, seconds: int, runs: int) -> bool:
    """Fuzz a target in a program of its own: libFuzzer ends the one that it runs in."""
    found = ROOT / "build" / "fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    corpus = ROOT / "tests" / "fuzz" / "corpus" / name
    limit = f"-runs={runs}" if runs else f"-max_total_time={seconds}"
    command = [
        sys.executable, __file__, "--only", name, limit, f"-max_len={_LONGEST_BYTES}",
        f"-timeout={_ONE_INPUT_S}", "-verbosity=0", "-print_final_stats=1",
        f"-artifact_prefix={found.parent}/", str(found), *([str(corpus)] if corpus.is_dir() else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    stats = dict(line[6:].split(": ", 1) for line in done.stderr.splitlines() if line.startswith("stat::"))
    executed = stats.get("number_of_executed_units", "?").strip()
    print(f"fuzz: {name}: {executed} inputs, {'ok' if done.returncode == 0 else 'BROKEN'}", flush=True)
    if done.returncode != 0:
        print(done.stderr[-4000:])
    return done.returncode == 0


def _fuzz(name: str, arguments: list[str]) -> int:
    """Be the program that fuzzes one target."""
    try:
        import atheris
    except ImportError:
        sys.exit("fuzz: Atheris is not installed: pip install -e '.[fuzz]'")
    # Only what is imported here is watched for new ways through it.
    with atheris.instrument_imports(include=["turnkeep", "turnkeep_store"]):
        from tests.fuzz.targets import TARGETS
    logging.disable(logging.CRITICAL)
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
