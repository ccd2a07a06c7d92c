"""A VM's disk made, and removed, through libvirt's storage pools; it all blocks.

Only a template that gives a size or a base image asks for a disk: any other one is
expected to be there. A volume that exists is left as it is, unless it is uploaded.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Any, Final
from xml.etree.ElementTree import Element, SubElement

from trustfabric.domain.vms import VolumeTemplate
from trustfabric.drivers import libvirt_errors as codes
from trustfabric.drivers.libvirt_xml import image_format, render
from trustfabric.errors import InvalidError

_BUILD: Final = 1
"""Make the pool's directory too."""
_EXISTS: Final = 90
_CAPACITY: Final = 1
_CHUNK: Final = 64 << 10


def ensure(error: type[Exception], conn: Any, volume: VolumeTemplate) -> bool:
    """Make the volume unless it exists; tell whether that was needed."""
    if volume.base_image is not None and volume.driver != "qcow2":
        raise InvalidError(f"{volume.path}: only a qcow2 volume has a base image")
    pool = _pool(error, conn, volume)
    name = PurePosixPath(volume.path).name
    if _found(error, lambda: pool.storageVolLookupByName(name)) is not None:
        return False
    xml = _volume_xml(volume, _capacity(error, conn, volume))
    return _unless_exists(error, lambda: pool.createXML(xml, 0))


def upload(
    error: type[Exception], conn: Any, volume: VolumeTemplate, content: bytes
) -> Any:
    """Make the volume anew with this content; return libvirt's object of it.

    Nobody may be using it: what is there goes.
    """
    pool = _pool(error, conn, volume)
    name = PurePosixPath(volume.path).name
    old = _found(error, lambda: pool.storageVolLookupByName(name))
    if old is not None:
        _found(error, lambda: old.delete(0))
    made = pool.createXML(_volume_xml(volume, len(content)), 0)
    stream = conn.newStream(0)
    try:
        made.upload(stream, 0, len(content), 0)
        view = memoryview(content)
        while view:
            view = view[stream.send(bytes(view[:_CHUNK])) :]
        stream.finish()
    except BaseException:
        _quietly(error, stream.abort)
        _quietly(error, lambda: made.delete(0))
        raise
    return made


def remove(error: type[Exception], conn: Any, volume: VolumeTemplate) -> None:
    """Delete the volume; fine when it isn't there."""
    pool = _found(error, lambda: _pool(error, conn, volume))
    name = PurePosixPath(volume.path).name
    if pool is None:
        return
    made = _found(error, lambda: pool.storageVolLookupByName(name))
    if made is not None:
        _found(error, lambda: made.delete(0))


def _pool(error: type[Exception], conn: Any, volume: VolumeTemplate) -> Any:
    """Return the pool it names, else the one of its directory, made where missing."""
    if volume.pool is not None:
        return conn.storagePoolLookupByName(volume.pool)
    folder = str(PurePosixPath(volume.path).parent)
    pool = _found(error, lambda: conn.storagePoolLookupByTargetPath(folder))
    if pool is not None:
        return pool
    element = Element("pool", type="dir")
    digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
    SubElement(element, "name").text = f"trustfabric-{digest}"
    SubElement(SubElement(element, "target"), "path").text = folder
    _unless_exists(error, lambda: conn.storagePoolCreateXML(render(element), _BUILD))
    return conn.storagePoolLookupByTargetPath(folder)


def _capacity(error: type[Exception], conn: Any, volume: VolumeTemplate) -> int:
    """Return bytes: the size it gives, else that of its base image."""
    if volume.size_gib is not None:
        return volume.size_gib << 30
    base = _found(error, lambda: conn.storageVolLookupByPath(volume.base_image))
    if base is None:
        raise InvalidError(
            f"{volume.base_image} is in no storage pool: its size is not known, "
            "so the volume template needs size_gib"
        )
    return int(base.info()[_CAPACITY])


def _volume_xml(volume: VolumeTemplate, capacity: int) -> str:
    element = Element("volume")
    SubElement(element, "name").text = PurePosixPath(volume.path).name
    SubElement(element, "capacity", unit="bytes").text = str(capacity)
    target = SubElement(element, "target")
    SubElement(target, "format", type=volume.driver)
    if volume.base_image is not None:
        backing = SubElement(element, "backingStore")
        SubElement(backing, "path").text = volume.base_image
        SubElement(backing, "format", type=image_format(volume.base_image))
    else:
        SubElement(element, "allocation").text = "0"
    return render(element)


def _found(error: type[Exception], look_up: Callable[[], Any]) -> Any | None:
    try:
        return look_up()
    except error as failure:
        if _code(failure) in {codes.NO_STORAGE_POOL, codes.NO_STORAGE_VOL}:
            return None
        raise


def _unless_exists(error: type[Exception], make: Callable[[], object]) -> bool:
    """Make it; False, and fine, when somebody else just did."""
    try:
        make()
    except error as failure:
        if _code(failure) not in {_EXISTS, codes.OPERATION_FAILED}:
            raise
        return False
    return True


def _quietly(error: type[Exception], act: Callable[[], object]) -> None:
    with suppress(error):
        act()


def _code(error: Any) -> int:
    return int(error.get_error_code() or 0)
