import pytest
import torch
from hypothesis import settings

from spqlm import native
from spqlm.errors import SpqError
from tests.helpers import TEXT, tiny_model, tiny_tokenizer

settings.register_profile("spq", deadline=None, max_examples=50)
settings.load_profile("spq")
# Tiny models gain nothing from threads, and lose hundredfold where other work shares the cores.
torch.set_num_threads(1)


def pytest_report_header():
    try:
        found = native.library()
    except SpqError as error:
        return f"native kernels: {error}"
    if found is None:
        return "native kernels: none, so their tests are skipped"
    return f"native kernels: {', '.join(native.instruction_sets(found))}"


def pytest_collection_modifyitems(items):
    """Slow tests come first: as the last ones they would leave a second process with no work."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before every fixture: random weights do not depend on which tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def library():
    """The native library; without it the test is skipped, or fails if SPQ_REQUIRE_NATIVE is 1."""
    found = native.library()
    if found is None:
        pytest.skip("the native library is not there")
    return found


@pytest.fixture(autouse=True)
def _no_data_directory(monkeypatch):
    monkeypatch.delenv("SPQ_DATA_DIR", raising=False)


@pytest.fixture(autouse=True)
def _own_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("SPQ_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model():
    return tiny_model()


@pytest.fixture
def text_file(tmp_path):
    file = tmp_path / "calibration.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def source(tmp_path, model, tokenizer):
    """A tiny Llama as an ordinary directory."""
    directory = tmp_path / "source"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
