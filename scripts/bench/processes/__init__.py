"""What keeping processes costs: dumps, live restores, forks, beside runc's and Docker's ways.

`run` is the order of things; `dumps`, `restores` and `forks` measure; `boxes`
are the sandboxes with what runs in them, `peers` what Docker and runc do with
the same; `measures` names the rows and the targets.
"""
