import pytest

from spqlm.serving.shares import even, places


@pytest.mark.parametrize(("there", "each", "count"), [(256, 64, 4), (192, 64, 4), (100, 160, 2)])
def test_places_hold_everything_once_and_the_last_stay_empty(there, each, count):
    shares = [places(there, each, rank) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(there))
    assert all(len(share) <= each for share in shares)
    assert len(shares[0]) == min(there, each)


@pytest.mark.parametrize(("there", "multiple", "count"), [(96, 32, 2), (128, 64, 2), (7, 1, 3)])
def test_neurons_are_dealt_out_by_whole_groups(there, multiple, count):
    shares = [even(there, multiple, rank, count) for rank in range(count)]
    assert [index for share in shares for index in share] == list(range(there))
    assert all(share and share.start % multiple == 0 for share in shares)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= multiple


def test_fewer_groups_than_processors_are_refused():
    with pytest.raises(ValueError, match="64 neurons go by whole groups of 64, which 2 processors"):
        even(64, 64, 0, 2)
