"""Each file is hashed once; what cannot be read is told beside the rest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.audit.faults import Fault, Kind, Link
from pipeline.audit.hashing import Hashes, compare


def test_large_and_small_files_get_their_sha256_and_are_counted_once(tmp_path: Path) -> None:
    contents = {"small": b"x", "empty": b"", "large": bytes(1 << 20), "larger": b"y" * (1 << 21)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    os.link(tmp_path / "large", tmp_path / "linked")
    paths = [tmp_path / name for name in (*contents, "linked")]
    with Hashes() as hashes:
        for _ in range(2):
            found = hashes.of(paths)
        assert found == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        assert (hashes.files, hashes.bytes) == (4, sum(len(content) for content in contents.values()))


def test_a_file_changed_meanwhile_is_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    with Hashes() as hashes:
        hashes.of([path])
        path.write_bytes(b"three")
        assert hashes.of([path]) == {path: hashlib.sha256(b"three").hexdigest()}


def test_files_that_cannot_be_read_are_unreachable_and_stop_nothing(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"x")
    files = {
        "whole": tmp_path / "whole",
        "gone": tmp_path / "gone",
        "memory": Path("/proc/self/mem"),  # whose first page nobody can read
    }
    with Hashes() as hashes:
        told = compare(hashes, Link.ARTEFACT, files, {"whole": "0" * 64, "memory": "1" * 64})
    assert [(fault.where, fault.kind) for fault in told] == [
        ("gone", Kind.UNREACHABLE),
        ("memory", Kind.UNREACHABLE),
        ("whole", Kind.TAMPERED),
    ]
    assert told[2] == Fault(Link.ARTEFACT, Kind.TAMPERED, "whole", "0" * 64, hashlib.sha256(b"x").hexdigest())
