"""DICOM, by pydicom: values in their units (Hounsfield, counts), white high. Of patients nothing is kept or said."""

import contextlib
import io
import itertools
import logging
import zlib
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headstart.images.bands import Depth
from headstart.images.codestreams import jpeg, jpeg_2000
from headstart.images.decode import BadImageError
from headstart.images.stack import Stack, Values, loaded, only_whole

if TYPE_CHECKING:
    from pydicom import Dataset

COLOURS = ("Red", "Green", "Blue")
PIXEL_TAGS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *(f"{colour}PaletteColorLookupTable{what}" for colour in COLOURS for what in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in COLOURS),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
"""What is read of a file: no value of another element is looked at."""
PIXEL_DATA = [
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
]
DEFLATED, INFLATED = b"1.2.840.10008.1.2.1.99", 2**28
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def _load() -> ModuleType:
    import pydicom  # noqa: PLC0415  (an extra of its own)
    from pydicom.pixels.decoders.base import get_decoder  # noqa: PLC0415

    from headstart.images.dicom_jpeg import SYNTAXES  # noqa: PLC0415  (imports what may be missing)

    for syntax in SYNTAXES:
        with contextlib.suppress(ValueError):  # it has been added
            plugin = ("headstart.images.dicom_jpeg", "decode_frame")
            get_decoder(syntax).add_plugin("imagecodecs", plugin)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # it would quote values; what matters is raised
    return pydicom


