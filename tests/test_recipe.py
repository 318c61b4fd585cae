import pytest
import yaml

from spqlm.calibration.gather import CalibrationConfig
from spqlm.errors import SpqError
from spqlm.recipe import SHIPPED, Recipe, load_recipe, shipped
from spqlm.stages.prune import Prune
from spqlm.stages.quantize import Quantize
from spqlm.stages.recover import Recover
from spqlm.stages.svd import Svd


def message(fields, name="mine"):
    """The one line that a bad recipe is refused with."""
    with pytest.raises(SpqError) as caught:
        Recipe.from_dict(fields, name)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"recipe {name!r}: ")
    return text


def test_the_recipes_promised_are_shipped():
    assert {"dense", "int8", "paper", "default"} <= set(shipped())


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.description
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(yaml.safe_load(yaml.safe_dump(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_an_ordinary_file(name):
    assert load_recipe(SHIPPED / f"{name}.yaml") == load_recipe(name)


def test_paper_is_the_published_method():
    """METHOD.md §1, every figure written out."""
    recipe = load_recipe("paper")
    svd, prune, quantize, recover = recipe.stages
    assert [stage.key for stage in recipe.stages] == ["svd", "prune", "quantize", "recover"]
    assert (svd.variance, svd.modules, svd.singular_values_in) == (0.96, ("attention",), "left")
    assert (prune.minimum, prune.maximum, prune.score) == (0.0, 0.05, "l1")
    assert prune.modules == ("mlp",)
    assert (quantize.mode, quantize.percentile) == ("by_percentile", 50)
    assert set(quantize.modules) == {"attention", "mlp", "lm_head"}
    assert (recover.rank, recover.alpha, recover.learning_rate) == (8, 32, 5e-5)
    assert (recover.steps, recover.batch_size, recover.context) == (200, 1, 128)


def test_paper_writes_out_every_parameter():
    written = yaml.safe_load((SHIPPED / "paper.yaml").read_text())
    for entry in written["stages"]:
        ((key, parameters),) = entry.items()
        kind = {"svd": Svd, "prune": Prune, "quantize": Quantize, "recover": Recover}[key]
        assert set(parameters) == set(kind.model_fields), key
    assert set(written["calibration"]) == set(CalibrationConfig.model_fields)


def test_dense_has_no_stages_and_int8_covers_every_weight():
    assert load_recipe("dense").stages == ()
    (quantize,) = load_recipe("int8").stages
    assert quantize == Quantize(mode="per_channel")
    assert set(quantize.modules) == {"attention", "mlp", "embedding", "lm_head"}


def test_default_spends_a_budget_and_distils():
    default = load_recipe("default")
    assert [stage.key for stage in default.stages] == ["budget", "distill"]
    assert default.within(10**8).stages[0].target_bytes == 10**8
    assert [stage.key for stage in default.without_training().stages] == ["budget"]


@pytest.mark.parametrize(
    ("fields", "unknown", "nearest"),
    [
        ({"stagess": []}, "stagess", "stages"),
        ({"calibration": {"windos": 3}}, "windos", "windows"),
        ({"stages": [{"quantise": {}}]}, "quantise", "quantize"),
        ({"stages": [{"svd": {"varience": 0.9}}]}, "varience", "variance"),
        ({"stages": [{"recover": {"step": 9}}]}, "step", "steps"),
    ],
)
def test_an_unknown_key_names_the_nearest(fields, unknown, nearest):
    assert f"{unknown!r}; did you mean {nearest!r}?" in message(fields)


@pytest.mark.parametrize(
    ("stage", "field", "value"),
    [
        ("svd", "variance", 0),
        ("svd", "variance", 1.5),
        ("svd", "variance", -0.5),
        ("svd", "variance", float("nan")),
        ("svd", "variance", "much"),
        ("svd", "multiple_of", 0),
        ("svd", "modules", []),
        ("svd", "modules", ["lm_head"]),
        ("prune", "minimum", -0.1),
        ("prune", "maximum", -0.1),
        ("prune", "maximum", 1.1),
        ("prune", "score", "l3"),
        ("prune", "modules", ["heads"]),
        ("quantize", "mode", "per_row"),
        ("quantize", "percentile", 101),
        ("quantize", "modules", "attention"),
        ("recover", "rank", 0),
        ("recover", "learning_rate", 0),
        ("recover", "steps", 0),
        ("recover", "steps", 1.5),
        ("recover", "context", 1),
        ("recover", "schedule", "random"),
    ],
)
def test_a_wrong_value_is_one_sentence_with_stage_and_field(stage, field, value):
    text = message({"stages": [{stage: {field: value}}]})
    assert f"stage {stage!r}" in text and field in text


def test_a_wrong_value_of_calibration_names_the_field():
    assert "calibration.windows" in message({"calibration": {"windows": 0}})
    assert "calibration.context" in message({"calibration": {"context": "long"}})


def test_a_minimum_above_the_maximum_is_refused():
    text = message({"stages": [{"prune": {"minimum": 0.5, "maximum": 0.1}}]})
    assert "stage 'prune'" in text and "minimum 0.5 must not exceed maximum 0.1" in text


@pytest.mark.parametrize("stages", [None, "svd", {"svd": {}}, 3])
def test_stages_must_be_a_list(stages):
    assert "stages: must be a list" in message({"stages": stages})


@pytest.mark.parametrize("entry", [{}, {"svd": {}, "prune": {}}, 3, None, ["svd"]])
def test_an_entry_must_be_one_stage(entry):
    assert "a stage is one key with its parameters" in message({"stages": [entry]})


def test_parameters_must_be_a_mapping():
    assert "stage 'svd': parameters must be a mapping" in message({"stages": [{"svd": 0.9}]})
    assert "stage 'svd'" in message({"stages": [{"svd": {1: 2}}]})


@pytest.mark.parametrize("fields", [None, [], "svd", 3])
def test_a_recipe_must_be_a_mapping(fields):
    with pytest.raises(SpqError, match="recipe 'mine' must be a mapping"):
        Recipe.from_dict(fields, "mine")


@pytest.mark.parametrize("entry", ["svd", {"svd": None}, {"svd": {}}])
def test_a_stage_without_parameters_takes_the_defaults(entry):
    assert Recipe.from_dict({"stages": [entry]}).stages == (Svd(),)


def test_order_is_kept_and_stages_may_repeat():
    keys = ["recover", "quantize", "svd", "prune", "recover"]
    recipe = Recipe.from_dict({"stages": keys})
    assert [stage.key for stage in recipe.stages] == keys
    assert [next(iter(entry)) for entry in recipe.to_dict()["stages"]] == keys


def test_without_training_leaves_out_only_what_trains():
    recipe = Recipe.from_dict({"stages": ["recover", "svd", "prune", "recover", "quantize"]})
    kept = recipe.without_training()
    assert [stage.key for stage in kept.stages] == ["svd", "prune", "quantize"]
    assert len(recipe.stages) == 5


def test_the_byte_limit_is_that_of_the_strictest_stage():
    assert load_recipe("paper").byte_limit is None
    assert load_recipe("default").byte_limit is None
    budgets = [{"budget": {"target_bytes": size}} for size in (2000, 1000)]
    recipe = Recipe.from_dict({"stages": ["svd", *budgets]})
    assert recipe.byte_limit == 1000
    within = recipe.within(500)
    assert within.byte_limit == 500
    assert [stage.key for stage in within.stages] == ["svd", "budget", "budget"]


def test_a_limit_that_no_stage_takes_is_refused():
    with pytest.raises(SpqError, match="the stage `budget`, such as `default`; this one has none"):
        load_recipe("paper").within(1000)


def test_calibrated_on_replaces_only_the_source():
    recipe = Recipe.from_dict({"calibration": {"windows": 3, "context": 8}, "stages": ["svd"]})
    other = recipe.calibrated_on("mine.txt")
    assert other.calibration == CalibrationConfig(source="mine.txt", windows=3, context=8)
    assert other.stages == recipe.stages
    assert recipe.calibration.source == "builtin"


def test_a_recipe_passes_through_and_a_file_is_read(tmp_path):
    file = tmp_path / "mine.yaml"
    # YAML 1.1 reads 5e-5, without a point, as a string.
    file.write_text("stages:\n  - recover: {learning_rate: 5e-5}\n")
    recipe = load_recipe(file)
    assert recipe.stages == (Recover(learning_rate=5e-5),)
    assert load_recipe(recipe) is recipe


@pytest.mark.parametrize(
    "content",
    [b"stages: [svd", b"a: b: c\n", b"\tstages: []\n", b"\xff\xfe\x00", b"!!python/name:os.system"],
    ids=["bracket", "colon", "tab", "bytes", "tag"],
)
def test_a_file_that_is_not_yaml_is_one_sentence(tmp_path, content):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(SpqError, match="not valid YAML") as caught:
        load_recipe(file)
    assert "\n" not in str(caught.value) and "broken.yaml" in str(caught.value)


def test_an_empty_file_is_refused(tmp_path):
    file = tmp_path / "empty.yaml"
    file.write_text("")
    with pytest.raises(SpqError, match="must be a mapping"):
        load_recipe(file)


@pytest.mark.parametrize("name", ["papper", "no/such/file.yaml", "."])
def test_a_recipe_that_is_not_there_names_the_shipped_ones(name):
    with pytest.raises(SpqError) as caught:
        load_recipe(name)
    assert repr(name) in str(caught.value) and ", ".join(shipped()) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: " + "[" * 200_000 + "]" * 200_000, "is nested too deeply"),
        ("stages: " + "{a: " * 5_000 + "}" * 5_000, "is nested too deeply"),
        (f"calibration: {{windows: {'9' * 5000}}}", "is not valid YAML: Exceeds the limit"),
        ("#" * 2_000_000, "neither a YAML file nor one of"),
    ],
    ids=["lists", "mappings", "digits", "size"],
)
def test_recipes_that_nobody_writes_are_one_sentence(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SpqError, match=message) as raised:
        load_recipe(tmp_path / "recipe.yaml")
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


def test_what_is_no_name_of_a_file_is_no_recipe():
    with pytest.raises(SpqError, match=r"no recipe 'x+\.\.\.'"):
        load_recipe("x" * 5000)
