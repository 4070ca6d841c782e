"""The float32 numbers at which `exp` and `log` are hardest to round, by their bits.

Every float32 number has been looked at. These are all whose e^x or ln x lies within 8 units in the last place (ulp) of float64 of
the middle of two float32 numbers, the nearest first (but for ln 1, which is exactly 0). So a float64 function that is off by less
than 8 ulp, and rounds to the right float32 number here, rounds to the right one everywhere. `sqrt` needs no list: a root is at
least 2^-51 of itself from a middle, since the squares of the two are multiples of one unit and differ.
"""

from __future__ import annotations

import struct

#: e^x, 1.265 ulp from a middle at the first, 2.42 at the second. So an error below 1.26 ulp rounds every one right.
EXP = (
    0xC16912CD,
    0xBBF0EDF1,
    0x377EFF81,
    0xBAE0E25C,
    0xB3000000,
    0x39C6BE5B,
    0x38E69CC1,
    0x383A3EF1,
    0x3D1A274E,
    0x40315B33,
    0x4001B249,
    0x39E5BB1D,
    0x36FDFFC1,
    0x4288942B,
    0x367BFFE1,
    0x35F7FFF1,
    0x356FFFF9,
    0x34DFFFFD,
    0x343FFFFF,
)

#: ln x, 0.0303 ulp from a middle at the first. The first 14 are within 1 ulp, which is the error of a good float64 logarithm.
LOG = (
    0x65D890D3,
    0x4C5D65A5,
    0x4D604EBE,
    0x41178FEB,
    0x1F116AB8,
    0x66A8C860,
    0x3C413D3A,
    0x6F31A8EC,
    0x38DCBE38,
    0x4665A9A6,
    0x5EE8984E,
    0x3BF86EF0,
    0x79E7EC37,
    0x0DC8BBA4,
    0x2C4C24B7,
    0x111C87F8,
    0x1A8446CB,
    0x464D5B2B,
    0x66ABBD63,
    0x2E492984,
    0x4E85F412,
    0x29FD22F8,
    0x28E3FA26,
    0x29E6126B,
    0x064CB44B,
    0x5D800341,
    0x62B467BA,
    0x07C060FA,
    0x0F61FF63,
    0x54AF989D,
    0x5F64C24A,
    0x2423C085,
    0x6D1F23EB,
    0x16C5EE7A,
    0x145CB6D4,
    0x7D98B8F4,
    0x39C31348,
    0x22925AD4,
    0x7405DEE8,
    0x1B81AB52,
    0x25F12E61,
    0x022AE487,
    0x4B77325A,
    0x25BE734F,
    0x2758EEC4,
    0x22F6D580,
    0x3FD364D7,
    0x6E7054F2,
    0x1AAC80DC,
    0x64E27FA3,
    0x736CC271,
    0x18B06F2A,
    0x5D8B2D5B,
    0x6914CB96,
    0x46CA6C75,
    0x14907055,
    0x1DC9E7C1,
    0x158772EB,
    0x4BF70DB3,
    0x27A51454,
    0x3E2B3421,
    0x4FE4AB24,
    0x63B134D9,
    0x5B98E163,
    0x44BC4360,
    0x0B265D7B,
    0x526A304F,
    0x5BF9890B,
    0x2E7A6221,
    0x13FCD84A,
)

#: The 14, and the bits of their logarithms: a float64 logarithm may err on them.
NEAREST_LOG = {
    0x65D890D3: 0x4254D1F9,
    0x4C5D65A5: 0x418F034B,
    0x4D604EBE: 0x419A352C,
    0x41178FEB: 0x400FE5E7,
    0x1F116AB8: 0xC233B53E,
    0x66A8C860: 0x42595E46,
    0x3C413D3A: 0xC08E158F,
    0x6F31A8EC: 0x42845A89,
    0x38DCBE38: 0xC1128BA4,
    0x4665A9A6: 0x41198725,
    0x5EE8984E: 0x422E4A21,
    0x3BF86EF0: 0xC09C399E,
    0x79E7EC37: 0x42A1FFB7,
    0x0DC8BBA4: 0xC289BAC4,
}


def number(bits: int) -> float:
    """The float32 number that has these bits."""
    return struct.unpack("<f", struct.pack("<I", bits))[0]
