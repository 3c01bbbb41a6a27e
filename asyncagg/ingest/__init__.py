"""One run file: from its bytes, whole or streamed, to a `RunResult` or the reason it is invalid."""
