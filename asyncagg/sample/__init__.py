"""Sample run files, and a demonstration of the whole job on them."""

from asyncagg.sample.run_files import SampleTotals, last_windows, samples, write_samples

__all__ = ("SampleTotals", "last_windows", "samples", "write_samples")
