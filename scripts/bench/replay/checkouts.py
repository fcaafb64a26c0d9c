"""What a run works on: a release's source as /testbed, committed with git.

It is made once, in a container without a network, and kept as a tar. So every sandbox of
one run starts from the same bytes and times, and two of them can be compared afterwards.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

import docker
from demo.stage import IMAGE, Failed
from docker.errors import NotFound
from docker.models.containers import Container

from bench.replay import sdists

FOLDER = "/testbed"

# To be raised when the recipe below changes.
_RECIPE = 2
_EMPTY = "empty"
# Packed, as a clone is; with one thread, so that the same release gives the same pack. Git is
# to look at times and sizes only: inodes and change times are others in each copy, and can
# be restored by nobody, and it would write its index and touch its packs because of them.
_COMMIT = """
set -e
git init -q -b main
git config user.name replay
git config user.email replay@localhost
git config gc.auto 0
git config core.checkStat minimal
git config core.trustctime false
git add -A
export GIT_AUTHOR_DATE=2024-01-01T00:00:00Z GIT_COMMITTER_DATE=2024-01-01T00:00:00Z
git commit -q --allow-empty -m release
git -c pack.threads=1 gc -q
"""


def prepare(engine: docker.DockerClient, name: str, sdist: str) -> Path:
    """Return the tar of a checkout, from the cache or else made in a container of this name.

    Raises:
        Failed: the release cannot be had, or not be committed.
    """
    archive = sdists.fetch(sdist) if sdist else None
    path = sdists.cache() / "checkouts" / f"{archive.name if archive else _EMPTY}-{_RECIPE}.tar"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{name}")
        try:
            with partial.open("wb") as file, container(engine, name) as made:
                unpack(made, _source(archive))
                run(made, _COMMIT)
                for piece in made.get_archive(FOLDER)[0]:
                    file.write(piece)
            # In one step: an interruption leaves no half of it.
            shutil.move(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def sandbox(engine: docker.DockerClient, name: str, checkout: Path) -> Iterator[Container]:
    """Yield a container with a checkout in it, removed afterwards whatever has become of it."""
    with container(engine, name) as made:
        unpack(made, checkout.read_bytes())
        yield made


@contextlib.contextmanager
def container(engine: docker.DockerClient, name: str) -> Iterator[Container]:
    """Yield a container as the runs were recorded in: `sleep` as process 1, which never reaps."""
    try:
        yield engine.containers.run(
            IMAGE, ["sleep", "infinity"], name=name, network_mode="none", working_dir="/", detach=True
        )
    finally:
        with contextlib.suppress(NotFound):
            engine.api.remove_container(name, force=True, v=True)


def unpack(made: Container, data: bytes) -> None:
    """Unpack a tar that holds `testbed/`."""
    if not made.put_archive("/", data):
        raise Failed(f"the engine did not unpack the checkout in {made.name}")


def run(made: Container, script: str) -> None:
    """Run a shell script in the checkout.

    Raises:
        Failed: it failed.
    """
    code, raw = made.exec_run(["bash", "-c", script], workdir=FOLDER)
    if code != 0:
        # Not a stream: it was not asked for.
        raise Failed(f"preparing {FOLDER} failed with {code}: {cast(bytes, raw)!r}")


def _source(archive: Path | None) -> bytes:
    if archive is None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            tar.addfile(_folder())
        return made.getvalue()
    with archive.open("rb") as file:
        return rooted(file)


def rooted(source: IO[bytes]) -> bytes:
    """Return a tar of what a release's tar holds in its one top folder, as `testbed/`, owned by root.

    Raises:
        Failed: it is not such a tar.
    """
    made = io.BytesIO()
    try:
        with tarfile.open(fileobj=source) as old, tarfile.open(fileobj=made, mode="w") as new:
            new.addfile(_folder())
            for member in old:
                parts = PurePosixPath(member.name).parts[1:]
                if not parts or ".." in parts or not (member.isreg() or member.isdir() or member.issym()):
                    continue
                member.name = str(PurePosixPath("testbed", *parts))
                member.uid = member.gid = 0
                member.uname = member.gname = "root"
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise Failed(f"a source distribution cannot be read: {error}") from None
    return made.getvalue()


def _folder() -> tarfile.TarInfo:
    folder = tarfile.TarInfo("testbed")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o755
    return folder
