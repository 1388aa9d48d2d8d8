"""Runs a command that ends when the process which started it ends: ``python launch.py PARENT_PID COMMAND…``.

A program of its own, since a process with many threads must not run code between fork and exec.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):  # It ended before we asked to be told.
        sys.exit(1)
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command is our caller's
