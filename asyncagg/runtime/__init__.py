"""What every layer runs on: task groups, limits, logs and the event loop."""
