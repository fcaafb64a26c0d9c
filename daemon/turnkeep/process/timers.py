"""Timers in images that CRIU would restore as disarmed."""

from __future__ import annotations

from turnkeep.process.imageformat import KINDS, ImageFolder, encode
from turnkeep.process.images import open_images


def rearm_timers(folder: int) -> None:
    """Have periodic timerfds tick on that expired while their process stood still.

    The kernel says of such a timer that no time is left until its next tick, which
    CRIU takes for a timer that is off. The next tick is then a whole period away.

    Raises:
        BadImages: the images in the open folder are malformed.
    """
    with ImageFolder(folder) as opened:
        files = list(open_images(opened).files.values())
        changed = False
        for file in files:
            timer = file.tfd
            if timer.ticks and not (timer.vsec or timer.vnsec) and (timer.isec or timer.insec):
                timer.vsec, timer.vnsec, timer.settime_flags = timer.isec, timer.insec, 0
                changed = True
        if changed:
            opened.replace("files.img", encode(KINDS["files"], files))
