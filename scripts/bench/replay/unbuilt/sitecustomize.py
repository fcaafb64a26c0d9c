"""Stands in for every build backend, in the processes in which pip runs one.

pip builds a source distribution's metadata before it keeps the file, and so would run
its code. Here the metadata are those that lie in the distribution, and nothing is run.
pip names the backend in the environment of the process that is to import it.
"""

import email
import os
import sys
import types

_HOOKS = ("_PYPROJECT_HOOKS_BUILD_BACKEND", "PEP517_BUILD_BACKEND")


def _get_requires_for_build_wheel(config_settings=None):  # type: ignore[no-untyped-def]
    return []


def _prepare_metadata_for_build_wheel(folder, config_settings=None):  # type: ignore[no-untyped-def]
    with open("PKG-INFO", "rb") as source:
        metadata = source.read()
    fields = email.message_from_bytes(metadata)
    name = f"{fields['Name'].replace('-', '_')}-{fields['Version']}.dist-info"
    os.mkdir(os.path.join(folder, name))
    with open(os.path.join(folder, name, "METADATA"), "wb") as target:
        target.write(metadata)
    return name


def _stand_in() -> None:
    backend = next((os.environ[name] for name in _HOOKS if os.environ.get(name)), "").partition(":")[0]
    made = None
    for depth in range(1, len(backend.split(".")) + 1 if backend else 1):
        made = types.ModuleType(".".join(backend.split(".")[:depth]))
        made.__path__ = []
        made.__dict__["__legacy__"] = made
        sys.modules[made.__name__] = made
    if made is not None:
        made.__dict__["get_requires_for_build_wheel"] = _get_requires_for_build_wheel
        made.__dict__["prepare_metadata_for_build_wheel"] = _prepare_metadata_for_build_wheel


_stand_in()
