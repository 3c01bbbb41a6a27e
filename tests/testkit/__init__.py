"""What tests and benchmarks share: stores, servers, scenarios and strategies."""
