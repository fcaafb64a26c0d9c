"""Programs with a deduplicating store: restic and borg, as they come."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bench.tools.base import call


class Restic:
    """restic with a local repository. It syncs what it writes; it always encrypts."""

    key, title, program, in_place = "restic", "restic", "restic", False

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._ids: dict[str, str] = {}
        self._call("init")

    def keep(self, tree: Path, name: str) -> None:
        said = self._call("backup", "--json", "--host", "bench", "--tag", name, ".", cwd=tree)
        self._ids[name] = json.loads(said.splitlines()[-1])["snapshot_id"]

    def bring(self, name: str, target: Path) -> None:
        self._call("restore", self._ids[name], "--target", str(target))

    def stored_folder(self) -> Path:
        return self._folder / "repository"

    def _call(self, *words: str, cwd: Path | None = None) -> str:
        environment = {
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": str(self._folder / "repository"),
            "RESTIC_CACHE_DIR": str(self._folder / "cache"),
        }
        return call(["restic", *words], cwd=cwd, environment=environment)


class Borg:
    """borg with a local repository, not encrypted. It syncs what it writes."""

    key, title, program, in_place = "borg", "borg", "borg", False

    def prepare(self, folder: Path) -> None:
        self._folder = folder
        self._repository = folder / "repository"
        self._call(None, "init", "--encryption=none", str(self._repository))

    def keep(self, tree: Path, name: str) -> None:
        self._call(tree, "create", f"{self._repository}::{name}", ".")

    def bring(self, name: str, target: Path) -> None:
        self._call(target, "extract", f"{self._repository}::{name}")

    def stored_folder(self) -> Path:
        return self._repository

    def _call(self, cwd: Path | None, *words: str) -> None:
        environment: Mapping[str, str] = {
            "BORG_BASE_DIR": str(self._folder / "base"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        call(["borg", *words], cwd=cwd, environment=environment)
