"""What a user would keep turns with instead, beside Turnkeep, on the same turns.

`ways` are the ways to keep a turn and to go back, `rounds` measures them on one sandbox,
`rows` names the measures, `run` is the order of things.
"""
