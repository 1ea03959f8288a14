"""What hospitals have, slice by slice: pictures of several pages, DICOM, volumes; and masks that lie where they lie."""
