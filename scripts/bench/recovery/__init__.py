"""The recovery: replayed agent runs are broken at random turns, restored, and compared.

`listing` and `living` look at a sandbox without any of Turnkeep's code, `compare` says what
differs. `plans` draws what is broken and when, `faults` and `engines` break it, `runs` plays,
restores and goes on, `verdicts` judges, `tables` prints.
"""
