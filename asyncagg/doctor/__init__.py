"""Checks a set-up from the outside: credentials, permissions, the store and its guards."""

from asyncagg.doctor.diagnose import diagnose

__all__ = ("diagnose",)
