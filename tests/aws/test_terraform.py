"""The Terraform example is the stack: the same variables, resources, grants, alarms, queries."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from testkit.template import Resolver, resources, template
from testkit.terraform import Terraform

pytest.importorskip("hcl2", reason="tox -e template installs python-hcl2")

KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
EVERYTHING = {
    "BucketName": "",
    "KmsKeyArn": KEY,
    "RunsPrefix": "in/",
    "WindowMinutes": "15",
    "ScheduleMinutes": "1",
    "ScheduleState": "DISABLED",
    "AlarmTopicArn": "arn:aws:sns:us-east-1:123456789012:alarms",
    "Tracing": "Active",
    "MemorySize": "512",
    "ReserveConcurrency": "false",
    "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
    "SubnetIds": "subnet-1,subnet-2",
    "SecurityGroupIds": "sg-1",
}
GIVEN = [{}, EVERYTHING, {"BucketName": "other", "BucketAccountId": "1" * 12}]
NAMES = {"Version": "code_version"}
TYPES = {
    "AWS::S3::Bucket": "aws_s3_bucket",
    "AWS::S3::BucketPolicy": "aws_s3_bucket_policy",
    "AWS::Serverless::Function": "aws_lambda_function",
    "AWS::IAM::Role": "aws_iam_role",
    "AWS::Logs::LogGroup": "aws_cloudwatch_log_group",
    "AWS::Logs::QueryDefinition": "aws_cloudwatch_query_definition",
    "AWS::SQS::Queue": "aws_sqs_queue",
    "AWS::CloudWatch::Alarm": "aws_cloudwatch_metric_alarm",
    "AWS::CloudWatch::Dashboard": "aws_cloudwatch_dashboard",
}
PARTS = {
    "aws_iam_role_policy",
    "aws_lambda_function_event_invoke_config",
    "aws_s3_bucket_lifecycle_configuration",
    "aws_s3_bucket_ownership_controls",
    "aws_s3_bucket_public_access_block",
    "aws_s3_bucket_server_side_encryption_configuration",
    "aws_s3_bucket_versioning",
    "aws_scheduler_schedule",
}
"""Resources in Terraform that are properties of another one in CloudFormation."""
ALARMS = [name for name, _ in resources("AWS::CloudWatch::Alarm")]
REFERENCES = {
    "data.aws_caller_identity.this.account_id": "<AWS::AccountId>",
    "data.aws_partition.this.partition": "aws",
    "data.aws_region.this.name": "us-east-1",
    "aws_s3_bucket.this[0].id": "<Bucket>",
    "aws_lambda_function.this.function_name": "<Function>",
    "aws_lambda_function.this.arn": "<Function.Arn>",
    "aws_cloudwatch_log_group.this.name": "<LogGroup>",
    "aws_cloudwatch_log_group.this.arn": "<LogGroup.Arn>",
    "aws_sqs_queue.dead_letters.arn": "<DeadLetters.Arn>",
    "aws_sqs_queue.dead_letters.name": "<DeadLetters.QueueName>",
    "aws_iam_role.function.arn": "<Role.Arn>",
    "aws_iam_role.schedule.arn": "<ScheduleRole.Arn>",
    "aws_cloudwatch_metric_alarm.oldest_file.arn": "<OldestFileAlarm.Arn>",
    **{f"local.alarm_arns.{name.removesuffix('Alarm')}": f"<{name}.Arn>" for name in ALARMS},
    "null": "null",
}


def variable(parameter: str) -> str:
    """Return the name of a parameter's variable."""
    return NAMES.get(parameter, re.sub(r"(?<!^)(?=[A-Z])", "_", parameter).lower())


def both(given: dict[str, str]) -> tuple[Resolver, Terraform]:
    """Return the stack and the configuration with the same values."""
    stack = Resolver(given)
    kinds: dict[str, Callable[[str], Any]] = {
        "CommaDelimitedList": lambda text: text.split(","),
        "Number": int,
    }
    values: dict[str, Any] = {"name": "stack"}
    for name in stack.parameters.keys() & template()["Parameters"].keys():
        kind = template()["Parameters"][name]["Type"]
        values[variable(name)] = kinds.get(kind, str)(stack.parameters[name])
    values["reserve_concurrency"] = stack.parameters["ReserveConcurrency"] == "true"
    if values["subnet_ids"] == [""]:
        values["subnet_ids"] = []
    return stack, Terraform(values, REFERENCES)


