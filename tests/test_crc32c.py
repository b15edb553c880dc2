"""The checksum of TFRecord files."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rllib_dt.formats.crc32c import crc32c


@pytest.mark.parametrize(
    ("content", "crc"),
    [
        # RFC 3720, appendix B.4, and the usual check value
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ],
)
def test_the_published_values(content, crc):
    assert crc32c(content) == crc


@given(st.binary(max_size=3000))
def test_it_is_the_sum_bit_by_bit(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c(content) == crc ^ 0xFFFFFFFF
