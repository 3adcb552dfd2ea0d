"""Pictures of parts of a report page, for docs/tutorials/read-a-report.md, by a headless Chromium.

``python docs/shots.py REPORT.html`` writes them to docs/images; which part is which is in `PARTS`. The page
itself is shown, with what is not asked for taken out.
"""

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = Path(__file__).parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1000, 2600
"""The window, in CSS pixels; what the part leaves empty is cut off."""

PARTS = {
    "answer": ["main > header"],
    "table": ["main > div.scroll"],
    "chart": ["main > figure.chart"],
    "flags": ["Flags"],
    "differences": ["Paired differences"],
    "findings": ["Findings"],
    "pictures": ["Pictures"],
}
"""Picture to what it shows: headings of sections, or a selector."""

SCRIPT = """<script>
const parts = %s, main = document.querySelector("main");
const kept = parts.map(part => [...main.querySelectorAll("h2")].find(h => h.textContent.trim() == part)
  ?.closest("section") ?? document.querySelector(part));
for (const child of [...main.children]) if (!kept.includes(child)) child.remove();
document.querySelectorAll("footer, nav").forEach(e => e.remove());
</script>"""


def shot(page: str, parts: list[str], browser: str) -> Image.Image:
    """Returns a picture of some parts of a page, without the empty space around them."""
    start, end = page.index("<meta http-equiv="), page.index(">", page.index("<meta http-equiv="))
    text = page[:start] + page[end + 1 :]  # the page's own policy forbids the script below
    with tempfile.TemporaryDirectory() as place:
        file, picture = Path(place) / "page.html", Path(place) / "page.png"
        file.write_text(text.replace("</body>", f"{SCRIPT % json.dumps(parts)}</body>"), encoding="utf-8")
        options = [
            "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
            "--disable-background-networking", "--no-first-run", f"--user-data-dir={place}/profile",
            f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", file.as_uri(),
        ]  # fmt: skip
        subprocess.run([browser, *options], check=True, capture_output=True, timeout=120)
        return trimmed(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))


def trimmed(picture: Image.Image, margin: int = 12) -> Image.Image:
    """Returns a picture without rows and columns at its edges that have the colour of its corner."""
    pixels = np.asarray(picture)
    filled = (pixels != pixels[-1, -1]).any(axis=2)
    rows, columns = (np.flatnonzero(filled.any(axis=axis)) for axis in (1, 0))
    box = columns[0] - margin, rows[0] - margin, columns[-1] + margin, rows[-1] + margin
    return picture.crop(tuple(int(v) for v in np.clip(box, 0, [*picture.size, *picture.size])))


def main(report: Path) -> None:
    """Writes every picture, in 64 colours so that it is small."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} was found. Install one.")
    page = report.read_text(encoding="utf-8")
    for name, parts in PARTS.items():
        picture = shot(page, parts, browser).quantize(64)
        picture.save(IMAGES / f"report-{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
