"""Every stored form comes out by the stated rules; everything damaged is one ``BadFile``."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps

from maskloom.data import image_io
from maskloom.data.image_headers import read_header
from maskloom.data.image_io import image_size, read_image, read_mask_values, turned, write_png
from maskloom.errors import BadFile

RED, GREY, SIZE = (200, 10, 30), 77, (12, 20)


def plain(colour: tuple[int, ...] | int = RED) -> np.ndarray:
    return np.full((*SIZE, *np.shape(colour)), colour, np.uint8)


def noise(channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 48, channels), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif", "jpg", "webp"])
def test_rgb_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(plain()))
    pixels = read_image(path)
    assert pixels.shape == (*SIZE, 3) and pixels.dtype == np.uint8 and image_size(path) == SIZE
    assert np.abs(pixels.astype(int) - RED).max() <= (6 if suffix in ("jpg", "webp") else 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_grey_has_one_channel(tmp_path: Path, suffix: str) -> None:
    pixels = read_image(saved(tmp_path / f"a.{suffix}", Image.fromarray(plain(GREY))))
    assert pixels.shape == (*SIZE, 1) and (np.abs(pixels.astype(int) - GREY) <= 1).all()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_alpha_is_dropped_not_composited(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.dstack([plain(), plain(0)]), "RGBA")
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    assert (read_image(saved(tmp_path / f"a.{suffix}", image, **options)) == RED).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_with_alpha_becomes_grey(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.dstack([plain(GREY), plain(9)]), "LA")
    pixels = read_image(saved(tmp_path / f"a.{suffix}", image))
    assert pixels.shape == (*SIZE, 1) and (pixels == GREY).all()


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_palette_is_colour_in_images_and_index_in_masks(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.arange(240, dtype=np.uint8).reshape(SIZE) % 3)
    image = image.convert("P")
    image.putpalette([0, 0, 0, *RED, 5, 6, 7])
    path = saved(tmp_path / f"a.{suffix}", image)
    index = np.arange(240).reshape(SIZE) % 3
    colours = np.array([(0, 0, 0), RED, (5, 6, 7)], np.uint8)[index]
    assert np.array_equal(read_image(path), colours)
    assert np.array_equal(read_mask_values(path), index)
    assert np.array_equal(read_mask_values(path, colours=True), colours)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.full((*SIZE, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    pixels = read_image(saved(tmp_path / f"a.{suffix}", image))
    assert pixels.shape == (*SIZE, 3) and (np.abs(pixels.astype(int) - (255, 0, 0)) <= 4).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_one_bit_is_0_255_in_images_and_0_1_in_masks(tmp_path: Path, suffix: str) -> None:
    bits = np.indices(SIZE).sum(axis=0) % 2
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(bits.astype(bool)))
    assert np.array_equal(read_image(path)[:, :, 0], bits * 255)
    assert np.array_equal(read_mask_values(path), bits)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_low_bit_grey_masks_keep_their_numbers(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "a.png"
    row = bytes([0]) + int("".join(format(value, f"0{depth}b") for value in range(2)).ljust(8, "0"), 2).to_bytes(
        1 if depth < 8 else 2, "big"
    )
    if depth == 8:
        row = bytes([0, 0, 1])
    path.write_bytes(png_of(2, 1, depth, 0, row))
    assert read_mask_values(path).tolist() == [[0, 1]]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, depth: int, colour_type: int, rows: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


def test_reading_tiffs_leaves_no_handlers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(plain()))
    before = list(logging.getLogger("tifffile").handlers)
    for _ in range(3):
        read_image(path)
    assert logging.getLogger("tifffile").handlers == before


def test_a_decoder_out_of_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(image_io, "_decode", greedy)
    for read in (read_image, read_mask_values):
        with pytest.raises(BadFile, match="takes more memory than there is") as caught:
            read(saved(tmp_path / "a.png", Image.fromarray(plain())))
        assert "\n" not in str(caught.value)


def test_bands_over_the_budget_are_not_decoded(tmp_path: Path) -> None:
    """A header of 100,000,000 pixels is allowed; 65,535 bands of eight bytes for each are not."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((8, 8), np.float64), photometric="minisblack")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tags = tiff.pages[0].tags  # type: ignore[union-attr]
        for name, value in (("ImageWidth", 10_000), ("ImageLength", 10_000), ("SamplesPerPixel", 65_535)):
            tags[name].overwrite(value)
    with pytest.raises(BadFile, match=r"65535 bands of float64, 48827 GiB, over the budget of 8 GiB"):
        read_image(path)


