"""vLLM's API server as it is, but its processes are forked instead of importing all anew.

Runs in a process that has everything imported (see tests/distributed/worker.py), which makes a
server ready in a few seconds. vLLM asks for fresh interpreters on a CPU; test_example.py starts a
server that way.
"""

from __future__ import annotations

import functools
import multiprocessing
import runpy

if __name__ == "__main__":
    forking = functools.partial(multiprocessing.get_context, "fork")
    multiprocessing.get_context = lambda method=None: forking()  # type: ignore[assignment]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
