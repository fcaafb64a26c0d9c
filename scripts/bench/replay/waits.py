"""How long the LLM is waited for: drawn from recorded waits, with a fixed seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.stage import Failed

FILE = "llm-wait.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """A distribution of waits in seconds, as (share, quantile) in ascending order, and its scale."""

    source: str
    quantiles: tuple[tuple[float, float], ...]
    scale: float
    seed: int

    def drawn(self, trace: str, count: int) -> list[float]:
        """Return the waits of one run: the same ones for the same seed and name, whatever else is played."""
        random_ = random.Random(f"{self.seed} {trace}")
        return [self.scale * self.at(random_.random()) for _ in range(count)]

    def at(self, share: float) -> float:
        """Return the wait below which this share of all waits lies.

        Between two quantiles its logarithm is interpolated. Beyond the first and the
        last it is theirs: the tails are not known, and a fit's would be made up.
        """
        low = self.quantiles[0]
        for high in self.quantiles:
            if share < high[0]:
                if high[0] == low[0]:
                    return low[1]
                part = (share - low[0]) / (high[0] - low[0])
                return math.exp(math.log(low[1]) + part * (math.log(high[1]) - math.log(low[1])))
            low = high
        return low[1]


def load(path: Path, *, source: str = "", scale: float, seed: int) -> Waits:
    """Return the waits of the first set in the file whose name contains `source`.

    Raises:
        Failed: the file does not hold one.
    """
    try:
        found = json.loads(path.read_text())
        sets = {name: each for name, each in found.items() if isinstance(each, dict) and source in name}
        name, chosen = next(iter(sets.items()))
        quantiles = _quantiles(chosen["quantiles"])
    except OSError as error:
        raise Failed(f"the waits for the LLM cannot be read: {error}; name the file with --waits") from None
    except (ValueError, KeyError, StopIteration, AttributeError):
        raise Failed(
            f"{path} holds no quantiles of waits for the LLM{source and f' of {source!r}'}"
        ) from None
    return Waits(source=name, quantiles=quantiles, scale=scale, seed=seed)


def _quantiles(named: dict[str, float]) -> tuple[tuple[float, float], ...]:
    pairs: Sequence[tuple[float, float]] = sorted(
        (float(name.removeprefix("p")) / 100, float(value)) for name, value in named.items()
    )
    if not pairs or min(value for _, value in pairs) <= 0:
        raise ValueError("a wait is longer than nothing")
    return tuple(pairs)