def test_sixteen_bits_stay(tmp_path: Path) -> None:
    pixels = np.arange(240, dtype=np.uint16).reshape(SIZE) * 270
    write_png(tmp_path / "a.png", pixels)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_image(tmp_path / name)[:, :, 0], pixels)
        assert read_mask_values(tmp_path / name).dtype == np.uint16


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_multiband_tiff(tmp_path: Path, compression: str | None, planar: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 60000, (9, 11, 8), dtype=np.uint16)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 0)
    options = {"photometric": "minisblack", "planarconfig": planar, "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), pixels) and image_size(tmp_path / "a.tif") == (9, 11)


def test_bands_as_pages(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 9, 11), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack")
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(pixels, 0, -1))


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_other_tiff_compressions(tmp_path: Path, compression: str) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(noise()), compression=compression)
    assert np.array_equal(read_image(path), noise())


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
def test_other_numbers_become_float32(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full(SIZE, -3, dtype))
    pixels = read_image(tmp_path / "a.tif")
    assert pixels.dtype == np.float32 and (pixels == -3).all()
    assert (read_mask_values(tmp_path / "a.tif") == -3).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(tmp_path: Path, value: float) -> None:
    pixels = np.ones(SIZE, np.float32)
    pixels[3, 4] = value
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with pytest.raises(BadFile, match="1 values that are NaN or infinite"):
        read_image(tmp_path / "a.tif")


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.full(SIZE, 0.5, np.float32))
    with pytest.raises(BadFile, match="fractions"):
        read_mask_values(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(cv2.resize(noise(), (40, 24)))
    options = {"lossless": True} if suffix == "webp" else {}
    if suffix == "tif":
        path = saved(tmp_path / "a.tif", image, tiffinfo={274: orientation})
    else:
        path = saved(tmp_path / f"a.{suffix}", image, exif=exif.tobytes(), **options)
    with Image.open(path) as again:
        expected = np.asarray(ImageOps.exif_transpose(again))
    pixels = read_image(path)
    assert pixels.shape == expected.shape and image_size(path) == expected.shape[:2]
    assert np.abs(pixels.astype(int) - expected).max() <= (0 if suffix != "jpg" else 3)
    assert read_mask_values(path).shape == expected.shape


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 4), st.just(2))))
def test_orientations_undo_each_other(pixels: np.ndarray) -> None:
    for orientation, inverse in zip(range(1, 9), (1, 2, 3, 4, 5, 8, 7, 6), strict=True):
        assert np.array_equal(turned(turned(pixels, orientation), inverse), pixels)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("left", [0.3, 0.6, 0.99])
def test_truncated_jpeg_is_refused(tmp_path: Path, options: dict[str, bool], left: float) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(noise()), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * left)])
    assert image_size(path) == (64, 48)
    with pytest.raises(BadFile, match="cut off or damaged"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "webp", "tif"])
def test_truncated_files_are_refused_in_silence(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.fromarray(noise()))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(BadFile):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_a_truncated_lzw_tiff_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(noise()), compression="tiff_lzw")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadFile):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_a_flipped_bit_in_a_png_is_refused_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise()))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BadFile, match="checksum"):
        read_image(path)
    assert capfd.readouterr().err == ""


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


UNREAD = {"profile": (b"iCCP", b"broken"), "frames": (b"acTL", b"\0"), "white": (b"cHRM", b"\0" * 99)}


@pytest.mark.parametrize(("kind", "content"), UNREAD.values(), ids=UNREAD.keys())
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_what_no_pixel_depends_on_is_passed_over_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mode: str, kind: bytes, content: bytes
) -> None:
    """Such as the colour profiles of which libpng warns in every other photo."""
    whole = saved(
        tmp_path / "a.png", Image.fromarray(noise()).quantize(16) if mode == "P" else Image.fromarray(noise())
    )
    data, more = whole.read_bytes(), png_chunk(kind, content)
    for place in (33, data.index(b"IDAT") - 4, len(data) - 12):
        (tmp_path / "b.png").write_bytes(data[:place] + more + data[place:])
        assert np.array_equal(read_image(tmp_path / "b.png"), read_image(whole))
        if mode == "P":
            assert np.array_equal(read_mask_values(tmp_path / "b.png"), read_mask_values(whole))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IEND", b"ABCD", b"IDAT"])
