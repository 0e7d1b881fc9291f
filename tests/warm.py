"""`python -m course_lib …` from a process that has imported all it needs: a fork trains at once, and can be killed.

Importing takes longer than what most of these tests run. The server must not compute anything itself: threads of torch
would not survive the fork.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Child:
    """A command that runs; the next one may start when it has ended."""

    def __init__(self, server: subprocess.Popen[bytes], arguments: list[str]):
        self.server, self.code = server, None
        self.server.stdin.write(json.dumps(arguments).encode() + b"\n")
        self.pid = int(self.server.stdout.readline())

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        if self.code is None and select.select([self.server.stdout], [], [], 0)[0]:
            self.wait()
        return self.code

    def kill(self) -> None:
        """SIGKILL: nothing can be saved any more."""
        os.kill(self.pid, 9)

    def wait(self) -> int:
        """The exit code, as soon as there is one."""
        if self.code is None:
            self.code = int(self.server.stdout.readline())
        return self.code


@contextmanager
def server(*modules: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has imported the command line and `modules`."""
    command = [sys.executable, "-m", "tests.warm", *modules]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=ROOT) as process:
        yield process  # whose end of input is the end of the server


def _serve(modules: list[str]) -> None:
    """For every line of arguments: the number of the child that runs them, then its exit code."""
    for name in ["course_lib.cli", *modules]:
        __import__(name)
    from course_lib import cli

    for line in sys.stdin:
        child = os.fork()
        if not child:
            silent = os.open(os.devnull, os.O_RDWR)
            for stream in range(3):
                os.dup2(silent, stream)
            os._exit(cli.main(json.loads(line)))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
