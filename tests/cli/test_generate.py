"""`spq generate`."""

from spqlm.native.decoder import Program


def test_generate_continues_the_prompt(run, int8):
    first, again = (run("generate", int8, "--prompt", "The quick") for _ in range(2))
    assert first[0] == 0 and first == again
    assert first[1].startswith("The quick") and len(first[1]) > len("The quick")


def test_generate_decodes_natively(library, run, int8, monkeypatch):
    steps = []
    original = Program.step
    monkeypatch.setattr(Program, "step", lambda *args: steps.append(1) or original(*args))
    run("generate", int8, "--prompt", "The quick", "--max-new-tokens", 8)
    assert steps


def test_sampling_follows_the_seed(run, int8):
    def sampled(seed):
        arguments = ("--temperature", 1.5, "--max-new-tokens", 24, "--seed", seed)
        return run("generate", int8, "--prompt", "The", *arguments)[1]

    assert sampled(1) == sampled(1) != sampled(2)
