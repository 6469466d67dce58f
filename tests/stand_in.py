# SPDX-License-Identifier: Apache-2.0
"""Takes the place of the Python interpreter: a fork of `zygote.py` runs the program, and this
process hands on its signals and ends as it does. Standard library only, and little of it.

`job.warm_python` writes the lines above this: the interpreter, and the names in capitals.
"""

import contextlib
import json
import os
import signal
import socket
import sys

#: Variables that libraries read while they are imported.
READ_AT_IMPORT = ("HF_", "HOME", "LD_", "OMP_", "PYTHON")


def settled(environment):
    """The part of an environment that a fork can't change any more."""
    return {n: v for n, v in environment.items() if n.startswith(READ_AT_IMPORT)}


def main():
    words, flags = sys.argv[1:], []
    while words and words[0] in ("-u", "-B"):
        flags.append(words.pop(0))
    known = words and (words[0] in ("-m", "-c") or not words[0].startswith("-"))
    if not known or settled(os.environ) != ENVIRONMENT:  # noqa: F821
        os.execv(REAL, [REAL, *sys.argv[1:]])  # noqa: F821
    handled = set(signal.valid_signals()) - {
        signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGSEGV, signal.SIGABRT,
    }  # fmt: skip
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, handled)
    ignored = [n for n in handled if signal.getsignal(n) == signal.SIG_IGN]
    umask = os.umask(0o77)
    os.umask(umask)
    request = {
        "words": words, "flags": flags, "executable": sys.argv[0], "folder": os.getcwd(),
        "umask": umask, "environment": dict(os.environ), "blocked": sorted(blocked),
        "ignored": [n for n in ignored if n != signal.SIGPIPE], "group": os.getpgrp(),
    }  # fmt: skip
    asked = socket.socket(socket.AF_UNIX)
    asked.connect(SOCKET)  # noqa: F821
    content = json.dumps(request).encode()
    kinds = ("ipc", "uts", "net", "mnt")
    spaces = [os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in kinds]
    socket.send_fds(asked, [f"{len(content):8}".encode()], [0, 1, 2, *spaces])
    asked.sendall(content)
    pid = int(asked.recv(8, socket.MSG_WAITALL))

    def hand_on(number, _):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in handled:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    status = asked.recv(8, socket.MSG_WAITALL)
    code = os.waitstatus_to_exitcode(int(status)) if status else -signal.SIGKILL
    if code < 0:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
