"""The files of a Swift cluster of one node, whose proxy speaks S3."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from getpass import getuser
from pathlib import Path

__all__ = ("prepare",)

_FILTERS = "catch_errors gatekeeper listing_formats bulk s3api tempauth slo dlo copy"
_PROXY = f"""
[pipeline:main]
pipeline = {_FILTERS} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
"""
_SECRETS = "[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n"


def prepare(folder: Path, programs: Path, ports: Sequence[int]) -> list[list[Path]]:
    """Write the configuration, and return the commands that start the four servers, proxy first.

    Args:
        folder: An empty folder.
        programs: The folder of Swift's programs.
        ports: Those of the proxy, and of the account, container and object servers.
    """
    (folder / "devices" / "d1").mkdir(parents=True)
    (folder / "swift.conf").write_text(_SECRETS)
    plain = [each for each in _FILTERS.split() if each not in {"s3api", "tempauth"}]
    filters = "".join(f"[filter:{each}]\nuse = egg:swift#{each}\n" for each in plain)
    (folder / "proxy.conf").write_text(_common(folder, ports[0]) + _PROXY + filters)
    for name, port in zip(("account", "container", "object"), ports[1:], strict=True):
        app = f"{name}-server"
        app = f"[pipeline:main]\npipeline = {app}\n[app:{app}]\nuse = egg:swift#{name}\n"
        (folder / f"{name}.conf").write_text(_common(folder, port) + app)
        ring = [programs / "swift-ring-builder", folder / f"{name}.builder"]
        for words in (
            ("create", "4", "1", "0"),
            ("add", f"r1z1-127.0.0.1:{port}/d1", "1"),
            ("rebalance",),
        ):
            subprocess.run([*ring, *words], check=True, stdout=subprocess.DEVNULL)
    names = ("proxy", "account", "container", "object")
    return [[programs / f"swift-{name}-server", folder / f"{name}.conf"] for name in names]


def _common(folder: Path, port: int) -> str:
    return (
        f"[DEFAULT]\nswift_dir = {folder}\ndevices = {folder}/devices\nmount_check = false\n"
        f"bind_ip = 127.0.0.1\nbind_port = {port}\nworkers = 0\nuser = {getuser()}\n"
    )
