"""TIFF, DICOM and NumPy files that are damaged or made to do harm; the same ones every time.

``cd tests && python -m helpers.hostile_arrays FOLDER`` writes them, to try things by hand.
"""

import io
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from helpers.hostile_images import changed

CHANGED = 4  # of each seed


def tiff(pixels: Any, **how: Any) -> bytes:
    """Return a TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **how)
    return file.getvalue()


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray[Any, Any]:
    """Return noise; the same for the same shape."""
    return np.random.default_rng(sum(shape)).integers(0, 250, shape).astype(dtype)


def raw_tiff(*entries: tuple[int, int, int, int], following: int = 0, data: bytes = b"", order: str = "<") -> bytes:
    """Return a TIFF of these tags: each its code, type, count, and value or offset."""
    packed = b"".join(struct.pack(f"{order}HHII", *entry) for entry in sorted(entries))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(entries)) + packed + struct.pack(f"{order}I", following) + data


def grey_tags(width: int, height: int, **other: int) -> list[tuple[int, int, int, int]]:
    """Return the tags of a grey 16-bit image whose one strip begins at 200."""
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 2 * width * height}
    tags |= {int(name[1:]): value for name, value in other.items()}
    return [(code, 4, 1, min(value, 2**32 - 1)) for code, value in tags.items()]


def dicom(pixels: Any = None, *, syntax: str = ExplicitVRLittleEndian, frames: list[bytes] = [], **tags: Any) -> bytes:  # noqa: B006
    """Return a DICOM file of 16-bit grey values, with these elements changed; None removes one."""
    pixels = noise(24, 20) if pixels is None else pixels
    about = Dataset()
    about.file_meta = FileMetaDataset()
    about.file_meta.TransferSyntaxUID = UID(syntax)
    about.file_meta.MediaStorageSOPClassUID = about.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    about.file_meta.MediaStorageSOPInstanceUID = about.SOPInstanceUID = UID("1.2.3")
    about.PatientName, about.PatientID = "Secret^Name", "4711"
    bits = 8 * pixels.dtype.itemsize
    given = {"Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1, "BitsAllocated": bits}
    given |= {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": bits, "HighBit": bits - 1}
    given |= {"PixelRepresentation": int(pixels.dtype.kind == "i")} | tags
    for name, value in given.items():
        if value is not None:
            setattr(about, name, value)
    if "PixelData" not in given:
        about.PixelData = encapsulate(frames) if frames else pixels.tobytes()
    about["PixelData"].VR = "OB" if frames or bits == 8 else "OW"
    if frames:
        about["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    pydicom.dcmwrite(file, about, enforce_file_format=True)
    return file.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    """Return a NumPy file of this header."""
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a compressed archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _shape(*sizes: int, kind: str = "<u2") -> str:
    return repr({"descr": kind, "fortran_order": False, "shape": sizes})


def _chain(pages: int) -> bytes:
    """Return a TIFF of pages without a tag, six bytes each."""
    starts = 8 + 6 * np.arange(1, pages + 1, dtype=np.uint64)
    starts[-1] = 0
    body = np.zeros(pages, np.dtype([("tags", "<u2"), ("next", "<u4")]))
    body["next"] = starts
    return b"II*\0" + struct.pack("<I", 8) + body.tobytes() + bytes(16)


def _nested(depth: int, *, ends: bool) -> bytes:
    """Return a DICOM file of sequences of undefined length in each other."""
    item, begin = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    good = dicom()
    at = good.index(b"\x28\0\x02\0US")
    return good[:at] + (begin + item) * depth + (close * depth if ends else b"") + good[at:]


def _deflated(size: int) -> bytes:
    """Return a small DICOM file that inflates to so many bytes."""
    good = dicom(syntax="1.2.840.10008.1.2.1.99")
    start = 144 + int.from_bytes(good[140:144], "little")
    packer = zlib.compressobj(9, wbits=-15)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20))
    return good[:start] + packed + packer.flush()


def _jpeg(width: int, height: int, marker: int = 0xC0) -> bytes:
    return b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\1\x11\0\xff\xd9"


def _jpeg_2000(width: int, height: int, bands: int = 1) -> bytes:
    size = struct.pack(">HHIIIIIIIIH", 38 + 3 * bands, 0, width, height, 0, 0, width, height, 0, 0, bands)
    return b"\xff\x4f\xff\x51" + size + b"\x0f\1\1" * bands + b"\xff\xd9" + bytes(50)


def _seq(depth: int) -> bytes:
    inner = Dataset()
    for _ in range(depth):
        outer = Dataset()
        outer.SharedFunctionalGroupsSequence = Sequence([inner])
        inner = outer
    return dicom(SharedFunctionalGroupsSequence=inner.get("SharedFunctionalGroupsSequence"))


def _imagej(images: int) -> bytes:
    return _described(f"ImageJ=1.11a\nimages={images}\nslices={images}\n")


def _described(text: str) -> bytes:
    return tiff(noise(20, 30), description=text, metadata=None)


OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels '
    'ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="30" SizeY="20" SizeZ="{z}" SizeC="1" SizeT="1">'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
)
OTHER_FILE = '<TiffData IFD="0" FirstZ="{z}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{name}</UUID></TiffData>'
BOMB = bytes(300 * 2**20)

HOSTILE: dict[str, Callable[[], bytes]] = {
    "strip_beyond.tif": lambda: raw_tiff(*grey_tags(30, 20, t273=10**6), data=bytes(2000)),
    "strip_at_end.tif": lambda: raw_tiff(*grey_tags(30, 20), data=bytes(900)),
    "strip_is_offset_0.tif": lambda: raw_tiff(*grey_tags(30, 20, t273=0, t279=0), data=bytes(2000)),
    "no_strip.tif": lambda: raw_tiff(*grey_tags(30, 20)[:5], data=bytes(2000)),
    "short_strip.tif": lambda: raw_tiff(*grey_tags(30, 20, t279=100), data=bytes(2000)),
    "huge.tif": lambda: raw_tiff(*grey_tags(2**31 - 1, 2**31 - 1), data=bytes(2000)),
    "huge_but_square.tif": lambda: raw_tiff(*grey_tags(60_000, 60_000, t279=2000), data=bytes(2000)),
    "many_bands.tif": lambda: raw_tiff(*grey_tags(30, 20, t277=65_535), data=bytes(2000)),
    "most_bands.tif": lambda: raw_tiff(*grey_tags(30, 20, t277=2**32 - 1), data=bytes(2000)),
    "no_rows_in_a_strip.tif": lambda: raw_tiff(*grey_tags(30, 20, t278=0), data=bytes(2000)),
    "no_pixels.tif": lambda: raw_tiff(*grey_tags(0, 0), data=bytes(2000)),
    "bits_0.tif": lambda: raw_tiff(*grey_tags(30, 20, t258=0), data=bytes(2000)),
    "bits_4_billion.tif": lambda: raw_tiff(*grey_tags(30, 20, t258=2**32 - 1), data=bytes(2000)),
    "unknown_compression.tif": lambda: raw_tiff(*grey_tags(30, 20, t259=7777), data=bytes(2000)),
    "unknown_sample.tif": lambda: raw_tiff(*grey_tags(30, 20, t339=99), data=bytes(2000)),
    "cut_deflate.tif": lambda: tiff(noise(200, 300), compression="zlib")[:60_000],
    "loop.tif": lambda: raw_tiff(*grey_tags(30, 20), following=8, data=bytes(2000)),
    "loop_of_two.tif": lambda: b"II*\0\x08\0\0\0\0\0\x0e\0\0\0\0\0\x08\0\0\0" + bytes(40),
    "next_is_nowhere.tif": lambda: raw_tiff(*grey_tags(30, 20), following=2**31, data=bytes(2000)),
    "first_is_nowhere.tif": lambda: b"II*\0\xff\xff\xff\x7f" + bytes(100),
    "no_page.tif": lambda: b"II*\0\0\0\0\0" + bytes(100),
    "many_pages.tif": lambda: _chain(2_000_000),
    "pages_of_nothing.tif": lambda: _chain(1000),
    "many_tags.tif": lambda: b"II*\0\x08\0\0\0\xff\xff" + bytes(65_535 * 12 + 4),
    "value_of_4_GB.tif": lambda: raw_tiff(*grey_tags(30, 20), (270, 2, 2**32 - 1, 200), data=bytes(2000)),
    "offsets_4_billion.tif": lambda: raw_tiff(*grey_tags(30, 20)[:-4], (273, 4, 2**32 - 1, 200), data=bytes(2000)),
    "cut_head.tif": lambda: b"II*\0\x08\0",
    "big_cut_head.tif": lambda: b"II+\0\x08\0\0\0\x10",
    "big_first_is_nowhere.tif": lambda: b"II+\0\x08\0\0\0" + b"\xff" * 8 + bytes(64),
    "big_tags.tif": lambda: b"II+\0\x08\0\0\0\x10" + bytes(7) + b"\xff" * 8 + bytes(64),
    "wrong_order.tif": lambda: b"MM\0*" + tiff(noise(20, 30))[4:],
    "imagej_of_a_billion.tif": lambda: _imagej(10**9),
    "imagej_of_minus.tif": lambda: _imagej(-5),
    "imagej_of_more.tif": lambda: _imagej(40),
    "shaped_of_a_billion.tif": lambda: _described('{"shape": [1000000000, 20, 30]}'),
    "shaped_of_text.tif": lambda: _described('{"shape": ["a", {}]}'),
    "shaped_deep.tif": lambda: _described('{"shape": ' + "[" * 50_000),
    "ome_of_a_billion.tif": lambda: _described(OME.format(z=10**9, data="<TiffData/>")),
    "ome_of_other_files.tif": lambda: _described(
        OME.format(z=2, data=OTHER_FILE.format(z=0, name="/etc/passwd") + OTHER_FILE.format(z=1, name="b.tif"))
    ),
    "ome_laughs.tif": lambda: _described(
        '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaaaaaaaaaaaa">'
        + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
        + ']><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">&j;</OME>'
    ),
    "ome_external.tif": lambda: _described(
        '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">&a;</OME>'
    ),
    "bomb_deflate.tif": lambda: raw_tiff(
        *grey_tags(30, 20, t259=8, t279=len(zlib.compress(BOMB, 9))), data=bytes(78) + zlib.compress(BOMB, 9)
    ),
    "bomb_allowed_size.tif": lambda: raw_tiff(
        *grey_tags(40_000, 40_000, t259=8, t279=len(zlib.compress(BOMB, 9))), data=bytes(78) + zlib.compress(BOMB, 9)
    ),
    "jpeg_2000_larger.tif": lambda: raw_tiff(
        *grey_tags(30, 20, t259=33003, t279=120), data=bytes(78) + _jpeg_2000(60_000, 60_000) + bytes(100)
    ),
    "jpeg_larger.tif": lambda: raw_tiff(
        *grey_tags(30, 20, t258=8, t259=7, t279=30), data=bytes(78) + _jpeg(65_000, 65_000) + bytes(100)
    ),
    "all_no_data.tif": lambda: tiff(np.full((20, 30), 7, np.uint16), extratags=[(42113, "s", 0, "7", True)]),
    "all_nan.tif": lambda: tiff(np.full((20, 30), np.nan, np.float32)),
    "complex.tif": lambda: tiff(noise(20, 30).astype(np.complex64)),
    "too_long.tif": lambda: tiff(noise(2, 3000)),
    "raw_deep.png": lambda: (
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0) + bytes(99)
    ),
    "cut.pgm": lambda: b"P5 30 20 4095\n" + bytes(500),
    "huge.pgm": lambda: b"P5 999999 999999 4095\n" + bytes(500),
    "huge.jp2": lambda: _jpeg_2000(2**31, 2**31),
    "many_bands.jp2": lambda: _jpeg_2000(30, 20, 16_384),
    "no_rows.dcm": lambda: dicom(Rows=None),
    "zero_rows.dcm": lambda: dicom(Rows=0),
    "most_rows.dcm": lambda: dicom(Rows=65_535, Columns=65_535),
    "frames.dcm": lambda: dicom(NumberOfFrames=2**31 - 1),
    "frames_minus.dcm": lambda: dicom(NumberOfFrames=-3),
    "samples_0.dcm": lambda: dicom(SamplesPerPixel=0, PhotometricInterpretation="RGB"),
    "samples_65535.dcm": lambda: dicom(SamplesPerPixel=65_535),
    "bits_7.dcm": lambda: dicom(BitsAllocated=7),
    "bits_0.dcm": lambda: dicom(BitsAllocated=0),
    "bits_stored_more.dcm": lambda: dicom(BitsStored=40),
    "no_bits.dcm": lambda: dicom(BitsAllocated=None),
    "no_photometric.dcm": lambda: dicom(PhotometricInterpretation=None),
    "odd_photometric.dcm": lambda: dicom(PhotometricInterpretation="HSV"),
    "no_pixels.dcm": lambda: dicom(PixelData=b""),
    "few_pixels.dcm": lambda: dicom(PixelData=bytes(100)),
    "slope_0.dcm": lambda: dicom(RescaleSlope=0, RescaleIntercept=0),
    "slope_huge.dcm": lambda: dicom(RescaleSlope="1e300", RescaleIntercept=0),
    "all_padding.dcm": lambda: dicom(np.full((24, 20), 9, np.uint16), PixelPaddingValue=9),
    "palette_without_table.dcm": lambda: dicom(PhotometricInterpretation="PALETTE COLOR"),
    "cut.dcm": lambda: dicom()[:-500],
    "cut_in_header.dcm": lambda: dicom()[:300],
    "preamble_alone.dcm": lambda: bytes(128) + b"DICM",
    "no_syntax.dcm": lambda: bytes(128) + b"DICM" + bytes(200),
    "unknown_syntax.dcm": lambda: dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"),
    "length_4_GB.dcm": lambda: dicom().replace(
        b"\xe0\x7f\x10\0OW\0\0\xc0\3\0\0", b"\xe0\x7f\x10\0OW\0\0\xfe\xff\xff\xff"
    ),
    "length_wrong.dcm": lambda: dicom().replace(b"\x28\0\x10\0US\2\0", b"\x28\0\x10\0US\xff\xff"),
    "nested_100.dcm": lambda: _nested(100, ends=False),
    "nested_100000.dcm": lambda: _nested(100_000, ends=False),
    "nested_100000_closed.dcm": lambda: _nested(100_000, ends=True),
    "nested_groups.dcm": lambda: _seq(50),
    "inflates.dcm": lambda: _deflated(2**30),
    "jpeg_larger.dcm": lambda: dicom(
        noise(24, 20, dtype="uint8"), syntax=JPEGBaseline8Bit, frames=[_jpeg(65_000, 65_000)]
    ),
    "lossless_larger.dcm": lambda: dicom(syntax=JPEGLosslessSV1, frames=[_jpeg(65_000, 65_000, 0xC3)]),
    "jpeg_of_nothing.dcm": lambda: dicom(syntax=JPEGLosslessSV1, frames=[_jpeg(20, 24, 0xC3)]),
    "jpeg_2000_larger.dcm": lambda: dicom(syntax=JPEG2000Lossless, frames=[_jpeg_2000(60_000, 60_000)]),
    "jpeg_2000_of_nothing.dcm": lambda: dicom(syntax=JPEG2000Lossless, frames=[_jpeg_2000(20, 24)]),
    "no_frame.dcm": lambda: dicom(syntax=JPEG2000Lossless, frames=[b"\0\0"]),
    "rle_of_nothing.dcm": lambda: dicom(
        syntax=RLELossless, frames=[struct.pack("<16I", 2, 64, 66, *[0] * 13) + bytes(9)]
    ),
    "rle_offsets.dcm": lambda: dicom(syntax=RLELossless, frames=[b"\xff" * 80]),
    "huge.npy": lambda: npy(_shape(10**9, 10**9)),
    "huge_but_square.npy": lambda: npy(_shape(60_000, 60_000, kind="<f8")),
    "negative.npy": lambda: npy(_shape(-30, 20), bytes(1200)),
    "cut.npy": lambda: npy(_shape(30, 20), bytes(900)),
    "objects.npy": lambda: npy(_shape(30, 20, kind="|O"), pickle.dumps(list(range(600)))),
    "text.npy": lambda: npy(_shape(30, 20, kind="<U8"), bytes(30_000)),
    "complex.npy": lambda: npy(_shape(30, 20, kind="<c8"), bytes(30_000)),
    "program.npy": lambda: npy("__import__('os').mkdir('executed')"),
    "deep.npy": lambda: npy("(" * 9000),
    "no_header.npy": lambda: b"\x93NUMPY\x01\x00",
    "version_9.npy": lambda: b"\x93NUMPY\x09\x00" + bytes(200),
    "one_number.npy": lambda: npy(_shape(), bytes(2)),
    "line.npy": lambda: npy(_shape(600), bytes(1200)),
    "ambiguous.npy": lambda: npy(_shape(8, 8, 8), bytes(1024)),
    "four.npy": lambda: npy(_shape(2, 8, 8, 3), bytes(1024)),
    "too_many_bands.npy": lambda: npy(_shape(40, 50, 50), bytes(200_000)),
    "range.npy": lambda: npy(_shape(30, 20, kind="<i8"), (10**15 + np.arange(600)).tobytes()),
    "bomb.npz": lambda: npz({"a.npy": npy(_shape(30, 20)) + BOMB[: 2**28]}),
    "bomb_of_pixels.npz": lambda: npz({"a.npy": npy(_shape(60_000, 60_000)) + BOMB[: 2**28]}),
    "two.npz": lambda: npz({"a.npy": npy(_shape(9, 9), bytes(162)), "b.npy": npy(_shape(9, 9), bytes(162))}),
    "cut.npz": lambda: npz({"a.npy": npy(_shape(30, 20), bytes(1200))})[:-40],
    "no_array.npz": lambda: npz({"a.npy": b"text"}),
    "objects.npz": lambda: npz({"a.npy": npy(_shape(30, 20, kind="|O"), pickle.dumps(list(range(600))))}),
}

SEEDS: dict[str, Callable[[], bytes]] = {
    "plain.tif": lambda: tiff(noise(24, 32)),
    "lzw.tif": lambda: tiff(
        noise(24, 32, 5), compression="lzw", predictor=True, photometric="minisblack", planarconfig=1
    ),
    "tiles.tif": lambda: tiff(
        noise(5, 48, 64), compression="zlib", tile=(16, 16), photometric="minisblack", planarconfig=2
    ),
    "jpeg_2000.tif": lambda: tiff(noise(24, 32), compression="jpeg2000"),
    "imagej.tif": lambda: tiff(noise(6, 24, 32), imagej=True),
    "ome.tif": lambda: tiff(noise(2, 3, 24, 32), ome=True, metadata={"axes": "CZYX"}),
    "big.tif": lambda: tiff(noise(24, 32), bigtiff=True, byteorder=">"),
    "plain.dcm": lambda: dicom(RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=3),
    "frames.dcm": lambda: dicom(noise(24, 20), PixelData=noise(5, 24, 20).tobytes(), NumberOfFrames=5),
    "plain.npy": lambda: npy(_shape(30, 20), bytes(1200)),
    "plain.npz": lambda: npz({"a.npy": npy(_shape(30, 20), bytes(1200))}),
}


def make_hostile_arrays(folder: Path, changes: int = CHANGED) -> list[Path]:
    """Write all of them, and so many changed ones of each seed; return those that are no image for certain."""
    for name, make in HOSTILE.items():
        (folder / name).write_bytes(make())
    for name, make in SEEDS.items():
        seed = make()
        for number in range(changes):
            (folder / f"changed_{number:04d}_{name}").write_bytes(changed(seed, number))
    return [folder / name for name in HOSTILE]


if __name__ == "__main__":
    make_hostile_arrays(Path(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else CHANGED)
