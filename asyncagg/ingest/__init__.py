"""One run file: from bytes or a stream to a `RunResult`, or the reason to refuse it."""
