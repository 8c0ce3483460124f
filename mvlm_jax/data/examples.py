"""What a dataset is made of."""

from typing import TypedDict


class Example(TypedDict):
    """One image, encoded, with everything that is said of it."""

    image: bytes
    captions: list[str]
    image_id: str
