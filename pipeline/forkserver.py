"""A process that has imported the heavy libraries once, and forks itself for each stage that asks.

Importing torch, transformers and what else a stage needs takes 3 s, which is most of what a stage costs besides
computing. `prefixline up` keeps one of these processes. It imports no code of ours: that is read anew in every fork, so
a stage always runs what is installed now. Where one of the libraries has been replaced since, the fork declines, and the
stage imports for itself.

One connection a stage, over a Unix socket in a folder that only its owner can enter. The stage's first process
sends its three standard streams and one line of JSON: module, arguments, folder, environment. It gets back one line: the
exit status, or `declined`. While it waits, a byte from it stands for Ctrl-C; if it ends, the fork is killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

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

_DECLINED = "declined"


def run(path: str, module: str, arguments: Sequence[str]) -> int | None:
    """Run `module.main(arguments)` in a fork of the server at `path`, as if in this process; its exit status.

    None where no server is there or it declined: nothing has been run then.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError:
            return None
        request = [module, list(arguments), os.getcwd(), dict(os.environ)]  # noqa: PTH109 (a text for JSON)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(json.dumps(request).encode() + b"\n")
        while True:
            try:
                reply = connection.recv(64).decode()
                break
            except KeyboardInterrupt:
                with contextlib.suppress(OSError):  # it has just ended: its reply says how
                    connection.send(b"!")
    if reply == _DECLINED:
        return None
    if not reply:
        print(f"error: {module} {' '.join(arguments)} was killed", file=sys.stderr)  # noqa: T201
        return 1
    return int(reply)


def serve(path: Path) -> None:
    """Import the libraries, then fork for every connection to the socket `path`; never returns."""
    versions = _versions()
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
            with connection:
                # Twice, so that the stage is nobody's child: it may outlive this server, and leaves no zombie.
                if (child := os.fork()) == 0:
                    if os.fork() == 0:
                        listener.close()
                        _become(connection, versions)
                    os._exit(0)
                os.waitpid(child, 0)


def _become(connection: socket.socket, versions: Mapping[str, str]) -> None:
    """Be the stage that is asked for, to the end of this process."""
    status = 1
    try:
        os.setsid()
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as lines:
            module, arguments, folder, environment = json.loads(lines.readline())
        if versions != _versions():
            connection.sendall(_DECLINED.encode())
            os._exit(0)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
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
    """Ctrl-C for every byte; the end, with all that this process started, where who asked is gone."""
    while connection.recv(1):
        os.kill(os.getpid(), signal.SIGINT)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PRELOADED}


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
