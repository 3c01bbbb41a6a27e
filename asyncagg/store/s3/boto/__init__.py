"""The control plane: the one place that imports aioboto3.

It finds credentials, region and endpoint, sends multipart uploads, and can send everything else too
(``data_plane=boto``).
"""

from __future__ import annotations

from asyncagg.store.s3.boto.control import Answer, Control, Identity, Location, open_control
from asyncagg.store.s3.boto.multipart import BotoMultipart
from asyncagg.store.s3.boto.plane import BotoPlane

__all__ = (
    "Answer",
    "BotoMultipart",
    "BotoPlane",
    "Control",
    "Identity",
    "Location",
    "open_control",
)
