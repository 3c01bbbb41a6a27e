"""The stack: every name in it exists, and its role grants exactly what the program needs."""

from __future__ import annotations

import importlib
import json
import re
from itertools import product
from unittest.mock import Mock

import pytest
from testkit.iam import Judge
from testkit.promises import check_after_clean_run, of_server
from testkit.s3server import Request, S3Error, S3Server
from testkit.scenario import AT, BUCKET, PLANES, fill_server, open_s3, prepared, run_data
from testkit.template import PARAMETERS, ROOT, Resolver, resources, role, template

import asyncagg.job.packing as packing_module
import asyncagg.store.s3.store as s3_module
from asyncagg.aws.events import parse_event
from asyncagg.aws.metrics import OPERATIONS, Usage, measurements
from asyncagg.errors import UsageError
from asyncagg.job.outcome import RunReport
from asyncagg.job.pipeline import run
from asyncagg.settings import Setting, all_settings, from_environment
from asyncagg.store.retry import REASONS

# ------------------------------------------------------------------------------- the permissions


@pytest.mark.parametrize("plane", PLANES)
async def test_the_role_may_do_what_the_program_does_and_no_more(
    plane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with quarantine, taken targets, parts and probe needs every grant and no other."""
    monkeypatch.setattr(s3_module, "PART_BYTES", 1000)
    monkeypatch.setattr(packing_module, "_BLOCK", 1000)
    completed: set[str] = set()

    def judge(request: Request) -> None:
        judged(request)
        if request.operation == "CompleteMultipartUpload":
            kind = request.key.partition("/")[0] if "-probe-" not in request.key else "probe"
            if kind not in completed:  # as if another runner had committed first
                completed.add(kind)
                if kind != "probe":
                    raise S3Error("PreconditionFailed")

    def empty_quarantine(request: Request) -> None:
        """Delete a taken target just before it is read, as an operator may."""
        if request.operation == "HeadObject" and request.key.startswith("quarantine/"):
            server.delete(BUCKET, request.key)
        judge(request)

    async with S3Server([BUCKET], clock=lambda: AT) as server:
        server.faults.allow_small_parts = True
        judged = Judge(server, role())
        scenario = prepared()
        fill_server(server, scenario.store)
        server.on_request = judge
        async with open_s3(server, plane) as (store, settings):
            report = await run(store, settings, at=AT)
        check_after_clean_run(
            of_server(server), scenario.originals, at=AT, foreign=scenario.foreign
        )
        again = next(key for key in server.keys(BUCKET, "quarantine/") if "bad" in key)
        body = server.get(BUCKET, again).body
        server.put(BUCKET, again.replace("quarantine/", "runs/"), body, last_modified=AT)
        for number in range(9):
            server.put(BUCKET, f"runs/packed-{number}.json", run_data(90), last_modified=AT)
        server.on_request = empty_quarantine
        async with open_s3(server, plane, archive_format="packs") as (store, settings):
            await run(store, settings, at=AT.replace(hour=AT.hour + 1))
    assert completed >= {"aggregates", "archive"}
    assert (report.failures, report.total.deferred) == ({}, 0)
    assert judged.used == judged.granted()


@pytest.mark.parametrize(("parameter", "name"), [("KmsKeyArn", "Key"), ("SseKmsKeyId", "NamedKey")])
def test_a_key_is_granted_where_there_is_one(parameter: str, name: str) -> None:
    """With a KMS key, the bucket's or that of each write, the role may use that key alone."""
    key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    (more,) = (each for each in role(**{parameter: key}) if each not in role())
    assert more.pop("Sid") == name
    assert more == {
        "Effect": "Allow",
        "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
        "Resource": key,
    }


def test_the_page_of_permissions_is_the_role() -> None:
    """docs/how-to/iam.md has the statements of the stack, with a bucket's name to fill in."""
    page = (ROOT / "docs" / "how-to" / "iam.md").read_text()
    (block,) = re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert json.loads(block.replace("BUCKET", BUCKET))["Statement"] == role()
    reasons = " ".join(re.findall(r"^\| ([\w, ]+) \| .* \|$", page, re.MULTILINE))
    assert all(each["Sid"] in reasons for each in role())


@pytest.mark.parametrize(
    ("given", "account"), [({}, "<AWS::AccountId>"), ({"BucketAccountId": "1" * 12}, "1" * 12)]
)
def test_no_bucket_of_another_account_is_used(given: dict[str, str], account: str) -> None:
    """Every S3 action on such a bucket is denied, even if it has the right name."""
    policies = Resolver(given).properties("Role")["Policies"]
    ((statement,),) = (
        each["PolicyDocument"]["Statement"]
        for each in policies
        if each["PolicyName"] == "only-the-account-of-the-bucket"
    )
    assert (statement["Effect"], statement["Action"], statement["Resource"]) == (
        "Deny",
        "s3:*",
        "*",
    )
    assert statement["Condition"] == {"StringNotEquals": {"aws:ResourceAccount": account}}


def test_services_take_a_role_for_this_account_only() -> None:
    """Lambda and the scheduler cannot be made to use a role by somebody else's resources."""
    for name, _ in resources("AWS::IAM::Role"):
        trust = Resolver({}).properties(name)["AssumeRolePolicyDocument"]["Statement"]
        conditions = [each["Condition"] for each in trust]
        assert conditions == [{"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}]


@pytest.mark.parametrize("versioning", ["Enabled", "Disabled"])
def test_old_versions_expire(versioning: str) -> None:
    """Versioning is a parameter, and has its lifecycle rule."""
    bucket = Resolver({"Versioning": versioning, "NoncurrentDays": "7"}).properties("Bucket")
    (rule,) = (
        each for each in bucket["LifecycleConfiguration"]["Rules"] if each["Id"] == "old-versions"
    )
    assert rule["Status"] == versioning
    assert rule["NoncurrentVersionExpiration"] == {"NoncurrentDays": "7"}
    enabled = bucket["VersioningConfiguration"]
    assert enabled == ({"Status": "Enabled"} if versioning == "Enabled" else None)


# --------------------------------------------------------------------------- the function


def test_the_function_is_as_documented() -> None:
    """Runtime, memory, timeout and concurrency are right, and its handler exists."""
    function = Resolver({}).properties("Function")
    module, name = function["Handler"].rsplit(".", 1)
    assert callable(getattr(importlib.import_module(module), name))
    assert function["Runtime"] == "python3.13"
    assert function["Architectures"] == ["arm64"]
    assert function["MemorySize"] == "128"
    assert function["EphemeralStorage"] == {"Size": "512"}
    assert function["Timeout"] == 300
    assert function["ReservedConcurrentExecutions"] == 1
    assert function["CodeUri"]["Key"] == "asyncagg/1/lambda-arm64.zip"


def test_its_environment_is_accepted() -> None:
    """Every variable is a setting with a valid value; the prefixes come from the parameters."""
    given = {"RunsPrefix": "in/", "ArchivePrefix": "in/old/", "WindowMinutes": "15"}
    variables = environment(**given)
    settings = from_environment(variables)
    assert (settings.store, settings.window_minutes) == (f"s3://{BUCKET}", 15)
    assert (settings.runs_prefix, settings.archive_prefix) == ("in/", "in/old/")
    names = [name.removeprefix("ASYNCAGG_").lower() for name in variables]
    assert all(hasattr(settings, name) for name in names)


def environment(**given: str) -> dict[str, str]:
    """Return the settings in the environment of the function."""
    variables = Resolver(given).properties("Function")["Environment"]["Variables"]
    assert variables.pop("POWERTOOLS_SERVICE_NAME") == "stack"
    assert variables.pop("MALLOC_MMAP_THRESHOLD_") == "262144"
    return dict(variables)


# --------------------------------------------------------------------------- parameters


VALID = {"BucketName": "matching-out-runs"}


def parameter(setting: Setting) -> str:
    """Return the name of a setting's parameter."""
    return "".join(map(str.capitalize, setting.name.split("_")))


def test_the_parameters_have_the_limits_of_the_settings() -> None:
    """And their defaults, so that the stack does what the documentation of a setting says."""
    declared = template()["Parameters"]
    for setting in all_settings():
        if found := declared.get(parameter(setting)):
            if setting.name != "archive_storage_class":  # there, empty is STANDARD
                assert found["Default"] == setting.default, setting.name
            if found["Type"] == "Number" and "AllowedValues" not in found:
                assert (found.get("MinValue"), found.get("MaxValue")) == (
                    setting.meta.ge,
                    setting.meta.le,
                )


@pytest.mark.parametrize("page", ["how-to/deploy.md", "explanation/memory.md"])
def test_what_the_documents_tune_is_a_parameter(page: str) -> None:
    """Every setting that the pages about the Lambda name."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    named = [each for each in all_settings() if f"`{each.name}`" in text or each.variable in text]
    missing = [each.name for each in named if parameter(each) not in template()["Parameters"]]
    assert not missing


def test_every_parameter_has_a_group() -> None:
    """The console shows it under a heading."""
    groups = template()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert sorted(grouped) == sorted(template()["Parameters"])


@pytest.mark.parametrize(
    ("given", "by"),
    [
        ({"WindowMinutes": "7"}, "WindowMinutes"),
        ({"RunsPrefix": "runs"}, "RunsPrefix"),
        ({"RunsPrefix": "/"}, "RunsPrefix"),
        ({"ArchivePrefix": "/archive/"}, "ArchivePrefix"),
        ({"AggregatePrefix": "rollups/a/"}, "AggregatePrefix"),
        ({"QuarantinePrefix": "work/"}, "QuarantinePrefix"),
        ({"Concurrency": "0"}, "Concurrency"),
        ({"RetryAttempts": "51"}, "RetryAttempts"),
        ({"StreamBytes": "1"}, "StreamBytes"),
        *(
            ({one: "same/", other: "same/"}, "PrefixesDiffer")
            for one, other in [
                ("RunsPrefix", "ArchivePrefix"),
                ("RunsPrefix", "QuarantinePrefix"),
                ("AggregatePrefix", "ArchivePrefix"),
                ("AggregatePrefix", "QuarantinePrefix"),
                ("ArchivePrefix", "QuarantinePrefix"),
            ]
        ),
    ],
)
def test_the_stack_refuses_what_the_program_would_refuse(given: dict[str, str], by: str) -> None:
    """Before anything is deployed."""
    assert Resolver(VALID | given).refused() == {by}
    with pytest.raises(UsageError):
        from_environment(environment(**given))


@pytest.mark.parametrize(
    ("given", "by"),
    [
        ({"BucketName": "b--use1-az4--x-s3"}, "BucketName"),
        ({"BucketName": "arn:aws:s3:::bucket"}, "BucketName"),
        ({"BucketName": "", "BucketAccountId": "1" * 12}, "NewBucketIsOwn"),
        ({"SubnetIds": "subnet-1,subnet-2"}, "VpcIsWhole"),
        ({"SecurityGroupIds": "sg-1"}, "VpcIsWhole"),
        ({"LogKmsKeyArn": "alias/logs"}, "LogKmsKeyArn"),
        ({"KmsKeyArn": "alias/objects"}, "KmsKeyArn"),
        ({"AlarmTopicArn": "topic"}, "AlarmTopicArn"),
        ({"PermissionsBoundaryArn": "boundary"}, "PermissionsBoundaryArn"),
    ],
)
def test_the_stack_refuses_what_aws_would_refuse(given: dict[str, str], by: str) -> None:
    """And what would deploy but never work."""
    assert Resolver(VALID | given).refused() == {by}


KEY = "arn:aws:kms:us-east-1:123456789012:key/mrk-1234abcd12ab34cd56ef1234567890ab"


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"BucketName": "", "KmsKeyArn": KEY, "LogKmsKeyArn": KEY},
        {"BucketName": "other", "BucketAccountId": "1" * 12},
        {"BucketName": "point-abc-s3alias", "RunsPrefix": "a/b/", "ArchivePrefix": "a/b/old/"},
        {"RunsPrefix": "same/", "AggregatePrefix": "same/"},
        {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1,sg-2"},
        {"PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary"},
        {"AlarmTopicArn": "arn:aws-cn:sns:cn-north-1:123456789012:alarms"},
    ],
)
def test_the_stack_refuses_nothing_else(given: dict[str, str]) -> None:
    """Whatever the program accepts."""
    assert Resolver(VALID | given).refused() == set()
    from_environment(environment(**given))


def grants(**given: str) -> dict[str, list[str]]:
    """Return the actions of each policy of the function's role."""
    found: dict[str, list[str]] = {}
    for policy in Resolver(given).properties("Role")["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            actions = statement["Action"]
            found.setdefault(policy["PolicyName"], []).extend(
                [actions] if isinstance(actions, str) else actions
            )
    return found


@pytest.mark.parametrize(
    ("given", "policy", "action"),
    [
        ({"Tracing": "Active"}, "traces", "xray:PutTraceSegments"),
        (
            {"SubnetIds": "subnet-1", "SecurityGroupIds": "sg-1"},
            "network-interfaces",
            "ec2:CreateNetworkInterface",
        ),
    ],
)
def test_what_is_switched_on_has_its_grant(given: dict[str, str], policy: str, action: str) -> None:
    """And what is off has none."""
    assert action in grants(**given)[policy]
    assert set(grants(**given)) - set(grants()) == {policy}


def test_an_account_may_have_its_own_ways() -> None:
    """A VPC, a boundary of both roles, a key for the log, no concurrency to reserve, traces."""
    plain, given = (
        Resolver({}),
        Resolver(
            {
                "SubnetIds": "subnet-1,subnet-2",
                "SecurityGroupIds": "sg-1",
                "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
                "LogKmsKeyArn": KEY,
                "ReserveConcurrency": "false",
                "Tracing": "Active",
            }
        ),
    )
    function, usual = given.properties("Function"), plain.properties("Function")
    assert function["VpcConfig"] == {
        "SubnetIds": ["subnet-1", "subnet-2"],
        "SecurityGroupIds": ["sg-1"],
    }
    assert (function["Tracing"], usual["Tracing"]) == ("Active", "PassThrough")
    assert function["ReservedConcurrentExecutions"] is usual["VpcConfig"] is None
    for name in ("Role", "ScheduleRole"):
        assert given.properties(name)["PermissionsBoundary"].endswith("policy/boundary")
        assert plain.properties(name)["PermissionsBoundary"] is None
    assert given.properties("LogGroup")["KmsKeyId"] == KEY
    assert plain.properties("LogGroup")["KmsKeyId"] is None


# --------------------------------------------------------------------------- names


def test_the_schedule_sends_an_event_that_is_accepted() -> None:
    """The event's time is the scheduled time; failed events are retried and kept."""
    schedule = Resolver({}).properties("Function")["Events"]["Schedule"]["Properties"]
    event = schedule["Input"].replace("<aws.scheduler.scheduled-time>", "2025-10-21T14:00:00Z")
    request = parse_event(json.loads(event), now=AT)
    assert request.at.isoformat() == "2025-10-21T14:00:00+00:00"
    assert schedule["ScheduleExpression"] == "rate(5 minutes)"
    assert schedule["RetryPolicy"]["MaximumRetryAttempts"] > 0
    assert "DeadLetters" in schedule["DeadLetterConfig"]["Arn"]


def published() -> set[str]:
    """Return the names of all metrics that an invocation may publish."""
    usage = Usage(0.0, 0, {}, dict.fromkeys(product(OPERATIONS, REASONS), 1))
    return {name for name, _, _ in measurements(RunReport(at=""), usage)}


def test_the_alarms_watch_metrics_that_are_published() -> None:
    """They use the handler's namespace and dimension, and each notifies the topic."""
    watched = set()
    for name, alarm in resources("AWS::CloudWatch::Alarm"):
        metric = alarm if "MetricName" in alarm else alarm["Metrics"][0]["MetricStat"]["Metric"]
        watched.add(metric["MetricName"])
        if metric["Namespace"] == "asyncagg":
            assert metric["MetricName"] in published()
            assert metric["Dimensions"] == [{"Name": "service", "Value": "stack"}]
        topic = Resolver({"AlarmTopicArn": "arn:topic"}).properties(name)
        assert topic["AlarmActions"] == topic["OKActions"] == ["arn:topic"]
    assert watched >= {
        *("Errors", "Throttles", "Complete", "WindowsFailed"),
        *("OldestFileAge", "FilesQuarantined", "FilesDeferred"),
    }


def test_the_dashboard_shows_metrics_that_are_published() -> None:
    """It is JSON, and every name in it exists."""
    ((_, dashboard),) = resources("AWS::CloudWatch::Dashboard")
    shown = set()
    for widget in json.loads(dashboard["DashboardBody"])["widgets"]:
        namespace = ""
        for metric in widget["properties"].get("metrics", ()):
            namespace = metric[0] if metric[0] != "." else namespace
            if namespace == "asyncagg":
                shown.add(metric[1])
    assert shown
    assert shown <= published()


def test_every_alarm_is_explained() -> None:
    """docs/how-to/deploy.md says what each means and what to do."""
    explained = (ROOT / "docs" / "how-to" / "deploy.md").read_text().lower()
    for _, alarm in resources("AWS::CloudWatch::Alarm"):
        (title,) = re.findall('"(.*?)"', alarm["AlarmDescription"])
        assert f"### {title}\n" in explained


def test_sam_accepts_the_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own translator turns it into plain CloudFormation (`tox -e template` installs it)."""
    transform = pytest.importorskip("samtranslator.translator.transform").transform
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    policies = Mock(load=Mock(return_value={}))
    made = transform(json.loads(json.dumps(template())), PARAMETERS, policies)["Resources"]
    kinds = [each["Type"] for each in made.values()]
    assert kinds.count("AWS::Scheduler::Schedule") == 1
    assert kinds.count("AWS::IAM::Role") == 2
