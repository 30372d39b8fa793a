"""Who is enrolled: people and their photos in the gallery bucket, and the search for the nearest of them.

The bucket holds, with names percent-encoded:

- `photos/<name>/<photo id>`: the bytes as they were enrolled;
- `vectors/<name>/<photo id>`: what the model made of them. A photo is enrolled when this exists: it is written last
  and deleted first. One object per photo, so two writers never overwrite each other, and it stays as it is when the
  photo is enrolled again: so S3 knows since when, and of equally near people the first one is the answer;
- `version`: replaced after every change, so that one cheap call tells a worker if it must look; holds who was enrolled
  lately, so that it need not look at everybody;
- `snapshot`: all vectors in one object, so that a worker starts fast. Only a cache, checked against the listing.

A photo id is the beginning of the photo's SHA-256: enrolling a photo twice, or again after a crash, is once. Photos
that are enrolled together are all enrolled or none: what fails is taken back, what is killed is done again.

The web tier uses `People`, which reads no vectors; workers use `Gallery`, which holds them all in memory.
"""

from faceapp.people.enrolment import NewPhoto
from faceapp.people.index import Gallery
from faceapp.people.people import People, Person
from faceapp.people.table import Match

__all__ = ["Gallery", "Match", "NewPhoto", "People", "Person"]
