"""Images as nobody should send them: bombs, lies in headers, odd modes, and what a bad line makes of them."""

import io
import random
import struct
import zlib

from PIL import Image

FORMS = ("PNG", "JPEG", "WEBP")
_ODD = ("1", "P", "L", "LA", "RGBA", "CMYK", "I;16", "I", "YCbCr", "RGB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_STRANGERS = (
    b"GIF89a\x08\x00\x08\x00\xf0\x00\x00\xff\x00\x00\x00\x00\x00,\x00\x00\x00\x00\x08\x00\x08\x00\x00\x02\x01D\x00;",
    b"BM" + bytes(52),
    b"II*\x00" + bytes(60),
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    b"<svg xmlns='http://www.w3.org/2000/svg' width='9999999' height='9999999'/>",
    b"8BPS\x00\x01" + bytes(40),
    b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(40),
    b"RIFF\xff\xff\xff\xffWEBPVP8X\n\x00\x00\x00\x02\x00\x00\x00\xff\xff\xff\xff\xff\xff",
    b"\xff\xd8\xff",
    b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    _SIGNATURE,
)


def plain(rng: random.Random, form: str) -> bytes:
    """A small image that every service takes."""
    color = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, form)
    return out.getvalue()


def hostile(rng: random.Random) -> bytes:
    """An image that is wrong in some way, or that only looks so."""
    makers = (_cut, _flipped, _odd, _bomb, _lying_size, _chunked, _turned, _animated, _stranger, _noise)
    return rng.choice(makers)(rng)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, each with its right checksum."""
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return _SIGNATURE + b"".join(parts)


def header(
    width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0
) -> tuple[bytes, bytes]:
    """The chunk that says what the pixels are."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)


def _cut(rng: random.Random) -> bytes:
    data = plain(rng, rng.choice(FORMS))
    return data[: rng.randrange(len(data))]


def _flipped(rng: random.Random) -> bytes:
    data = bytearray(plain(rng, rng.choice(FORMS)))
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _odd(rng: random.Random) -> bytes:
    form, mode = rng.choice(FORMS), rng.choice(_ODD)
    size = rng.choice(((1, 1), (8, 8), (1, 500), (500, 1), (9, 7)))
    out = io.BytesIO()
    image = Image.new(mode, size)
    try:
        image.save(out, form)
    except (OSError, ValueError):  # not every format knows every mode
        image.convert("RGB").save(out, form)
    return out.getvalue()


def _bomb(rng: random.Random) -> bytes:
    side = rng.choice((3000, 5000, 20_000, 65_000))
    depth, color = rng.choice(((1, 0), (8, 2), (16, 6), (8, 3)))
    rows = zlib.compress(bytes(min(side * side // 8, 2_000_000)), 9)
    return png(header(side, side, depth, color, rng.randrange(2)), (b"IDAT", rows), (b"IEND", b""))


def _lying_size(rng: random.Random) -> bytes:
    width, height = (rng.choice((0, 1, 7, 9, 4000, 1 << 16, 0x7FFFFFFF, 0xFFFFFFFF)) for _ in range(2))
    if rng.random() < 0.5:
        rows = zlib.compress(b"\x00" * 25 * 8)
        return png(header(width, height), (b"IDAT", rows), (b"IEND", b""))
    data = bytearray(plain(rng, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    return bytes(data)


def _chunked(rng: random.Random) -> bytes:
    """A PNG with chunks that are large when unpacked, many, out of order or of no known kind."""
    kind = rng.choice(
        (b"zTXt", b"iCCP", b"iTXt", b"tEXt", b"eXIf", b"tRNS", b"PLTE", b"gAMA", b"acTL", b"aaAA")
    )
    packed = zlib.compress(bytes(rng.choice((0, 10, 70_000_000 if rng.random() < 0.02 else 1_000_000))))
    body = rng.choice((b"", b"a\x00\x00" + packed, packed, rng.randbytes(12), b"a" * 100_000))
    rows = zlib.compress((b"\x00" + bytes(24)) * 8)
    chunks = [header(8, 8), (kind, body), (b"IDAT", rows), (b"IEND", b"")]
    if rng.random() < 0.3:
        rng.shuffle(chunks)
    return png(*chunks, *[(kind, b"")] * rng.choice((0, 0, 500)))


def _turned(rng: random.Random) -> bytes:
    """A photo whose EXIF says how it is to be turned, or says nonsense."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 1, 6, 8, 9, 65_535))
    out = io.BytesIO()
    Image.new("RGB", (8, 5)).save(out, "JPEG", exif=exif)
    data = bytearray(out.getvalue())
    if rng.random() < 0.7:
        at = data.index(b"Exif") + 6
        for _ in range(rng.choice((1, 4, 12))):
            data[at + rng.randrange(24)] = rng.randrange(256)
    return bytes(data)


def _animated(rng: random.Random) -> bytes:
    frames = [Image.new("RGB", (8, 8), (n * 80, 0, 0)) for n in range(3)]
    out = io.BytesIO()
    frames[0].save(out, rng.choice(("PNG", "WEBP")), save_all=True, append_images=frames[1:])
    return out.getvalue()


def _stranger(rng: random.Random) -> bytes:
    return rng.choice(_STRANGERS) + rng.randbytes(rng.choice((0, 100)))


def _noise(rng: random.Random) -> bytes:
    return rng.choice((b"", _SIGNATURE, b"\xff\xd8\xff")) + rng.randbytes(rng.randrange(1, 300))
