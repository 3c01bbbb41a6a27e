"""The AWS Lambda interface: the events that start a run and the metrics that it emits."""
