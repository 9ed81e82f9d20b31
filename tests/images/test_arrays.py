"""Pixels at their own depth: the reference readers' values, upright, in a set's layout, or one line why not."""

import io
import json
import struct
import subprocess
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array

from headstart.images.arrays import ArrayInfo, choose_layout, describe_array, read_array
from headstart.images.bands import PixelLayout, Planes
from headstart.images.decode import BadImageError, ImageLimits, Note, decode
from helpers.dicom_files import dicom_files, read_or_reason
from helpers.hostile_arrays import CHANGED, HOSTILE, SEEDS, dicom, make_hostile_arrays, noise, npz, tiff
from helpers.tiff_files import COMPRESSIONS, DTYPES, tiff_files

Array = np.ndarray[Any, Any]
LIMITED = Path(__file__).parents[1] / "helpers" / "limited_reading.py"


def saved(pixels: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def png(pixels: Array, **how: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **how)
    return file.getvalue()


def values(content: bytes, planes: Planes | None = None) -> Array:
    """Read an image in the layout that it has itself, which must be what its header lets expect."""
    info = describe_array(content)
    layout = choose_layout([info], _bands(info, planes), planes)
    pixels = read_array(content, layout).pixels
    assert layout is not None
    assert (pixels.shape, str(pixels.dtype)) == ((info.height, info.width, layout.channels), info.dtype)
    return pixels


def _bands(info: ArrayInfo, planes: Planes | None) -> int:
    return info.channels * (info.planes if planes == "channels" else 1)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_tiffs_values_are_tifffiles(compression: str | None) -> None:
    """Whatever the type, the bands' layout, tiles, byte order, predictor, and BigTIFF; or it is said why not."""
    read = Counter[str]()
    for dtype, content, expected in tiff_files(compression):
        if dtype == "complex64" or compression in {"png", "jpegxl", "jpegxr"}:
            with pytest.raises(BadImageError, match=r"^(pixels of type complex64|a TIFF compressed by [A-Z]*): save "):
                read_array(content)
            continue
        pixels = values(content)
        # Of what tifffile stores with loss, Pillow's decoder differs by a level where the image is plain.
        tolerance = 1 if compression == "jpeg" else 0
        assert np.abs(pixels.astype(np.float64) - expected.astype(pixels.dtype)).max() <= tolerance
        read[dtype] += 1
    assert read or compression in {"png", "jpegxl", "jpegxr"}


STACK = noise(2, 3, 20, 30)
HOW: tuple[tuple[str, Array, dict[str, Any], int, int], ...] = (
    ("pages", noise(4, 20, 30), {"photometric": "minisblack", "metadata": None}, 4, 1),
    ("imagej z", noise(4, 20, 30), {"imagej": True, "metadata": {"axes": "ZYX"}}, 4, 1),
    ("imagej channels", noise(4, 20, 30), {"imagej": True, "metadata": {"axes": "CYX"}}, 1, 4),
    ("imagej z and channels", STACK, {"imagej": True, "metadata": {"axes": "ZCYX"}}, 2, 3),
    ("ome channels and z", STACK, {"ome": True, "metadata": {"axes": "CZYX"}}, 3, 2),
    ("ome time", STACK, {"ome": True, "metadata": {"axes": "TCYX"}}, 2, 3),
    ("pages of colours", noise(2, 20, 30, 3), {"photometric": "rgb"}, 2, 3),
)  # fmt: skip


@pytest.mark.parametrize(("name", "pixels", "how", "planes", "channels"), HOW, ids=[each[0] for each in HOW])
def test_axes_become_planes_and_bands(
    name: str, pixels: Array, how: dict[str, Any], planes: int, channels: int
) -> None:
    content = tiff(pixels, **how)
    info = describe_array(content)
    assert info == ArrayInfo(30, 20, channels, "uint16", planes, plain=False)
    stack = pixels.reshape(-1, *pixels.shape[-2:], 1) if pixels.shape[-1] != 3 else pixels
    if channels > 1 and pixels.shape[-1] != 3:
        axes = how["metadata"]["axes"]
        stack = np.moveaxis(pixels, axes.index("C"), -1).reshape(planes, 20, 30, channels)
    if planes == 1:
        assert np.array_equal(values(content), stack[0])
        return
    with pytest.raises(BadImageError, match=rf"^a stack of {planes} planes: set prepare\.planes to first, max"):
        read_array(content)
    assert np.array_equal(values(content, "first"), stack[0]), name
    assert np.array_equal(values(content, "max"), stack.max(axis=0))
    assert np.array_equal(values(content, "mean"), np.rint(stack.astype(float).mean(axis=0)))
    expected = np.concatenate(list(stack), axis=-1)
    assert np.array_equal(values(content, "channels"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_pillow_does(orientation: int) -> None:
    pixels = noise(20, 30)
    turned = Image.fromarray(pixels.astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = np.asarray(decode(png(np.asarray(turned), exif=exif)))[..., :1]
    assert np.array_equal(values(tiff(pixels, extratags=[(274, "H", 1, orientation, True)])), expected)
    assert np.array_equal(values(png(pixels, exif=exif)), expected)
    assert np.array_equal(values(png(pixels.astype(np.uint8), exif=exif)), expected)


def test_no_data_becomes_the_bands_least_valid_value_and_is_noted() -> None:
    pixels = noise(20, 30, 3, dtype="float32") + 5
    content = pixels.copy()
    content[0, 0, 0], content[0, 1, 1], content[0, 2, 2] = np.nan, np.inf, -9999
    image = read_array(tiff(content, photometric="rgb", extratags=[(42113, "s", 0, "-9999", True)]))
    expected = pixels.copy()
    expected[0, 0, 0] = np.delete(pixels[..., 0], 0).min()
    expected[0, 1, 1] = np.delete(pixels[..., 1], 1).min()
    expected[0, 2, 2] = np.delete(pixels[..., 2], 2).min()
    assert np.array_equal(image.pixels, expected)
    assert image.note == Note("no_data", "0.167% of its values")
    assert read_array(tiff(pixels, photometric="rgb")).note is None


def test_no_data_has_no_say_in_a_projection() -> None:
    stack = noise(3, 20, 30).astype(np.int16) + 1
    marked = stack.copy()
    marked[0, 0, 0], marked[:, 5, 5] = -1, -1
    content = tiff(marked, photometric="minisblack", extratags=[(42113, "s", 0, "-1", True)])
    reduced = values(content, "mean")[..., 0]
    assert reduced[0, 0] == np.rint(stack[1:, 0, 0].mean())
    others = np.ones((20, 30), bool)
    others[0, 0] = others[5, 5] = False
    assert np.array_equal(reduced[others], np.rint(stack.mean(axis=0))[others])
    assert reduced[5, 5] == reduced[others | (np.arange(600).reshape(20, 30) == 0)].min()


def test_white_is_high_and_palettes_are_colours() -> None:
    pixels = noise(20, 30)
    assert np.array_equal(values(tiff(pixels, photometric="miniswhite"))[..., 0], 65_535 - pixels)
    colours = np.random.default_rng(0).integers(0, 65_536, (3, 65_536)).astype(np.uint16)
    content = tiff(pixels, photometric="palette", colormap=colours)
    assert np.array_equal(values(content), np.moveaxis(colours[:, pixels], 0, -1))


@pytest.mark.parametrize(
    ("content", "channels"),
    [
        (png(noise(20, 30, 3, dtype="uint8")), 3),
        (png(noise(20, 30, dtype="uint8")), 1),
        (png(noise(20, 30, 4, dtype="uint8")), 4),
        (tiff(noise(20, 30, dtype="uint8")), 1),
        (tiff(noise(20, 30, 3, dtype="uint8"), photometric="rgb", compression="lzw"), 3),
    ],
)
def test_8_bit_images_are_plain_and_stay_as_they_are(content: bytes, channels: int) -> None:
    assert describe_array(content) == ArrayInfo(30, 20, channels, "uint8", 1, plain=True)
    assert choose_layout([describe_array(content)]) is None
    assert np.array_equal(read_array(content, PixelLayout(3, "uint8")).pixels, np.asarray(decode(content)))


@pytest.mark.parametrize(
    "content",
    [
        tiff(noise(20, 30, 2, dtype="uint8"), photometric="minisblack", planarconfig="contig"),
        tiff(noise(20, 30, 4, dtype="uint8"), photometric="rgb", extrasamples=["unassalpha"]),  # noise, no mask
        tiff(noise(20, 30, 4, dtype="uint8"), photometric="rgb", extrasamples=["unspecified"]),
        tiff(noise(4, 20, 30, dtype="uint8"), photometric="minisblack"),
        tiff(noise(20, 30, dtype="int8")),
    ],
)
def test_what_pillow_does_not_show_in_full_is_not_plain(content: bytes) -> None:
    assert not describe_array(content).plain
    planes: Planes | None = "channels" if describe_array(content).planes > 1 else None
    expected = tifffile.imread(io.BytesIO(content))
    assert np.array_equal(values(content, planes), np.moveaxis(expected, 0, -1) if planes else np.atleast_3d(expected))


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_deep_png_keeps_all_bits(bands: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65_536, (20, 30, bands)).astype(np.uint16)
    content = bytes(imagecodecs.png_encode(pixels if bands > 1 else pixels[..., 0]))
    assert np.array_equal(values(content), pixels)


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_jpeg_2000_keeps_its_values(bands: int, bits: int) -> None:
    """Pillow would stretch 12 bits to 16, and keep 8 of each of several bands."""
    pixels = np.random.default_rng(0).integers(0, 2**bits, (20, 30, bands)).astype(np.uint8 if bits == 8 else np.uint16)
    content = bytes(imagecodecs.jpeg2k_encode(pixels if bands > 1 else pixels[..., 0], level=0, bitspersample=bits))
    assert describe_array(content).plain == (bits == 8)
    assert np.array_equal(values(content), pixels)


@pytest.mark.parametrize("most", [1023, 65_535])
def test_pnm_keeps_its_values(most: int) -> None:
    grey, colours = noise(20, 30), noise(20, 30, 3)
    for magic, pixels in ((b"P5", grey[..., None]), (b"P6", colours)):
        content = magic + f"\n# made\n30 20\n{most}\n".encode() + pixels.astype(">u2").tobytes()
        assert np.array_equal(values(content), pixels)


@pytest.mark.parametrize("dtype", [*DTYPES[:-1], "bool", ">u2", "<i8"])
def test_numpys_files(dtype: str) -> None:
    for shape in ((20, 30), (20, 30, 5), (28, 28, 3), (20, 30, 1)):
        pixels = noise(*shape).astype(dtype)
        expected = pixels if pixels.ndim == 3 else pixels[..., None]
        first = np.moveaxis(expected, -1, 0)
        for content in (
            saved(pixels),
            npz({"image.npy": saved(pixels)}),
            saved(np.asfortranarray(pixels)),
            saved(first),
        ):
            assert np.array_equal(values(content), expected)


def test_numbers_of_64_bits_must_keep_what_tells_them_apart() -> None:
    pixels = np.random.default_rng(0).normal(size=(20, 30))
    assert np.array_equal(values(saved(pixels))[..., 0], pixels.astype(np.float32))
    with pytest.raises(BadImageError, match=r"^float64 values from 1000000000\.0 to 1000000599\.0, which float32"):
        read_array(saved(1e9 + np.arange(600.0).reshape(20, 30)))
    with pytest.raises(BadImageError, match=r"^int32 values from 2000000000 to 2000000599, which float32"):
        read_array(saved(2 * 10**9 + np.arange(600, dtype=np.int32).reshape(20, 30)))
    with pytest.raises(BadImageError, match="float32"):
        read_array(saved(np.full((20, 30), 1e300) * np.arange(30)))


DICOM_FILES = dicom_files()


@pytest.mark.parametrize("path", DICOM_FILES, ids=[path.name for path in DICOM_FILES])
def test_dicoms_values_are_pydicoms(path: Path) -> None:
    """Of each of pydicom's own files: with its decoders, color tables and rescaling."""
    how, pixels = read_or_reason(path)
    if pixels is None:
        assert "\n" not in how
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        stored = pixel_array(dataset)
    samples, frames = int(dataset.SamplesPerPixel), int(dataset.get("NumberOfFrames") or 1)
    stored = stored.reshape(frames, dataset.Rows, dataset.Columns, samples)[0]
    valid = stored != dataset.get("PixelPaddingValue") if pixels.shape[2] == 1 else np.ones(pixels.shape, bool)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(stored[..., 0], dataset)
    elif dataset.PhotometricInterpretation == "MONOCHROME1":
        assert dataset.PixelRepresentation == 0
        expected = apply_modality_lut(2**dataset.BitsStored - 1 - stored, dataset)
    else:
        expected = apply_modality_lut(stored, dataset)
    assert np.array_equal(pixels[valid], expected[valid].astype(pixels.dtype))
    assert valid.all() or pixels[~valid].max() <= pixels[valid].min()


def test_most_of_pydicoms_files_with_an_image_are_read() -> None:
    hows = Counter(read_or_reason(path)[0].partition(":")[0] for path in DICOM_FILES)
    assert hows["read"] >= 90
    assert set(hows) == {"read", "DICOM without an image, such as a report, a plan or a DICOMDIR", "damaged"} | {
        "not an image that Pillow can read"
    }
    assert hows["damaged"] <= 3


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_before_it_is_rescaled(signed: bool) -> None:
    stored = noise(24, 20, dtype="int16" if signed else "uint16")
    content = dicom(
        stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11, RescaleSlope=2, RescaleIntercept=-5
    )
    assert np.array_equal(values(content)[..., 0], 2 * ((-1 if signed else 4095) - stored.astype(int)) - 5)


def test_padding_is_no_data_and_slopes_that_are_not_whole_give_floating_point() -> None:
    stored = noise(24, 20) + 10
    stored[:5] = 0
    image = read_array(dicom(stored, PixelPaddingValue=0, RescaleSlope=1, RescaleIntercept=-1024))
    assert image.note == Note("no_data", "20.833% of its values")
    assert image.pixels.min() == image.pixels[0, 0, 0] == int(stored[5:].min()) - 1024
    mark = dicom(noise(24, 20, dtype="int16"), PixelPaddingValue=-2000).replace(b"\x28\0\x20\1SS", b"\x28\0\x20\1US")
    assert read_array(mark).note is None
    padded = np.where(stored, stored.astype(np.int16), np.int16(-2000))
    mark = dicom(padded, PixelPaddingValue=-2000).replace(b"\x28\0\x20\1SS", b"\x28\0\x20\1US")
    assert read_array(mark).pixels.min() == stored[5:].min()
    pixels = values(dicom(stored, RescaleSlope="0.25", RescaleIntercept=3))
    assert np.array_equal(pixels[..., 0], stored / 4 + 3)


def test_images_of_a_series_share_a_depth_whatever_their_values() -> None:
    """The intercept decides that they are signed, though some have no value below 0."""
    low, high = noise(24, 20), noise(24, 20) + 2000
    infos = [describe_array(dicom(each, RescaleSlope=1, RescaleIntercept=-1024)) for each in (low, high)]
    layout = choose_layout(infos)
    assert layout == PixelLayout(1, "int16")
    assert read_array(dicom(high, RescaleSlope=1, RescaleIntercept=-1024), layout).pixels.dtype == np.int16


def test_a_file_without_preamble_is_read() -> None:
    stored = noise(24, 20)
    dataset = pydicom.dcmread(io.BytesIO(dicom(stored)))
    for implicit in (True, False):
        file = io.BytesIO()
        bare = pydicom.Dataset(dataset)
        pydicom.dcmwrite(file, bare, implicit_vr=implicit, little_endian=True)
        assert file.getvalue()[:4] == b"\x08\0\x16\0"
        assert np.array_equal(values(file.getvalue())[..., 0], stored)


def test_frames_may_have_slopes_of_their_own() -> None:
    frames = noise(3, 24, 20)
    items = []
    for slope in (1, 2, 3):
        item, value = pydicom.Dataset(), pydicom.Dataset()
        value.RescaleSlope, value.RescaleIntercept = slope, -1
        item.PixelValueTransformationSequence = pydicom.Sequence([value])
        items.append(item)
    content = dicom(
        frames[0],
        NumberOfFrames=3,
        PixelData=frames.tobytes(),
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(items),
    )
    expected = frames.astype(int) * np.array([1, 2, 3])[:, None, None] - 1
    assert np.array_equal(values(content, "channels"), np.moveaxis(expected, 0, -1))


def test_nothing_about_a_patient_is_said() -> None:
    for content in (dicom()[:-500], dicom(PixelData=b""), dicom(Rows=None), dicom(BitsStored=40), dicom()[:300]):
        with pytest.raises(BadImageError) as raised:
            read_array(content)
        assert not {"Secret", "Name", "4711"} & set(str(raised.value).replace("^", " ").split())


PLAIN = ArrayInfo(30, 20, 3, "uint8", 1, plain=True)
BANDS = ArrayInfo(30, 20, 13, "uint16", 1, plain=False)
DEEP = ArrayInfo(30, 20, 1, "uint16", 1, plain=False)
GREY = ArrayInfo(30, 20, 1, "uint8", 1, plain=True)


@pytest.mark.parametrize(
    ("infos", "wanted", "planes", "layout"),
    [
        ([PLAIN, PLAIN, BANDS], "auto", None, None),
        ([PLAIN, BANDS], "auto", None, PixelLayout(13, "uint16")),
        ([BANDS, BANDS, DEEP, PLAIN], "auto", None, PixelLayout(13, "uint16")),
        ([], "auto", None, None),
        ([GREY, GREY, PLAIN], 1, None, PixelLayout(1, "uint8")),
        ([PLAIN, PLAIN, DEEP], 1, None, PixelLayout(1, "uint16")),
        ([DEEP._replace(planes=4)], "auto", "max", PixelLayout(1, "uint16", "max")),
        ([DEEP._replace(planes=4)], "auto", "channels", PixelLayout(4, "uint16", "channels")),
        ([DEEP], "auto", "max", PixelLayout(1, "uint16")),
        ([DEEP], 4, None, PixelLayout(4, "uint16")),
        ([DEEP] * 9 + [DEEP._replace(dtype="float32")], "auto", None, PixelLayout(1, "float32")),
        ([DEEP] * 900 + [DEEP._replace(dtype="float32")], "auto", None, PixelLayout(1, "uint16")),
    ],
)
def test_the_layout_of_a_set(
    infos: list[ArrayInfo], wanted: Any, planes: Planes | None, layout: PixelLayout | None
) -> None:
    assert choose_layout(infos, wanted, planes) == layout


def test_a_layout_converts_without_loss_or_says_what_differs() -> None:
    grey, colours = noise(20, 30, dtype="uint8"), noise(20, 30, 3, dtype="uint8")
    assert np.array_equal(read_array(png(grey), PixelLayout(3, "uint8")).pixels, np.dstack([grey] * 3))
    assert np.array_equal(read_array(png(np.dstack([grey] * 3)), PixelLayout(1, "uint8")).pixels[..., 0], grey)
    with pytest.raises(BadImageError, match=r"^has 3 bands of uint8 where the others have 1 of uint8$"):
        read_array(png(colours), PixelLayout(1, "uint8"))
    with pytest.raises(BadImageError, match=r"^has 3 bands of uint8 where the others have 13 of uint16$"):
        read_array(png(colours), PixelLayout(13, "uint16"))
    with pytest.raises(BadImageError, match=r"^has 1 band of uint8 where the others have 1 of uint16$"):
        read_array(png(grey), PixelLayout(1, "uint16"))
    deep = noise(20, 30)
    for dtype in ("int16", "float32"):
        pixels = read_array(tiff(deep), PixelLayout(1, dtype)).pixels
        assert str(pixels.dtype) == dtype
        assert np.array_equal(pixels[..., 0], deep)
    with pytest.raises(BadImageError, match=r"^has values from 0 to 40000 where the others have int16$"):
        read_array(tiff(np.array([[0, 40_000]] * 2, np.uint16)), PixelLayout(1, "int16"))


def test_bands_of_several_files_follow_each_other() -> None:
    grey, deep = noise(20, 30, dtype="uint8"), noise(20, 30)
    contents = [png(grey), tiff(deep), saved(noise(20, 30, 2))]
    assert describe_array(contents) == ArrayInfo(30, 20, 4, "uint16", 1, plain=False)
    pixels = read_array(contents, PixelLayout(4, "uint16")).pixels
    assert np.array_equal(pixels, np.dstack([grey, deep, noise(20, 30, 2)]))
    with pytest.raises(
        BadImageError, match="differ in size: 30 x 20 pixels in the first file, 20 x 30 in that of band 2"
    ):
        read_array([png(grey), png(grey.T)])


def test_limits_are_kept_before_pixels_are_read() -> None:
    for content in (tiff(noise(20, 30)), dicom(noise(20, 30)), saved(noise(20, 30)), png(noise(20, 30))):
        for look in (describe_array, lambda content, limits: read_array(content, None, limits)):
            with pytest.raises(BadImageError, match=r"^30 x 20 pixels are more than 500: a decompression bomb"):
                look(content, ImageLimits(max_pixels=500))
    with pytest.raises(BadImageError, match=r"^9 planes of 30 x 20 pixels take 10,800 bytes"):
        describe_array(tiff(noise(9, 20, 30), photometric="minisblack"), ImageLimits(max_pixels=1000))


@pytest.mark.parametrize(
    ("content", "modules", "name"),
    [
        (tiff(noise(20, 30)), ["tifffile"], "TIFF"),
        (dicom(), ["pydicom"], "DICOM"),
        (imagecodecs.png_encode(noise(20, 30, 3)), ["imagecodecs"], "PNG of 16 bits"),
    ],
)
def test_without_the_extra_it_is_said(
    content: bytes, modules: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadImageError, match=rf"^{name}: `pip install '.*headstart\[instruments\].*'` reads it"):
        describe_array(content)


def test_threads_read_alike() -> None:
    contents = [make() for name, make in SEEDS.items() if name != "frames.dcm"]
    wanted: list[Planes | None] = ["max" if describe_array(each).planes > 1 else None for each in contents]
    expected = [values(content, planes) for content, planes in zip(contents, wanted, strict=True)]
    wrong: list[int] = []

    def work() -> None:
        for i, (content, planes) in enumerate(zip(contents, wanted, strict=True)):
            if not np.array_equal(values(content, planes), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each hostile file, in a process of its own with 6 GiB of address space."""
    root = tmp_path_factory.mktemp("hostile")
    make_hostile_arrays(root)
    files = sorted(root.iterdir())
    command = [sys.executable, "-W", "error", str(LIMITED), *map(str, files)]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    assert not (root / "executed").exists()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row for row in rows}


def test_no_hostile_file_crashes_hangs_prints_or_takes_much_memory(ends: dict[str, dict[str, Any]]) -> None:
    assert len(ends) == len(HOSTILE) + CHANGED * len(SEEDS)
    assert len(HOSTILE) > 100
    for name, end in ends.items():
        assert end["code"] in (0, 1), (name, end)
        assert "\n" not in end["said"], (name, end)
        printed = [line for line in end["printed"].splitlines() if not line.startswith("JPEGLib: ")]  # Pillow's libtiff
        assert not printed, (name, end)
        assert end["grown"] < 800 * 2**20, (name, end)


# Odd, and yet with all their pixels.
HARMLESS = {"bomb.npz", "length_4_GB.dcm", "nested_groups.dcm", "no_rows_in_a_strip.tif", "value_of_4_GB.tif"}
HARMLESS |= {"ome_external.tif", "ome_laughs.tif", "ome_of_other_files.tif"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_a_reason(ends: dict[str, dict[str, Any]], name: str) -> None:
    assert ends[name]["code"] == (0 if name in HARMLESS else 1), ends[name]
    assert ends[name]["said"]


def test_planar_colours_of_16_bits_are_not_read_as_8() -> None:
    content = tiff(noise(3, 20, 30), photometric="rgb", planarconfig="separate")
    assert not describe_array(content).plain
    with pytest.raises(BadImageError, match="16-bit bands one after the other"):
        decode(content)
    assert struct.unpack("<H", content[2:4]) == (42,)
