"""Videos: the frames that were asked for, by their times, upright, sharp and different; what is no video."""

import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from fastvggt_jax.errors import Error, ExtraError, ImageError, InputError, MissingError
from fastvggt_jax.export.photographs import place_photographs
from fastvggt_jax.sources import ImagePolicy, load_images
from fastvggt_jax.sources import video as videos
from fastvggt_jax.sources.video import Video
from tests.export.test_folders import stub

av = pytest.importorskip("av")

WIDTH, HEIGHT, SECONDS = 96, 64, 20.0
POLICY = ImagePolicy("crop", 28, 14)
# Of a variable rate: 20 a second, then 5, then 20.
TIMES = np.concatenate([np.arange(0, 4, 0.05), np.arange(4, 16, 0.2), np.arange(16, SECONDS, 0.05)])
ROTATION_90 = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]


def picture(time: float, blur: bool = False) -> np.ndarray:
    """Tells its time by the brightness of its left half; the right half is detail that moves."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[:, : WIDTH // 2] = round(20 + 10 * time)
    v, u = np.mgrid[:HEIGHT, : WIDTH // 2]
    detail = 127 + 100 * np.sign(np.sin(u / 2 + 3 * time) * np.sin(v / 3))
    image[:, WIDTH // 2 :] = 127 if blur else detail[..., None]
    return image


def told(image) -> float:
    """The time that a picture tells."""
    values = np.asarray(image.convert("RGB"), float)[8:-8, 8 : WIDTH // 2 - 8]
    return (values.mean() - 20) / 10


def write(
    path,
    times=TIMES,
    codec="libx264",
    audio=False,
    of=picture,
    options=None,
    last=None,
    aspect=None,
    between=None,
):
    """last: seconds that the last frame stays. between: B-frames between two others."""
    with av.open(str(path), "w", options=options or {}) as out:
        if audio:
            stream = out.add_stream("aac", rate=8000, layout="mono")
            for start in range(0, 8192, 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                frame.rate, frame.pts = 8000, start
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
            return path
        stream = out.add_stream(codec, rate=20)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if between is not None:
            stream.codec_context.max_b_frames = between
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        stream.options = {"crf": "10"}
        packets = []
        for time in times:
            frame = av.VideoFrame.from_ndarray(of(time), "rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if last is not None:
            latest = max(packets, key=lambda packet: packet.pts)
            latest.duration = round(last / latest.time_base)
        out.mux(packets)
    return path


def turned(path):
    """Writes into an mp4's header that it is to be seen turned by 90 degrees, clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = np.array(ROTATION_90, ">i4").tobytes()
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write(tmp_path_factory.mktemp("video") / "clip.mp4")


def shots(source):
    return [frame.open() for frame in videos.SOURCE.frames(source)]


@pytest.mark.parametrize("fps, expected", [(1.0, 20), (2.0, 40), (0.25, 5)])
def test_so_many_frames_a_second_by_their_times_whatever_the_rate(clip, fps, expected):
    times = [told(image) for image in shots(Video(clip, fps=fps))]
    assert len(times) == expected
    for number, time in enumerate(times):
        assert number / fps - 0.15 <= time <= (number + 1) / fps + 0.15, times


def test_no_more_frames_than_asked_for(clip):
    times = [told(image) for image in shots(Video(clip, fps=10, max_frames=8))]
    assert len(times) == 8 and times[-1] > 17  # the whole of it


def test_the_sharpest_frame_of_each_interval(tmp_path):
    sharp = {0.3, 1.7, 2.1}  # one in every second
    times = np.round(np.arange(0, 3, 0.1), 1)
    path = write(tmp_path / "blurred.mp4", times, of=lambda t: picture(t, blur=round(t, 1) not in sharp))
    found = [told(image) for image in shots(Video(path, fps=1))]
    np.testing.assert_allclose(found, sorted(sharp), atol=0.12)


def test_frames_that_show_the_same_are_dropped(tmp_path):
    path = write(tmp_path / "still.mp4", np.arange(0, 6, 0.1), of=lambda t: picture(0.0 if t < 4 else 5.0))
    assert [round(told(image)) for image in shots(Video(path, fps=1))] == [0, 5]


@pytest.mark.parametrize("name, codec", [("a.mov", "libx264"), ("a.webm", "libvpx-vp9"), ("A.MKV", "mpeg4")])
def test_other_containers(tmp_path, name, codec):
    path = write(tmp_path / name, np.arange(0, 2, 0.1), codec)
    assert len(shots(Video(path, fps=2))) == 4


def test_turned_as_the_file_says(tmp_path):
    path = turned(write(tmp_path / "turned.mp4", np.arange(0, 1, 0.1)))
    image = shots(Video(path, fps=1))[0]
    assert image.size == (HEIGHT, WIDTH)
    values = np.asarray(image.convert("L"), float)
    top, bottom = values[: WIDTH // 2], values[WIDTH // 2 :]
    # Clockwise: what was left is above now.
    assert top.std() < 10 < bottom.std()


@pytest.mark.parametrize("aspect, size", [("2", (2 * WIDTH, HEIGHT)), ("1/2", (WIDTH, 2 * HEIGHT))])
def test_pixels_that_are_not_square_become_so(tmp_path, aspect, size):
    path = write(tmp_path / "wide.mp4", np.arange(0, 1, 0.1), aspect=Fraction(aspect))
    assert shots(Video(path, fps=1))[0].size == size
    again = load_images([path], POLICY).frames[0].open()
    assert again.size == size  # also when it is opened later


def test_two_videos_of_one_name_have_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "clip.mp4", np.arange(0, 1, 0.1))
    names = load_images([tmp_path / "a" / "clip.mp4", tmp_path / "b" / "clip.mp4"], POLICY).names
    assert len(set(names)) == len(names) == 4 and names[2] == "clip_00000-2"