def test_a_png_whose_parts_are_out_of_order_is_refused_in_silence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: bytes
) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(noise()).quantize(16))
    data = path.read_bytes()
    start = data.find(kind) - 4
    part = data[start : start + 12 + struct.unpack_from(">I", data, start)[0]] if start > 0 else png_chunk(kind, b"")
    path.write_bytes(data[:33] + part + data[33:])
    with pytest.raises(BadFile, match="not in their order"):
        read_image(path)
    assert capfd.readouterr().err == ""


def test_filler_bytes_in_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.fromarray(plain()))
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"\0\0\0" + content[-2:])
    assert read_image(path).shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"hello, this is text\n", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (bytes(range(128, 200)), "other content"),
        (b"\x89PNG\r\n\x1a\n\0\0", "cut off or damaged"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "cut off or damaged"),
        (b"II*\0\xff\xff\0\0", "cut off or damaged"),
    ],
    ids=range(7),
)
def test_what_is_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (image_size, read_image, read_mask_values):
        with pytest.raises(BadFile, match=reason) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(BadFile, match="cannot be read"):
            read_image(path)


def monstrous() -> dict[str, bytes]:
    """Returns files of a few bytes whose headers claim the largest size their format can."""
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20)
    bmp = b"BM" + bytes(12) + struct.pack("<Iii", 40, 100_000, -100_000) + bytes(40)
    webp = b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\x9f\x86\x01" * 2 + bytes(20)
    tags = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1), (273, 4, 1, 8)]
    tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    jpeg = b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 17, 8, 65535, 65535, 3) + bytes(30)
    png = png_of(100_000, 100_000, 8, 2, bytes(10))
    return {"gif": gif, "bmp": bmp, "webp": webp, "tif": tiff, "jpg": jpeg, "png": png}


@pytest.mark.parametrize("suffix", sorted(monstrous()))
def test_a_monstrous_header_is_refused_before_decoding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(monstrous()[suffix])
    for read in (read_image, read_mask_values):
        with pytest.raises(BadFile, match=r"budget of 200,000,000"):
            read(path)


def test_budget_can_be_set_and_counts_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.fromarray(plain()))
    assert read_image(path, max_pixels=240).shape == (*SIZE, 3)
    with pytest.raises(BadFile, match="budget of 239"):
        read_image(path, max_pixels=239)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", ["gif", "bmp", "webp", "cmyk.jpg", "palette.png"])
def test_the_budget_of_another_library_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    image = Image.fromarray(plain())
    image = {"cmyk.jpg": image.convert("CMYK"), "palette.png": image.convert("P")}.get(form, image)
    path = saved(tmp_path / f"a.{form}", image)
    for budget in (150, 60, None):  # of Pillow, which warns of more and refuses twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", budget)
        assert read_mask_values(path, colours=form != "palette.png").shape[:2] == SIZE
        assert read_image(path).shape == (*SIZE, 3)
        assert (None if budget is None else image_io.MAX_PIXELS) == Image.MAX_IMAGE_PIXELS


@given(
    arrays.arrays(
        st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16)]),
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3])),
    )
)
def test_png_round_trip(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_png(path, pixels)
    assert np.array_equal(read_image(path), pixels)


def test_write_png_refuses_what_a_png_cannot_hold(tmp_path: Path) -> None:
    for pixels in (np.zeros((2, 2), np.float32), np.zeros((2, 2, 5), np.uint8)):
        with pytest.raises(ValueError, match="got"):
            write_png(tmp_path / "a.png", pixels)
    assert not list(tmp_path.iterdir())


def test_format_is_told_by_content_not_by_suffix(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(plain()).save(stream, "PNG")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    assert read_header(tmp_path / "a.jpg").format == "png"
    assert (read_image(tmp_path / "a.jpg") == RED).all()
