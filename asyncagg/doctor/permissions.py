"""The permissions that the job needs on a bucket, and the IAM policy that grants them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from asyncagg.job.layout import PACKS
from asyncagg.settings import Settings
from asyncagg.store.guards import PROBE


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """The permission for one action below one prefix.

    Attributes:
        action: The action, such as ``s3:GetObject``.
        prefix: The prefix of the keys, relative to the store.
    """

    action: str
    prefix: str

    def __str__(self) -> str:
        """The name of its check."""
        return f"{self.action} {self.prefix}"


def grants(settings: Settings) -> list[Grant]:
    """Return all permissions that the job needs, in the order in which they can be checked.

    They are those of the role in ``template.yaml``.
    """
    runs, aggregates = settings.runs_prefix, settings.aggregate_prefix
    archive, quarantine = settings.archive_prefix, settings.quarantine_prefix
    every = (runs, aggregates, archive, quarantine)
    needed = {
        "s3:ListBucket": every,
        "s3:GetObject": every,
        "s3:DeleteObject": (runs, f"{archive}{PROBE}"),
        "s3:PutObject": (archive, aggregates, quarantine),
        "s3:AbortMultipartUpload": (aggregates, f"{archive}{PACKS}"),
        "s3:GetObjectTagging": (runs,),
        "s3:PutObjectTagging": (archive, quarantine),
    }
    return list(
        dict.fromkeys(Grant(action, each) for action, some in needed.items() for each in some)
    )


def policy(missing: Iterable[Grant], *, bucket: str, root: str, partition: str) -> dict[str, Any]:
    """Return the IAM policy that grants permissions on a bucket, with one statement per action.

    ``root`` is the prefix of the store; the partition is ``aws``, ``aws-cn`` or ``aws-us-gov``.
    """
    by_action: defaultdict[str, list[str]] = defaultdict(list)
    for grant in missing:
        by_action[grant.action].append(f"{root}{grant.prefix}*")
    arn = f"arn:{partition}:s3:::{bucket}"
    statements = []
    for action, patterns in by_action.items():
        statement: dict[str, Any] = {"Effect": "Allow", "Action": action}
        if action == "s3:ListBucket":  # its resource is the bucket
            statement |= {
                "Resource": arn,
                "Condition": {"StringLike": {"s3:prefix": patterns}},
            }
        else:
            statement["Resource"] = [f"{arn}/{pattern}" for pattern in patterns]
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}
