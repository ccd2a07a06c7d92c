"""The disc that cloud-init looks for: an ISO 9660 image labelled `cidata`."""

from collections.abc import Mapping
from io import BytesIO

from pycdlib import PyCdlib


def seed_iso(files: Mapping[str, bytes]) -> bytes:
    """Return an image with these files, by their names in Rock Ridge and Joliet."""
    iso = PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    try:
        for name, content in files.items():
            plain = name.upper().replace("-", "")[:8]
            iso.add_fp(
                BytesIO(content),
                len(content),
                f"/{plain}.;1",
                rr_name=name,
                joliet_path=f"/{name}",
            )
        out = BytesIO()
        iso.write_fp(out)
    finally:
        iso.close()
    return out.getvalue()
