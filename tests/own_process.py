"""Code in a process of its own, of which only what it prints comes back.

Starting Python and importing what scikit-learn imports takes a second of the processor, and many tests need it. Where
there is fork, a process is a fork of one that has imported scikit-learn, and nothing of bncpu: no OpenMP runtime of
bncpu's is loaded, and no thread has ever run. Environment variables that more than bncpu reads need a new Python.
"""

import atexit
import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import textwrap

# Seconds after which a process is ended and, on POSIX, with it all that it has started.
LIMIT = 100

# A child leaves the loop and runs the code as the rest of this program, so that it ends as Python ends.
SERVER = """
    import os, pickle, sys
    import numpy as np
    import sklearn.preprocessing
    while True:
        try:
            code, arguments, environment, files = pickle.load(sys.stdin.buffer)
        except EOFError:
            sys.exit()
        child = os.fork()
        if child == 0:
            break
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os.setsid()
    for fd, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDWR), fd)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    exec(compile(code, "<string>", "exec"))
"""


def run(*code, arguments=(), **environment):
    """What the code prints; it must end well."""
    code = "".join(map(textwrap.dedent, code))
    forks = hasattr(os, "fork") and all(name.startswith("BNCPU_") for name in environment)
    status, printed, complaint = (_forked if forks else _started)(code, arguments, environment)
    assert status == 0, complaint
    return printed.strip()


def _started(code, arguments, environment):
    """Exit status, output and errors of a new Python."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | environment,
    )  # fmt: skip
    try:
        printed, complaint = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        _end(process.pid)
    return process.returncode, printed, complaint


def _forked(code, arguments, environment):
    """The same of a fork of the server."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as printed, tempfile.NamedTemporaryFile("r") as complaint:
        files = (os.devnull, printed.name, complaint.name)
        server.stdin.write(pickle.dumps((code, [*arguments], environment, files)))
        child = int(server.stdout.readline())
        try:
            select.select([server.stdout], [], [], LIMIT)
        finally:
            _end(child)
        return int(server.stdout.readline()), printed.read(), complaint.read()


def _end(group):
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


_started_servers = []


def _server():
    """Started by the first test that needs it; ends with the tests."""
    if not _started_servers:
        server = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,  # or `select` would not see what was read ahead
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # NumPy starts the others when it is imported
        )  # fmt: skip
        _started_servers.append(server)
        atexit.register(_stop, server)
    return _started_servers[0]


def _stop(server):
    server.stdin.close()
    server.wait()
    server.stdout.close()
