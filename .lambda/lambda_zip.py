"""Build the deployable zip of the Lambda, for each architecture, from wheels alone.

    tox -e lambda                      # dist/lambda-arm64.zip and dist/lambda-x86_64.zip
    tox -e lambda -- x86_64            # only one of them
    tox -e lambda -- --keep            # and write the numbers to docs/how-to/deploy.md

The dependencies are those of requirements.txt, and the build backend is that of
requirements-build.txt, pinned and hashed. The build is reproducible: the same sources give the same
bytes, whatever Python runs this, as long as its zlib and the Lambda's Python are the same. Files
that the Lambda never loads are left out. Bytecode is included, because Lambda's folder is
read-only: without it, every cold start would compile all modules.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
PYTHON = "3.13"
MACHINES = {"arm64": "aarch64", "x86_64": "x86_64"}
GLIBC = range(34, 16, -1)
"""Minor versions of glibc 2 that wheels may require: Amazon Linux 2023 has 2.34."""

UNUSED = (
    "bin",
    "**/__pycache__",
    "**/tests",
    "**/*.pyi",
    "**/*.[ch]",
    "**/*.p[xy][dxi]",
    # The command line and the workflows behind it.
    "asyncagg/__main__.py",
    "asyncagg/archive",
    "asyncagg/backfill",
    "asyncagg/cli",
    "asyncagg/doctor",
    "asyncagg/quarantine",
    "asyncagg/report",
    "asyncagg/rollup",
    "asyncagg/sample",
    "asyncagg/store/memory.py",
    "asyncagg/verify",
    "asyncagg/watch",
    # Clients of other services than S3, and boto3's own objects.
    "boto3/data/*",
    "boto3/examples",
    "botocore/data/*",
    "botocore/data/*/*/examples-1.json*",
    "botocore/data/*/*/paginators-1.*",
    "botocore/data/*/*/waiters-2.json*",
    # Powertools beyond logs and metrics.
    "aws_lambda_powertools/event_handler",
    "aws_lambda_powertools/metrics/provider/datadog",
    "aws_lambda_powertools/utilities/*",
    # Metadata of packages, except licences.
    "*.dist-info/*",
)
SERVICES = ("s3", "sts")
USED = (
    *(f"botocore/data/{service}" for service in SERVICES),
    "botocore/data/*.json",
    "aws_lambda_powertools/utilities/__init__.py",
    "aws_lambda_powertools/utilities/jmespath_utils",
    "*.dist-info/licenses",
    "*.dist-info/LICEN[CS]E*",
    "*.dist-info/NOTICE*",
)

COLD_START = """
import json, resource, sys
sys.path.insert(0, sys.argv[1])
import asyncagg.handler
used = resource.getrusage(resource.RUSAGE_SELF)
status = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
print(json.dumps([used.ru_utime + used.ru_stime, int(status) * 1024]))
"""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_LAMBDA_RUNTIME_API": "none",
    "ASYNCAGG_STORE": "s3://bucket",
}


def find_python(version: str) -> str | None:
    """Return an interpreter of a version: this one, or one on the path or of pyenv; else None."""
    homes = (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}")
    for candidate in (sys.executable, shutil.which(f"python{version}"), *map(str, homes)):
        if candidate and (python := _executable(candidate, version)):
            return python
    return None


def _executable(candidate: str, version: str) -> str:
    """Return the interpreter that a command starts, or an empty string if it has another version.

    pyenv's commands find one by the environment, which is another one where the zip is tried.
    """
    code = "import sys; print('%d.%d' % sys.version_info[:2], sys.executable)"
    done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
    found, _, python = done.stdout.strip().partition(" ")
    return python if found == version else ""


def install(folder: Path, requirements: Path, arch: str, version: str = PYTHON) -> None:
    """Install locked requirements into a folder, for any architecture.

    Raises:
        subprocess.CalledProcessError: A wheel cannot be downloaded, or its hash is wrong.
    """
    _pip(folder, arch, version, "--require-hashes", "--requirement", str(requirements))


def _pip(folder: Path, arch: str, version: str, *words: str) -> None:
    machine = MACHINES[arch]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC] + [f"manylinux2014_{machine}"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    target = ["--target", str(folder), "--implementation", "cp", "--python-version", version]
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    options = ["--no-deps", "--no-compile", "--only-binary=:all:", "--upgrade"]
    subprocess.run([*command, *options, *target, *platforms, *words], check=True)


def assemble(folder: Path, arch: str, version: str = PYTHON) -> None:
    """Fill an empty folder with the content of the zip.

    Args:
        folder: The folder.
        arch: ``arm64`` or ``x86_64``.
        version: The version of Python.
    """
    install(folder, HERE / "requirements.txt", arch, version)
    with tempfile.TemporaryDirectory() as wheels, tempfile.TemporaryDirectory() as backend:
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        locked = ["--require-hashes", "--requirement", str(HERE / "requirements-build.txt")]
        subprocess.run([*pip, "install", "--no-deps", "--target", backend, *locked], check=True)
        options = ["--no-deps", "--no-build-isolation", "--wheel-dir", wheels]
        environment = os.environ | {"PYTHONPATH": backend}
        subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True, env=environment)
        (wheel,) = Path(wheels).glob("asyncagg-*.whl")
        _pip(folder, arch, version, str(wheel))
    strip(folder)
    slim(folder / "botocore" / "data")
    add_bytecode(folder, version)


def strip(folder: Path) -> None:
    """Remove the files that the Lambda never loads."""
    used = {path for pattern in USED for path in folder.glob(pattern)}
    for pattern in UNUSED:
        for path in list(folder.glob(pattern)):
            if path in used or not path.exists():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def slim(data: Path) -> None:
    """Remove what no S3 client reads from botocore's data: botocore holds it all in memory."""
    endpoints = json.loads((data / "endpoints.json").read_bytes())
    for partition in endpoints["partitions"]:
        services = partition["services"]
        partition["services"] = {name: services[name] for name in SERVICES if name in services}
    (data / "endpoints.json").write_bytes(_compact(endpoints))
    for model in data.glob("*/*/service-2.json.gz"):
        content = json.loads(gzip.decompress(model.read_bytes()))
        model.write_bytes(_gzipped(_compact(_undocumented(content))))


