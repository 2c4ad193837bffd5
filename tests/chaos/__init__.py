"""Chaos: many callers, several worker processes, a random schedule of faults, and a judge of what came of every call.

`python -m tests.chaos --help` tells how to run it. `schedule` says what breaks when, `history` what may not happen;
both are plain functions of their arguments. The rest makes it happen: `run` directs, `caller` and `worker` are
processes of their own, `injector` breaks things.
"""
