"""Asynchronous, high-throughput aggregator of many small JSON result files on S3."""
