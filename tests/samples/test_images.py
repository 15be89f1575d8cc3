"""Folders of images: what an `ImageSpec` makes of them."""

import sys

import numpy as np
import pytest
from PIL import Image

from onnxprune.errors import CalibrationError, PruneError, UsageError
from onnxprune.samples.calibration import open_calibration
from onnxprune.samples.images import ImageSpec
from tests.samples.given import F32, RGB, Input, all_of


def photos(tmp):
    for i, kind in enumerate(("cat", "cat", "dog", "dog")):
        (tmp / "photos" / kind).mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((8, 16, 3), np.uint8)
        pixels[..., 0], pixels[:, 8:, 2] = 100 + i, 50  # red; blue in the right half
        Image.fromarray(pixels).save(tmp / "photos" / kind / f"{i}.png")
    return tmp / "photos"


LEFT, RIGHT = (100, 0, 0), (100, 0, 50)
IMAGES = {  # text: pixels (h, w, channels) of the first image at its left and right edge
    "size=4x4,scale=1,resize=nearest": (LEFT, RIGHT),
    "size=4x4,scale=1,resize=nearest,order=bgr": (LEFT[::-1], RIGHT[::-1]),
    "size=4x4,scale=1,resize=nearest,fit=pad": (LEFT, RIGHT),  # black lies below
    "size=4x4,scale=1,resize=nearest,fit=crop": (LEFT, RIGHT),
    "size=4x4,scale=1,resize=nearest,fit=crop,crop=0.5": (LEFT, RIGHT),
    "size=4x4,scale=100,mean=1:0:0,std=2,resize=bicubic": ((0, 0, 0), (0, 0, 0.25)),
}


@pytest.mark.parametrize("text", IMAGES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_images(text, layout, tmp_path):
    inputs = RGB if layout == "nchw" else [Input("x", F32, (None, 4, 4, 3))]
    spec = ImageSpec.parse(f"{text},layout={layout}")
    calibration = open_calibration(photos(tmp_path), inputs, image=spec)
    assert len(calibration) == 4
    x = calibration.first(1)["x"][0]
    x = x.transpose(1, 2, 0) if layout == "nchw" else x
    atol = 0.03 if "bicubic" in text else 0
    np.testing.assert_allclose([x[0, 0], x[0, -1]], IMAGES[text], atol=atol)
    if "pad" in text:
        assert not x[2:].any() and x[1].any()


def test_image_limit_takes_from_every_class(tmp_path):
    spec = ImageSpec((4, 4), scale=1)
    reds = all_of(open_calibration(photos(tmp_path), RGB, image=spec, limit=2))[:, 0, 0, 0]
    assert reds.tolist() == [100, 103]


@pytest.mark.parametrize(
    "image, inputs, error, words",
    [
        (None, RGB, UsageError, "a folder of images"),
        (ImageSpec((5, 4)), RGB, CalibrationError, "shape (1, 3, 5, 4)"),
        (ImageSpec((4, 4), order="gray"), RGB, CalibrationError, "shape (1, 1, 4, 4)"),
        (ImageSpec((4, 4)), RGB, CalibrationError, "1.png: cannot be read: UnidentifiedImageError"),
    ],
)
def test_images_refused(image, inputs, error, words, tmp_path):
    folder = photos(tmp_path)
    (folder / "cat" / "1.png").write_bytes(b"<html>")
    with pytest.raises(PruneError) as caught:
        all_of(open_calibration(folder, inputs, image=image))
    assert type(caught.value) is error and words in str(caught.value)


def test_images_without_pillow(tmp_path, monkeypatch):
    folder = photos(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(CalibrationError, match="pip install pillow"):
        open_calibration(folder, RGB, image=ImageSpec((4, 4)))


def test_image_spec_in_full():
    text = "size=224x192, mean=0.485:0.456:0.406,std=0.229:0.224:0.225,layout=NHWC,order=bgr,scale=1"
    text += ",resize=bilinear,fit=crop,crop=0.875"
    assert ImageSpec.parse(text) == ImageSpec(
        (224, 192), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1, "nhwc", "bgr", "bilinear", "crop", 0.875
    )


@pytest.mark.parametrize(
    "text",
    ["", "size", "size=4", "size=4xa", "size=0x4", "size=4x4,colour=rgb", "size=4x4,order=hsv", "mean=1"]
    + [f"size=4x4,{part}" for part in ("mean=a", "mean=1:2", "mean=nan", "std=0", "scale=0", "crop=2", "fit=zoom")],
)
def test_image_spec_refuses(text):
    with pytest.raises(UsageError, match=r"image: |--image '"):
        ImageSpec.parse(text)


@pytest.mark.parametrize(("dtype", "text", "red"), [("uint8", "", 100), ("int32", "", 100), ("float32", "", 100 / 255), ("uint8", ",scale=2", 50), ("float32", ",scale=1", 100)])  # fmt: skip
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_pixels_stay_what_they_are_for_integers(dtype, text, red, layout, tmp_path):
    shape = (None, 3, 4, 4) if layout == "nchw" else (None, 4, 4, 3)
    spec = ImageSpec.parse(f"size=4x4,layout={layout}{text}")
    x = all_of(open_calibration(photos(tmp_path), [Input("x", np.dtype(dtype), shape)], image=spec))
    assert x.dtype == dtype and x.max() == pytest.approx(red * 1.03, abs=0.01 * red) and x.min() == 0
