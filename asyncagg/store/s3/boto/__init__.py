"""The control plane, through aioboto3. No other part of the package imports it.

It finds credentials, region and endpoint where the environment variables alone do not say. With
``data_plane=boto`` it sends all requests.
"""

from __future__ import annotations

from asyncagg.store.s3.boto.bucket import BotoBucket
from asyncagg.store.s3.boto.control import Control, S3Response, open_control
from asyncagg.store.s3.boto.multipart import BotoMultipart
from asyncagg.store.s3.boto.plane import BotoPlane

__all__ = ("BotoBucket", "BotoMultipart", "BotoPlane", "Control", "S3Response", "open_control")
