"""One root for everything that can go wrong on purpose.

Each class is one thing that a caller can act on. `code` is stable: clients, logs and the result documents in S3 carry
it. `status` is the HTTP status the web tier answers with. The docstring is the default sentence for the user.
"""

from __future__ import annotations

import inspect

import celery_sqs.errors


class FaceappError(Exception):
    """Something went wrong."""

    code = "internal_error"
    status = 500

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or inspect.getdoc(type(self)) or self.code
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[type[FaceappError], tuple[str]]:
        return type(self), (self.detail,)


class ConfigError(FaceappError):
    """A setting has a value that cannot be used."""

    code = "config_invalid"


class BadRequest(FaceappError):
    """The request could not be understood."""

    code = "bad_request"
    status = 400


class EmptyBody(BadRequest):
    """The request has no body: send one photo in the form field 'inputFile'."""

    code = "empty_body"


class MissingFile(BadRequest):
    """The form has no photo: send one in the field 'inputFile' (or 'myfile', 'file')."""

    code = "file_missing"


class BodyEncoded(FaceappError):
    """The body is compressed or otherwise encoded: send it as it is, without Content-Encoding."""

    code = "content_encoding_unsupported"
    status = 415


class TooManyFiles(FaceappError):
    """Too many files in one request."""

    code = "too_many_files"
    status = 413


class UploadTooLarge(FaceappError):
    """The upload is larger than this service accepts."""

    code = "upload_too_large"
    status = 413


class ImageError(FaceappError):
    """The photo cannot be read."""

    code = "image_unreadable"
    status = 422


class ImageUnsupported(ImageError):
    """The file is not a photo in a format this service reads (JPEG, PNG, WebP, HEIC, AVIF, GIF, BMP, TIFF)."""

    code = "image_unsupported"
    status = 415


class ImageTruncated(ImageError):
    """The photo ends in the middle of its data: it was cut off on the way."""

    code = "image_truncated"


class ImageTooLarge(ImageError):
    """The photo has more pixels than this service decodes."""

    code = "image_too_large"


class EnrolmentError(FaceappError):
    """The photo cannot be enrolled."""

    code = "enrolment_refused"
    status = 422


class NoFace(EnrolmentError):
    """There is no face in the photo."""

    code = "no_face"


class SeveralFaces(EnrolmentError):
    """There is more than one face in the photo, so nobody can tell whose name it is: crop it to one."""

    code = "several_faces"


class InvalidName(BadRequest):
    """A person's name is 1 to 64 letters, digits, spaces and . _ ' - , ( ) & ·; a letter, a digit or ' comes first."""

    code = "name_invalid"


class Unauthorized(FaceappError):
    """This needs an API key, as 'Authorization: Bearer <key>'. 'faceapp up' prints an address that holds one."""

    code = "key_missing"
    status = 401


class KeyInvalid(Unauthorized):
    """This API key is not known (any more)."""

    code = "key_invalid"


class KeysUnreadable(FaceappError):
    """The API keys cannot be read, so nobody's is good."""

    code = "keys_unreadable"
    status = 503


class RoleMissing(FaceappError):
    """This API key may not do that."""

    code = "role_missing"
    status = 403


class CrossSite(FaceappError):
    """Another site's page may not use this service."""

    code = "cross_site"
    status = 403


class RateLimited(FaceappError):
    """This API key sends more requests than it may: wait before the next."""

    code = "rate_limited"
    status = 429


class NotFound(FaceappError):
    """There is nothing here."""

    code = "not_found"
    status = 404


class RecognitionNotFound(NotFound):
    """There is no recognition with this id (results expire)."""

    code = "recognition_not_found"


class PersonNotFound(NotFound):
    """Nobody with this name is enrolled."""

    code = "person_not_found"


class KeyNotFound(NotFound):
    """There is no API key with this id."""

    code = "key_not_found"


class RecognitionTimeout(FaceappError):
    """The photo was accepted but no answer came in time: it is kept, ask for it by its id."""

    code = "recognition_timeout"
    status = 504


class RecognitionExpired(FaceappError):
    """The photo waited in the queue for longer than it may: it was not looked at, send it again."""

    code = "recognition_expired"
    status = 503


class RecognitionFailed(FaceappError):
    """No worker could finish this photo, three of them tried: it is put aside for somebody to look at."""

    code = "recognition_failed"


class RecognitionTooSlow(FaceappError):
    """Looking at the photo took longer than it may, so it is not tried again: send a smaller one."""

    code = "recognition_too_slow"
    status = 422


class Overloaded(FaceappError):
    """As many requests as this service takes wait already: try again."""

    code = "overloaded"
    status = 503


class ClientGone(BadRequest):
    """The client closed the connection before its answer was there; the photo is recognised all the same."""

    code = "client_gone"


class UploadTimeout(FaceappError):
    """The upload took too long."""

    code = "upload_timeout"
    status = 408


class StorageUnavailable(FaceappError):
    """The object storage does not answer: try again."""

    code = "storage_unavailable"
    status = 503


class BrokerUnavailable(FaceappError, celery_sqs.errors.BrokerUnavailable):
    """The queue does not answer: try again."""

    code = "broker_unavailable"
    status = 503


class ServiceUnreachable(FaceappError):
    """No faceapp answers there."""

    code = "service_unreachable"
    status = 503


class WeightsError(FaceappError):
    """The model's weights cannot be read."""

    code = "weights_unreadable"


class GalleryMismatch(FaceappError):
    """The gallery's vectors were made by another model."""

    code = "gallery_mismatch"
    status = 409


class GalleryFull(FaceappError):
    """The gallery holds as many photos as it may: forget some, or raise FACEAPP_GALLERY_MAX_PHOTOS."""

    code = "gallery_full"
    status = 507


class PersonForgotten(FaceappError):
    """The person was forgotten after these photos were sent: send them again if they are to be enrolled."""

    code = "person_forgotten"
    status = 409


class EnrolmentLost(FaceappError):
    """The photos were not enrolled, and the answer that says why is lost: send them again."""

    code = "enrolment_lost"
    status = 503


class SchemaError(FaceappError):
    """A message or document does not have the agreed shape."""

    code = "schema_mismatch"


class DeployError(FaceappError):
    """The stack could not be created or updated."""

    code = "deploy_failed"


class FleetError(FaceappError):
    """EC2 does not do what the scaler asks: a later tick tries again."""

    code = "fleet_unavailable"
    status = 503


class LocalError(FaceappError):
    """The local system could not start."""

    code = "local_start_failed"


def by_code(code: str) -> type[FaceappError]:
    """The class that carries `code`; `FaceappError` itself for a code that this version does not know."""
    todo = [FaceappError]
    while todo:
        found = todo.pop()
        if found.code == code:
            return found
        todo.extend(found.__subclasses__())
    return FaceappError
