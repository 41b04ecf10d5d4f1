"""What a registered version was made from, in a few words: what a search over all versions reads of its tags.

The lineage record says it all, but reading ten thousand of them takes minutes. So a version is tagged, when it is
registered, with what of its record a search needs; a version without that tag is looked up in its record.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pipeline.digest import canonical_json
from pipeline.register.lineage import LineageRecord

MADE_FROM = "prefixline.made_from"
"""One tag for all of it: each more costs MLflow a third of a second in a search over 10,000 versions."""


@dataclass(frozen=True)
class Origin:
    """What a version was made from.

    Attributes:
        dataset_md5: DVC's hash of the raw data.
        base_digest: SHA-256 over the base model's files.
        code_commit: the workspace's commit from which the experiment started.
        row_index: digest of the index of the dataset version's rows; None where none was kept.
        warm_start: what the training went on from: NAME:NUMBER of a version, the digest of an adapter that was
            given as a folder, or None where it began anew.
    """

    dataset_md5: str
    base_digest: str
    code_commit: str
    row_index: str | None
    warm_start: str | None

    @classmethod
    def of_record(cls, record: LineageRecord) -> Origin:
        """By the lineage record."""
        start = record.warm_start
        if start is None:
            went_on_from = None
        elif "version" in start:
            went_on_from = f"{start['prefix']}:{start['version']}"
        else:
            went_on_from = start["adapter_digest"]
        return cls(
            dataset_md5=record.dataset["md5"],
            base_digest=record.base_model["digest"],
            code_commit=record.code["commit"],
            row_index=record.dataset.get("row_index"),
            warm_start=went_on_from,
        )

    @classmethod
    def from_tag(cls, value: str) -> Origin | None:
        """The origin whose `tag` is `value`; None where that says something else, and the record has to be asked."""
        try:
            origin = cls(**json.loads(value))
        except (TypeError, ValueError):
            return None
        needed = (origin.dataset_md5, origin.base_digest, origin.code_commit)
        optional = (origin.row_index, origin.warm_start)
        good = all(isinstance(text, str) for text in needed) and all(
            text is None or isinstance(text, str) for text in optional
        )
        return origin if good else None

    def tag(self) -> str:
        """The value of the tag `MADE_FROM`."""
        return canonical_json(asdict(self)).decode()