def _undocumented(value: Any) -> Any:
    if isinstance(value, list):
        return [_undocumented(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        name: "" if name == "documentation" and isinstance(each, str) else _undocumented(each)
        for name, each in value.items()
    }


def _gzipped(data: bytes) -> bytes:
    """Compress without a time or a system: `gzip` writes another system with each Python."""
    compressed = bytearray(zlib.compress(data, 9, wbits=31))
    compressed[9] = 255  # RFC 1952: unknown
    return bytes(compressed)


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def add_bytecode(folder: Path, version: str) -> None:
    """Compile all modules, to bytecode that Python never checks against the source."""
    python = find_python(version)
    if python is None:
        return  # `warn` says so
    words = ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([python, *words, "-s", folder, "-p", "/var/task", folder], check=True)


def pack(folder: Path, target: Path) -> None:
    """Write a zip that depends only on the names and contents of the files."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(_files(folder)):
            info = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # the same on every system
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes())


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Built:
    """The numbers of one zip.

    Attributes:
        arch: The architecture.
        target: The file.
        sha256: The digest of the file.
        zipped: The size of the file in bytes.
        unzipped: The size of its content in bytes.
        cold_start: CPU-seconds and peak bytes of a cold start; None if it cannot run here.
    """

    arch: str
    target: Path
    sha256: str
    zipped: int
    unzipped: int
    cold_start: tuple[float, int] | None

    def row(self) -> str:
        """Return the numbers as a row of a Markdown table."""
        cold = "not run on this machine | "
        if self.cold_start:
            cold = f"{self.cold_start[0]:.2f} s | {self.cold_start[1] / 2**20:.0f} MiB"
        sizes = f"{self.zipped / 2**20:.1f} MiB | {self.unzipped / 2**20:.1f} MiB"
        return f"| {self.arch} | {sizes} | {cold} |"


def build(arch: str, target: Path, version: str = PYTHON) -> Built:
    """Build the zip of an architecture.

    Args:
        arch: ``arm64`` or ``x86_64``.
        target: The file to write.
        version: The version of Python.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        assemble(folder, arch, version)
        pack(folder, target)
        return Built(
            arch=arch,
            target=target,
            sha256=hashlib.sha256(target.read_bytes()).hexdigest(),
            zipped=target.stat().st_size,
            unzipped=sum(path.stat().st_size for path in _files(folder)),
            cold_start=cold_start(folder, arch, version),
        )


def cold_start(folder: Path, arch: str, version: str = PYTHON) -> tuple[float, int] | None:
    """Return CPU-seconds and peak bytes of importing the handler, or None if it cannot run here.

    The best of three runs, because other processes on the machine add to the time.
    """
    python = find_python(version)
    if python is None or platform.machine() != MACHINES[arch] or sys.platform != "linux":
        return None
    command = [python, "-I", "-B", "-c", COLD_START, str(folder)]
    measured = []
    for _ in range(3):
        done = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=True, cwd="/"
        )
        measured.append(tuple(json.loads(done.stdout)))
    cpu, peak = min(measured)
    return cpu, peak


def warn(version: str = PYTHON) -> None:
    """Say on standard error that the zips have no bytecode, if no Python can compile it."""
    if find_python(version) is None:
        print(
            f"{'*' * 80}\n"
            f"WARNING: no python{version} found, so the zips contain NO BYTECODE.\n"
            "Every cold start will compile all modules, which takes several times as long.\n"
            f"Install Python {version} and build again.\n"
            f"{'*' * 80}",
            file=sys.stderr,
        )


def keep(table: str) -> None:
    """Write the table to docs/how-to/deploy.md, between its marks."""
    page = ROOT / "docs" / "how-to" / "deploy.md"
    marked = re.compile("(?<=<!-- build -->\n).*(?=<!-- end build -->)", re.DOTALL)
    page.write_text(marked.sub(lambda _: table + "\n", page.read_text()))


def main() -> None:
    """Build the zips, and print their digests and numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("arch", nargs="*", help=" or ".join(MACHINES), metavar="ARCH")
    parser.add_argument("--keep", action="store_true", help="write the sizes to the documentation")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="the folder for the zips")
    arguments = parser.parse_args()
    if unknown := set(arguments.arch) - set(MACHINES):
        parser.error(f"{', '.join(sorted(unknown))}: expected {' or '.join(MACHINES)}")
    warn()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arches = arguments.arch or list(MACHINES)
    built = [build(arch, arguments.out / f"lambda-{arch}.zip") for arch in arches]
    for each in built:
        print(f"{each.sha256}  {each.target}")
    head = "| | zip | unzipped | cold start, CPU | cold start, peak memory |"
    table = "\n".join([head, "| --- | --- | --- | --- | --- |", *(each.row() for each in built)])
    print(table)
    if arguments.keep:
        keep(table)
    warn()


if __name__ == "__main__":
    main()
