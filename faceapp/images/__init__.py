"""Photos as they arrive: sniff the format, hold the limits, turn upright, decode to RGB.

The bytes come from strangers. A scanner per format walks through a file's structure in a bounded number of steps before
any decoder sees it, and decoders get no metadata where they can do without. Nothing is decoded before its size is known
to be within the limits, and whatever goes wrong inside Pillow, libheif or libavif leaves this package as one of
`ImageError`'s kinds.
"""

from faceapp.images.decoding import DecodedPhoto, decode, inspect
from faceapp.images.formats import FORMATS, media_type

__all__ = ["FORMATS", "DecodedPhoto", "decode", "inspect", "media_type"]
