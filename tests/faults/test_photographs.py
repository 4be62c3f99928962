"""Photographs from anywhere: formats by content, alpha, grey of many bits, links, damaged and huge files."""

import io
import os
import random
import struct
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastvggt_jax.errors import Error, ImageError, InputError, MissingError
from fastvggt_jax.sources import load_images, photographs
from fastvggt_jax.sources.masks import Masks
from fastvggt_jax.sparsity import parse_layers

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def saved(path, image=None, **how):
    (Image.fromarray(PIXELS) if image is None else image).save(path, **how)
    return path


# ---- which files


def test_what_the_reader_reads_is_taken_and_the_rest_is_listed(tmp_path):
    kinds = dict(jfif="JPEG", jpe="JPEG", mpo="JPEG", gif="GIF", ppm="PPM", pgm="PPM", dib="BMP")
    if "JPEG2000" in photographs._formats():
        kinds |= dict(jp2="JPEG2000", j2k="JPEG2000")
    if "AVIF" in photographs._formats():
        kinds |= dict(avif="AVIF")
    for suffix, form in kinds.items():
        saved(tmp_path / f"a.{suffix}", format=form)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "broken.jpg").symlink_to("gone.jpg")
    (tmp_path / ".hidden.jpg").write_text("x")
    os.mkfifo(tmp_path / "pipe.jpg")
    images = load_images(tmp_path, size=28)
    assert set(images.names) == {f"a.{suffix}" for suffix in kinds}
    skipped = {os.path.basename(path): reason for path, reason in images.skipped}
    assert set(skipped) == {"notes.txt", "broken.jpg", "pipe.jpg"}
    assert "link to gone.jpg" in skipped["broken.jpg"] and "no file, but a pipe" in skipped["pipe.jpg"]


def test_what_a_file_holds_decides_and_not_its_name(tmp_path):
    for form in ("PNG", "WEBP", "TIFF", "BMP"):
        saved(tmp_path / "a.jpg", format=form, lossless=True)
        np.testing.assert_array_equal(
            load_images(tmp_path / "a.jpg", size=28).pixels, load_images(PIXELS, size=28).pixels
        )


