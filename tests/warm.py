"""The command in a process of its own, forked from one that has imported what every run imports.

A start of Python with torch takes seconds, and the suite starts hundreds. What is forked has the same modules, and
nothing of the command's own has run in it: not Hydra, not hydratune.cli. Tests of the start itself use a plain process.

    python -m tests.warm SOCKET     serves one request after another, each a line of JSON; ends with its parent
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
OWN = {"WORLD_SIZE", "RANK", "PYTHONPROFILEIMPORTTIME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"}  # read at imports
_server: list[Path] = []  # the socket of this process's server


def can_serve(environment: Mapping[str, str]) -> bool:
    return hasattr(os, "fork") and all(environment.get(k) == os.environ.get(k) for k in OWN)


def run(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """What subprocess.run of `python -m hydratune` would give."""
    if not _server:
        _server.append(_start())
    with tempfile.TemporaryDirectory() as home:
        request = {"arguments": list(arguments), "cwd": str(cwd), "environment": dict(environment), "home": home}
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(timeout + 30)
            link.connect(str(_server[0]))
            link.sendall(json.dumps({**request, "timeout": timeout}).encode() + b"\n")
            answer = link.makefile().readline()
        out, err = (Path(home, name).read_text(errors="surrogateescape") for name in ("out", "err"))
    code = int(answer)
    command = [sys.executable, "-m", "hydratune", *arguments]
    if code == -999:
        raise subprocess.TimeoutExpired(command, timeout, out, err)
    return subprocess.CompletedProcess(command, code, out, err)


def _start() -> Path:
    path = Path(tempfile.mkdtemp(prefix="warm-")) / "socket"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.warm", str(path), str(os.getpid())]
    os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": paths})
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, "the server does not begin"
        time.sleep(0.02)
    return path


# ---- the server


def serve(path: str, parent: int) -> None:
    import torch._dynamo  # noqa: F401

    import hydratune.experiment.run  # noqa: F401
    from hydratune.record import tensorboard

    tensorboard.load()
    assert "hydratune.cli.main" not in sys.modules
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen(1)
        listener.settimeout(2)
        os.rename(f"{path}.new", path)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                link, _ = listener.accept()
                with link:
                    _answer(link, listener)
    with contextlib.suppress(OSError):
        os.unlink(path)
        os.rmdir(os.path.dirname(path))


def _answer(link: socket.socket, listener: socket.socket) -> None:
    link.settimeout(None)
    request = json.loads(link.makefile().readline())
    child = os.fork()
    if not child:
        listener.close()
        link.close()
        _command(request)
    deadline = time.monotonic() + request["timeout"]
    pause = 0.002
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            link.sendall(b"-999\n")
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    with contextlib.suppress(BrokenPipeError):
        link.sendall(f"{os.waitstatus_to_exitcode(done[1])}\n".encode())


def _command(request: dict[str, object]) -> None:
    """In the forked process: as if Python had just been started with these arguments. Does not return."""
    home, environment, cwd = str(request["home"]), request["environment"], str(request["cwd"])
    assert isinstance(environment, dict)
    for descriptor, name in ((0, None), (1, "out"), (2, "err")):
        flags = os.O_RDONLY if name is None else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        opened = os.open(os.devnull if name is None else os.path.join(home, name), flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    more = [p for p in environment.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [cwd, *more, *(p for p in sys.path if p not in ("", str(ROOT), cwd, *more))]
    importlib.invalidate_caches()
    arguments = request["arguments"]
    assert isinstance(arguments, list)
    sys.argv[:] = [os.path.join(ROOT, "src", "hydratune", "__main__.py"), *arguments]
    code: object = 0
    try:
        import hydratune.__main__ as command

        sys.modules["__main__"] = command  # what processes that are started from here are told of
        command.main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    number = code if isinstance(code, int) else 0 if code is None else 1
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    import atexit

    if number:
        os._exit(number)
    atexit._run_exitfuncs()
    os._exit(0)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
