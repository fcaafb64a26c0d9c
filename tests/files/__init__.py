"""The file side of captures and restores, on real file systems and the kernel's own overlays."""
