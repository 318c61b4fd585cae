import pytest

from spqlm.decoding import session


@pytest.fixture
def steps(monkeypatch):
    """Tokens that were decoded natively."""
    counted = []
    original = session.Session.step

    def step(self, *args):
        logits = original(self, *args)
        if logits is not None:
            counted.append(logits)
        return logits

    monkeypatch.setattr(session.Session, "step", step)
    return counted
