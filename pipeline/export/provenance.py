"""Where a version came from as an in-toto statement with SLSA provenance, and its signature in a DSSE envelope.

Statement: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md; predicate:
https://slsa.dev/spec/v1.1/provenance; envelope: https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md.
What each field is made from is written down in docs/bundle-v1.md, which `BUILD_TYPE` stands for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import STATEMENT_TYPE_URI, Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error, VerificationError

from pipeline.digest import canonical_json
from pipeline.errors import IntegrityError
from pipeline.keys import SigningKey, verifier
from pipeline.openlineage.run_events import code_uri
from pipeline.register.lineage import LineageRecord

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE, BUILDER = "urn:prefixline:retraining:v1", "urn:prefixline:retrain"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Attestation:
    """A statement as it was read.

    Attributes:
        signers: {public key: whether its signature is right}; empty for a bare statement.
    """

    payload: bytes
    signers: Mapping[str, bool]


def statement(
    record: LineageRecord, others: Mapping[str, str], *, version: str, registered: str
) -> dict[str, Any]:
    """That a retraining made the adapter, of what, and with which other files in the bundle.

    Plain JSON, since the protobuf types, by which it is checked, make every number a double.

    Args:
        others: {file: SHA-256} of the bundle's files beside the adapter's, which are the statement's subjects.
        version: the number it was registered under.
        registered: when, ISO 8601.

    Raises:
        KeyError, TypeError, ValueError: the record has not what a statement says.
    """
    predicate = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {"prefix": record.prefix, "params": record.params},
            "internalParameters": {
                "run_key": record.run_key,
                "version": version,
                "dataset": {key: record.dataset[key] for key in ("path", "md5", "git_commit")},
                "base_model": {key: record.base_model[key] for key in ("name", "source", "digest")},
                "experiment": record.experiment["commit"],
            },
            "resolvedDependencies": list(_dependencies(record)),
        },
        "runDetails": {
            "builder": {
                "id": BUILDER,
                "version": {"prefixline": record.code["version"], "python": record.environment["python"]},
            },
            "metadata": {
                "invocationId": record.runs["mlflow"],
                "startedOn": record.created,
                "finishedOn": registered,
            },
            "byproducts": [_file(name, sha) for name, sha in sorted(others.items())],
        },
    }
    subjects = [_file(name, sha) for name, sha in sorted(record.files.items())]
    try:
        ParseDict(predicate, Provenance())
    except ParseError as error:
        raise ValueError(str(error)) from error
    Statement(
        [ResourceDescriptor(each["name"], digest=each["digest"]).pb for each in subjects],
        PREDICATE_TYPE,
        predicate,
    ).validate()
    return {
        "_type": STATEMENT_TYPE_URI,
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def sealed(content: bytes, key: SigningKey) -> bytes:
    """A statement's bytes in an envelope signed by `key`, as canonical JSON."""
    envelope = Envelope(content, PAYLOAD_TYPE, {})
    envelope.sign(key.signer)
    return canonical_json(envelope.to_dict())


def opened(content: bytes) -> Attestation:
    """What is in an envelope, and by whom it is signed.

    The id of a key is the key itself, so that no key need be had to say whose signature it is.

    Raises:
        IntegrityError: `content` is no envelope of a statement with a signature.
    """
    try:
        envelope = Envelope.from_dict(json.loads(content))
        canonical = canonical_json(envelope.to_dict())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, Error) as error:
        raise IntegrityError([f"not a DSSE envelope: {error!r}"]) from error
    if canonical != content:  # base64 alone has several ways to write the same bytes
        raise IntegrityError(["not the canonical JSON of a DSSE envelope"])
    if envelope.payload_type != PAYLOAD_TYPE or not envelope.signatures:
        raise IntegrityError(
            [
                f"got payloadType {envelope.payload_type!r} and {len(envelope.signatures)} signatures; "
                f"expected {PAYLOAD_TYPE!r} and one or more"
            ]
        )
    if odd := [keyid for keyid in envelope.signatures if not _is_public_key(keyid)]:
        # One key has one name: with spaces or capitals, the same signature would count for others.
        raise IntegrityError(
            [f"keyid: got {keyid!r}, expected a public key as 64 hex characters" for keyid in odd]
        )
    return Attestation(envelope.payload, {public: _is_by(envelope, public) for public in envelope.signatures})


def _is_public_key(keyid: object) -> bool:
    return isinstance(keyid, str) and re.fullmatch("[0-9a-f]{64}", keyid) is not None


def _is_by(envelope: Envelope, public: str) -> bool:
    try:
        envelope.verify([verifier(public)], 1)
    except VerificationError:
        return False
    return True


def _dependencies(record: LineageRecord) -> Iterator[dict[str, Any]]:
    for part, files in (("dataset", record.dataset["manifest"]), ("base_model", record.base_model["files"])):
        for name, sha in sorted(files.items()):
            yield _file(f"{part}/{name}", sha)
    yield {
        "name": "code",
        "uri": code_uri(record.code["commit"]),
        "digest": {"gitCommit": record.code["commit"]},
    }
    # These two are digests of values: of their canonical JSON.
    yield _file("prefixline", record.code["digest"])
    yield _file("lock.json", record.environment["lock"])
    if (start := record.warm_start) is not None:
        yield _file("warm_start", start["adapter_digest"])


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
