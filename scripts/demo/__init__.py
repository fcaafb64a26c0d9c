"""`make demo`: a scripted agent run in a real sandbox.

`main` is the run, `stage` what it starts and removes, `script` what the agent
does, `agent` how its turns are bracketed, `show` how it is printed.
"""