def as_text(value: Any) -> Any:
    """Return a value with all numbers as text: CloudFormation's parameters are."""
    if isinstance(value, dict):
        return {name: as_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_text(each) for each in value]
    return value if isinstance(value, bool) or value is None else str(value)


def test_the_variables_are_the_parameters() -> None:
    """With the same defaults."""
    terraform = Terraform({}, {})
    parameters = template()["Parameters"]
    assert terraform.variables.keys() == {variable(name) for name in parameters} | {"name"}
    for name, each in parameters.items():
        default = {"true": True, "": [] if "List" in each["Type"] else ""}
        expected = default.get(each.get("Default"), each.get("Default"))
        assert terraform.variables[variable(name)] == expected, name


def test_the_resources_are_those_of_the_stack() -> None:
    """Each type, and those that are parts of another one."""
    types = {each["Type"] for each in template()["Resources"].values()}
    assert types == TYPES.keys()
    assert Terraform({}, {}).kinds() == {*TYPES.values(), *PARTS}


@pytest.mark.parametrize("given", GIVEN)
def test_the_function_is_that_of_the_stack(given: dict[str, str]) -> None:
    """Its code, its limits, its environment and its schedule."""
    stack, terraform = both(given)
    function = stack.properties("Function")
    block = terraform.block("aws_lambda_function", "this")
    made = terraform.resolve({name: each for name, each in block.items() if name != "lifecycle"})
    (environment,) = made["environment"]
    assert as_text(environment["variables"]) == as_text(function["Environment"]["Variables"])
    assert as_text([made[name] for name in ("runtime", "handler", "architectures", "timeout")]) == (
        as_text([function[name] for name in ("Runtime", "Handler", "Architectures", "Timeout")])
    )
    assert as_text(made["memory_size"]) == function["MemorySize"]
    assert (made["s3_bucket"], made["s3_key"]) == tuple(function["CodeUri"].values())
    assert made["role"] == function["Role"]
    assert as_text(made["ephemeral_storage"][0]["size"]) == function["EphemeralStorage"]["Size"]
    assert made["tracing_config"][0]["mode"] == function["Tracing"]
    reserved = made["reserved_concurrent_executions"]
    assert (None if reserved == -1 else reserved) == function["ReservedConcurrentExecutions"]
    (network,) = (each["vpc_config"] for each in made["dynamic"])
    content = network["content"][0]
    expected = function["VpcConfig"] or {"SubnetIds": [], "SecurityGroupIds": [""]}
    assert bool(network["for_each"]) == bool(function["VpcConfig"])
    assert content["subnet_ids"] == expected["SubnetIds"]
    assert content["security_group_ids"] == expected["SecurityGroupIds"]


@pytest.mark.parametrize("given", GIVEN)
def test_the_schedule_is_that_of_the_stack(given: dict[str, str]) -> None:
    """Its event, its retries, and where a failed event goes."""
    stack, terraform = both(given)
    function = stack.properties("Function")
    expected = function["Events"]["Schedule"]["Properties"]
    schedule = terraform.resolve(terraform.block("aws_scheduler_schedule", "this"))
    (target,) = schedule["target"]
    rate = expected["ScheduleExpression"].replace("1 hour", "60 minutes")
    assert (schedule["schedule_expression"], schedule["state"]) == (rate, expected["State"])
    assert json.loads(target["input"]) == json.loads(expected["Input"])
    assert target["retry_policy"] == [
        {
            "maximum_retry_attempts": expected["RetryPolicy"]["MaximumRetryAttempts"],
            "maximum_event_age_in_seconds": expected["RetryPolicy"]["MaximumEventAgeInSeconds"],
        }
    ]
    assert target["dead_letter_config"] == [{"arn": expected["DeadLetterConfig"]["Arn"]}]
    assert (target["arn"], target["role_arn"]) == ("<Function.Arn>", expected["RoleArn"])
    block = terraform.block("aws_lambda_function_event_invoke_config", "this")
    invoke, wanted = terraform.resolve(block), function["EventInvokeConfig"]
    assert invoke["maximum_retry_attempts"] == wanted["MaximumRetryAttempts"]
    assert invoke["maximum_event_age_in_seconds"] == wanted["MaximumEventAgeInSeconds"]
    (failed,) = invoke["destination_config"][0]["on_failure"]
    assert failed["destination"] == wanted["DestinationConfig"]["OnFailure"]["Destination"]


