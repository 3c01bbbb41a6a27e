"""One window: the accumulator, the rows, and the document written and read back."""
