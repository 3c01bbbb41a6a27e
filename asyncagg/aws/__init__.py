"""The Lambda's surroundings: the events that start it and the metrics that it emits."""
