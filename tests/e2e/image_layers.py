"""Images of many layers, loaded into the engine without running anything."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence

import docker
from docker.models.images import Image


def add_layers(
    engine: docker.DockerClient, base: str, tag: str, layers: Sequence[Mapping[str, bytes]]
) -> Image:
    """Make an image of another with layers on top, each with these files in its root."""
    found = engine.images.get(base)
    # The engine takes the content of a layer that it has already from where it lies.
    below = found.attrs["RootFS"]["Layers"]
    contents = [_tar(files) for files in layers]
    names = [f"{number}.tar" for number in range(len(below) + len(layers))]
    config = {
        "architecture": found.attrs["Architecture"],
        "os": found.attrs["Os"],
        "rootfs": {"type": "layers", "diff_ids": [*below, *map(_digest, contents)]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [tag], "Layers": names}]
    archive = {
        "manifest.json": json.dumps(manifest).encode(),
        "config.json": json.dumps(config).encode(),
        **dict(zip(names[len(below) :], contents, strict=True)),
    }
    [image] = engine.images.load(_tar(archive))
    return image


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _tar(files: Mapping[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()
