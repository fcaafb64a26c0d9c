"""Source distributions from the package index, by pip, kept in a cache outside the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from demo.stage import Failed

# In the path of a Python, its `sitecustomize` stands in for whatever would be run of a distribution.
_UNBUILT = Path(__file__).with_name("unbuilt")
_SAFE = re.compile(r"[^A-Za-z0-9.=_-]")
_LIMIT_S = 600.0


def cache() -> Path:
    """Return the folder in which downloads are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "turnkeep"


def fetch(requirement: str) -> Path:
    """Return the archive of the newest release that fits, from the cache or else downloaded.

    Nothing of the distribution is run.

    Raises:
        Failed: pip could not get it; the message has pip's last words.
    """
    folder = cache() / "sdists" / _SAFE.sub("-", requirement)
    folder.mkdir(parents=True, exist_ok=True)
    if not (found := sorted(folder.iterdir())):
        with tempfile.TemporaryDirectory(prefix="download-", dir=cache()) as partial:
            downloaded = _download(requirement, Path(partial))
            # In one step: a download that was interrupted leaves nothing here.
            shutil.move(downloaded, folder / downloaded.name)
            found = [folder / downloaded.name]
    return found[0]


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--use-pep517"]
    # It is the sandbox's Python that will meet it, if any.
    command += ["--ignore-requires-python"]
    command += ["--dest", str(folder), requirement]
    environment = {**os.environ, "PYTHONPATH": str(_UNBUILT)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )
    if done.returncode != 0 or len(list(folder.iterdir())) != 1:
        # It lists hundreds of versions in one line.
        said = "\n".join(line[:200] for line in (done.stdout + done.stderr).strip().splitlines()[-5:])
        raise Failed(f"pip could not download the source distribution {requirement}:\n{said}")
    return next(folder.iterdir())
