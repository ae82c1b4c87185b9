"""Reading and writing. Inside, the world is RAS+ mm; what files say differently is turned at this border."""

from osteomorph.io.headers import Header, HeaderWarning
from osteomorph.io.images import check_ids, digest, read_header, read_image, read_labels, read_mask, read_names, write_image
from osteomorph.io.itk import read_transform, write_transform
from osteomorph.io.nifti import write_displacement
from osteomorph.io.output import OutputFolder, write_json

__all__ = [
    "Header",
    "HeaderWarning",
    "OutputFolder",
    "check_ids",
    "digest",
    "read_header",
    "read_image",
    "read_labels",
    "read_mask",
    "read_names",
    "read_transform",
    "write_displacement",
    "write_image",
    "write_json",
    "write_transform",
]
