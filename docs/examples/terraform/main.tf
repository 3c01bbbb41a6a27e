# The stack of template.yaml for Terraform and OpenTofu: see docs/how-to/deploy.md.

terraform {
  required_version = ">= 1.6"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.83"
    }
  }
}

data "aws_caller_identity" "this" {}
data "aws_partition" "this" {}
data "aws_region" "this" {}

locals {
  account    = data.aws_caller_identity.this.account_id
  new_bucket = var.bucket_name == ""
  bucket     = local.new_bucket ? aws_s3_bucket.this[0].id : var.bucket_name
  bucket_arn = "arn:${data.aws_partition.this.partition}:s3:::${local.bucket}"
  boundary   = var.permissions_boundary_arn == "" ? null : var.permissions_boundary_arn
  rate       = var.schedule_minutes == 1 ? "rate(1 minute)" : "rate(${var.schedule_minutes} minutes)"
  versioning = var.versioning == "Enabled"

  prefixes = {
    runs       = var.runs_prefix
    aggregates = var.aggregate_prefix
    archive    = var.archive_prefix
    quarantine = var.quarantine_prefix
  }
  # The program refuses a prefix that lies in one of these.
  closed = {
    archive    = var.archive_prefix
    quarantine = var.quarantine_prefix
    rollups    = "rollups/"
    work       = "work/"
  }
}

# ------------------------------------------------------------------------------- the bucket

resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV_AWS_19: The configuration below encrypts it; checkov does not follow the count.
  # checkov:skip=CKV_AWS_18: An access log costs as much as the requests; CloudTrail is the operator's choice.
  # checkov:skip=CKV_AWS_21: Versioning is a variable; off by default, as each archived file would be kept twice.
  # checkov:skip=CKV_AWS_144: A second region is the operator's choice.
  # checkov:skip=CKV_AWS_145: S3 encrypts it with its own key, or with the one that is given.
  # checkov:skip=CKV2_AWS_62: The schedule starts the function, not events of the bucket.
  count         = local.new_bucket ? 1 : 0
  bucket_prefix = "${var.name}-"

  lifecycle {
    prevent_destroy = true
  }
}

