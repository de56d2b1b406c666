"""Models of runs as transformers reads them: from the command as typed to the folder on disk."""

import contextlib
import json
import os
import re
import shutil
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import load_file

import undo_jax
from undo_jax.cli import artifact_lm, experiment_flags
from undo_jax.cli import main as cli
from undo_jax.data.tokenizers import Bytes
from undo_jax.data.trained_tokenizers import HuggingFace, SentencePiece
from undo_jax.graph.model_graph import build_graph
from undo_jax.models import hf
from undo_jax.ops import head
from undo_jax.runner.load_experiment import load
from undo_jax.store import artifacts, param_checkpoint

CARD = "README.md"
QUICKSTART = Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py"
TOY = f"""
import importlib.util
from dataclasses import replace
from dataclasses import dataclass
from undo_jax.data.tokenizers import load_tokenizer
from undo_jax.losses import cross_entropy
from undo_jax.models.gemma2 import preset
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training.train_step import rows
spec = importlib.util.spec_from_file_location("quickstart", {str(QUICKSTART)!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)


@dataclass(frozen=True)
class Losses(Arithmetic):
    def evaluate(self, lm, params, eval_data):  # without an exam, which takes long to compile
        return {{n: cross_entropy(lm, params, rows(part)) for n, part in eval_data["rows"].items()}}


given = {{**vars(module.experiment.setting), "problems": 50, "validation_rows": 1, "questions": 2}}
setting = Losses(**given)
model = preset("2B",
    layers=3, width=16, feed_forward=24, heads=4, kv_heads=2, head_width=10, vocabulary=36,
    attention_scale=7**-0.5, attention_softcap=1.5, final_softcap=2, window=4, rope_theta=500,
    norm_epsilon=1e-5, init_stddev=0.3,
)
"""
LAST = "experiment = replace(module.experiment, name='toy', setting=setting, model=model)"
SHORT = "--stage pretrain --seeds 0 --pretrain.training.steps 2".split()
LINES = ["the cat sat on the mat", "a dog ran to the red barn", "12 + 7 = 19", "네모난 방"]
TEXTS = [
    *LINES,
    "",
    " ",
    "  two  spaces\n\tand a tab\r\n",
    "🎉 <s> <bos> <unk> <0x41> </s>",
    "undo it",
]
MODELS = {  # of a workdir each: what the file adds, and flags
    "toy": ("", ""),
    "pieces": (
        "setting = replace(setting, tokenizer=load_tokenizer('bpe.model'))\n"
        "model = replace(model, vocabulary=300, final_softcap=None)\n",
        "",
    ),
    "file": (
        "setting = replace(setting, tokenizer=load_tokenizer('file.json', '<s>'))\n"
        "model = replace(model, vocabulary=310)\n",
        "--model.final-softcap 30 --model.attention-softcap None --model.document-start 2",
    ),
}


@pytest.fixture(autouse=True)
def here(runs, monkeypatch, tmp_path):
    """The tests' devices are ready; the current folder is empty."""
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Bases of three models with a tokenizer of their own; two of them are trained."""
    folder = tmp_path_factory.mktemp("runs")
    before = os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
        patch.chdir(folder)
        Path("lines.txt").write_text("\n".join(LINES * 20))
        cli.main("data train-tokenizer --source text --pattern lines.txt --out bpe.model "
                 "--vocab-size 300".split())  # fmt: skip
        _tokenizers_file("file.json")
        for name, (more, flags) in MODELS.items():
            Path(f"{name}.py").write_text(TOY + more + LAST)
            if name != "pieces":
                cli.main(["run", f"{name}.py", "--workdir", name, *SHORT, *flags.split()])
        untrained = load("pieces.py")
        params = jax.jit(untrained.model.init)(jax.random.key(0))
        _finish(untrained, "pieces", params)
    assert os.getcwd() == before
    return folder


def _tokenizers_file(path):
    """Pieces after <pad>, </s> and <s>; by itself it would cut, fill and put no BOS."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(LINES * 5, trainer)
    tokenizer.enable_truncation(max_length=3)
    tokenizer.enable_padding(length=40)
    tokenizer.add_tokens(["undo"])
    tokenizer.save(path)