# ------------------------------------------------------------------------------- the permissions


def listed(value: Any) -> list[Any]:
    """Return a list; CloudFormation allows a single value in its place."""
    return value if isinstance(value, list) else [value]


def of_stack(document: dict[str, Any]) -> list[Any]:
    """Return the statements of a policy in a form that can be compared."""
    return [
        (
            each.get("Sid"),
            each["Effect"],
            listed(each["Action"]),
            listed(each.get("Resource", [])),
            sorted(
                (test, name, listed(values))
                for test, names in each.get("Condition", {}).items()
                for name, values in names.items()
            ),
        )
        for each in document["Statement"]
    ]


def of_terraform(terraform: Terraform, name: str) -> list[Any]:
    """Return the same of a document in Terraform."""
    document = terraform.block("aws_iam_policy_document", name, of="data")
    statements = [*document["statement"]]
    for dynamic in document.get("dynamic", ()):
        if terraform.resolve(dynamic["statement"]["for_each"]):
            statements += dynamic["statement"]["content"]
    return [
        (
            each.get("sid"),
            each.get("effect", "Allow"),
            each["actions"],
            [resource.removesuffix(":*") for resource in each.get("resources", [])],
            sorted(
                (condition["test"], condition["variable"], condition["values"])
                for condition in each.get("condition", ())
            ),
        )
        for each in terraform.resolve([{**each, "principals": None} for each in statements])
    ]


def attached(terraform: Terraform) -> Iterator[tuple[str, str]]:
    """Yield the name and the document of each policy of the function's role."""
    text = terraform.block("aws_iam_role_policy", "function")["for_each"]
    entry = r'(?:(\S+ [=>]+ \S+) \? \{\s*)?"([\w-]+)"\s*[=:]\s*data\.aws_iam_policy_document\.(\w+)'
    for condition, name, document in re.findall(entry, text):
        if not condition or terraform.resolve(f"${{{condition}}}"):
            yield name, document


@pytest.mark.parametrize("given", GIVEN)
def test_the_grants_are_those_of_the_stack(given: dict[str, str]) -> None:
    """Each statement of each policy of both roles, and the policy of the bucket."""
    stack, terraform = both(given)
    expected = {
        each["PolicyName"]: of_stack(each["PolicyDocument"])
        for each in stack.properties("Role")["Policies"]
    }
    made = {name: of_terraform(terraform, document) for name, document in attached(terraform)}
    assert made == expected
    (invoke,) = stack.properties("ScheduleRole")["Policies"]
    assert of_terraform(terraform, "invoke") == of_stack(invoke["PolicyDocument"])
    for name, role in {"function": "Role", "schedule": "ScheduleRole"}.items():
        block = terraform.resolve(terraform.block("aws_iam_role", name)["permissions_boundary"])
        boundary = None if block == "null" else block
        assert boundary == stack.properties(role)["PermissionsBoundary"]
    policy = Resolver({**given, "BucketName": ""}).properties("BucketPolicy")["PolicyDocument"]
    if terraform.local("new_bucket"):
        ((sid, effect, actions, made_for, conditions),) = of_terraform(terraform, "bucket")
        assert (sid, effect, actions, conditions) == (
            *of_stack(policy)[0][:3],
            of_stack(policy)[0][4],
        )
        assert made_for == ["arn:aws:s3:::<Bucket>", "arn:aws:s3:::<Bucket>/*"]


# ------------------------------------------------------------------------------ what is watched


