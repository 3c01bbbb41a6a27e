"""What the layers above run on: task groups, logs, the event loop."""
