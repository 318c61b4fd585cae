import pytest
from tests.helpers import tiny_model

from spqlm.errors import SpqError
from spqlm.report.samples import MOST_TOKENS, write_samples


def test_each_model_goes_on_from_each_prompt(source):
    samples, limited = write_samples([str(source)] * 2, ["The sea", "Bread"], 4)
    assert [sample.prompt for sample in samples] == ["The sea", "Bread"] and limited == ""
    for sample in samples:
        one, other = sample.answers
        assert one == other and one.model == "source"


def test_a_sample_ends_with_the_context_and_says_so(source):
    _, limited = write_samples([str(source)], ["The sea"], 100_000)
    assert "100,000 tokens were asked for" in limited and f"at most {MOST_TOKENS:,}" in limited
    assert "here 121" in limited  # 128 positions less the prompt


def test_a_prompt_that_fills_the_context_is_refused(source, tmp_path):
    with pytest.raises(SpqError, match="leaves none in the context"):
        write_samples([str(source)], ["word " * 600], 4)
    tiny_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(SpqError, match="has no tokenizer; pass --tokens 0"):
        write_samples([str(tmp_path / "bare")], ["The sea"], 4)