def open_dicom(content: bytes) -> Stack:
    """Read the header; raises BadImageError, and what pydicom raises for damaged files."""
    pydicom = loaded("DICOM", _load)
    _check_inflated(content)
    header = _read(pydicom, content, PIXEL_TAGS, pixels=False)
    if not header.get("Rows") or not header.get("Columns"):
        raise BadImageError("DICOM without an image, such as a report, a plan or a DICOMDIR: remove it")
    samples, photometric = int(header.get("SamplesPerPixel") or 1), str(header.get("PhotometricInterpretation"))
    if photometric not in PHOTOMETRIC:
        raise BadImageError(f"DICOM with the photometric interpretation {photometric!r}: save it as RGB or MONOCHROME2")
    syntax = header.file_meta.TransferSyntaxUID
    try:
        is_readable = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        is_readable = False
    if not is_readable:
        raise BadImageError(
            f"DICOM compressed as {syntax.name}, which is not read: decompress it (`gdcmconv --raw`, `dcmdjpeg`)"
        )
    palette = photometric == "PALETTE COLOR"
    frames = int(header.get("NumberOfFrames") or 1)
    depth = _depth(header)
    width, height = int(header.Columns), int(header.Rows)

    def read(wanted: int) -> Values:
        dataset = _read(pydicom, content, PIXEL_TAGS + PIXEL_DATA, pixels=True)
        if not any(dataset.get(name) for name in PIXEL_DATA[:3]):
            raise BadImageError("damaged: no pixels")
        if syntax.is_encapsulated:
            _check_frames(pydicom, dataset, 1 if wanted == 1 else frames)
        stored = pydicom.pixels.pixel_array(dataset, index=0 if wanted == 1 else None)
        return _values(pydicom, stored.reshape(wanted, height, width, samples), dataset, depth)

    itemsize = max(int(header.BitsAllocated) // 8, 1)
    return Stack(width, height, 3 if palette else samples, frames, depth, itemsize, read)


def _read(pydicom: ModuleType, content: bytes, tags: list[str], *, pixels: bool) -> "Dataset":
    """Read a data set's elements of these names; a file may lack the preamble, and what says how it is written."""
    dataset: Dataset = pydicom.dcmread(
        io.BytesIO(content), force=True, specific_tags=tags, stop_before_pixels=not pixels
    )
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        names = {(True, True): "Implicit VR Little Endian", (False, True): "Explicit VR Little Endian"}
        name = names.get((bool(implicit), bool(little)), "Explicit VR Big Endian")
        dataset.file_meta.TransferSyntaxUID = next(uid for uid in pydicom.uid.AllTransferSyntaxes if uid.name == name)
    return dataset


def _check_inflated(content: bytes) -> None:
    """Raise BadImageError for a file that is compressed as a whole and becomes larger than ``INFLATED``."""
    if DEFLATED in content[:4096]:
        start = 144 + int.from_bytes(content[140:144], "little")  # the length of the first group
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(content[start:], INFLATED)
        if inflater.unconsumed_tail:
            raise BadImageError(f"compressed DICOM of more than {INFLATED:,} bytes: a decompression bomb")


def _check_frames(pydicom: ModuleType, dataset: "Dataset", count: int) -> None:
    """Raise BadImageError for frames whose code stream is of another size than the data set says.

    Decoders believe the code stream, and allocate what it says.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    is_jpeg_2000 = syntax in pydicom.uid.JPEG2000TransferSyntaxes or "High-Throughput" in syntax.name
    if not is_jpeg_2000 and syntax == pydicom.uid.RLELossless:
        return
    frames = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    for frame in itertools.islice(frames, count):
        stream = jpeg_2000(frame) if is_jpeg_2000 else jpeg(frame)
        if (stream.width, stream.height, len(stream.bits)) != (dataset.Columns, dataset.Rows, dataset.SamplesPerPixel):
            raise BadImageError(
                f"damaged: a frame of {stream.width} x {stream.height} pixels in {len(stream.bits)} bands, where the "
                f"header has {dataset.Columns} x {dataset.Rows} in {dataset.SamplesPerPixel}"
            )


def _stored_range(header: "Dataset") -> tuple[int, int]:
    bits, signed = int(header.get("BitsStored") or header.BitsAllocated), int(header.get("PixelRepresentation") or 0)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _rescales(header: "Dataset") -> list[tuple[float, float]]:
    """Return the slope and the intercept of each frame, or one of all; none where the values are what is stored."""
    top = _rescale(header)
    if top:
        return [top]
    shared = [*_transformations(header.get("SharedFunctionalGroupsSequence") or [])]
    frames = [*_transformations(header.get("PerFrameFunctionalGroupsSequence") or [])]
    return shared[:1] or frames


def _transformations(groups: Any) -> Iterator[tuple[float, float]]:
    for group in groups:
        for item in group.get("PixelValueTransformationSequence") or []:
            if found := _rescale(item):
                yield found


def _rescale(about: "Dataset") -> tuple[float, float] | None:
    slope, intercept = about.get("RescaleSlope"), about.get("RescaleIntercept")
    if slope is None or intercept is None:
        return None
    found = float(slope), float(intercept)
    if not np.isfinite(found).all() or not found[0]:
        raise BadImageError(f"DICOM with the rescale slope {slope} and intercept {intercept}: correct them")
    return found


def _depth(header: "Dataset") -> Depth:
    """Return the depth to be expected, which a series has in common though the values of each image are others."""
    if "BitsAllocated" not in header:
        raise BadImageError("damaged: no BitsAllocated")
    if (bits := int(header.BitsAllocated)) not in (1, 8, 16, 32, 64):
        raise BadImageError(f"DICOM with {bits} bits a value: 1, 8, 16 and 32 can be read")
    if "RedPaletteColorLookupTableDescriptor" in header and header.PhotometricInterpretation == "PALETTE COLOR":
        return "uint8" if header.RedPaletteColorLookupTableDescriptor[2] <= 8 else "uint16"
    if header.get("ModalityLUTSequence"):
        return "uint8" if header.ModalityLUTSequence[0].LUTDescriptor[2] <= 8 else "uint16"
    if bits > 16:
        return "float32"
    ends = np.array(_stored_range(header), np.float64)
    pairs = set(_rescales(header)) - {(1.0, 0.0)}
    if not pairs:
        return "int16" if ends[0] < 0 else "uint8" if ends[1] <= 255 else "uint16"
    if any(number != round(number) for pair in pairs for number in pair):
        return "float32"
    scaled = np.array([np.sort(ends * slope + intercept) for slope, intercept in pairs])
    # Of 16 bits and a negative intercept hardly any image uses the highest values.
    return "uint16" if scaled.min() >= 0 else "int16"


def _values(pydicom: ModuleType, stored: NDArray[Any], dataset: "Dataset", depth: Depth) -> Values:
    """Return what was stored as values: padding left out, MONOCHROME1 inverted, rescaled or looked up."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return Values(pydicom.pixels.apply_color_lut(stored[..., 0], dataset))
    if stored.shape[3] > 1 or stored.dtype.kind == "f":
        return Values(stored)
    invalid = _padding(stored, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        stored = (sum(_stored_range(dataset)) - stored.astype(np.int64)).astype(stored.dtype)
    if dataset.get("ModalityLUTSequence"):
        return Values(pydicom.pixels.apply_modality_lut(stored, dataset), invalid)
    pairs = _rescales(dataset)
    values: NDArray[Any] = stored
    if set(pairs) - {(1.0, 0.0)}:
        if len(pairs) not in (1, len(stored)):
            raise BadImageError(f"damaged: {len(pairs)} rescale slopes for {len(stored)} frames")
        slopes, intercepts = np.array(pairs).T.reshape(2, -1, 1, 1, 1)
        values = stored * slopes + intercepts
    fitting = next(
        (each for each in (depth, "uint16", "int16") if each != "float32" and only_whole(values, each)), None
    )
    return Values(values.astype(fitting or np.float64), invalid)


def _padding(stored: NDArray[Any], dataset: "Dataset") -> NDArray[np.bool_] | None:
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    # Some files write signed ones as unsigned.
    beyond, bits = np.iinfo(stored.dtype).max, 8 * stored.dtype.itemsize
    marks = [mark - (1 << bits if mark > beyond else 0) for mark in (first, last) if isinstance(mark, int)]
    low, high = min(marks), max(marks)
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None