def test_heic_bytes_under_another_name(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    Image.fromarray(PIXELS).save(tmp_path / "a.heic")
    (tmp_path / "a.heic").rename(tmp_path / "a.jpg")
    assert load_images(tmp_path / "a.jpg", size=28).pixels.shape == (1, 14, 28, 3)


@pytest.mark.parametrize(
    "start, words",
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "PostScript and PDF are not read"),
        (b"%PDF-1.7\n", "PostScript and PDF are not read"),
        (b"\0\0\0\x18ftypisom\0\0\2\0", "looks like a video"),
        (b"RIFF\0\0\0\0AVI LIST", "looks like a video"),
        (b"\x1aE\xdf\xa3", "looks like a video"),
        (b"BLP2\1\0\0\0", "unknown file format"),
        (b"", "it is empty"),
    ],
)
def test_other_files_are_refused_without_starting_anything(tmp_path, monkeypatch, start, words):
    """Ghostscript above all, which Pillow would start on PostScript."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tools / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "a.jpg").write_bytes(start + b"\0" * 100 * bool(start))
    with pytest.raises(ImageError, match=words):
        load_images(tmp_path / "a.jpg")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("links", [1, 2])
def test_each_file_is_taken_once_however_links_lead_to_it(tmp_path, links):
    (tmp_path / "p" / "q").mkdir(parents=True)
    saved(tmp_path / "p" / "q" / "a.png")
    for i in range(links):
        (tmp_path / "p" / "q" / f"up{i}").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "b.png").symlink_to(tmp_path / "p" / "q" / "a.png")
    images = load_images(f"{tmp_path}/p/**/*.png", size=28)
    assert images.names == ("b.png",)
    assert [reason.split(" is ")[1].split(" as ")[0] for _, reason in images.skipped] == ["the same file"]
    again = load_images([tmp_path / "p" / "q" / "a.png"] * 3 + [PIXELS, PIXELS], size=28)
    assert again.names == ("a.png", "0001", "0002") and len(again.skipped) == 2


def test_pipes_devices_and_broken_links_are_called_that(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    for path, words in ((tmp_path / "pipe", "a pipe or a device"), ("/dev/null", "a pipe or a device")):
        with pytest.raises(ImageError, match=words):
            load_images(path)
    with pytest.raises(MissingError, match=r"link to gone.jpg, which does not exist"):
        load_images(tmp_path / "link.jpg")


def test_the_parent_of_folders_with_photographs_says_so(tmp_path):
    for name in ("cam0", "cam1"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "a.png")
    with pytest.raises(ImageError, match=r"folders cam0, cam1 do: give one of these, or '.*/\*/\*' for all"):
        load_images(tmp_path)
    assert len(load_images(f"{tmp_path}/*/*", size=28).pixels) == 2


# ---- alpha


@pytest.mark.parametrize("mode", ["crop", "pad", "square", "area"])
def test_where_alpha_is_0_nothing_is_shown(tmp_path, mode):
    alpha = np.zeros((80, 120), np.uint8)
    alpha[20:60, 30:90] = 200
    cut = Image.fromarray(np.dstack([RNG.integers(0, 256, (80, 120, 3), np.uint8), alpha]))
    images = load_images([saved(tmp_path / "a.png", cut), saved(tmp_path / "b.png")], mode=mode, size=56)
    t, shown = images.transforms[0], images.shown()
    ys, xs = np.mgrid[: shown.shape[1], : shown.shape[2]] + 0.5
    x, y = np.moveaxis(t.to_original(np.stack([xs, ys], -1)), -1, 0)
    inside = np.minimum(np.minimum(x - 30, 90 - x), np.minimum(y - 20, 60 - y))
    clear = np.abs(inside) > 0.1  # of a tie at the border
    np.testing.assert_array_equal(shown[0][clear], ((inside > 0) & t.valid_mask())[clear])
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(shown[1], images.transforms[1].valid_mask())
    assert load_images([tmp_path / "b.png"], mode=mode, size=56).masks is None


def test_other_kinds_of_transparency(tmp_path):
    palette = Image.new("P", (28, 28), 0)
    palette.putpalette([10, 20, 30] * 256)
    palette.putpixel((0, 0), 1)
    saved(tmp_path / "p.png", palette, transparency=0)
    saved(tmp_path / "la.png", Image.fromarray(np.dstack([np.full((28, 28), 9, np.uint8)] * 2)))
    saved(tmp_path / "opaque.png", Image.new("RGBA", (28, 28), (1, 2, 3, 255)))
    images = load_images([tmp_path / "p.png", tmp_path / "la.png", tmp_path / "opaque.png"], size=28)
    assert [int(mask.sum()) for mask in images.masks] == [1, 784, 784]


# ---- grey of many bits


def tiff(path, values, *, white_is_zero=False, sample_format=1, width=None, bits=None):
    """A grey TIFF as scanners and cameras write it; Pillow writes no unsigned 32-bit ones."""
    height, columns = values.shape
    data = values.tobytes()
    tags = [(256, 3, width or columns), (257, 3, height), (258, 3, bits or 8 * values.itemsize), (259, 3, 1)]
    tags += [
        (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, height),
        (279, 4, len(data)),
    ]
    tags += [(339, 3, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)
    return path


GREY = RNG.integers(0, 256, (28, 28)).astype(np.uint32)


@pytest.mark.parametrize(
    "values, how, expected",
    [
        ((GREY * 257).astype(np.uint16), {}, GREY),
        ((GREY * 257).astype(np.uint16), dict(white_is_zero=True), 255 - GREY),
        ((GREY * 0x01010101).astype(np.uint32), {}, GREY),
        ((GREY.astype(np.int64) * (2**31 - 1) // 255).astype(np.int32), dict(sample_format=2), GREY),
        (GREY.astype(np.uint8), dict(white_is_zero=True), 255 - GREY),
    ],
)
def test_grey_tiffs_of_every_depth(tmp_path, recwarn, values, how, expected):
    found = load_images(tiff(tmp_path / "a.tif", values, **how), size=28).pixels[0]
    assert np.abs(found - np.repeat(expected[..., None], 3, -1).astype(int)).max() <= 1
    assert not recwarn.list


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_numbers_that_use_a_part_of_their_bits_are_warned_of_and_have_a_white(tmp_path, bits, kind):
    white = 2**bits - 1
    values = (GREY * white // 255).astype(kind)
    values[0, 0] = white
    path = tiff(tmp_path / "a.tif", values)
    with pytest.warns(UserWarning, match=rf"a\.tif is almost black: .* end at {white} of .*white={white}"):
        assert load_images(path, size=28).pixels.max() < 70
    found = load_images(path, size=28, white=white).pixels[0, ..., 0]
    assert np.abs(found[1:].astype(int) - GREY[1:].astype(int)).max() <= 1


def test_a_tiff_of_12_bits_says_so(tmp_path, recwarn):
    """Two numbers in three bytes, as it may be written."""
    one, other = (GREY.ravel()[i::2] * 4095 // 255 for i in range(2))
    packed = np.stack([one >> 4, (one & 15) << 4 | other >> 8, other & 255], -1).astype(np.uint8)
    path = tiff(tmp_path / "a.tif", packed.reshape(28, 42), width=28, bits=12)
    for source in (path, Image.open(path)):
        found = load_images(source, size=28).pixels[0, ..., 0]
        assert np.abs(found.astype(int) - GREY.astype(int)).max() <= 1 and not recwarn.list


def test_a_tiff_of_signed_bytes(tmp_path):
    values = (GREY.astype(int) - 128).astype(np.int8)
    found = load_images(tiff(tmp_path / "a.tif", values, sample_format=2), size=28).pixels[0, ..., 0]
    expected = np.clip(values.astype(float), 0, 127) / 127 * 255
    assert np.abs(found - expected).max() <= 1


def test_a_16_bit_png_of_12_bits(tmp_path):
    saved(tmp_path / "a.png", Image.fromarray((GREY * 16).astype(np.uint16)))
    with pytest.warns(UserWarning, match="white=4095"):
        load_images(tmp_path / "a.png", size=28)
    with pytest.raises(InputError, match="white must be a whole number, at least 1"):
        load_images(tmp_path / "a.png", white=0)


def pgm(path, values, top):
    path.write_bytes(
        f"P5 {values.shape[1]} {values.shape[0]} {top}\n".encode() + values.astype(">u2").tobytes()
    )
    return path


@pytest.mark.parametrize("top", [65535, 4095])
def test_a_pgm_of_16_bits_says_what_is_white(tmp_path, recwarn, top):
    values = np.round(GREY / 255 * top)
    found = load_images(pgm(tmp_path / "a.pgm", values, top), size=28).pixels[0, ..., 0]
    assert np.abs(found.astype(int) - GREY.astype(int)).max() <= 1 and not recwarn.list


def test_what_is_white_in_a_pgm_is_said_in_its_own_numbers(tmp_path, recwarn):
    path = pgm(tmp_path / "a.pgm", np.round(GREY / 255 * 1023), 4095)
    with pytest.warns(UserWarning, match="end at 1023 of 4095; .*white=1023"):
        load_images(path, size=28)
    found = load_images(path, size=28, white=1023).pixels[0, ..., 0]
    assert np.abs(found.astype(int) - GREY.astype(int)).max() <= 1


@pytest.mark.parametrize("bits", [12, 16])
def test_a_colour_ppm_of_12_bits_in_16_is_warned_of(tmp_path, recwarn, bits):
    values = np.repeat(np.round(GREY / 255 * (2**bits - 1))[..., None], 3, -1).astype(">u2")
    (tmp_path / "a.ppm").write_bytes(b"P6 28 28 65535\n" + values.tobytes())
    load_images(tmp_path / "a.ppm", size=28)
    assert ["if 4095 is meant to be white" in str(one.message) for one in recwarn.list] == [True] * (
        bits < 16
    )


@pytest.mark.parametrize("kind, top", [(np.int16, 32767), (np.uint32, 65535), (np.int32, 32767)])
def test_tiffs_whose_numbers_are_narrower_than_pillows(tmp_path, recwarn, kind, top):
    """int16 says so in its tags; 16 of 32 bits look almost black, of which one is told."""
    values = np.round(GREY / 255 * top).astype(kind)
    sample_format = 1 if np.issubdtype(kind, np.unsignedinteger) else 2
    path = tiff(tmp_path / "a.tif", values, sample_format=sample_format)
    found = load_images(path, size=28).pixels[0, ..., 0]
    if kind is np.int16:
        assert not recwarn.list
    else:
        assert f"white={top}" in str(recwarn.pop(UserWarning).message)
        found = load_images(path, size=28, white=top).pixels[0, ..., 0]
    assert np.abs(found.astype(int) - GREY.astype(int)).max() <= 1


def chunk(kind, body):
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png16(path, values):
    """A PNG of 16 bits a channel, u16[height, width, channels]."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", [12, 16])
