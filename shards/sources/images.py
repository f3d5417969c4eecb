"""Image files below a folder that the user names."""

from pathlib import Path

from shards.errors import DataError


def check_images(images: Path) -> None:
    """Raise `DataError` when the folder of images is not there."""
    if not images.is_dir():
        raise DataError(f"--images {images}: no such folder")


def read_image(images: Path, name: str | Path) -> bytes:
    """The bytes of one file. Raises `DataError` where the whole folder is gone, such as a disk that was unmounted.

    Else raises `OSError`: a file is missing or cannot be read, and the others are not to blame.
    """
    try:
        return (images / name).read_bytes()
    except FileNotFoundError:
        if not images.is_dir():
            raise DataError(f"{images}: the folder of images is gone; bring it back and repeat") from None
        raise
