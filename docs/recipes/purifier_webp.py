"""WebP compression as a purifier, after JPEG (Dziugaite, Ghahramani & Roy 2016, arXiv:1608.00853)."""

from io import BytesIO

from PIL import Image

from dbpkit.data.pictures import as_unit, read_picture, stacked
from dbpkit.purification import purifiers


@purifiers.register("webp")
def webp(quality: int = 75):
    """Compresses every image (3, H, W) in [0, 1] and reads it back; its rounding leaves no gradient."""

    def compressed(image):
        pixels = (255 * image).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(file := BytesIO(), "WEBP", quality=quality)
        return read_picture(file.getvalue())

    return lambda x: as_unit(stacked([compressed(image) for image in x])).to(x)
