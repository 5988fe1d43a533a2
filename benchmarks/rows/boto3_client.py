"""The client of the rows that read with boto3, as few copies and checksums as it can be told."""

import boto3
from botocore.config import Config

client = boto3.client(
    "s3",
    config=Config(
        # A put then goes out as it is, which spares the row a checksum and its chunks.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": "path"},
    ),
)
