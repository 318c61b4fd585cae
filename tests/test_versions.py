import pytest

from spqlm.versions import older


@pytest.mark.parametrize(
    ("version", "than", "expected"),
    [
        ("0.9.1", "0.17", True),
        ("0.17", "0.17", False),
        ("0.17.0", "0.17", False),
        ("1.0.dev3", "0.17", False),
        ("0.16rc1", "0.17", True),
        ("2.13.0+cpu", "2.13", False),
        ("not installed as a package", "0.17", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, than, expected):
    assert older(version, than) is expected
