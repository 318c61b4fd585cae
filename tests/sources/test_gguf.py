from transformers import modeling_gguf_pytorch_utils as reader

from spqlm.sources.gguf import _our_progress


def test_the_gguf_reader_s_own_bar_is_not_drawn(capfd):
    theirs = reader.tqdm
    with _our_progress():
        assert list(reader.tqdm([1, 2], desc="Converting")) == [1, 2]
    assert capfd.readouterr().err == ""
    assert reader.tqdm is theirs
