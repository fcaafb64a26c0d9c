"""`make bench`: what turns, rollbacks, restores and forks cost, beside their peers in the same run.

`main` is the run, `options` its command line, `plans` how much is measured. The parts are
`files` (with `rounds` and `peer`), `sizes`, `peers`, `store`, `processes` and `endurance`;
each gets a `scene` and returns `figures`, which `report` prints, `document` writes and
`plots` draws. `replay` and `recovery` are programs of their own.

What they share: `samples` as they come in, the `budget` of time, `upper` for a sandbox's
files, `tools` for what a user would use instead, `floors`, `cpu`, `disk`, `loop`. `interrupt`
is what keeps Ctrl-C from leaving things behind, `machine` what it ran on.
"""
