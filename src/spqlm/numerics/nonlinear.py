"""Levels of codes of few bits that are denser near zero, the same for all weights.

Weights of a group lie around zero, so levels that do lose less than evenly spaced ones. Tables that
were fitted to single weights came out alike and gained 2 % more, so there is one for each number of
bits. Those of four and five bits are 64 ((1 - c) u + c u³), 7/8 and 15/16 as long above zero, for
evenly spaced u and c = 0.35 and 0.5; those of two and three bits were tried one by one, all in the
metric of held-out text on a layer of SmolLM2. Seven bits hold them, so kernels multiply what they
look up as they multiply other codes.
"""

LEVELS: dict[int, tuple[int, ...]] = {
    2: (-64, -20, 8, 45),
    3: (-64, -41, -24, -10, 1, 14, 29, 50),
    4: (-64, -51, -39, -30, -22, -15, -8, -3, 2, 7, 13, 19, 26, 34, 44, 56),
    5: (
        *(-64, -56, -49, -43, -37, -32, -27, -23, -19, -16, -13, -10, -8, -5, -3, -1),
        *(1, 3, 5, 7, 9, 12, 15, 18, 21, 25, 30, 35, 40, 46, 53, 60),
    ),
}
"""By bits, ascending, in [-64, 63]; mirrored by native/planes.h."""
