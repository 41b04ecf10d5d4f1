"""Real MLflow for tests: a database or a server on loopback, tiny adapters, and their lineage records."""

from __future__ import annotations

import atexit
import functools
import http.client
import http.server
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pipeline import promotion
from pipeline.digest import manifest
from pipeline.errors import UnreachableError
from pipeline.params import BaseModelParams, EvaluationParams, PathSource
from pipeline.register import registry as mlflow_registry
from pipeline.register.lineage import LineageRecord, environment_identity
from pipeline.register.registry import Registry
from tests import records

ACTOR = "A tester <tester@localhost>"
Store = Literal["sqlite", "postgresql"]
LABELS = ["bad", "good", "middling"]
TEXTS = ["the red cat runs", "old pub", "a cheap fine food area near the river and the tree", "one"]


@functools.cache
def _migrated() -> Path:
    """An empty database whose migrations have run: they take seconds, and every test needs its own."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "mlflow.db"
    mlflow_registry.connect(f"sqlite:///{path}", artifact_root="file:///nowhere")
    return path


def backend(file: Path, store: Store = "sqlite") -> str:
    """The address of a database with MLflow's tables: sqlite's at `file`, or a new one on this process's PostgreSQL."""
    if store == "postgresql":
        from tests import postgres

        return postgres.cluster().database()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_migrated(), file)
    return f"sqlite:///{file}"


def database(root: Path, store: Store = "sqlite") -> Registry:
    """MLflow directly on a database, by default sqlite's below `root`, as in a workspace; files always below `root`."""
    state = root / ".prefixline"
    return mlflow_registry.connect(
        backend(state / "mlflow.db", store), artifact_root=(state / "mlartifacts").as_uri()
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(root: Path, port: int, *extra: str, uri: str | None = None) -> Iterator[str]:
    """`mlflow server` on loopback that keeps artifacts itself; its address.

    It stands on the database at `uri`; by default on sqlite's below `root`.
    """
    process = start_server(root, port, *extra, uri=uri)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        kill(process)


def start_server(root: Path, port: int, *extra: str, uri: str | None = None) -> subprocess.Popen[bytes]:
    """As `server`, for who ends it with `kill`; it answers."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", uri or backend(root / "mlflow.db"), *extra]
    if not extra:
        command += ["--artifacts-destination", str(root / "artifacts")]
    root.mkdir(parents=True, exist_ok=True)
    with (root / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}", process)
    except BaseException:
        kill(process)
        raise
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a server and all that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def losing_replies(
    server: str,
    endings: set[str],
    how: Literal["503", "dropped", "not at all"] = "503",
    then: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, list[str]]]:
    """A proxy that, after the server carried out the first POST for each of `endings`, does `then` and loses the reply.

    It answers 503 instead, or drops the connection; or loses the reply not at all.
    """
    lost: list[str] = []
    host = server.removeprefix("http://")

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream = http.client.HTTPConnection(host, timeout=30)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "host"}
            try:
                upstream.request(self.command, self.path, body, headers)
                reply = upstream.getresponse()
                content = reply.read()
            except OSError:  # the server is gone, and so is the reply
                self.close_connection = True
                return
            ending = next((end for end in endings if self.path.endswith(end)), None)
            if ending and self.command == "POST" and ending not in lost:
                lost.append(ending)
                then()
                if how == "dropped":
                    self.close_connection = True
                    return
            else:
                ending = None
            if ending and how == "503":
                self.send_response(503)
                content = b""
            else:
                self.send_response(reply.status)
            self.send_header("Content-Type", reply.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815 (http.server's names)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{proxy.server_port}", lost
        proxy.shutdown()


def _wait(uri: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(900):
        try:
            mlflow_registry.connect(uri, timeout=2)
            return
        except UnreachableError:
            assert process.poll() is None, "mlflow server ended"
            time.sleep(0.2)
    raise AssertionError("mlflow server did not start in 180 s")


def promote(
    registry: Registry, name: str, version: str, *, to: Literal["staging", "production"] = "production"
) -> None:
    """Promote the candidate, stage by stage."""
    promotion.promote(registry, name, version, to="staging", reason="a test", actor=ACTOR)
    if to == "production":
        promotion.promote(registry, name, version, to="production", reason="a test", actor=ACTOR)


def base_record(folder: Path, workspace: Path) -> dict[str, Any]:
    """The base model's part of a lineage record; its path is relative to `workspace` where it can be."""
    from pipeline.base.base_files import find
    from pipeline.digest import digest

    path = str(folder.relative_to(workspace)) if folder.is_relative_to(workspace) else str(folder)
    _, files = find(PathSource(path=path), "0" * 64, workspace, "base")
    return {"name": "tiny", "digest": digest(files), "source": {"path": path}, "files": dict(files)}


def adapter(
    base: dict[str, Any], task: str, workspace: Path, out: Path, *, seed: int = 0, pooling: Any = None
) -> Path:
    """A prefix of 4 (and a head) with random numbers large enough to matter, saved as training saves it."""
    import torch

    from pipeline.base import base_model
    from pipeline.prefix.adapter import save_adapter
    from pipeline.prefix.tuning import Prefix, PrefixShape

    params = BaseModelParams(source=base["source"], digest=base["digest"])
    labels = LABELS if task == "classification" else None
    model = base_model.load(
        base_model.resolve("tiny", params, workspace), task, labels=labels, pooling=pooling, seed=seed
    )
    prefix = Prefix(PrefixShape.of_model(model), 4)
    prefix.init_random(2.0, torch.Generator().manual_seed(seed))
    head = {name: p.detach() * 10 for name, p in base_model.head_parameters(model).items()}
    save_adapter(
        out, prefix, model, head=head, task=task, base_name="tiny", base_digest=base["digest"], labels=labels
    )
    return out


def record(
    folder: Path,
    run_id: str,
    run_key: str,
    base: dict[str, Any] | None = None,
    task: str = "classification",
    **changes: Any,
) -> LineageRecord:
    """The lineage record of an adapter in `folder`."""
    data = {"too_long": "error", "max_tokens": None}
    evaluation = {**EvaluationParams().model_dump(), "batch_size": 2, "max_new_tokens": 6}
    complete: dict[str, Any] = {
        "run_key": run_key,
        "files": manifest(folder),
        "params": {"task": task, "data": data, "evaluation": evaluation},
        "runs": {"mlflow": run_id, "prefect": None},
        "environment": environment_identity(),
        **changes,
    }
    if base is not None:
        complete["base_model"] = base
    made = records.lineage(**complete)
    labels = LABELS if task == "classification" else None
    return records.lineage(**{**complete, "dataset": {**made.dataset, "labels": labels}})