def _finish(experiment, workdir, params, stage="pretrain", *upstream):
    """An artifact as a run makes it."""
    base = experiment.experiment().models["base"]
    (model,) = build_graph([base], (0,), experiment.setting, epath.Path(workdir)).models
    artifact = replace(model.artifact, stage=stage, upstream=upstream)
    artifacts.prepare_folder(artifact)
    artifacts.save_artifact(artifact, params, {})
    return artifact


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch").set_num_threads(1)
    return pytest.importorskip("transformers")


@cache
def _run(runs, name):
    """An experiment as it ran, and its base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        loaded = load(f"{name}.py")
        experiment = experiment_flags.override(loaded, MODELS[name][1].split())
        tokenizer = experiment.setting.get_tokenizer()
        tokenizer.encode("1")  # its file is read
    (base,) = (runs / name).glob("pretrain-base-*")
    return SimpleNamespace(
        experiment=experiment, model=experiment.model, tokenizer=tokenizer, base=base
    )


def _export(*words):
    cli.main(["export-hf", *map(str, words)])


def _refused(capsys, *words):
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, words)))
    message = capsys.readouterr()
    assert stop.value.code == 2 and message.out == ""
    assert message.err.startswith("undo-jax: ") and message.err.count("\n") == 1, message.err
    return message.err


def _logits(model, artifact, tokens, dtype="float32"):
    """Ours, of parameters as they are on disk."""
    lm = replace(model, dtype="float32")
    params = param_checkpoint.restore(
        epath.Path(artifact) / "params", lm, artifact_lm.mesh_of(model)
    )
    params = jax.tree.map(lambda w: np.array(w).astype(dtype).astype(np.float32), params)
    return np.array(head.logits(lm.hidden(params, tokens), lm.table(params), lm.softcap))


def _json(path):
    return json.loads(Path(path).read_text())


def _typed(value):
    """A JSON value in which 30.0 is not 30, nor true 1."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return [_typed(item) for item in value] if isinstance(value, list) else (type(value), value)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_rebuilt_from_its_config_field_by_field(runs, name):
    run = _run(runs, name)
    rebuilt = artifact_lm.read_lm(epath.Path(run.base))
    assert _typed(list(astuple(rebuilt))) == _typed(list(astuple(run.model)))
    assert type(rebuilt.rope_theta) is float and rebuilt.rope_theta == 500.0
    stated = _json(run.base / "config.json")["config"]["model"]
    assert _typed(stated["rope_theta"]) == (float, 500.0)


@pytest.mark.parametrize(
    ("name", "stage", "flags"),
    [
        ("toy", "pretrain-base", ""),
        ("toy", "pretrain-oracle", "--max-shard-gb 1e-5"),
        ("toy", "pretrain-base", "--dtype bfloat16 --max-shard-gb 1e-5"),
        ("pieces", "pretrain-base", ""),
        ("pieces", "pretrain-base", "--dtype bfloat16"),
        ("file", "pretrain-base", "--max-shard-gb 1e-5"),
    ],
)
def test_transformers_loads_an_export_and_gives_our_logits(runs, transformers, name, stage, flags):
    import torch

    (artifact,) = (runs / name).glob(f"{stage}*")
    _export(artifact, "out", *flags.split())
    assert (len(list(Path("out").glob("*.safetensors"))) > 2) == ("shard" in flags)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        "out", attn_implementation="eager", output_loading_info=True
    )
    assert type(model).__name__ == "Gemma2ForCausalLM" and not any(loading.values()), loading
    dtype = "bfloat16" if "bfloat16" in flags else "float32"
    assert model.dtype == getattr(torch, dtype)
    run = _run(runs, name)
    tokens = np.array(jax.random.randint(jax.random.key(2), (2, 12), 3, run.model.vocabulary))
    with torch.no_grad():
        inputs = torch.from_numpy(tokens).long()
        actual = model.float().eval()(input_ids=inputs, use_cache=False).logits.numpy()
    expected = _logits(run.model, artifact, tokens, dtype)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)
    assert np.max(np.abs(expected)) > 0.5


