# SPDX-License-Identifier: Apache-2.0
"""A process that has imported what the project's programs import, and forks into them.

Most of the suite's processor time went into imports: a job of two ranks imports torch and Composer
three times. `stand_in.py` takes the place of the interpreter and asks this process for a fork. Run
it as ``python zygote.py SOCKET``; it ends with the end of its input.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import time
import types
from contextlib import suppress
from typing import Any

import numpy as np

#: What the programs load sooner or later. Only some load DeepSpeed, which changes others' logs.
HEAVY = (
    "ahpa_scale.run.main",
    "ahpa_scale.run.build",
    "ahpa_scale.run.trained",
    "ahpa_scale.commands.evaluate.command",
    "ahpa_scale.commands.diagnosis",
    "ahpa_scale.commands.prepare",
    "composer.cli.launcher",
)
Running = dict[int, tuple[socket.socket, int]]


def serve(path: str) -> dict[str, Any]:
    """Forks for whoever asks.

    Returns:
        In a fork, and only there: what it is to run.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(64)
    print("ready", flush=True)
    running: Running = {}
    while True:
        watched = [0, listener, *(one for pair in running.values() for one in pair)]
        ready, _, _ = select.select(watched, [], [])
        if 0 in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            sys.exit(0)
        _follow(running, ready)
        if listener not in ready:
            continue
        asker, _ = listener.accept()
        request, descriptors = _receive(asker)
        pid = os.fork()
        if pid == 0:
            for place, descriptor in enumerate(descriptors[:3]):
                os.dup2(descriptor, place)
            _enter(descriptors[3:])
            for descriptor in descriptors:
                os.close(descriptor)
            for held in (listener, asker, *(other for other, _ in running.values())):
                held.close()
            for _, descriptor in running.values():
                os.close(descriptor)
            return request
        for descriptor in descriptors:
            os.close(descriptor)
        running[pid] = asker, os.pidfd_open(pid)
        _tell(asker, pid)


def _receive(asker: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, descriptors, _, _ = socket.recv_fds(asker, 8, 7)
    content = asker.recv(int(head), socket.MSG_WAITALL)
    return json.loads(content), descriptors


def _enter(spaces: list[int]) -> None:
    """Enters the asker's namespaces. The last is that of mounts, where /proc may be another."""
    libc = ctypes.CDLL(None, use_errno=True)
    for space in spaces:
        name = os.readlink(f"/proc/self/fd/{space}")
        if name != os.readlink(f"/proc/self/ns/{name.partition(':')[0]}") and libc.setns(space, 0):
            raise OSError(ctypes.get_errno(), f"setns {name}")


def _follow(running: Running, ready: list[Any]) -> None:
    """Tells how forks ended, and kills those whose asker is gone."""
    for pid, (asker, descriptor) in list(running.items()):
        if asker in ready:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if descriptor in ready:
            _, status = os.waitpid(pid, 0)
            _tell(asker, status)
            asker.close()
            os.close(descriptor)
            del running[pid]


def _tell(asker: socket.socket, number: int) -> None:
    with suppress(OSError):
        asker.sendall(f"{number:8}".encode())


def become(request: dict[str, Any]) -> None:
    """Makes this fork the process that was asked for, as far as a program can tell."""
    with suppress(PermissionError):  # a process of another session
        os.setpgid(0, request["group"])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        kind = signal.SIG_IGN if number in request["ignored"] else signal.SIG_DFL
        with suppress(OSError, ValueError):  # those of the C library
            signal.signal(number, kind)
    if signal.SIGINT not in request["ignored"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.chdir(request["folder"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    np.random.seed()
    sys.executable, sys.argv = request["executable"], request["words"]
    if "-u" in request["flags"]:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    sys.dont_write_bytecode = "-B" in request["flags"]
    importlib.import_module("ahpa_scale").STARTED = time.monotonic()  # type: ignore[attr-defined]
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def execute(words: list[str]) -> None:
    """Runs ``-m module``, ``-c code`` or a script, as the interpreter would."""
    if words[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0] = os.path.dirname(os.path.realpath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    for name in HEAVY:
        importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"a process with {threads} threads can't be forked"
    gc.freeze()
    # A fork is not to die of what is meant for the program that it becomes.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    asked = serve(sys.argv[1])
    become(asked)
    execute(asked["words"])
