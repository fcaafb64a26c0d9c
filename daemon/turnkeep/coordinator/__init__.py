"""One state machine per sandbox: turns, captures that overlap the LLM call, restores."""