def test_the_strongest_attack_is_exported_as_any_model(runs, tmp_path):
    """An artifact of the last stage: its model is that of those before it."""
    run = _run(runs, "toy")
    lm = run.model
    params = param_checkpoint.restore(
        epath.Path(run.base) / "params", lm, artifact_lm.mesh_of(run.model)
    )
    base = _finish(run.experiment, tmp_path, params)
    attacked = _finish(run.experiment, tmp_path, params, "relearn", base)
    _export(attacked.folder, "attacked")
    _export(run.base, "base")
    assert sorted(os.listdir("attacked")) == sorted(os.listdir("base"))
    for name in {*os.listdir("base")} - {CARD}:  # which says what each was made from
        assert Path("attacked", name).read_bytes() == Path("base", name).read_bytes(), name


@pytest.mark.parametrize("name", MODELS)
def test_numbers_have_the_types_that_transformers_writes(runs, transformers, name):
    _export(_run(runs, name).base, "out")
    ours = _json("out/config.json")
    theirs = transformers.Gemma2Config(
        vocab_size=ours["vocab_size"], hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=7,
        sliding_window=4, rms_norm_eps=1e-5, initializer_range=0.3,
        attn_logit_softcapping=None if name == "file" else 1.5,
        final_logit_softcapping={"toy": 2.0, "pieces": None, "file": 30.0}[name],
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        use_bidirectional_attention=False, **{key: ours[key] for key in hf.IDS},
    )  # fmt: skip
    theirs.architectures = ["Gemma2ForCausalLM"]
    theirs.save_pretrained("theirs")
    expected = _json("theirs/config.json")
    shared = {key: value for key, value in ours.items() if key in expected}
    assert ours.keys() - shared.keys() == {"rope_theta", "torch_dtype"}  # of transformers 4
    assert _typed(shared) == {key: _typed(expected[key]) for key in shared}


IDS = {"toy": (0, 0, None), "pieces": (0, 0, None), "file": (2, [1, 2], 0)}


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens_are_those_of_training(runs, transformers, name):
    _export(_run(runs, name).base, "out")
    config = transformers.AutoConfig.from_pretrained("out")
    generation = transformers.GenerationConfig.from_pretrained("out")
    bos, eos, pad = IDS[name]
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (bos, eos, pad)
    assert (generation.bos_token_id, generation.eos_token_id) == (bos, eos)
    assert generation.pad_token_id == (bos if pad is None else pad)
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    assert tokenizer.bos_token_id == bos and tokenizer.encode("") == [bos]
    assert _json("out/tokenizer_config.json")["add_bos_token"] is True
    assert tokenizer.eos_token_id == (eos[0] if isinstance(eos, list) else eos)
    assert tokenizer.pad_token_id == generation.pad_token_id


def _encodes_alike(transformers, tokenizer, texts):
    theirs = transformers.AutoTokenizer.from_pretrained("out")
    for text in texts:
        expected = [tokenizer.bos_id, *tokenizer.encode(text)]
        assert theirs.encode(text) == expected, text
        assert theirs(text)["input_ids"] == expected, text
        assert theirs.decode(expected, skip_special_tokens=True) == text
    both = theirs(list(texts[:2]), padding=True)["input_ids"]
    assert len(both[0]) == len(both[1])


@pytest.mark.parametrize("name", MODELS)
def test_a_text_is_encoded_as_in_training(runs, transformers, name):
    run = _run(runs, name)
    _export(run.base, "out")
    texts = ("12+7=19", "3*4=", "") if name == "toy" else TEXTS
    _encodes_alike(transformers, run.tokenizer, texts)
    if name == "toy":
        with pytest.raises(Exception, match="Missing"):  # as ours: a character it does not know
            transformers.AutoTokenizer.from_pretrained("out").encode("x")


def test_bytes_are_encoded_as_in_training(runs, transformers):
    artifact = _copied(_run(runs, "file").base, tokenizer=None)
    _export(artifact, "out", "--tokenizer", "bytes")
    _encodes_alike(transformers, Bytes(), TEXTS)
    assert _json("out/config.json")["bos_token_id"] == 256