def test_the_loader_takes_it_and_frames_open_again(clip, tmp_path):
    images = load_images([clip], POLICY)
    assert len(images.names) == 40 and images.names[3] == "clip_00003"
    later = [told(images.frames[number].open()) for number in (30, 3, 17)]
    np.testing.assert_allclose(later, [15, 1.5, 8.5], atol=0.6)
    some = load_images([Video(clip, fps=0.25)], POLICY)
    placed = place_photographs(stub(some), tmp_path / "images", some.frames)
    assert placed.names[2] == "clip_00002.jpg"
    assert Image.open(tmp_path / "images" / "clip_00002.jpg").size == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "name, codec, between",
    [
        ("a.avi", "mpeg4", 2),  # of which seeking gives other frames, since it has no times of its own
        ("a.mp4", "libx264", 2),
        ("a.webm", "libvpx", 0),
    ],
)
def test_a_frame_opened_again_is_the_same_one_in_any_order(tmp_path, name, codec, between):
    path = write(tmp_path / name, np.arange(0, 6, 0.05), codec, between=between)
    frames = list(videos.SOURCE.frames(Video(path, fps=5)))
    first = [np.asarray(frame.open()) for frame in frames]
    assert len(frames) == 30
    for number in (29, 3, 4, 17, *range(30)):
        np.testing.assert_array_equal(np.asarray(frames[number].open()), first[number])


def test_opening_all_frames_again_decodes_the_video_once(clip, tmp_path, monkeypatch):
    images = load_images([Video(clip, fps=1)], POLICY)
    decoded, one = [], videos._decoded
    monkeypatch.setattr(videos, "_decoded", lambda *a: decoded.append(1) or one(*a))
    place_photographs(stub(images), tmp_path / "images", images.frames)
    assert len(images.names) == 20 and len(decoded) == 1
    images.frames[3].open()  # what lies before is decoded from the start again
    assert len(decoded) == 2


def test_a_video_that_has_changed_meanwhile_is_a_sentence(tmp_path):
    path = write(tmp_path / "a.mp4", np.arange(0, 4, 0.1))
    images = load_images([path], POLICY)
    write(path, np.arange(0, 1, 0.1))
    with pytest.raises(ImageError, match="has no frame any more where there was one"):
        images.frames[-1].open()


def test_a_pattern_and_a_folder_of_videos(tmp_path):
    for name in ("clip10.mp4", "clip9.mp4"):
        write(tmp_path / name, np.arange(0, 1, 0.1))
    assert load_images(str(tmp_path / "*.mp4"), POLICY).names == (
        *("clip9_00000", "clip9_00001", "clip10_00000", "clip10_00001"),
    )
    with pytest.raises(MissingError, match=r"the pattern .*\*.mov holds no videos"):
        load_images(str(tmp_path / "*.mov"), POLICY)
    with pytest.raises(
        ImageError, match="holds no images .*; of its videos, such as clip9.mp4, give the path"
    ):
        load_images(tmp_path, POLICY)


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda p: p.write_bytes(b""), "is a damaged video, or none"),
        (lambda p: p.write_bytes(b"no video at all" * 99), "is a damaged video, or none"),
        (lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\nother.ts\n"), "is a damaged video, or none"),
        (lambda p: p.write_text("ffconcat version 1.0\nfile other.mp4\n"), "is a damaged video, or none"),
        (lambda p: write(p, audio=True), "holds no pictures, only audio"),
        (lambda p: p.write_bytes(write(p).read_bytes()[:2000]), "is a damaged video, or none"),
    ],
)
def test_what_is_no_video_is_a_sentence(tmp_path, make, match):
    path = tmp_path / "clip.mp4"
    make(path)
    with pytest.raises(ImageError, match=match) as raised:
        load_images(path, POLICY)
    assert str(path) in str(raised.value)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.mark.parametrize(
    "name, codec", [("cut.mp4", "libx264"), ("cut.webm", "libvpx"), ("cut.mkv", "mpeg4")]
)
def test_a_video_that_ends_early_gives_what_is_there_and_says_so(tmp_path, name, codec):
    # The index of an mp4 stands in front, without which such a file cannot be read at all.
    path = write(tmp_path / name, codec=codec, options={"movflags": "+faststart"} if "mp4" in name else {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = load_images(path, POLICY)
    with pytest.warns(UserWarning, match=r"ends after \d+\.\d of the (19|20)\.\d seconds") as caught:
        images = load_images(cut_in_half(path), POLICY)
    assert 3 <= len(images.names) < len(whole.names) and str(path) in str(caught[0].message)


def test_a_last_frame_that_stays_for_long_is_no_early_end(tmp_path):
    path = write(tmp_path / "slides.mp4", times=[0, 5, 10, 10.1], codec="mpeg4", last=9.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_images(path, POLICY).names) >= 3


def test_wrong_numbers_and_no_file(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="fps must be above 0 frames per second, not 0"):
        Video("a.mp4", fps=0)
    with pytest.raises(InputError, match="max_frames must be a whole number, at least 1, not 0"):
        Video("a.mp4", max_frames=0)
    with pytest.raises(MissingError, match="gone.mp4: no such file"):
        load_images(tmp_path / "gone.mp4", POLICY)
    (tmp_path / "here.mp4").touch()
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ExtraError, match=r"needs PyAV: pip install 'fastvggt_jax\[video\]'"):
        load_images(tmp_path / "here.mp4", POLICY)


def test_what_is_no_file_is_said_to_be_that(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for name, what in (("pipe", "no regular file"), ("folder", "a folder"), ("z" * 300, "no such file")):
        with pytest.raises(Error, match=what):
            load_images(tmp_path / f"{name}.mp4")
