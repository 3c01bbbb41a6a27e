"""What the tests and the benchmarks share: stores, servers, scenarios and strategies."""
