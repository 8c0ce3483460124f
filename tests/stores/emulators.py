"""Servers on loopback that answer as Cloud Storage and as S3 do, each with a bucket named `bucket`.

    python emulators.py {gs,s3} PORT

It prints `ready`. It is run by a Python of its own, `make slow` says which: moto needs other versions than the project.
"""

import logging
import sys
import threading
from http import HTTPStatus


def serve_gs(port):
    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects

    def generation(request, storage, name):
        try:
            return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
        except NotFound:
            return "0"

    upload, download = objects._media_upload, objects.download

    def conditional_upload(request, response, storage):
        """The emulator knows no conditions."""
        wanted = request.query.get("ifGenerationMatch")
        if wanted and wanted[0] != generation(request, storage, request.query["name"][0]):
            response.status = HTTPStatus.PRECONDITION_FAILED
            return
        upload(request, response, storage)

    def stamped_download(request, response, storage, *arguments, **options):
        """It does not say which generation it sends."""
        response["x-goog-generation"] = generation(request, storage, request.params["object_id"])
        download(request, response, storage, *arguments, **options)

    def ranged_list(request, response, storage, *_, **__):
        """It lists the whole bucket where a range of names is asked for."""
        start, end = (request.query.get(name, [""])[0] for name in ("startOffset", "endOffset"))
        try:
            files, _ = storage.get_file_list(request.params["bucket_name"], None, None, None)
        except NotFound:
            response.status = HTTPStatus.NOT_FOUND
            response.json({"error": {"code": 404, "message": "The specified bucket does not exist."}})
            return
        items = [file for file in files if start <= file["name"] and (not end or file["name"] < end)]
        response.json({"kind": "storage#objects", "items": items})

    objects._media_upload, objects.download, objects.ls = conditional_upload, stamped_download, ranged_list
    from gcp_storage_emulator.server import create_server  # which takes the handlers as they are now

    create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket").start()


def serve_s3(port):
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",
    )
    client.create_bucket(Bucket="bucket")


if __name__ == "__main__":
    {"gs": serve_gs, "s3": serve_s3}[sys.argv[1]](int(sys.argv[2]))
    print("ready", flush=True)
    threading.Event().wait()
