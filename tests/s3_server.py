"""An S3 server on loopback for tests."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "blemish"


@contextmanager
def moto_s3() -> Iterator[dict[str, str]]:
    """Run an empty S3 server with one bucket, `BUCKET`, on a free loopback port.

    Yields:
        The environment variables that lead to it; the caller sets them.
    """
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        # All servers of a process share their objects: those of an earlier one go.
        urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
        env = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
            region_name=env["AWS_DEFAULT_REGION"],
        ).create_bucket(Bucket=BUCKET)
        yield env
    finally:
        server.stop()
