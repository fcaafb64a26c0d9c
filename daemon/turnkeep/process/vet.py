"""Whether images may be restored: a pure check of what they say against what the container gives.

CRIU restores with the host's root privileges in the sandbox's namespaces and does
what images say. So they are read as if an attacker had written every byte. What is
not named here is refused; what a rule does not look at cannot grant anything.

The folder (`imageformat`, `images`)
    Only kinds of images that are known, none of namespaces, mounts, devices, firewalls
    or policies; every field of theirs is known; every encoding is the only one.
Inventory
    This format; no plugin, no uprobes, no images on top of others, no firewall
    program started from the sandbox.
Tree
    Numbers are possible ones, each once. Parents come before children. All of a live
    process is there: threads, memory, files.
Namespaces
    Each process is in those that CRIU was started in; none is made or entered.
Credentials, of each thread
    Capability sets are within the container's bounding set; no_new_privs, seccomp
    (mode 2 with filters that are there) and the security label are the container's.
    With what was seen at the capture (`Allowance.processes`): uids, gids and groups
    are the same, capability sets not larger, no filter less.
Processes
    Hard limits, oom score, niceness, scheduling and login uid are not beyond the
    container's, nor beyond what was seen. No personality that the container's seccomp
    filter would deny. No timers that wake the machine without CAP_WAKE_ALARM.
Memory (`vet_memory`)
    Areas lie one after the other, above what no process may map, below the kernel;
    flags are those that images have, not those that CRIU notes in the same field for
    itself (one of them has it take a number from the image for its own memory).
    Pages lie one after the other within private areas and are all there.
Files (`vet_files`)
    Only types that stay inside; regular files have absolute paths without "..", no
    device that the container was not given; /proc and /sys only to read what everyone
    may read, and no magic links; open flags create and truncate nothing. Files that
    are made anew are no devices and not setuid. No file handles, which reach a file
    system's every inode; no sockets of other network namespaces, no marked packets,
    no raw sockets without CAP_NET_RAW, no ports below the container's.
Control groups
    Nothing is written: CRIU is told to leave them alone, and the images must have no
    properties in case it is not.

What this cannot see: where a path of the sandbox leads when it is opened (a symbolic
link may have been put there; `observe.outside` looks afterwards); whether a process
had those of the sandbox's files open that it says, and for writing; whether a seccomp
filter forbids what the container's does (the kernel has it as the runtime compiled
it, differently for each `docker exec`; CRIU reads it from the kernel, and the store's
digests keep it); and what memory holds, which is the sandbox's own affair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from turnkeep.process.allowance import Allowance, allowance_from, require
from turnkeep.process.confinement import Confinement
from turnkeep.process.images import Images, open_images
from turnkeep.process.vet_credentials import vet_threads
from turnkeep.process.vet_files import vet_files
from turnkeep.process.vet_memory import vet_memory
from turnkeep.process.vet_tree import vet_inventory, vet_processes, vet_tree


def vet_folder(
    folder: int,
    configuration: Mapping[str, Any],
    init: Confinement,
    *,
    replaced: Iterable[str],
    processes: Mapping[int, Confinement] | None = None,
) -> None:
    """Check the images in an open folder for a container with this OCI configuration and init.

    `replaced` are CRIU's names of files from outside, which something of ours will
    stand for.

    Raises:
        BadImages, ImagesRefused: see `vet`.
    """
    external = frozenset(map(str.encode, replaced))
    vet(open_images(folder), allowance_from(configuration, init, processes=processes, external=external))


def vet(images: Images, allowed: Allowance) -> None:
    """Check images before they are restored. Nothing is opened and nothing changes.

    Raises:
        BadImages: they contradict themselves.
        ImagesRefused: they ask for more than is allowed; names process, field, and
            what is allowed.
    """
    vet_inventory(images, allowed)
    vet_tree(images, allowed)
    vet_processes(images, allowed)
    vet_threads(images, allowed)
    vet_memory(images, allowed)
    vet_files(images, allowed)
    for controller in images.cgroups.controllers:
        require(not controller.dirs, "control groups", "properties to be set", "none")
