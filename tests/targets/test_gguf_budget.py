"""A byte budget in the bytes of the GGUF file."""

import gguf
import pytest
import torch
from tests.helpers import tiny_model
from tests.targets.gguf_files import byte_tokenizer

import spqlm
from spqlm.allocation.sizes import Sizes
from spqlm.checkpoint.provenance import commands
from spqlm.errors import OutOfReach
from spqlm.formats import parse
from spqlm.model.view import ModelView
from spqlm.modules.ops import dense_weight
from spqlm.recipe import Recipe
from spqlm.targets import _gguf_blocks
from spqlm.targets.gguf import GgufTarget

FORMATS = [{"int4": {"group_size": 32}}, {"int5": {"group_size": 32}}, "int8"]


def recipe(text_file) -> Recipe:
    calibration = {"source": str(text_file), "windows": 2, "context": 16}
    stage = {"formats": FORMATS, "embedding_formats": FORMATS, "priced_windows": 1}
    return Recipe.from_dict({"calibration": calibration, "stages": [{"budget": stage}]})


def compressed(text_file, out, target: int, **options):
    return spqlm.compress(
        tiny_model(**options),
        out,
        recipe=recipe(text_file),
        target_size=target,
        export_target="gguf",
        tokenizer=byte_tokenizer(),
    )


def smallest(text_file, **options) -> int:
    """Fewest bytes, as the refusal of a byte says."""
    with pytest.raises(OutOfReach, match=r"the smallest with these options is (\S+) MB") as caught:
        compressed(text_file, None, 1, **options)
    return int(float(str(caught.value).rsplit(" ", 2)[1]) * 1e6)


@pytest.mark.parametrize(
    "options", [{"num_hidden_layers": 8}, {"attention_bias": True, "tie_word_embeddings": False}]
)
def test_the_file_takes_at_most_the_target_and_nearly_all_of_it(options, text_file, tmp_path):
    least = smallest(text_file, **options)
    for target in (int(1.05 * least), int(1.15 * least)):
        out, place = tmp_path / f"{target}", tmp_path / f"{target}.gguf"
        compressed(text_file, out, target, **options)
        size = spqlm.export(out, "gguf", place).bytes
        assert size == place.stat().st_size <= target
        # What the largest weight would take more in 8 bits than in 4, and a header's padding.
        assert target - size < 260 * 64 // 2 + 6000


def test_a_model_is_counted_as_the_file_holds_it(tmp_path):
    model, tokenizer = tiny_model(attention_bias=True), byte_tokenizer()
    target = GgufTarget()
    others = target.other_bytes(model, tokenizer)
    told = target.restriction(others).sizes.rest(ModelView(model), [])
    written = target.write(model, tokenizer, tmp_path / "model.gguf", "4GB")
    tensors = len(gguf.GGUFReader(tmp_path / "model.gguf").tensors)
    assert 0 <= told - written <= tensors * target.sizes.tensor


def test_formats_of_ggml_are_offered_where_they_fit_and_nowhere_else(text_file, tmp_path):
    sizes = {"hidden_size": 96, "intermediate_size": 256, "head_dim": 24}
    least = smallest(text_file, **sizes)
    compressed(text_file, tmp_path / "out", least + 3000, **sizes)
    assert spqlm.export(tmp_path / "out", "gguf", tmp_path / "out.gguf").bytes <= least + 3000
    tensors = gguf.GGUFReader(tmp_path / "out.gguf").tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    # 256 inputs are a block of those, and 96 are none.
    wide = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
    assert {kinds[f"blk.{layer}.ffn_down.weight"] for layer in (0, 1)} & wide
    assert not {kind for name, kind in kinds.items() if "down" not in name} & wide
    ours = spqlm.compress(
        tiny_model(**sizes), recipe=recipe(text_file), target_size=least, tokenizer=byte_tokenizer()
    ).manifest
    offered = {parse(form) for form in FORMATS}
    assert {change.format for change in ours.stages[0].plan.changes} <= offered


def test_codes_that_were_trained_are_written_as_they_are_then(text_file, tmp_path):
    formats = ["q2_k", "q3_k", "iq4_xs"]
    trained = {"steps": 6, "worthwhile": 0.0}
    budget = {"formats": formats, "embedding_formats": ["q4_k"], "reconstruction": trained}
    distill = {"parameters": "codes", "steps": 8, "context": 32, "held_out": 2, "check_every": 4}
    fields = recipe(text_file).to_dict()
    fields["calibration"] |= {"windows": 8, "context": 32}
    stages = [{"budget": budget}, {"distill": distill}]
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    found = []
    for train in (False, True):
        made = spqlm.compress(
            tiny_model(**sizes),
            tmp_path / "out",
            recipe=Recipe.from_dict(fields | {"stages": stages}),
            target_size=560_000,
            export_target="gguf",
            tokenizer=byte_tokenizer(),
            recover=train,
            overwrite=True,
        )
        spqlm.export(tmp_path / "out", "gguf", tmp_path / f"{train}.gguf")
        found.append([dense_weight(named.module) for named in ModelView(made.model).leaves()])
    assert not all(map(torch.equal, *found))


def test_without_a_target_size_everything_is_int8(text_file):
    [stage] = spqlm.compress(
        tiny_model(), recipe=recipe(text_file), export_target="gguf", tokenizer=byte_tokenizer()
    ).manifest.stages
    assert {change.format.name for change in stage.plan.changes} == {"int8"}


@pytest.mark.parametrize("form", [*FORMATS, {"int2": {"group_size": 64}}, "dense"], ids=str)
def test_bytes_of_a_weight_are_those_of_its_blocks(form):
    form = parse(form)
    kind = {4: "Q4_0", 2: "Q4_0", 5: "Q5_0", 8: "Q8_0", None: "BF16"}[form.code_bits]
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert _gguf_blocks.stored_bytes(form, 6, 128, 2) == 6 * 128 // block * size


def test_what_was_made_for_a_target_says_so_in_the_command_that_makes_it_again(text_file):
    made = compressed(text_file, None, 10**9).manifest
    assert made.export_target == "gguf"
    assert "--for gguf" in commands("out", made)
    assert "sizes" not in made.recipe["stages"][0]["budget"]


def test_a_budget_counts_as_our_own_checkpoints_do_unless_a_target_says_otherwise():
    [stage] = Recipe.from_dict({"stages": ["budget"]}).stages
    assert stage._menu().sizes == Sizes()
    made = stage.restricted(GgufTarget().restriction(7))
    assert made._menu().sizes.others == 7 and made.within(10)._menu().sizes.vector == 4
