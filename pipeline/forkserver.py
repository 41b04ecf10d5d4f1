"""A process that has imported the heavy libraries once, and forks itself for each stage that asks.

Importing torch, transformers and what else a stage needs takes 3 s, which is most of what a stage costs besides
computing. `prefixline up` keeps one of these processes. It imports no code of ours: that is read anew in every fork, so
a stage always runs what is installed now. Where one of the libraries has been replaced since, the fork declines, and the
stage imports for itself.

One connection a stage, over a Unix socket in a folder that only its owner can enter. The stage's first process
sends its three standard streams and one line of JSON: module, arguments, folder, environment, and the conditions it
runs under. The fork declines where its own conditions are others, since they cannot be changed any more: interpreter,
module path, the variables that libraries read when they are imported, priority, limits. Else it answers `started`, and in
the end with the exit status. While the first process waits, `I` from it stands for Ctrl-C and `T` for SIGTERM; if it
ends, the fork is killed.

Forking is safe here because nothing has been computed: the only other threads are the allocator's and the BLAS
library's, and both prepare for a fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORKSERVER = "PREFIXLINE_FORKSERVER"
"""The environment variable that tells a stage the socket's path."""

PRELOADED: Mapping[str, tuple[str, ...]] = {
    "torch": ("torch",),
    "transformers": (
        "transformers.models.auto.modeling_auto",
        "transformers.modeling_utils",
        "transformers.tokenization_utils_tokenizers",
    ),
    "safetensors": ("safetensors.torch",),
    "datasets": ("datasets",),
    "pyarrow": ("pyarrow.parquet",),
    "scikit-learn": ("sklearn.linear_model", "sklearn.metrics", "sklearn.preprocessing"),
    "sacrebleu": ("sacrebleu",),
    "rouge-score": ("rouge_score.rouge_scorer",),
    "rich": ("rich.progress",),
}
"""{distribution: modules} that the stages import."""

_READ_AT_IMPORT = tuple(
    "HF_ HUGGINGFACE_ TRANSFORMERS_ DATASETS_ TORCH PYTORCH_ CUDA_ NVIDIA_ OMP_ MKL_ OPENBLAS_ GOMP_ LD_ MALLOC_ "
    "PYTHON TMPDIR XDG_ LC_ LANG".split()
)
"""How the variables begin that the interpreter or a library reads once, when it starts."""

_PASSED_ON = (signal.SIGINT, signal.SIGTERM)
_DECLINED, _STARTED = b"declined", b"started "
_PATIENCE_SECONDS = 20.0
"""How long a fork may take to begin."""


def run(path: str, module: str, arguments: Sequence[str]) -> int | None:
    """Run `module.main(arguments)` in a fork of the server at `path`, as if in this process; its exit status.

    None where no server answers in time or it declined: nothing has been run then.
    """
    # Held back until there is a fork to pass them on to: a signal in between would end this process, and the fork with it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            reply = _wait(connection) if _start(connection, path, module, arguments) else None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if reply is None:
        return None
    if not reply:
        print(f"error: {module} {' '.join(arguments)} was killed", file=sys.stderr)  # noqa: T201
        return 1
    return int(reply)


def _start(connection: socket.socket, path: str, module: str, arguments: Sequence[str]) -> bool:
    """Whether a fork has begun."""
    connection.settimeout(_PATIENCE_SECONDS)
    try:
        connection.connect(path)
        request = [module, list(arguments), str(Path.cwd()), dict(os.environ), _conditions()]
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
        return connection.recv(len(_STARTED), socket.MSG_WAITALL) == _STARTED
    except OSError:
        return False


def _wait(connection: socket.socket) -> bytes:
    """The fork's last word; Ctrl-C and SIGTERM meanwhile are passed on to it."""

    def terminate(*_: object) -> None:
        with contextlib.suppress(OSError):  # it has just ended: its reply says how
            connection.send(b"T")

    connection.settimeout(None)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        while True:
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
                return connection.recv(64)
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):
                    connection.send(b"I")
            except ConnectionError:
                return b""
    finally:
        signal.signal(signal.SIGTERM, before)


def serve(path: Path) -> None:
    """Import the libraries, then fork for every connection to the socket `path`; never returns."""
    conditions = _conditions()
    for modules in PRELOADED.values():
        for module in modules:
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork's collector would otherwise copy every page it only looks at
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):  # no room for a fork: who asked runs by itself
                # Twice, so that the stage is nobody's child: it may outlive this server, and leaves no zombie.
                if (child := os.fork()) == 0:
                    try:
                        if os.fork() == 0:
                            listener.close()
                            _become(connection, conditions)
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)


def _become(connection: socket.socket, conditions: Mapping[str, Any]) -> None:
    """Be the stage that is asked for, to the end of this process."""
    os.setsid()
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as lines:
        module, arguments, folder, environment, wanted = json.loads(lines.readline())
    if wanted != conditions:
        connection.sendall(_DECLINED)
        for name in (name for name in conditions if wanted.get(name) != conditions[name]):
            print(f"declined: {name} is {wanted.get(name)} there, {conditions[name]} here", file=sys.stderr)  # noqa: T201
        return
    print(f"{os.getpid()}: {module} {' '.join(arguments)} in {folder}", file=sys.stderr)  # noqa: T201  (the server's log)
    connection.sendall(_STARTED)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    status = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_obey, args=(connection,), daemon=True).start()
        sys.argv = [module, *arguments]
        status = importlib.import_module(module).main(arguments)
    except BaseException:  # noqa: BLE001  (as at the end of any Python process: said, and an exit status)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # who asked has ended
            connection.sendall(str(status).encode())
        os._exit(status)


def _obey(connection: socket.socket) -> None:
    """Pass signals on; the end, with all that this process started, where who asked is gone."""
    numbers = {b"I": signal.SIGINT, b"T": signal.SIGTERM}
    with contextlib.suppress(ConnectionError):
        while order := connection.recv(1):
            os.kill(os.getpid(), numbers[order])
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _conditions() -> dict[str, Any]:
    """What a running process cannot change, or not for libraries that are imported already."""
    umask = os.umask(0o077)
    os.umask(umask)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "interpreter": [sys.version, sys.prefix],
        "path": sys.path,
        "versions": _versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_READ_AT_IMPORT)},
        "priority": os.nice(0),
        "affinity": affinity,
        "umask": umask,
        "limits": {name: list(resource.getrlimit(getattr(resource, name))) for name in limits},
    }


def _versions() -> dict[str, str | None]:
    """Of the libraries; None for one that is not there, or not whole."""
    found: dict[str, str | None] = {}
    for name in PRELOADED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
