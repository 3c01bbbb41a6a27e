"""Check run files before they are uploaded, with the reader of the job."""

from asyncagg.check.files import Checked, Verdict, check, check_content

__all__ = ("Checked", "Verdict", "check", "check_content")
