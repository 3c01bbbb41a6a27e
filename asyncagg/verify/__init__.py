"""Verification: the aggregates are computed again, and the promises are checked."""

from asyncagg.verify.audit import verify

__all__ = ("verify",)
