"""The training computes what the model in use computes: same blocks, same positions, same numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from g2tr_core import umm
from g2tr_core.errors import SettingsError
from g2tr_core.lab.training import network as stage
from g2tr_core.lab.training.__main__ import main, run
from g2tr_core.lab.training.autoencoder import BLOCKS, GROUPS, WIDTHS
from g2tr_core.lab.training.evaluate import evaluate
from g2tr_core.lab.training.examples import Example, Factory
from g2tr_core.lab.training.export import export
from g2tr_core.lab.training.losses import Heads, Learner, total
from g2tr_core.lab.training.network import add_row, learnable, new_network
from g2tr_core.lab.training.optimiser import MasterWeights
from g2tr_core.lab.training.recipe import Recipe
from g2tr_core.lab.training.texts import Writer
from g2tr_core.lab.training.tokenizer import write_tokenizer
from g2tr_core.lab.world.splits import split_of
from g2tr_core.nn.patches import patchify, unpatchify
from g2tr_core.nn.text_writer import TextWriter
from g2tr_core.umm.bagel.network import BagelDenoiser
from g2tr_core.umm.bagel.vae import Autoencoder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    network, tokens = new_network(tokenizer, CPU, torch.float32)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.abs().max() == 0:
                weight.normal_(0, 0.1)  # those that begin as nothing
    heads, foresight = (Heads(network.config.hidden_size) for _ in range(2))
    return Learner(network, heads, foresight, Writer(tokenizer, tokens, CPU), Recipe())


@pytest.fixture(scope="module")
def factory() -> Factory:
    torch.manual_seed(0)
    recipe = Recipe()
    vae = Autoencoder(WIDTHS, BLOCKS, CPU, groups=GROUPS).bfloat16()
    return Factory("train", 0, vae, 2, recipe.edit_weights, recipe.question_weights, CPU)


@pytest.fixture(scope="module")
def examples(factory: Factory) -> list[Example]:
    return factory.examples(2)


def test_a_new_network_has_values_of_its_own(learner: Learner) -> None:
    """None is what the memory held before."""
    words = learner.network.language_model.model.embed_tokens.weight
    assert 0.45 < float(words.detach().std()) < 0.55
    assert all(weight.isfinite().all() for weight in learner.network.parameters())


@torch.no_grad()
def test_questions_are_read_as_in_use(learner: Learner, factory: Factory, examples: list[Example]) -> None:
    """Logits behind every question of a batch equal those of a conversation of its own."""
    network = learner.network
    questions = [factory.questions(one.scene, 3) for one in examples]
    features, visual = learner.visual_tokens(examples)
    texts = learner.writer.write([(q.text, q.marks, q.answer) for group in questions for q in group])
    hidden, _ = learner.text_rows(learner.question_prefix(visual), texts, 3)
    for index in range(6):
        known = (texts.answers[index] != -100).nonzero().flatten().tolist()
        asked = texts.ids[index, 1 : known[0] - 1]
        blocks = [network.visual_block(features[index // 3], learner.vit_cells), network.text_block(asked)]
        model = network.language_model
        writer = TextWriter(model, model.model.prefill(model.empty(128, CPU), blocks).prefix, len(known))
        for row in known:
            logits = writer(texts.ids[index, row : row + 1])
            torch.testing.assert_close(network.language_model.lm_head(hidden[index, row]), logits, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_edits_are_denoised_as_in_use(learner: Learner, examples: list[Example]) -> None:
    """Velocities of a batch of edits equal those of a denoiser behind a conversation."""
    network = learner.network
    features, visual = learner.visual_tokens(examples)
    targets = [target for one in examples for target in one.targets]
    texts = learner.writer.write([(target.edit.instruction, target.edit.marks, None) for target in targets])
    noisy, time = torch.randn(len(targets), 49, 64), torch.rand(len(targets))
    prefix = learner.edit_prefix(visual, torch.stack([one.latent for one in examples]))
    velocity = learner.denoise(prefix, texts, 2, noisy, time).velocity
    for index in range(len(targets)):
        source = examples[index // 2]
        blocks = [
            network.latent_block(source.latent, learner.latent_cells),
            network.visual_block(features[index // 2], learner.vit_cells),
            network.text_block(texts.ids[index, 1 : int(texts.lengths[index]) - 1]),
        ]
        model = network.language_model
        prefix = model.model.prefill(model.empty(256, CPU), blocks).prefix
        x = unpatchify(noisy[index : index + 1], (7, 7), 2, "pqc")
        expected = BagelDenoiser(network, (7, 7), learner.latent_cells).forward(x, time[index : index + 1], [prefix])
        torch.testing.assert_close(velocity[index], patchify(expected[0], 2, "pqc"), atol=2e-4, rtol=2e-4)


def test_losses_reach_every_weight(learner: Learner, factory: Factory, examples: list[Example]) -> None:
    """One step of learning has a gradient for all that is to be learnt."""
    features, visual = learner.visual_tokens(examples)
    losses = learner.heads.losses(features, [one.labels for one in examples])
    losses |= learner.answer_loss(visual, examples, [factory.questions(one.scene, 3) for one in examples])
    losses |= learner.flow_loss(visual, examples)
    losses |= learner.caption_loss(factory.captions(4))
    total(losses, learner.recipe).backward()
    assert not [
        name for name, weight in learner.network.named_parameters() if weight.requires_grad and weight.grad is None
    ]


def test_what_is_trained_loads_as_the_released_model_does(learner: Learner, factory: Factory, tmp_path: Path) -> None:
    """The exported folder holds the network's tensors and nothing that only training has."""
    write_tokenizer(tmp_path / "network" / "tokenizer")
    MasterWeights(learnable(learner), lambda name, weight: False, muon=0.0, adam=0.0).save(tmp_path / "network", {})
    (tmp_path / "autoencoder").mkdir()
    save_file(factory.autoencoder.kl.state_dict(), tmp_path / "autoencoder" / "ae.safetensors")
    export(tmp_path, tmp_path / "export")
    model = umm.load(tmp_path / "export")
    name = "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"
    torch.testing.assert_close(
        model.network.state_dict()[name], learner.network.state_dict()[name].bfloat16(), atol=0, rtol=0
    )