def test_colour_of_12_bits_in_16_is_warned_of(tmp_path, recwarn, channels, bits):
    values = np.repeat((GREY.astype(np.uint16) * 257 >> (16 - bits))[..., None], channels, -1)
    if channels in (2, 4):
        values[..., -1] = 65535
    load_images(png16(tmp_path / "a.png", values), size=28)
    texts = [str(one.message) for one in recwarn.list]
    assert len(texts) == (bits == 12) and all("if 4095 is meant to be white, save it" in t for t in texts)


def test_a_tiff_whose_white_is_0_may_look_almost_white(tmp_path):
    path = tiff(tmp_path / "a.tif", (GREY.astype(np.uint16) * 16), white_is_zero=True)
    with pytest.warns(UserWarning, match="a.tif is almost white: .* 4095 is meant to be black, .*white=4095"):
        assert load_images(path, size=28).pixels.min() > 230
    found = load_images(path, size=28, white=4095).pixels[0, ..., 0]
    assert np.abs(255 - found.astype(int) - GREY.astype(int)).max() <= 1


def test_a_picture_in_memory_is_as_its_file(tmp_path):
    path = tiff(tmp_path / "a.tif", GREY.astype(np.uint32) << 24)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_images(image, size=28).pixels, load_images(path, size=28).pixels)


