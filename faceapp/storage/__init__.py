"""The three buckets: photos, results, the gallery's objects."""

from faceapp.storage.s3 import (
    INCOMING,
    MAX_FILE_NAME_BYTES,
    MAX_SUFFIX,
    OCTETS,
    GalleryObject,
    IncomingPhoto,
    ResultPage,
    Storage,
    StoredPhoto,
    StoredPhotoHead,
    StoredResult,
    encode_file_name,
    first_id_after,
)

__all__ = [
    "INCOMING",
    "MAX_FILE_NAME_BYTES",
    "MAX_SUFFIX",
    "OCTETS",
    "GalleryObject",
    "IncomingPhoto",
    "ResultPage",
    "Storage",
    "StoredPhoto",
    "StoredPhotoHead",
    "StoredResult",
    "encode_file_name",
    "first_id_after",
]
