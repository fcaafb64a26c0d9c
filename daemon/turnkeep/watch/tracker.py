from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Touched:
    paths: frozenset
    deep: frozenset
    complete: bool
    why: str = ""


class Watch:
    def collect(self): ...
    def close(self): ...


class Tracker:
    def __init__(self, *, max_touched=200_000, enabled=True): ...
    def watch(self, root):
        return None

    def close(self): ...
