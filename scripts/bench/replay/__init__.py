"""The replay: recorded agent runs, command by command, with Turnkeep and without.

`traces` and `waits` say what is played, `sdists` and `checkouts` what it is
played on, `sandboxes` runs the commands, `arms` plays one run, `figures` and
`tables` say what came out. `bench.recovery` plays the same runs and breaks them.
"""
