"""`make bench`: what turns, restores and forks cost, beside their peers in the same run.

`main` is the run. It has two parts: `files` (`rounds` is what one round measures,
`peer` what Docker alone does) and `processes`. `interrupt` is what keeps Ctrl-C from
leaving things behind, `machine` what it ran on, `samples` what was measured, `report`
the tables and the JSON.
"""
