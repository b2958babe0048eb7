"""`srun python -m megarl.slurm.node --nproc-per-node=8 -m megarl.cli.main train ...`: on each node.

It is torchrun, in this process, with three differences:

- The rendezvous comes from SLURM's variables: node 0 of the step is the host, ranks are in the
  order of the nodes. Outside of SLURM there is one node.
- At SIGUSR1 or SIGTERM the ranks get SIGUSR1, at which they save and leave, and it waits for them.
  torchrun itself dies of SIGUSR1, and kills its ranks 30 s after a SIGTERM. SLURM mostly signals
  the ranks too, whose second SIGTERM ends them at once: so theirs comes later, and is another.
- It leaves with the status of its ranks, where torchrun leaves with 1: 75 says "saved, start me
  again". A rank that SIGUSR1 ended before it could listen counts as such.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megarl.runtime.environment import set_variables, slurm_step
from megarl.runtime.requeue import REQUEUE_STATUS, STATUS_IS_READ

HANDED_ON = (signal.SIGUSR1, signal.SIGTERM)
AFTER_SLURM_S = 1.0
"""By then SLURM's own signal has reached the ranks."""


def main(arguments: Sequence[str]) -> int:
    """Run this node's ranks to their end; the worst of their exit statuses."""
    for number in HANDED_ON:
        signal.signal(number, _hand_on)
    # The second of torch's import comes after the handlers.
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    parsed = parse_args([*_rendezvous(), *arguments])
    set_variables({STATUS_IS_READ: "1"})
    _share_cores(int(parsed.nproc_per_node))
    try:
        run(parsed)
    except ChildFailedError as failed:
        codes = own_failures({rank: one.exitcode for rank, one in failed.failures.items()})
        status = worst(codes.values())
        _tell(f"ranks {sorted(codes)} ended with {status}", failed=status != REQUEUE_STATUS)
        return status
    return 0


def own_failures(codes: Mapping[int, int]) -> dict[int, int]:
    """Rank -> exit code, without ranks that were ended because another one had failed."""
    others = {rank: code for rank, code in codes.items() if code != -signal.SIGTERM}
    return others or dict(codes)


def worst(codes: Iterable[int]) -> int:
    """The status of a node by the exit codes of its ranks; a signal is a negative one."""
    codes = list(codes)
    if any(code in (REQUEUE_STATUS, -signal.SIGUSR1) for code in codes):
        return REQUEUE_STATUS
    return max((128 - code if code < 0 else code for code in codes), default=1)


def _rendezvous() -> list[str]:
    """torchrun's options by SLURM's variables."""
    # These would be torch's own to handle; SIGQUIT alone is left to it.
    options = ["--max-restarts=0", "--signals-to-handle=SIGQUIT"]
    step = slurm_step()
    if step is None:
        return options
    if step.node == 0:
        _tell(f"{step.describe()}, rendezvous {step.master_addr}:{step.master_port}")
    return [
        *options,
        f"--nnodes={step.num_nodes}",
        f"--node-rank={step.node}",
        f"--master-addr={step.master_addr}",
        f"--master-port={step.master_port}",
        f"--rdzv-id={step.job}.{step.restarts}",
    ]


def _share_cores(num_ranks: int) -> None:
    """OMP_NUM_THREADS, unless it is given: the node's cores by its ranks."""
    step = slurm_step()
    cores = (step.cpus if step else None) or len(os.sched_getaffinity(0))
    set_variables({"OMP_NUM_THREADS": str(max(1, cores // num_ranks))}, keep_given=True)


def _hand_on(number: int, frame: object) -> None:
    time.sleep(AFTER_SLURM_S)
    for pid in _children():
        try:
            os.kill(pid, signal.SIGUSR1)
        except ProcessLookupError:
            continue


def _children() -> list[int]:
    """Processes that this one has started: the ranks."""
    threads = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for thread in threads for pid in thread.read_text().split()]


def _tell(message: str, *, failed: bool = False) -> None:
    sys.stderr.write(f"megarl: {'error: ' if failed else ''}{message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
