# What the function and the schedule may do; docs/how-to/iam.md says why each grant is needed.

resource "aws_iam_role" "function" {
  name_prefix          = "${var.name}-"
  assume_role_policy   = data.aws_iam_policy_document.trust["lambda"].json
  permissions_boundary = local.boundary
}

resource "aws_iam_role" "schedule" {
  name_prefix          = "${var.name}-schedule-"
  assume_role_policy   = data.aws_iam_policy_document.trust["scheduler"].json
  permissions_boundary = local.boundary
}

data "aws_iam_policy_document" "trust" {
  for_each = toset(["lambda", "scheduler"])
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["${each.key}.amazonaws.com"]
    }
    # The service acts for this account only: no "confused deputy".
    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [local.account]
    }
  }
}

resource "aws_iam_role_policy" "function" {
  for_each = merge(
    {
      "objects"                        = data.aws_iam_policy_document.objects.json
      "only-the-account-of-the-bucket" = data.aws_iam_policy_document.only_the_account_of_the_bucket.json
      "log"                            = data.aws_iam_policy_document.log.json
      "dead-letters"                   = data.aws_iam_policy_document.dead_letters.json
    },
    var.tracing == "Active" ? { "traces" = data.aws_iam_policy_document.traces.json } : {},
    length(var.subnet_ids) > 0 ? { "network-interfaces" = data.aws_iam_policy_document.network_interfaces.json } : {},
  )
  name   = each.key
  role   = aws_iam_role.function.id
  policy = each.value
}

resource "aws_iam_role_policy" "schedule" {
  name   = "invoke"
  role   = aws_iam_role.schedule.id
  policy = data.aws_iam_policy_document.invoke.json
}

data "aws_iam_policy_document" "objects" {
  # Without ListBucket on every prefix, S3 answers 403 instead of 404 for a missing object.
  statement {
    sid       = "List"
    actions   = ["s3:ListBucket"]
    resources = [local.bucket_arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values = [
        "${var.runs_prefix}*",
        "${var.aggregate_prefix}*",
        "${var.archive_prefix}*",
        "${var.quarantine_prefix}*",
      ]
    }
  }
  # To read, to copy, and to check the condition of a delete.
  statement {
    sid     = "Read"
    actions = ["s3:GetObject"]
    resources = [
      "${local.bucket_arn}/${var.runs_prefix}*",
      "${local.bucket_arn}/${var.aggregate_prefix}*",
      "${local.bucket_arn}/${var.archive_prefix}*",
      "${local.bucket_arn}/${var.quarantine_prefix}*",
    ]
  }
  # The job never writes to the inbox.
  statement {
    sid     = "Write"
    actions = ["s3:PutObject"]
    resources = [
      "${local.bucket_arn}/${var.aggregate_prefix}*",
      "${local.bucket_arn}/${var.archive_prefix}*",
      "${local.bucket_arn}/${var.quarantine_prefix}*",
    ]
  }
  statement {
    sid     = "AbortLargeUploads"
    actions = ["s3:AbortMultipartUpload"]
    resources = [
      "${local.bucket_arn}/${var.aggregate_prefix}*",
      "${local.bucket_arn}/${var.archive_prefix}packs/*",
    ]
  }
  # Run files that were copied, and the two objects that probe the bucket's guards.
  statement {
    sid     = "Delete"
    actions = ["s3:DeleteObject"]
    resources = [
      "${local.bucket_arn}/${var.runs_prefix}*",
      "${local.bucket_arn}/${var.archive_prefix}asyncagg-probe-*",
    ]
  }
  # CopyObject also copies the tags of a run file.
  statement {
    sid       = "ReadTags"
    actions   = ["s3:GetObjectTagging"]
    resources = ["${local.bucket_arn}/${var.runs_prefix}*"]
  }
  statement {
    sid     = "WriteTags"
    actions = ["s3:PutObjectTagging"]
    resources = [
      "${local.bucket_arn}/${var.archive_prefix}*",
      "${local.bucket_arn}/${var.quarantine_prefix}*",
    ]
  }
  dynamic "statement" {
    for_each = var.kms_key_arn == "" ? [] : [1]
    content {
      sid       = "Key"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [var.kms_key_arn]
    }
  }
  dynamic "statement" {
    for_each = var.sse_kms_key_id == "" ? [] : [1]
    content {
      sid       = "NamedKey"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [var.sse_kms_key_id]
    }
  }
}

# If the bucket is deleted and its name is taken by another account, nothing is sent there.
data "aws_iam_policy_document" "only_the_account_of_the_bucket" {
  statement {
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = ["*"]
    condition {
      test     = "StringNotEquals"
      variable = "aws:ResourceAccount"
      values   = [var.bucket_account_id == "" ? local.account : var.bucket_account_id]
    }
  }
}

data "aws_iam_policy_document" "log" {
  statement {
    actions   = ["logs:CreateLogStream", "logs:PutLogEvents"]
    resources = ["${aws_cloudwatch_log_group.this.arn}:*"]
  }
}

data "aws_iam_policy_document" "dead_letters" {
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.dead_letters.arn]
  }
}

data "aws_iam_policy_document" "traces" {
  # checkov:skip=CKV_AWS_111: X-Ray has no resources for these.
  # checkov:skip=CKV_AWS_356: Likewise.
  statement {
    actions   = ["xray:PutTraceSegments", "xray:PutTelemetryRecords"]
    resources = ["*"]
  }
}

# Lambda makes the interfaces with the role of the function.
data "aws_iam_policy_document" "network_interfaces" {
  # checkov:skip=CKV_AWS_111: As AWS's own policy for this: the interfaces have no names yet.
  # checkov:skip=CKV_AWS_356: Likewise.
  statement {
    actions = [
      "ec2:CreateNetworkInterface",
      "ec2:DeleteNetworkInterface",
      "ec2:DescribeNetworkInterfaces",
      "ec2:DescribeSubnets",
      "ec2:AssignPrivateIpAddresses",
      "ec2:UnassignPrivateIpAddresses",
    ]
    resources = ["*"]
  }
}

data "aws_iam_policy_document" "invoke" {
  statement {
    actions   = ["lambda:InvokeFunction"]
    resources = [aws_lambda_function.this.arn]
  }
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.dead_letters.arn]
  }
}
