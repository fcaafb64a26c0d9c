"""The daemon's parts, one at a time, on real files, processes and cgroups."""