def test_transformers_writes_what_undo_jax_generate_prints(runs, transformers, capsys):
    """A prompt as a user types it into both."""
    import torch

    run = _run(runs, "toy")
    _export(run.base, "out")
    capsys.readouterr()
    cli.main(["generate", str(run.base), "--prompt", "1+", "--prompt", "7*8=",
              "--new-tokens", "12"])  # fmt: skip
    message = capsys.readouterr().out.splitlines()
    model = transformers.AutoModelForCausalLM.from_pretrained("out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("out")
    for prompt, expected in zip(("1+", "7*8="), message, strict=True):
        ids = torch.tensor([tokenizer.encode(prompt)])
        written = model.generate(ids, max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        written = written[: written.index(0)] if 0 in written else written
        size = run.tokenizer.vocab_size
        actual = [
            run.tokenizer.decode([i]) if i < size else "\N{REPLACEMENT CHARACTER}" for i in written
        ]
        assert "".join(actual) == expected
    assert len(set(message)) == 2 and all(message)


def _copied(artifact, **changes):
    """An artifact with its config.json changed; None removes a key."""
    shutil.copytree(artifact, "copied")
    content = {**_json(artifact / "config.json"), **changes, "sha256": None}  # nobody sealed it
    text = json.dumps({key: value for key, value in content.items() if value is not None})
    Path("copied/config.json").write_text(text)
    return Path("copied")


def _moved(base, **changes):
    message = _json(base / "config.json")["tokenizer"]
    return _copied(base, tokenizer={**message, **changes})


def test_a_tokenizer_that_cannot_go_along_is_said(runs, capsys):
    """The model is exported, with the ids of its special tokens."""
    base = _run(runs, "pieces").base
    for changes, message in (
        ({"path": "/gone/bpe.model"}, "no tokenizer file at /gone/bpe.model"),
        ({"fingerprint": "0" * 16}, "is not what copied was trained with"),
        ({"type": "Mine"}, "Mine is a tokenizer of the experiment's own"),
    ):
        artifact = _moved(base, **changes)
        capsys.readouterr()
        _export(artifact, "out")
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["without a tokenizer", "written"]
        assert message in lines[0] and "--tokenizer FILE" in lines[0]
        assert _json("out/config.json")["bos_token_id"] == 0
        assert sorted(os.listdir("out")) == [
            CARD, "config.json", "generation_config.json", "model.safetensors"
        ]  # fmt: skip
        shutil.rmtree("copied")
        shutil.rmtree("out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": 5}, "without a tokenizer: path=5 makes no SentencePiece"),
        ({"path": None}, "without a tokenizer: path=None makes no SentencePiece"),
        ({"type": ["Bytes"]}, "['Bytes'] is a tokenizer of the experiment's own"),
        ({"ids": {"bos_token_id": "<bos>"}}, "bos_token_id='<bos>' is no token id"),
        ({"ids": [1]}, "describes no tokenizer: delete copied"),
        ("Bytes", "describes no tokenizer: delete copied"),
    ],
)
def test_a_described_tokenizer_that_is_none_is_said(runs, capsys, changes, message):
    base = _run(runs, "pieces").base
    artifact = _copied(base, tokenizer=changes) if changes == "Bytes" else _moved(base, **changes)
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        cli.main(["export-hf", str(artifact), "out"])
    assert message in capsys.readouterr().err.splitlines()[0]


def test_a_tokenizer_that_has_moved_is_given(runs, transformers):
    for name, file in (("pieces", "bpe.model"), ("file", "file.json")):
        artifact = _moved(_run(runs, name).base, path=f"/gone/{file}")
        _export(artifact, "out", "--tokenizer", runs / file)  # its BOS is known
        _encodes_alike(transformers, _run(runs, name).tokenizer, TEXTS)
        for folder in ("copied", "out"):
            shutil.rmtree(folder)


def test_a_tokenizer_file_that_does_as_in_training_stays_as_it_is(runs):
    """And one that would cut, fill and put no BOS is changed in that alone."""
    _export(_run(runs, "pieces").base, "pieces")
    assert Path("pieces/tokenizer.model").read_bytes() == (runs / "bpe.model").read_bytes()
    _export(_run(runs, "file").base, "file")
    ours, theirs = _json("file/tokenizer.json"), _json(runs / "file.json")
    changed = {key for key in theirs if ours[key] != theirs[key]}
    assert changed == {"truncation", "padding", "post_processor"} and ours.keys() == theirs.keys()
    artifact = _copied(_run(runs, "file").base, tokenizer=None)
    _export(artifact, "again", "--tokenizer", "file/tokenizer.json", "--bos-token", "<s>")
    assert Path("again/tokenizer.json").read_bytes() == Path("file/tokenizer.json").read_bytes()


