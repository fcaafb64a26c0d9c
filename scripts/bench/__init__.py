"""`make bench`: what a turn and a restore cost, beside `docker commit` in the same run.

`main` is the run, `rounds` what one round measures, `peer` what Docker alone
does, `interrupt` what keeps Ctrl-C from leaving things behind, `machine` what
it ran on, `report` the table and the JSON.
"""
