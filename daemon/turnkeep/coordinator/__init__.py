"""One state machine per sandbox: turns, captures that overlap the LLM call, restores.

`state` knows the record and the container, `captures` keeps what changed,
`sandbox` is driven by harnesses; `restore` brings a sandbox back, `registry` has
them all.
"""