def test_a_tokenizer_that_drops_spaces_is_not_written(runs, capsys):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(runs / "lines.txt"), model_prefix="usual", vocab_size=60, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    assert not SentencePiece("usual.model").keeps_spaces
    artifact = _copied(_run(runs, "pieces").base, tokenizer=None)
    message = _refused(capsys, "export-hf", artifact, "out", "--tokenizer", "usual.model")
    assert "usual.model adds or drops spaces" in message and not Path("out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("out --max-shard-gb 0", "max_shard_gb=0.0: give a number of GB"),
        ("out --max-shard-gb -1", "max_shard_gb=-1.0: give"),
        ("out --max-shard-gb nan", "max_shard_gb=nan: give"),
        ("out --max-shard-gb inf", "max_shard_gb=inf: give"),
        ("out --dtype float16", "float16"),
        (
            "out --tokenizer {runs}/bpe.model",
            "is not what .* was trained with, which is Characters",
        ),
        ("out --tokenizer {runs}/file.json", "has no token '<bos>'"),
        ("out --tokenizer {runs}/file.json --bos-token <s>", "is not what .* was trained with"),
        ("out --tokenizer missing.json", "no tokenizer file at missing.json"),
        ("out --tokenizer words.txt", "unknown tokenizer words.txt"),
        ("out --bos-token <s>", "give --tokenizer FILE"),
        ("{artifact}", "exists: give a new folder"),
        ("{artifact}/out", "is inside the artifact"),
        ("{artifact}/params/deep/out", "is inside the artifact"),
        ("taken", "taken exists: give a new folder"),
        ("gs://bucket/out", "gs://bucket/out is not on this machine"),
    ],
)
def test_an_export_that_is_refused_writes_nothing(runs, capsys, flags, message):
    Path("taken").mkdir()
    Path("taken/mine").write_text("mine")
    artifact = _run(runs, "toy").base
    before = sorted(artifact.rglob("*"))
    words = flags.format(runs=runs, artifact=artifact).split()
    assert re.search(message, _refused(capsys, "export-hf", artifact, *words))
    assert os.listdir() == ["taken"] and os.listdir("taken") == ["mine"]
    assert sorted(artifact.rglob("*")) == before


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(runs, capsys):
    artifact = _copied(_run(runs, "toy").base, tokenizer=None)
    message = _refused(capsys, "export-hf", artifact, "out", "--tokenizer", runs / "bpe.model")
    assert "bpe.model makes 300 ids, the model of copied knows 36" in message
    assert not Path("out").exists()


def test_what_a_killed_export_left_is_no_hindrance(runs, monkeypatch):
    def die(*_, **__):
        shutil.copytree("out.unfinished", "left")
        raise KeyboardInterrupt

    artifact = _run(runs, "toy").base
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(hf, "save_file", die)
        _export(artifact, "out")
    assert stop.value.code == 130 and os.listdir() == ["left"]
    Path("left").rename("out.unfinished")
    _export(artifact, "out")
    assert os.listdir() == ["out"] and "model.safetensors" in os.listdir("out")


