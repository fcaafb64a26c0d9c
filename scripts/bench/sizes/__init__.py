"""What a turn and a rollback cost against how much there is and how much changed.

`cells` varies the number of files in the writable layer and the number of changed ones,
`large` the size of one file and what happened to it. `rows` names the measures, the
grids and the targets, `run` is the order of things.
"""
