"""Recognition: from a photo's bytes to faces and their descriptors. Knows no AWS, no Celery, no Flask."""

from faceapp.recognition.facenet import load_course_gallery
from faceapp.recognition.pipeline import DescribedFace, Description, EnrolledFace, Recogniser

__all__ = ["DescribedFace", "Description", "EnrolledFace", "Recogniser", "load_course_gallery"]
