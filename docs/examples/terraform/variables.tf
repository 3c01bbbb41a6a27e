variable "name" {
  description = "Name of the function, and prefix of the names of everything else."
  type        = string
  default     = "asyncagg"
}

variable "code_bucket" {
  description = "Bucket with the zips, in the region of the stack."
  type        = string
}

variable "code_version" {
  description = "The function uses asyncagg/<code_version>/lambda-<architecture>.zip of that bucket."
  type        = string
}

variable "architecture" {
  type    = string
  default = "arm64"
}

variable "bucket_name" {
  description = "An existing bucket with run files; leave empty to create a new one."
  type        = string
  default     = ""
}

variable "bucket_account_id" {
  description = "The account that owns the bucket; empty for the account of the stack."
  type        = string
  default     = ""
}

variable "versioning" {
  description = "Versioning of a new bucket. Each archived file then also stays in the inbox as an old version."
  type        = string
  default     = "Disabled"
}

variable "noncurrent_days" {
  description = "With versioning, old versions are deleted after so many days."
  type        = number
  default     = 30
}

variable "kms_key_arn" {
  description = "ARN of the KMS key that encrypts the objects; empty if S3 manages the key."
  type        = string
  default     = ""
}

variable "sse" {
  description = "Encryption that each write asks for, if the bucket's policy demands it: AES256, aws:kms or aws:kms:dsse."
  type        = string
  default     = ""
}

variable "sse_kms_key_id" {
  description = "ARN of the KMS key that each write names with sse aws:kms or aws:kms:dsse."
  type        = string
  default     = ""
}

variable "expected_bucket_owner" {
  description = "The account that each request names as the owner of the bucket; S3 refuses it otherwise."
  type        = string
  default     = ""
}

variable "runs_prefix" {
  type    = string
  default = "runs/"

  validation {
    condition     = can(regex("^[^/*?$][^*?$]*/$", var.runs_prefix))
    error_message = "A prefix ends with / and does not start with /, and has no *, ? or $."
  }
}

variable "aggregate_prefix" {
  type    = string
  default = "aggregates/"

  validation {
    condition     = can(regex("^[^/*?$][^*?$]*/$", var.aggregate_prefix))
    error_message = "A prefix ends with / and does not start with /, and has no *, ? or $."
  }
}

variable "archive_prefix" {
  type    = string
  default = "archive/"

  validation {
    condition     = can(regex("^[^/*?$][^*?$]*/$", var.archive_prefix))
    error_message = "A prefix ends with / and does not start with /, and has no *, ? or $."
  }
}

variable "archive_format" {
  description = "Counted files are archived as an object each, or many in one ZIP."
  type        = string
  default     = "files"
}

variable "archive_storage_class" {
  description = "S3's storage class of archived files and packs."
  type        = string
  default     = "STANDARD"
}

variable "quarantine_prefix" {
  type    = string
  default = "quarantine/"

  validation {
    condition     = can(regex("^[^/*?$][^*?$]*/$", var.quarantine_prefix))
    error_message = "A prefix ends with / and does not start with /, and has no *, ? or $."
  }
}

variable "window_minutes" {
  description = "Length of a window; it divides a day."
  type        = number
  default     = 5

  validation {
    condition     = 1440 % var.window_minutes == 0
    error_message = "A window divides a day: such as 5, 15 or 60."
  }
}

variable "window_by" {
  type    = string
  default = "name"
}

variable "schedule_minutes" {
  description = "A run starts this often. The periods and thresholds of the alarms follow from it."
  type        = number
  default     = 5

  validation {
    condition     = contains([1, 5, 10, 15, 30, 60], var.schedule_minutes)
    error_message = "Expected 1, 5, 10, 15, 30 or 60."
  }
}

variable "schedule_state" {
  type    = string
  default = "ENABLED"
}

variable "log_level" {
  type    = string
  default = "info"
}

variable "log_retention_days" {
  type    = number
  default = 30
}

variable "alarm_topic_arn" {
  description = "SNS topic that the alarms notify; empty for no notifications."
  type        = string
  default     = ""
}

variable "tracing" {
  description = "Active sends a trace of each invocation to X-Ray."
  type        = string
  default     = "PassThrough"
}

variable "memory_size" {
  description = "More memory also gives more CPU, and so more files per run."
  type        = number
  default     = 128
}

variable "ephemeral_storage_size" {
  description = "MB for rows and references that do not fit in memory."
  type        = number
  default     = 512
}

variable "concurrency" {
  description = "Requests in flight."
  type        = number
  default     = 32
}

variable "chunk_files" {
  description = "Run files held at a time; a commit may have ten times more."
  type        = number
  default     = 10000
}

variable "max_inflight_bytes" {
  description = "Bytes of file contents in memory at a time."
  type        = number
  default     = 16777216
}

variable "stream_bytes" {
  description = "A larger run file is parsed as a stream."
  type        = number
  default     = 4194304
}

variable "max_file_bytes" {
  description = "A larger run file, as stored or unzipped, is quarantined."
  type        = number
  default     = 268435456
}

variable "spool_bytes" {
  description = "Rows of an aggregate in memory, before a temporary file is used."
  type        = number
  default     = 1048576
}

variable "retry_attempts" {
  description = "Attempts of one request, the first included."
  type        = number
  default     = 8
}

variable "reserve_concurrency" {
  description = "false for an account without concurrency to reserve; runs may then overlap, which is safe."
  type        = bool
  default     = true
}

variable "permissions_boundary_arn" {
  description = "Permissions boundary of both roles; empty for none."
  type        = string
  default     = ""
}

variable "log_kms_key_arn" {
  description = "ARN of the KMS key that encrypts the log, and lets CloudWatch Logs use it; empty for AWS's key."
  type        = string
  default     = ""
}

variable "subnet_ids" {
  description = "Subnets with a way to S3, such as a gateway endpoint; empty for no VPC."
  type        = list(string)
  default     = []
}

variable "security_group_ids" {
  description = "Security groups that allow HTTPS to S3; needed with subnet_ids."
  type        = list(string)
  default     = []
}
