"""What all pages of an evaluation are made of."""

import base64
import io

from PIL import Image

from evaluation.page_parts import facts, page, thumbnail


def test_text_of_users_is_escaped():
    text = page("<b>", "", "<p>body</p>", ".a { color: red; }", "let a = {};")
    assert "<title>&lt;b&gt;</title>" in text and "<h1>&lt;b&gt;</h1>" in text and "<b>" not in text
    assert ".a { color: red; }" in text and "<script>\nlet a = {};\n</script>" in text
    assert facts([("a<", ">b")]) == "<dl><div><dt>a&lt;</dt><dd>&gt;b</dd></div></dl>"
    assert "<script>" not in page("a", "", "")


def test_thumbnails_keep_proportions_and_orientation(tmp_path):
    file, exif = tmp_path / "a.jpg", Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20), (255, 0, 0)).save(file, exif=exif)

    def size(**options):
        address = thumbnail(file, 10, **options)
        head, data = address.split(",")
        assert head == "data:image/jpeg;base64"
        return Image.open(io.BytesIO(base64.b64decode(data))).size

    assert size() == (5, 10)
    assert size(exif_orientation=False) == (20, 10)
