"""Runs one untrusted command; started as a process of its own by `megarl.rewards.sandbox`.

Only the standard library is imported: the interpreter starts with -I -S. The first argument is the
limits as JSON, the rest the command, whose standard streams are this process's. The exit status is
the command's, 128 + n where signal n ended it, or one of the statuses below. Whatever the command
started is gone when this process is.

Linux, without privileges: namespaces of its own for users, processes, network and mounts where the
kernel allows them (then all files but the working folder are read-only); a seccomp filter that
refuses sockets in any case.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
import time

TIMED_OUT, NOT_ISOLATED, NOT_STARTED = 124, 125, 123
"""Exit statuses: the wall clock ran out; sockets cannot be refused on this machine; the limits or
namespaces could not be set up, with the cause on standard error."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER = 1, 38, 22, 36
_NEW_USER, _NEW_PID, _NEW_NET, _NEW_NS, _NEW_IPC = (
    0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x08000000
)  # fmt: skip
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _RDONLY = 442, -100, 0x8000, 1
_MS_REC_PRIVATE = 0x4000 | 0x40000
# Architecture -> (audit number, numbers of socket and io_uring_setup).
_CALLS = {"x86_64": (0xC000003E, (41, 425)), "aarch64": (0xC00000B7, (198, 425))}


def main() -> None:
    """Set the limits, run the command, wait, clean up."""
    limits, command = json.loads(sys.argv[1]), sys.argv[2:]
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    own_namespaces = _unshare(limits["folder"], limits["file_bytes"])
    heard, told = os.pipe()  # it closes when the command begins: what is in it is no command's
    os.set_blocking(heard, False)
    child = os.fork()
    if child == 0:
        if own_namespaces:
            _be_first()
        os._exit(_become(command, limits, own_namespaces, told))
    os.close(told)
    _close_streams()
    status = _wait(child, time.monotonic() + limits["wall_s"])
    _end_all(child)
    os._exit(_unless_told(heard, status))


def _unless_told(heard: int, status: int) -> int:
    """The command's status, or why there was none: a command may leave with any number."""
    try:
        said = os.read(heard, 1)
    except BlockingIOError:
        said = b""
    if said:
        return said[0]
    return 1 if status in (NOT_ISOLATED, NOT_STARTED) else status


def _unshare(folder: str, size: int) -> bool:
    """Namespaces of this process's own; whether there are any."""
    uid, gid = os.getuid(), os.getgid()
    if _LIBC.unshare(_NEW_USER | _NEW_PID | _NEW_NET | _NEW_NS | _NEW_IPC) != 0:
        return False
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1"),
    ):  # fmt: skip
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            _not_started(f"/proc/self/{name}: {error.strerror}")
    attributes = struct.pack("QQQQ", _RDONLY, 0, 0, 0)
    options = f"size={size},mode=777".encode()
    # A kernel before 5.12 knows no mount_setattr: there files stay writable as the user's are.
    _LIBC.mount(None, b"/", None, _MS_REC_PRIVATE, None)
    _LIBC.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, len(attributes))
    if _LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, options) != 0:
        _not_started(f"{folder}: no file system of its own: {os.strerror(ctypes.get_errno())}")
    return True


def _not_started(cause: str) -> None:
    """Say why, and end: never returns."""
    sys.stderr.write(cause + "\n")
    sys.stderr.flush()
    os._exit(NOT_STARTED)


def _be_first() -> None:
    """The first process of a namespace ignores signals: it waits for a second, which returns."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    child = os.fork()
    if child == 0:
        return
    _close_streams()
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == child:  # all others end with this process
            os._exit(_code(status))


def _code(status: int) -> int:
    """A wait's status as a shell counts it."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _become(command: list[str], limits: dict[str, int], own_namespaces: bool, told: int) -> int:
    """In the child: returns, with the status to leave with, only where it became no command."""
    try:
        _limit(limits, own_namespaces)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"limits {limits}: {error}\n")
        sys.stderr.flush()
        os.write(told, bytes([NOT_STARTED]))
        return NOT_STARTED
    if not _refuse_sockets() and not own_namespaces:
        os.write(told, bytes([NOT_ISOLATED]))
        return NOT_ISOLATED
    try:
        os.execv(command[0], command)
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
    return 127


def _limit(limits: dict[str, int], own_namespaces: bool) -> None:
    """A session, a working folder and limits of the command's own."""
    os.setsid()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for name, value in (
        (resource.RLIMIT_CPU, limits["cpu_s"]), (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]), (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(name, (value, value))
    if own_namespaces:  # elsewhere it would count all of the user's processes
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["processes"],) * 2)
    os.chdir(limits["folder"])


def _refuse_sockets() -> bool:
    """A filter under which socket and io_uring_setup fail with EPERM; whether it is in place."""
    known = _CALLS.get(platform.machine())
    if known is None:
        return False
    arch, numbers = known
    load, jump_equal, give = 0x20, 0x15, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050000 | 1, 0x80000000
    steps = [(load, 0, 0, 4), (jump_equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0)]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        steps.append((jump_equal, left, 0, number))
    steps += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(kept))
    return _LIBC.prctl(_PR_SET_SECCOMP, 2, program, 0, 0) == 0


def _close_streams() -> None:
    """Who waits for the command's output is not to wait for this process."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _wait(child: int, deadline: float) -> int:
    """The command's exit status, once it ended or its time is over."""
    pause = 0.001
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return _code(status)
        if pid == 0:
            if time.monotonic() >= deadline:
                return TIMED_OUT
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)


def _end_all(child: int) -> None:
    """Kill the command and all that came of it: orphans are this process's children."""
    while True:
        for pid in {child, *_children()}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    own = os.getpid()
    with open(f"/proc/{own}/task/{own}/children") as file:
        return [int(pid) for pid in file.read().split()]


if __name__ == "__main__":
    main()
