"""Folders of object stores, gs://BUCKET/PATH and s3://BUCKET/PATH, in the place of directories."""
