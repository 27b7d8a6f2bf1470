"""What the HTML pages of an evaluation share: a frame that needs neither network nor server, facts, small images."""

import base64
import html
import io
import os
from collections.abc import Sequence

from PIL import Image

from utils.image import pil_loader


def page(title: str, header: str, body: str, style: str = "", script: str = "") -> str:
    """One self-contained page, light or dark as the reader's system is.

    Args:
        title: plain text.
        header, body: HTML.
        style: CSS beyond that of all pages. Its colours are ``var(--card)``, ``--text``, ``--faint``, ``--line``,
            ``--right`` and ``--wrong``.
        script: JavaScript that runs once the page is there; it must not hold ``</script``.

    Example:
        >>> page("Ranked & shown", "", "<p>none</p>").splitlines()[5]
        '<title>Ranked &amp; shown</title>'
    """
    script = f"<script>\n{script}\n</script>\n" if script else ""
    return _PAGE.format(title=html.escape(title), header=header, body=body, style=_STYLE + style, script=script)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values in plain text, side by side.

    Example:
        >>> facts([("mAP", "85.4%")])
        '<dl><div><dt>mAP</dt><dd>85.4%</dd></div></dl>'
    """
    listed = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl>{''.join(listed)}</dl>"


def thumbnail(path: str | os.PathLike[str], height: int = 96, exif_orientation: bool = True) -> str:
    """A small image as the value of an ``src``, in its own proportions.

    Args:
        path: the image file.
        height: in pixels.
        exif_orientation: turn it upright as its EXIF data says.

    Returns:
        A data address of a JPEG.

    Raises:
        UserError: the image cannot be read; the message names the file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("RGB", (4, 8)).save(f"{folder}/a.png")
        ...     thumbnail(f"{folder}/a.png")[:23]
        'data:image/jpeg;base64,'
    """
    image = pil_loader(path, exif_orientation)
    width = max(1, round(height * image.width / image.height))
    encoded = io.BytesIO()
    image.resize((width, height), Image.Resampling.BILINEAR).save(encoded, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


_STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1b1f24; --faint: #59636e; --line: #d8dde3;
  --right: #11742f; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1f2429; --text: #e8eaed; --faint: #a3adb8;
  --line: #3a424a; --right: #5fd488; --wrong: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 100rem; padding: 1.5rem; background: var(--back); color: var(--text);
  font: 1rem/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { color: var(--faint); margin: 0 0 1rem; max-width: 60rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0 0 .75rem; }
dt { color: var(--faint); font-size: .8rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; font-weight: 600; }
header dd { font-size: 1.25rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; margin: 0 0 1rem;
  padding: 1rem; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{header}
</header>
<main>
{body}
</main>
{script}</body>
</html>
"""