@pytest.mark.parametrize("given", GIVEN)
def test_the_alarms_are_those_of_the_stack(given: dict[str, str]) -> None:
    """Each watches the same metric, over the same periods, and notifies the same topic."""
    stack, terraform = both(given)
    made = {"OldestFileAlarm": terraform.block("aws_cloudwatch_metric_alarm", "oldest_file")}
    made = {name: terraform.resolve(alarm) for name, alarm in made.items()}
    each_alarm = terraform.block("aws_cloudwatch_metric_alarm", "this")
    each_alarm = {name: value for name, value in each_alarm.items() if name != "alarm_name"}
    for name, values in terraform.local("alarms").items():
        made[f"{name}Alarm"] = terraform.resolve(each_alarm, values)
    assert made.keys() == set(ALARMS)
    for name, alarm in made.items():
        expected = stack.properties(name)
        pairs = {
            "alarm_description": "AlarmDescription",
            "comparison_operator": "ComparisonOperator",
            "threshold": "Threshold",
            "evaluation_periods": "EvaluationPeriods",
            "datapoints_to_alarm": "DatapointsToAlarm",
            "treat_missing_data": "TreatMissingData",
            "metric_name": "MetricName",
            "namespace": "Namespace",
            "statistic": "Statistic",
            "period": "Period",
        }
        for one, other in pairs.items():
            assert as_text(alarm.get(one)) == as_text(expected.get(other)), (name, one)
        assert alarm["alarm_actions"] == (expected["AlarmActions"] or [])
        assert alarm["ok_actions"] == (expected["OKActions"] or [])
        dimensions = {each["Name"]: each["Value"] for each in expected.get("Dimensions", ())}
        assert alarm.get("dimensions", {}) == dimensions
    age, late = made["OldestFileAlarm"]["metric_query"]
    wanted_age, wanted_late = stack.properties("OldestFileAlarm")["Metrics"]
    (metric,) = age["metric"]
    wanted = wanted_age["MetricStat"]
    assert (metric["stat"], as_text(metric["period"])) == (
        wanted["Stat"],
        as_text(wanted["Period"]),
    )
    assert metric["metric_name"] == wanted["Metric"]["MetricName"]
    assert metric["dimensions"] == {"service": "stack"}
    assert (late["expression"], late["label"]) == (wanted_late["Expression"], wanted_late["Label"])


def test_the_queries_and_the_dashboard_are_those_of_the_stack() -> None:
    """To the letter."""
    stack, terraform = both({})
    queries = {
        each["Name"].removeprefix("stack/"): each["QueryString"].rstrip("\n")
        for _, each in resources("AWS::Logs::QueryDefinition")
    }
    assert terraform.local("queries") == queries
    dashboard = terraform.block("aws_cloudwatch_dashboard", "this")["dashboard_body"]
    expected = stack.properties("Dashboard")["DashboardBody"]
    assert json.loads(terraform.resolve(dashboard)) == json.loads(expected)


@pytest.mark.parametrize("given", GIVEN)
def test_the_rest_is_that_of_the_stack(given: dict[str, str]) -> None:
    """The log, the queue, and the settings of a new bucket."""
    stack, terraform = both(given)
    log = terraform.resolve(terraform.block("aws_cloudwatch_log_group", "this"))
    expected = stack.properties("LogGroup")
    assert as_text(log["retention_in_days"]) == expected["RetentionInDays"]
    assert log["kms_key_id"] == (expected["KmsKeyId"] or "null")
    queue = terraform.resolve(terraform.block("aws_sqs_queue", "dead_letters"))
    kept = stack.properties("DeadLetters")
    assert queue["message_retention_seconds"] == kept["MessageRetentionPeriod"]
    assert queue["sqs_managed_sse_enabled"] == kept["SqsManagedSseEnabled"]
    bucket = stack.properties("Bucket")
    block = terraform.block("aws_s3_bucket_public_access_block", "this")
    blocked = {
        variable(name): value for name, value in bucket["PublicAccessBlockConfiguration"].items()
    }
    assert blocked.items() <= block.items()
    rules = terraform.resolve(terraform.block("aws_s3_bucket_lifecycle_configuration", "this"))
    assert [(each["id"], each["status"]) for each in rules["rule"]] == [
        (each["Id"], each["Status"]) for each in bucket["LifecycleConfiguration"]["Rules"]
    ]
    name = "aws_s3_bucket_server_side_encryption_configuration"
    (rule,) = terraform.resolve(terraform.block(name, "this"))["rule"]
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    (default,) = rule["apply_server_side_encryption_by_default"]
    assert default["sse_algorithm"] == encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"]
    assert rule["bucket_key_enabled"] == bool(encryption["BucketKeyEnabled"])
