"""A GPU played on the host, to prove the order of streams: each stream is a thread with a queue.

What is queued runs late and at random times, so that an order which nobody asked for shows. Memory
is host memory; the kernels are the CPU's; NCCL's group call is the universe's gloo group.
"""

from __future__ import annotations

import ctypes
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from megarl import native
from megarl.mesh.group import RankGroup
from megarl.native import DeviceTable, DType, Queue
from megarl.reshard import executor
from megarl.reshard.mover_cuda import CudaMover
from megarl.reshard.transport_nccl import NcclComm, NcclWire

LATEST_S = 3e-3


class Event:
    """Done when its stream came to it."""

    def __init__(self) -> None:
        self._done = threading.Event()

    def query(self) -> bool:
        return self._done.is_set()


class Stream:
    """Runs what is put on it, in order, some time later."""

    def __init__(self, number: int) -> None:
        self.cuda_stream = number
        self._random = random.Random(number)
        self._calls: queue.Queue[Callable[[], object]] = queue.Queue()
        self.errors: list[BaseException] = []
        threading.Thread(target=self._run, daemon=True).start()

    def put(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def record_event(self) -> Event:
        event = Event()
        self.put(event._done.set)
        return event

    def wait_event(self, event: Event) -> None:
        self.put(event._done.wait)

    def wait_stream(self, other: Stream) -> None:
        self.wait_event(other.record_event())

    def synchronize(self) -> None:
        assert not self.errors, self.errors
        self.record_event()._done.wait()

    def _run(self) -> None:
        while True:
            call = self._calls.get()
            time.sleep(self._random.random() * LATEST_S)
            try:
                call()
            except RuntimeError as error:  # a lost peer: the stream hangs, as under NCCL
                self.errors.append(error)
                return


class Gpu:
    """The streams of a process; what torch itself does happens at once, on stream 0."""

    def __init__(self, group: RankGroup) -> None:
        self.group = group
        self.streams = [Stream(0)]
        self.current = self.streams[0]
        self.group_calls: list[int] = []

    def new_stream(self, device: torch.device, *, urgent: bool = False) -> Stream:
        self.streams.append(Stream(len(self.streams)))
        return self.streams[-1]

    @contextmanager
    def on_stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def pack(
        self,
        source: DeviceTable,
        pointer: int,
        nbytes: int,
        *,
        src_dtype: DType,
        dst_dtype: DType,
        queue: Queue,
        digests_ptr: int = 0,
    ) -> None:
        digests = _digests(digests_ptr, len(source.table))
        self.streams[queue.stream].put(
            lambda: native.pack(
                source.table,
                pointer,
                nbytes,
                src_dtype=src_dtype,
                dst_dtype=dst_dtype,
                digests=digests,
            )
        )

    def unpack(
        self,
        target: DeviceTable,
        pointer: int,
        nbytes: int,
        *,
        dtype: DType,
        queue: Queue,
        dst_dtype: DType | None = None,
    ) -> None:
        self.streams[queue.stream].put(
            lambda: native.unpack(target.table, pointer, nbytes, dtype=dtype, dst_dtype=dst_dtype)
        )

    def copy(
        self,
        source: DeviceTable,
        target: DeviceTable,
        *,
        src_dtype: DType,
        dst_dtype: DType,
        queue: Queue,
        digests_ptr: int = 0,
    ) -> None:
        digests = _digests(digests_ptr, len(source.table))
        self.streams[queue.stream].put(
            lambda: native.copy(
                source.table,
                target.table,
                src_dtype=src_dtype,
                dst_dtype=dst_dtype,
                digests=digests,
            )
        )

    def digest(
        self,
        regions: DeviceTable,
        pointer: int,
        *,
        dtype: DType,
        queue: Queue,
        as_dtype: DType | None = None,
    ) -> None:
        out = _digests(pointer, len(regions.table))
        assert out is not None

        def take() -> None:
            out[:] = native.digest(regions.table, dtype=dtype, as_dtype=as_dtype)

        self.streams[queue.stream].put(take)


class Nccl:
    """The calls of vLLM's NCCLLibrary that are used; a group goes over gloo when its turn comes."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._group: list[tuple[Any, ...]] | None = None

    def ncclGetUniqueId(self) -> Any:
        return mock.Mock(internal=bytes(range(128)))

    def unique_id_from_bytes(self, data: bytes) -> bytes:
        return data

    def ncclCommInitRank(self, size: int, name: bytes, rank: int) -> str:
        assert name == bytes(range(128)) and size == self._gpu.group.size
        return "comm"

    def ncclCommAbort(self, comm: str) -> None:
        assert comm == "comm"

    def ncclGroupStart(self) -> None:
        assert self._group is None
        self._group = []

    def ncclRecv(self, *call: Any) -> None:
        assert self._group is not None
        self._group.append((self._gpu.group.receive, *call))

    def ncclSend(self, *call: Any) -> None:
        assert self._group is not None
        self._group.append((self._gpu.group.send, *call))

    def ncclGroupEnd(self) -> None:
        calls, self._group = self._group, None
        assert calls
        self._gpu.group_calls.append(len(calls))
        (number,) = {call[-1].value for call in calls}

        def exchange() -> None:
            works = [
                call(torch.from_numpy(_memory(pointer.value, nbytes, np.uint8)), peer, 5)
                for call, pointer, nbytes, dtype, peer, comm, _ in calls
                if dtype == 1 and comm == "comm"
            ]
            assert len(works) == len(calls)
            for work in works:
                work.wait()

        self._gpu.streams[number].put(exchange)


def _memory(pointer: int, count: int, dtype: Any) -> np.ndarray:
    nbytes = count * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(pointer), dtype=dtype)


def _digests(pointer: int, count: int) -> np.ndarray | None:
    return _memory(pointer, count, np.int64) if pointer else None


@contextmanager
def fake_gpu(group: RankGroup) -> Iterator[Gpu]:
    """Resharders that are made inside believe in a GPU."""
    gpu, cpu = Gpu(group), torch.device("cpu")
    streams = "megarl.reshard.transport_nccl"
    library = "vllm.distributed.device_communicators.pynccl_wrapper.NCCLLibrary"
    patches = {
        f"{streams}.new_stream": gpu.new_stream,
        f"{streams}.on_stream": gpu.on_stream,
        f"{streams}.current_stream": lambda device: gpu.current,
        "megarl.reshard.mover_cuda.current_stream": lambda device: gpu.current,
        "megarl.native.cuda_pack": gpu.pack,
        "megarl.native.cuda_unpack": gpu.unpack,
        "megarl.native.cuda_copy": gpu.copy,
        "megarl.native.cuda_digest": gpu.digest,
        library: lambda: Nccl(gpu),
    }

    def parts(group: RankGroup) -> tuple[CudaMover, NcclWire]:
        return CudaMover(cpu), NcclWire(group, cpu)

    with ExitStack() as stack:
        for name, stand_in in patches.items():
            stack.enter_context(mock.patch(name, stand_in))
        stack.enter_context(mock.patch.object(executor, "_parts", parts))
        yield gpu
        group._kept.pop(NcclComm, None)
