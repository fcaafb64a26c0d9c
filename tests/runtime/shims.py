"""The shim as `turnkeep install` would write it, in front of a program of the test's choice."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from turnkeep.runtime import shim

SHIPPED = Path(shim.__file__).parent

# Stands for runc where only what it is told matters: it writes that down, and fails if told to.
RECORDER = """#!/bin/sh
printf '%s\\n' "PATH=$PATH" "$@" >"{folder}/told"
[ ! -e "{folder}/fails" ]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shim:
    """An installed shim, the orders that it looks for, and what its runc was told last."""

    program: Path
    orders: Path
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call it as an engine would."""
        self.folder.joinpath("told").unlink(missing_ok=True)
        environment = {"PATH": "/usr/bin:/bin"}
        return subprocess.run(
            [self.program, *words], check=False, capture_output=True, text=True, env=environment
        )

    def told(self) -> list[str] | None:
        """Return the words that runc was given; None if it was not called."""
        path = self.folder / "told"
        return path.read_text().splitlines()[1:] if path.exists() else None

    def told_path(self) -> str:
        """Return the PATH that runc was given."""
        return (self.folder / "told").read_text().splitlines()[0].removeprefix("PATH=")

    def fail(self) -> None:
        """Have runc fail from now on."""
        (self.folder / "fails").touch()


def write_shim(folder: Path, **values: str) -> Path:
    """Write the shim and its scripts into a folder, with these settings."""
    settings = {"python": sys.executable, "carry_out": str(folder / "carry_out.py"), **values}
    for name in ("carry_out.py", "at-stage", "put_right.py"):
        shutil.copy(SHIPPED / name, folder)
    text = (SHIPPED / "turnkeep-runtime").read_text()
    for name, value in settings.items():
        text, found = re.subn(rf"(?m)^{name}=.*$", lambda _: f"{name}={shlex.quote(value)}", text)  # noqa: B023
        assert found == 1, name
    program = folder / "turnkeep-runtime"
    program.write_text(text)
    program.chmod(0o755)
    return program


def make_shim(folder: Path, **values: str) -> Shim:
    """Make a shim in front of a recorder."""
    runc, orders = folder / "runc", folder / "orders"
    runc.write_text(RECORDER.format(folder=folder))
    runc.chmod(0o755)
    orders.mkdir(mode=0o700)
    program = write_shim(folder, runc=str(runc), orders=str(orders), criu=str(folder / "criu"), **values)
    return Shim(program=program, orders=orders, folder=folder)


def make_bundle(folder: Path, **config: object) -> Path:
    """Make a container's bundle with this configuration."""
    bundle = folder / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def make_images(folder: Path) -> Path:
    """Make a folder that may hold images."""
    images = folder / "images"
    images.mkdir(mode=0o700)
    os.chmod(images, 0o700)
    return images
