# Alarms, dashboard and saved queries; docs/how-to/deploy.md says what to do about each alarm.

locals {
  of_function = { FunctionName = aws_lambda_function.this.function_name }
  of_queue    = { QueueName = aws_sqs_queue.dead_letters.name }
  of_service  = { service = var.name }
  alarm_arns  = { for name, alarm in aws_cloudwatch_metric_alarm.this : name => alarm.arn }
  topics      = var.alarm_topic_arn == "" ? [] : [var.alarm_topic_arn]

  alarms = {
    Errors = {
      description = "Invocations fail; see \"errors\" in docs/how-to/deploy.md."
      namespace   = "AWS/Lambda"
      metric      = "Errors"
      dimensions  = local.of_function
      statistic   = "Sum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 3
      datapoints  = 2
    }
    Throttles = {
      description = "An invocation was due while another was running; see \"throttles\"."
      namespace   = "AWS/Lambda"
      metric      = "Throttles"
      dimensions  = local.of_function
      statistic   = "Sum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 2
      datapoints  = 2
    }
    FailedWindows = {
      description = "An aggregate is damaged or foreign; see \"failed windows\"."
      namespace   = "asyncagg"
      metric      = "WindowsFailed"
      dimensions  = local.of_service
      statistic   = "Maximum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 1
      datapoints  = 1
    }
    Backlog = {
      description = "Runs do not get through the inbox; see \"backlog\"."
      namespace   = "asyncagg"
      metric      = "Complete"
      dimensions  = local.of_service
      statistic   = "Minimum"
      comparison  = "LessThanThreshold"
      periods     = 2
      datapoints  = 2
    }
    Quarantined = {
      description = "Files were quarantined; see \"quarantined files\"."
      namespace   = "asyncagg"
      metric      = "FilesQuarantined"
      dimensions  = local.of_service
      statistic   = "Sum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 1
      datapoints  = 1
    }
    Deferred = {
      description = "Files stay in the inbox for several runs; see \"deferred files\"."
      namespace   = "asyncagg"
      metric      = "FilesDeferred"
      dimensions  = local.of_service
      statistic   = "Sum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 2
      datapoints  = 2
    }
    DeadLetters = {
      description = "Events went to the dead-letter queue; see \"dead letters\"."
      namespace   = "AWS/SQS"
      metric      = "ApproximateNumberOfMessagesVisible"
      dimensions  = local.of_queue
      statistic   = "Maximum"
      comparison  = "GreaterThanOrEqualToThreshold"
      periods     = 1
      datapoints  = 1
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "this" {
  for_each            = local.alarms
  alarm_name          = "${var.name}-${each.key}"
  alarm_description   = each.value.description
  namespace           = each.value.namespace
  metric_name         = each.value.metric
  dimensions          = each.value.dimensions
  statistic           = each.value.statistic
  comparison_operator = each.value.comparison
  threshold           = 1
  # One period is one schedule, so each has the data of one run.
  period              = 60 * var.schedule_minutes
  evaluation_periods  = each.value.periods
  datapoints_to_alarm = each.value.datapoints
  treat_missing_data  = "notBreaching"
  alarm_actions       = local.topics
  ok_actions          = local.topics
}

resource "aws_cloudwatch_metric_alarm" "oldest_file" {
  alarm_name          = "${var.name}-OldestFile"
  alarm_description   = "Run files wait too long, or no run finishes; see \"oldest file\"."
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  evaluation_periods  = 3
  datapoints_to_alarm = 3
  # No data means that no run finished. Before the schedule is enabled, that is as it should be.
  treat_missing_data = var.schedule_state == "ENABLED" ? "breaching" : "notBreaching"
  alarm_actions      = local.topics
  ok_actions         = local.topics

  metric_query {
    id          = "age"
    return_data = false
    metric {
      namespace   = "asyncagg"
      metric_name = "OldestFileAge"
      dimensions  = local.of_service
      stat        = "Maximum"
      period      = 60 * var.schedule_minutes
    }
  }
  # A file waits for the end of its window and for the next run; six runs are too many.
  metric_query {
    id          = "late"
    label       = "Older than the window and six runs"
    expression  = "IF(age > 60 * (${var.window_minutes} + 6 * ${var.schedule_minutes}), 1, 0)"
    return_data = true
  }
}

# --------------------------------------------------------------------------- saved queries

locals {
  queries = {
    "slow windows" = <<-QUERY
      fields @timestamp, window, revision, seconds, counted, bytes, function_request_id
      | filter message = "window"
      | sort seconds desc
      | limit 50
    QUERY
    "quarantined files by reason" = <<-QUERY
      filter message = "quarantined"
      | parse reason /^(?<why>.+?)(, got | at byte |$)/
      | stats count(*) as files, latest(key) as last_key by why
      | sort files desc
      | limit 50
    QUERY
    "throttling by hour" = <<-QUERY
      filter message = "run"
      | stats sum(throttled_retries) as throttled, sum(timed_out_retries) as timed_out,
          sum(reset_retries) as resets, sum(other_retries) as others,
          sum(deferred) as files_deferred, max(backlog) as files_left by bin(1h)
      | sort throttled desc
      | limit 50
    QUERY
    "story of one file" = <<-QUERY
      fields @timestamp, level, message, reason, target, operation, function_request_id
      | filter key = "runs/REPLACE.json"
      | sort @timestamp asc
      | limit 100
    QUERY
  }
}

resource "aws_cloudwatch_query_definition" "this" {
  for_each        = local.queries
  name            = "${var.name}/${each.key}"
  log_group_names = [aws_cloudwatch_log_group.this.name]
  query_string    = each.value
}

# ---------------------------------------------------------------------------- the dashboard

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name
  dashboard_body = <<-JSON
    {"widgets": [
      {"type": "alarm", "x": 0, "y": 0, "width": 24, "height": 3, "properties": {
        "title": "Alarms", "alarms": [
          "${local.alarm_arns.Errors}", "${local.alarm_arns.Throttles}", "${local.alarm_arns.FailedWindows}",
          "${local.alarm_arns.Backlog}", "${aws_cloudwatch_metric_alarm.oldest_file.arn}", "${local.alarm_arns.Quarantined}", "${local.alarm_arns.Deferred}",
          "${local.alarm_arns.DeadLetters}"]}},
      {"type": "metric", "x": 0, "y": 3, "width": 12, "height": 6, "properties": {
        "title": "Files", "region": "${data.aws_region.this.name}", "period": 300, "stat": "Sum", "metrics": [
          ["asyncagg", "FilesCounted", "service", "${var.name}"],
          [".", "FilesArchived", ".", "."], [".", "FilesLate", ".", "."],
          [".", "FilesLeft", ".", "."], [".", "FilesDeferred", ".", "."],
          [".", "FilesQuarantined", ".", "."], [".", "FilesFailed", ".", "."],
          [".", "Backlog", ".", "."]]}},
      {"type": "metric", "x": 12, "y": 3, "width": 12, "height": 6, "properties": {
        "title": "Age of the oldest run file, in seconds; failed windows",
        "region": "${data.aws_region.this.name}", "period": 300, "stat": "Maximum", "metrics": [
          ["asyncagg", "OldestFileAge", "service", "${var.name}"],
          [".", "OldestDeferred", ".", "."],
          [".", "WindowsFailed", ".", ".", {"yAxis": "right"}]]}},
      {"type": "metric", "x": 0, "y": 9, "width": 12, "height": 6, "properties": {
        "title": "Seconds by step", "region": "${data.aws_region.this.name}", "period": 300, "stat": "Sum",
        "stacked": true, "metrics": [
          ["asyncagg", "ListSeconds", "service", "${var.name}"],
          [".", "LoadSeconds", ".", "."], [".", "FetchSeconds", ".", "."],
          [".", "CommitSeconds", ".", "."], [".", "ArchiveSeconds", ".", "."]]}},
      {"type": "metric", "x": 12, "y": 9, "width": 12, "height": 6, "properties": {
        "title": "Duration in ms, CPU in seconds", "region": "${data.aws_region.this.name}", "period": 300,
        "stat": "Maximum", "metrics": [
          ["AWS/Lambda", "Duration", "FunctionName", "${aws_lambda_function.this.function_name}"],
          ["asyncagg", "CpuSeconds", "service", "${var.name}", {"yAxis": "right"}]],
        "annotations": {"horizontal": [{"label": "timeout", "value": 300000}]}}},
      {"type": "metric", "x": 0, "y": 15, "width": 8, "height": 6, "properties": {
        "title": "Peak memory", "region": "${data.aws_region.this.name}", "period": 300, "stat": "Maximum",
        "metrics": [["asyncagg", "PeakMemory", "service", "${var.name}"]]}},
      {"type": "metric", "x": 8, "y": 15, "width": 8, "height": 6, "properties": {
        "title": "Requests", "region": "${data.aws_region.this.name}", "period": 300, "stat": "Sum",
        "metrics": [
          ["asyncagg", "GetRequests", "service", "${var.name}"],
          [".", "CopyRequests", ".", "."], [".", "PutRequests", ".", "."],
          [".", "ListRequests", ".", "."], [".", "HeadRequests", ".", "."],
          [".", "DeleteRequests", ".", "."], [".", "ThrottledRetries", ".", "."],
          [".", "TimedOutRetries", ".", "."], [".", "ResetRetries", ".", "."],
          [".", "OtherRetries", ".", "."]]}},
      {"type": "metric", "x": 16, "y": 15, "width": 8, "height": 6, "properties": {
        "title": "US dollars of requests a day", "region": "${data.aws_region.this.name}", "period": 86400,
        "stat": "Sum", "metrics": [
          ["asyncagg", "RequestCost", "service", "${var.name}"]]}}
    ]}
  JSON
}
