"""Set up every test: no real AWS, no blocked event loop, repeatable hypothesis."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import botocore.session
import pytest
from blockbuster import blockbuster_ctx
from hypothesis import HealthCheck, settings

settings.register_profile(
    "asyncagg", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.register_profile("quick", settings.get_profile("asyncagg"), max_examples=15)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "asyncagg"))


@pytest.fixture(autouse=True, scope="session")
def shared_service_model() -> Iterator[None]:
    """The S3 model of botocore is read once per process, not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(autouse=True)
def no_real_aws(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A test sees no AWS configuration of the machine, and no settings of asyncagg."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "ASYNCAGG_", "SAM_MATCHING_")):
            monkeypatch.delenv(name)
    empty = str(tmp_path_factory.getbasetemp() / "no-aws")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": empty,
        "AWS_SHARED_CREDENTIALS_FILE": empty,
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True, scope="session")
def no_blocked_loop() -> Iterator[None]:
    """A blocking call by the package on the event loop fails the test."""
    with blockbuster_ctx("asyncagg") as blocking:
        for function in blocking.functions.values():
            # Once per process: botocore reads its service model; modules are imported when used.
            function.can_block_in(
                "asyncagg/store/s3/boto/control.py",
                {"open_control", "locate", "identity", "credentials"},
            )
            function.can_block_in("asyncagg/store/opening.py", {"open_store"})
            function.can_block_in("asyncagg/cli/watch.py", {"_endpoint"})
            function.can_block_in("asyncagg/store/s3/opening.py", {"_open_planes"})
            function.can_block_in("asyncagg/sample/demo.py", {"_moto"})
            # The files of /proc are in memory: a thread would take longer.
            function.can_block_in("asyncagg/runtime/process.py", {"current", "_read"})
            # The explorer and the virtual clock have no threads.
            function.can_block_in("testkit/explorer/programs.py", {"_run_here", "run_in_executor"})
            function.can_block_in("testkit/virtual.py", {"run_in_executor"})
        yield


@pytest.fixture(autouse=True)
def package_logger() -> Iterator[logging.Logger]:
    """The package's logger, restored after the test: a handler that stays would block a loop."""
    logger = logging.getLogger("asyncagg")
    before = (logger.handlers, logger.level, logger.propagate)
    yield logger
    logger.handlers, logger.propagate = before[0], before[2]
    logger.setLevel(before[1])


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """A directory with an empty inbox."""
    (tmp_path / "runs").mkdir()
    return tmp_path