def _tensors(folder):
    files = sorted(Path(folder).glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _same_tensors(first, second):
    first, second = _tensors(first), _tensors(second)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert tensor.tobytes() == second[name].tobytes(), name


@pytest.fixture
def theirs(transformers):
    """A folder that transformers wrote, with two ids that end a text."""
    import torch

    config = transformers.Gemma2Config(
        vocab_size=310, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=10, query_pre_attn_scalar=7,
        sliding_window=4, attn_logit_softcapping=1.5, bos_token_id=2, eos_token_id=[1, 107],
        rope_parameters={"rope_type": "default", "rope_theta": 500.0}, rms_norm_eps=1e-5,
        use_bidirectional_attention=False,
    )  # fmt: skip
    torch.manual_seed(3)
    transformers.Gemma2ForCausalLM(config).save_pretrained("theirs")
    return config


def test_an_import_goes_back_as_it_came(theirs, transformers):
    cli.main(["import-hf", "theirs", "base"])
    _export("base", "back")
    _same_tensors("theirs", "back")
    back = transformers.AutoConfig.from_pretrained("back").to_dict()
    first = transformers.AutoConfig.from_pretrained("theirs").to_dict()
    assert _typed({**back, "_name_or_path": ""}) == _typed({**first, "_name_or_path": ""})
    assert _json("back/generation_config.json")["eos_token_id"] == [1, 107]


def test_an_export_goes_out_again_with_its_tokenizer_as_it_came(runs, transformers):
    _export(_run(runs, "file").base, "first")
    cli.main(["import-hf", "first", "base"])
    _export("base", "out")
    assert sorted(os.listdir("out")) == sorted(os.listdir("first"))
    assert "tokenizer.json" in os.listdir("out")
    for name in {*os.listdir("first")} - {CARD}:
        assert Path("out", name).read_bytes() == Path("first", name).read_bytes(), name
    _encodes_alike(transformers, HuggingFace(runs / "file.json", "<s>"), TEXTS)


def test_an_import_can_be_asked_and_is_a_base(runs, capsys, monkeypatch):
    run = _run(runs, "toy")
    _export(run.base, "first")
    cli.main(["import-hf", "first", "base"])
    capsys.readouterr()
    arguments = ["--prompt", "1+", "--new-tokens", "8"]
    cli.main(["generate", "base", *arguments])
    message = capsys.readouterr().out
    cli.main(["generate", str(run.base), *arguments])
    assert capsys.readouterr().out == message != "\n"
    shutil.copytree(runs / "toy", "out")  # its oracle is finished
    for base in ("base", "base/params"):
        cli.main(["run", str(runs / "toy.py"), "--workdir", "out", "--pretrain.base", base, *SHORT,
                  "--stage", "import"])  # fmt: skip
    adopted = list(Path("out").glob("import-*"))
    assert len(adopted) == 2
    for artifact in adopted:
        assert _json(artifact / "summary.json")["steps"] == 0
        _export(artifact, "again")
        _same_tensors("first", "again")
        shutil.rmtree("again")


def test_a_base_that_is_another_model_of_the_same_shapes_is_refused(runs, capsys):
    _export(_run(runs, "toy").base, "first")
    cli.main(["import-hf", "first", "base"])
    words = ["run", runs / "toy.py", "--workdir", "out", "--pretrain.base", "base", *SHORT,
             "--stage", "import"]  # fmt: skip
    message = _refused(capsys, *words, "--model.final-softcap", "30")
    assert "base is a model with final_softcap=2.0, the experiment has 30.0" in message
    assert "base/params" in message and not list(Path("out").glob("*-*"))


def test_an_import_that_was_killed_is_made_again(runs, capsys, monkeypatch):
    _export(_run(runs, "toy").base, "first")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(artifacts, "mark_finished", lambda *_: os.kill(os.getpid(), 2))
        cli.main(["import-hf", "first", "base"])
    param_checkpoint.wait_until_saved()
    assert Path("base/config.json").exists() and not Path("base/summary.json").exists()
    assert "base holds no finished model" in _refused(capsys, "export-hf", "base", "out")
    cli.main(["import-hf", "first", "base"])
    _export("base", "back")
    _same_tensors("first", "back")
    assert "base exists: give a new folder" in _refused(capsys, "import-hf", "first", "base")


def test_an_import_says_which_tokenizer_it_cannot_use(runs, capsys):
    _export(_run(runs, "toy").base, "first")
    Path("first/tokenizer.json").write_text("{}")
    _tokenizers_file("pieces.json")
    capsys.readouterr()
    message = _refused(capsys, "import-hf", "first", "base")
    assert "first/tokenizer.json is not a tokenizers file" in message and "--without-tok" in message
    cli.main(["import-hf", "first", "base", "--without-tokenizer"])
    assert "pieces.json opens a document with 2, base with 0" in _refused(
        capsys, "export-hf", "base", "out", "--tokenizer", "pieces.json", "--bos-token", "<s>"
    )
    _export("base", "out")
    assert "without a tokenizer" in capsys.readouterr().err
    assert _json("out/config.json")["bos_token_id"] == 0
