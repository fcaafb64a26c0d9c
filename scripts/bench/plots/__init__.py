"""Plots of a run, drawn from its JSON alone. Importing this needs matplotlib.

`style` is what they have in common, `figures` are the plots, by the part they show.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.plots import figures, style


def draw(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what there are figures for, each plot as SVG and PNG; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, part, plot in figures.PLOTS:
        if part in document["parts"]:
            made = plot(style.Measures(document["parts"][part]["measures"]))
            if made is not None:
                drawn += style.save(made, folder, name, style.caption(document))
    return drawn
