"""What a directory holds, and runs that end in one sentence."""

import hashlib

import pytest

import spqlm
from spqlm.errors import SpqError


def contents(directory):
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def refused(*arguments, match, **options):
    """The one sentence that a run ends with."""
    with pytest.raises(SpqError, match=match) as caught:
        spqlm.compress(*arguments, **options)
    assert "\n" not in str(caught.value)