def test_scores_are_shares(learner: Learner, factory: Factory, examples: list[Example]) -> None:
    scores = evaluate(learner, examples, [factory.questions(one.scene, 3) for one in examples])
    assert {"answers", "edits", "inside"} <= scores.keys()
    shares = [value for name, value in scores.items() if name not in ("inside", "outside")]
    assert all(0 <= share <= 1 for share in shares)
    assert scores["inside"] > 0


def test_curves_keep_their_columns_apart_when_losses_come_and_go(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    for row in ({"step": 1, "kind": 0.5}, {"step": 2, "kind": 0.25, "flow": torch.tensor(2.0)}, {"step": 3}):
        add_row(path, row)
    assert path.read_text(encoding="utf-8").splitlines() == ["step,kind,flow", "1,0.5,", "2,0.25,2", "3,,"]


def test_no_target_of_training_is_a_composition_of_another_split(factory: Factory) -> None:
    targets = [one.edit.target for example in factory.examples(64) for one in example.targets]
    assert {split_of(target) for target in targets} == {"train"}


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of an autoencoder that was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["autoencoder", str(folder), "--minutes", "0.001"]) == 0
    return (folder / "autoencoder" / "state.safetensors").read_bytes()


@pytest.mark.parametrize("content", ["", "cut", "other", "no progress"])
def test_a_torn_state_is_told(content: str, state: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "autoencoder"
    folder.mkdir()
    path, whole = folder / "state.safetensors", state
    if content in ("", "cut"):
        path.write_bytes(whole[: len(whole) // 2 if content else 0])
    else:
        known = json.dumps({"seed": 0, "step": 1, "seconds": 1.0})
        save_file({"x": torch.zeros(1)}, path, None if content == "no progress" else {"progress": known})
    capsys.readouterr()
    assert main(["autoencoder", str(tmp_path), "--minutes", "0.001"]) == 1
    told = capsys.readouterr().err
    assert "state.safetensors: " in told and "Delete it" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["network"], "ae.safetensors: there is no such file. Run the stage that writes it first."),
        (["export"], "state.safetensors: there is no such file"),
        (["export", "--device", "meta"], "device: meta cannot be used here"),
        (["export", "--minutes", "nan"], "minutes: nan"),
        (["export", "--seed", "-1"], "seed: -1"),
    ],
)
def test_the_command_tells_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage_name, *options = arguments
    assert main([stage_name, str(tmp_path), *options]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_torn_line_of_the_curves_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    path.write_bytes(b"step,kind\n1,0.5\n2\n\xff,1,2,3\n")
    add_row(path, {"step": 3, "kind": 0.25})
    assert path.read_text(encoding="utf-8").splitlines() == ["step,kind", "1,0.5", "3,0.25"]


def test_all_stages_run_stop_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(Recipe(), scenes=2, questions=2, edits=1, captions=2, extra_pictures=2, warm_up=0.0, reuse=1)
    monkeypatch.setattr(stage, "Recipe", lambda: small)
    monkeypatch.setattr(stage, "TEST_SCENES", 32)

    def progress(name: str, seconds: float) -> dict[str, float]:
        run(name, tmp_path, minutes=seconds / 60, device=CPU, seed=0)
        with safe_open(tmp_path / name / "state.safetensors", "pt") as file:
            return dict(json.loads(file.metadata()["progress"]))

    for name in ("autoencoder", "network"):
        first = progress(name, 0.1)
        again = progress(name, first["seconds"] + 0.1)
        assert 0 < first["step"] < again["step"] and again["seconds"] > first["seconds"] + 0.1
        with pytest.raises(SettingsError, match=r"seed: .*another seed.* Go on with 0"):
            run(name, tmp_path, minutes=1.0, device=CPU, seed=1)
    assert len((tmp_path / "network" / "curves.csv").read_text(encoding="utf-8").splitlines()) == 3
    run("export", tmp_path, minutes=0.0, device=CPU, seed=0)
    assert umm.load(tmp_path / "export").imagine("A red circle.").image.size == (112, 112)
    assert len(list((tmp_path / "export" / "scenes").glob("*.png"))) == 6