def test_one_number_of_a_16_bit_grey_is_transparent(tmp_path):
    values = GREY.astype(np.uint16) * 257
    number = int(values[0, 0])
    saved(tmp_path / "a.png", Image.fromarray(values), transparency=number)
    images = load_images(tmp_path / "a.png", size=28)
    where = (GREY[0, 0] == GREY)[: images.pixels.shape[1]]
    assert (images.pixels[0][where] == 255).all() and not images.masks[0][where].any()
    np.testing.assert_array_equal(images.pixels[0, ..., 0][~where], GREY[~where])


def test_a_picture_in_memory_is_the_one_that_its_owner_chose_and_stays_as_it_is(tmp_path, recwarn):
    pages = [Image.fromarray(GREY.astype(np.uint8) // part) for part in (4, 2, 1)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:])
    with Image.open(tmp_path / "a.gif") as image:
        image.seek(2)
        before = dict(image.info)
        np.testing.assert_array_equal(load_images(image, size=28).pixels[0, ..., 0], GREY)
        assert image.info == before
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["tif", "gif", "png"])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_that_is_said(tmp_path, suffix):
    pages = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS), Image.fromarray(PIXELS // 2)]
    pages[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=f"a.{suffix} holds 3 pictures, of which the first is taken"):
        load_images(tmp_path / f"a.{suffix}", size=28)


@pytest.mark.parametrize("text", ["abc", "hello"])
def test_a_text_in_a_png_says_nothing_of_its_numbers(tmp_path, text):
    path = saved(tmp_path / "a.png", Image.fromarray(GREY.astype(np.uint16) * 257))
    late = chunk(b"tEXt", b"depth\0" + text.encode())
    whole = path.read_bytes()
    end = whole.index(b"IEND") - 4
    path.write_bytes(whole[:end] + late + whole[end:])
    found = load_images(tmp_path / "a.png", size=28).pixels[0, ..., 0]
    np.testing.assert_array_equal(found, GREY)


def test_a_white_beyond_32_bits_is_refused(tmp_path):
    with pytest.raises(InputError, match="white must be at most 4294967295"):
        load_images(PIXELS, white=10**400)


def test_a_pattern_lists_what_it_leaves_out(tmp_path):
    saved(tmp_path / "a.jpg")
    saved(tmp_path / "b.CR2", format="JPEG")
    (tmp_path / "c.jpg").symlink_to("gone.jpg")
    (tmp_path / "d.jpg").mkdir()
    images = load_images(str(tmp_path / "*"), size=28)
    assert images.names == ("a.jpg",)
    assert [os.path.basename(path) for path, _ in images.skipped] == ["b.CR2", "c.jpg"]


def test_a_list_may_begin_with_a_mark_and_is_no_pipe(tmp_path):
    saved(tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.jpg\n")
    assert load_images(tmp_path / "list.txt", size=28).names == ("a.jpg",)
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="pipe.txt is no regular file"):
        load_images(tmp_path / "pipe.txt")


def test_a_mask_may_be_as_large_as_a_photograph(tmp_path, monkeypatch):
    """Pillow's own limit is lower than ours."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    saved(tmp_path / "a.jpg")
    (tmp_path / "masks").mkdir()
    saved(tmp_path / "masks" / "a.png", Image.fromarray(PIXELS[..., 0]))
    images = load_images(tmp_path / "a.jpg", size=28, masks=tmp_path / "masks")
    assert images.masks is not None and Image.MAX_IMAGE_PIXELS == 100


def test_huge_masks_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    """As photographs are."""
    taken = []

    class Turn:
        def __enter__(self):
            taken.append(1)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(photographs, "HUGE", 100)
    monkeypatch.setattr(photographs, "_one_huge", Turn())
    saved(tmp_path / "a.jpg")
    (tmp_path / "masks").mkdir()
    saved(tmp_path / "masks" / "a.png", Image.fromarray(PIXELS[..., 0]))
    load_images(tmp_path / "a.jpg", size=28, masks=tmp_path / "masks")
    assert len(taken) == 2


def test_pictures_in_memory_are_bounded_too(monkeypatch):
    monkeypatch.setattr(photographs, "MAX_PIXELS", 1000)
    for source in (PIXELS, Image.fromarray(PIXELS)):
        with pytest.raises(ImageError, match="photograph 0000 has 60x40 pixels, which is more than"):
            load_images(source, size=28)


def test_threads_leave_the_filters_of_warnings_as_they_were(tmp_path, monkeypatch):
    """Of two that open photographs, the one that came in last goes out last."""
    saved(tmp_path / "a.jpg")
    saved(tmp_path / "b.jpg")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    formats, decode = photographs._formats, ImageOps.exif_transpose
    came: list[int] = []
    one_is_in, both_are_in = threading.Event(), threading.Event()

    def formats_in_turn():
        came.append(threading.get_ident())
        assert came[0] == threading.get_ident() or one_is_in.wait(10)
        return formats()

    def decode_in_turn(image):
        if came[0] == threading.get_ident():
            one_is_in.set()
            assert both_are_in.wait(10)
        else:
            both_are_in.set()
            time.sleep(0.3)
        return decode(image)

    monkeypatch.setattr(photographs, "_formats", formats_in_turn)
    monkeypatch.setattr(ImageOps, "exif_transpose", decode_in_turn)
    before = list(warnings.filters)
    load_images(tmp_path, size=28)
    assert len(set(came)) == 2 and warnings.filters == before


@pytest.mark.parametrize("locked", ["photos", "photos/inside"])
def test_a_folder_of_others_that_cannot_be_looked_into(tmp_path, monkeypatch, locked):
    (tmp_path / "photos" / "inside").mkdir(parents=True)
    look = Path.iterdir

    def refused(path):
        if path == tmp_path / locked:
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    monkeypatch.setattr(Path, "iterdir", refused)
    match = "photos cannot be read: Permission denied" if locked == "photos" else "photos holds no images"
    with pytest.raises(Error, match=match):
        load_images(tmp_path / "photos")


def test_a_tiff_that_is_not_read_is_called_that(tmp_path):
    path = tiff(tmp_path / "a.tif", GREY.astype(np.uint32) << 24, white_is_zero=True)
    with pytest.raises(ImageError, match="a TIFF of a kind that is not read, or a damaged one"):
        load_images(path)


# ---- memory and time


def blank_png(path, width, height):
    """A PNG of so many black pixels, which compress to almost nothing."""
    row = b"\0" * (1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join([packer.compress(row * min(4096, height - y)) for y in range(0, height, 4096)])
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", data + packer.flush())
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize(
    "width, height, mode, size",
    [(1, 65535, "crop", 518), (1, 20000, "crop", 518), (1, 65535, "square", 56), (65535, 1, "square", 56)],
)
def test_proportions_that_no_photograph_has_take_no_memory(tmp_path, width, height, mode, size):
    with pytest.raises(ImageError, match=rf"a\.png: {width}x{height} pixels are too"):
        load_images(blank_png(tmp_path / "a.png", width, height), mode=mode, size=size)
    images = load_images([tmp_path / "a.png", PIXELS], mode=mode, size=size, skip_bad=True)
    assert len(images.pixels) == 1


def test_the_limit_of_pixels_is_said(tmp_path):
    path = blank_png(tmp_path / "a.png", 70_000, 10_000)
    with pytest.raises(ImageError, match="has 70000x10000 pixels, which is more than 537 megapixels"):
        load_images(path)
    assert load_images(blank_png(tmp_path / "b.png", 16_000, 12_000), size=28).pixels.shape[0] == 1


@pytest.mark.parametrize("mode", ["crop", "area", "pad", "square"])
def test_a_size_beyond_reason_is_refused(mode):
    for size in (140_000, 10**12):
        with pytest.raises(InputError, match="size must be at most 8192"):
            load_images(PIXELS, mode=mode, size=size)


def test_ranges_of_layers_beyond_reason_are_refused():
    with pytest.raises(InputError, match="layers must be below 1024"):
        parse_layers("0-99999999999")


# ---- damage


def damaged(raw: bytes, seed: int) -> bytes:
    rng = random.Random(seed)
    data = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        what, at = rng.randrange(4), rng.randrange(len(data))
        if what == 0:
            data[at] = rng.randrange(256)
        elif what == 1:
            del data[at : at + rng.randint(1, 100)]
        elif what == 2:
            data[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 20)))
        else:
            del data[rng.randrange(len(data)) :]
        if not data:
            break
    return bytes(data)


FORMS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")


def fuzz(folder, form, seeds):
    if form not in photographs._formats():
        pytest.skip(f"this Pillow has no {form}")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, form)
    for seed in seeds:
        path = folder / f"{seed}.jpg"
        path.write_bytes(damaged(buffer.getvalue(), seed))
        try:
            load_images(path, size=28)
        except Error as error:
            assert str(path) in str(error) and "\n" not in str(error)
        path.unlink()


@pytest.mark.parametrize("form", FORMS)
def test_damaged_images_are_a_sentence_or_a_picture(tmp_path, form):
    fuzz(tmp_path, form, range(40))


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_images(tmp_path, form):
    fuzz(tmp_path, form, range(1000, 3000))


def fuzz_masks(folder, form, seeds):
    if form not in photographs._formats():
        pytest.skip(f"this Pillow has no {form}")
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[..., 0] // 128 * 255).save(buffer, form)
    masks = Masks(folder)
    for seed in seeds:
        (folder / "a.png").write_bytes(damaged(buffer.getvalue(), seed))
        try:
            mask = masks.of(folder / "a.jpg", "a", (60, 40))
            assert mask.shape == (40, 60) and mask.dtype == bool
        except Error as error:
            assert "a.png" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("form", FORMS)
def test_damaged_masks_are_a_sentence_or_a_mask(tmp_path, form):
    fuzz_masks(tmp_path, form, range(40))


@pytest.mark.faults
@pytest.mark.parametrize("form", FORMS)
def test_many_damaged_masks(tmp_path, form):
    fuzz_masks(tmp_path, form, range(1000, 3000))