resource "aws_s3_bucket_ownership_controls" "this" {
  count  = local.new_bucket ? 1 : 0
  bucket = local.bucket
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  count                   = local.new_bucket ? 1 : 0
  bucket                  = local.bucket
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  count  = local.new_bucket ? 1 : 0
  bucket = local.bucket
  rule {
    bucket_key_enabled = var.kms_key_arn != ""
    apply_server_side_encryption_by_default {
      sse_algorithm     = var.kms_key_arn == "" ? "AES256" : "aws:kms"
      kms_master_key_id = var.kms_key_arn == "" ? null : var.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  count  = local.new_bucket ? 1 : 0
  bucket = local.bucket
  rule {
    id     = "abandoned-uploads"
    status = "Enabled"
    filter {}
    abort_incomplete_multipart_upload {
      days_after_initiation = 1
    }
  }
  rule {
    id     = "old-versions"
    status = local.versioning ? "Enabled" : "Disabled"
    filter {}
    noncurrent_version_expiration {
      noncurrent_days = var.noncurrent_days
    }
    expiration {
      expired_object_delete_marker = true
    }
  }
}

resource "aws_s3_bucket_versioning" "this" {
  count  = local.new_bucket && local.versioning ? 1 : 0
  bucket = local.bucket
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_policy" "this" {
  count  = local.new_bucket ? 1 : 0
  bucket = local.bucket
  policy = data.aws_iam_policy_document.bucket.json
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "OnlyTls"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.bucket_arn, "${local.bucket_arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}

# ----------------------------------------------------------------------------- the function

resource "aws_lambda_function" "this" {
  # checkov:skip=CKV_AWS_116: The event invoke config has the queue.
  # checkov:skip=CKV_AWS_117: A VPC is a variable; the function talks to S3 only.
  # checkov:skip=CKV_AWS_173: The environment has no secrets; AWS's own key encrypts it.
  # checkov:skip=CKV_AWS_272: The zip comes from a bucket of the operator, who may sign it.
  # checkov:skip=CKV_AWS_50: Tracing is a variable.
  function_name                  = var.name
  description                    = "Folds run files into aggregates and archives them."
  runtime                        = "python3.13"
  handler                        = "asyncagg.handler.lambda_handler"
  s3_bucket                      = var.code_bucket
  s3_key                         = "asyncagg/${var.code_version}/lambda-${var.architecture}.zip"
  architectures                  = [var.architecture]
  memory_size                    = var.memory_size
  timeout                        = 300
  reserved_concurrent_executions = var.reserve_concurrency ? 1 : -1
  role                           = aws_iam_role.function.arn

  ephemeral_storage {
    size = var.ephemeral_storage_size
  }
  logging_config {
    log_format = "Text" # the lines are JSON already
    log_group  = aws_cloudwatch_log_group.this.name
  }
  tracing_config {
    mode = var.tracing
  }
  dynamic "vpc_config" {
    for_each = length(var.subnet_ids) > 0 ? [1] : []
    content {
      subnet_ids         = var.subnet_ids
      security_group_ids = var.security_group_ids
    }
  }
  environment {
    variables = {
      ASYNCAGG_STORE                 = "s3://${local.bucket}"
      ASYNCAGG_RUNS_PREFIX           = var.runs_prefix
      ASYNCAGG_AGGREGATE_PREFIX      = var.aggregate_prefix
      ASYNCAGG_ARCHIVE_PREFIX        = var.archive_prefix
      ASYNCAGG_ARCHIVE_FORMAT        = var.archive_format
      ASYNCAGG_ARCHIVE_STORAGE_CLASS = var.archive_storage_class
      ASYNCAGG_SSE                   = var.sse
      ASYNCAGG_SSE_KMS_KEY_ID        = var.sse_kms_key_id
      ASYNCAGG_EXPECTED_BUCKET_OWNER = var.expected_bucket_owner
      ASYNCAGG_QUARANTINE_PREFIX     = var.quarantine_prefix
      ASYNCAGG_WINDOW_MINUTES        = var.window_minutes
      ASYNCAGG_WINDOW_BY             = var.window_by
      ASYNCAGG_CONCURRENCY           = var.concurrency
      ASYNCAGG_CHUNK_FILES           = var.chunk_files
      ASYNCAGG_MAX_INFLIGHT_BYTES    = var.max_inflight_bytes
      ASYNCAGG_STREAM_BYTES          = var.stream_bytes
      ASYNCAGG_MAX_FILE_BYTES        = var.max_file_bytes
      ASYNCAGG_SPOOL_BYTES           = var.spool_bytes
      ASYNCAGG_RETRY_ATTEMPTS        = var.retry_attempts
      ASYNCAGG_LOG_LEVEL             = var.log_level
      POWERTOOLS_SERVICE_NAME        = var.name
      MALLOC_MMAP_THRESHOLD_         = "262144" # see docs/explanation/memory.md
    }
  }

  lifecycle {
    precondition {
      condition = alltrue(flatten([
        for name, prefix in local.prefixes : [
          for other, closed in local.closed : name == other || !startswith(prefix, closed)
        ]
      ]))
      error_message = "A prefix lies in archive_prefix, quarantine_prefix, rollups/ or work/."
    }
    precondition {
      condition     = !local.new_bucket || var.bucket_account_id == ""
      error_message = "bucket_account_id is for an existing bucket; name it in bucket_name."
    }
    precondition {
      condition     = (length(var.subnet_ids) > 0) == (length(var.security_group_ids) > 0)
      error_message = "Give both subnet_ids and security_group_ids, or none of them."
    }
  }
}

resource "aws_lambda_function_event_invoke_config" "this" {
  function_name = aws_lambda_function.this.function_name
  # The next scheduled run does the work of a failed one: no need to retry for hours.
  maximum_retry_attempts       = 1
  maximum_event_age_in_seconds = 900
  destination_config {
    on_failure {
      destination = aws_sqs_queue.dead_letters.arn
    }
  }
}

resource "aws_scheduler_schedule" "this" {
  # checkov:skip=CKV_AWS_297: The event has no secrets.
  name_prefix         = "${var.name}-"
  schedule_expression = local.rate
  state               = var.schedule_state
  flexible_time_window {
    mode = "OFF"
  }
  target {
    arn      = aws_lambda_function.this.arn
    role_arn = aws_iam_role.schedule.arn
    # The scheduled time, not the time of the attempt: a retried event does the same work.
    # Not jsonencode: it would escape the < and >.
    input = "{\"source\": \"aws.scheduler\", \"id\": \"<aws.scheduler.execution-id>\", \"time\": \"<aws.scheduler.scheduled-time>\"}"
    retry_policy {
      maximum_retry_attempts       = 3
      maximum_event_age_in_seconds = 300
    }
    dead_letter_config {
      arn = aws_sqs_queue.dead_letters.arn
    }
  }
}

resource "aws_cloudwatch_log_group" "this" {
  # checkov:skip=CKV_AWS_158: The key is a variable.
  # checkov:skip=CKV_AWS_338: The time is a variable.
  name              = "/${var.name}/log"
  retention_in_days = var.log_retention_days
  kms_key_id        = var.log_kms_key_arn == "" ? null : var.log_kms_key_arn
}

resource "aws_sqs_queue" "dead_letters" {
  name_prefix               = "${var.name}-dead-letters-"
  message_retention_seconds = 1209600
  sqs_managed_sse_enabled   = true
}

output "function_name" {
  value = aws_lambda_function.this.function_name
}

output "bucket_name" {
  value = local.bucket
}

output "dead_letters_url" {
  value = aws_sqs_queue.dead_letters.url
}

output "log_group_name" {
  value = aws_cloudwatch_log_group.this.name
}
