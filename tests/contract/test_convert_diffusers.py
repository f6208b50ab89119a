"""Networks of diffusers become ours: outputs at width 1, and what is refused."""

import json
import shutil

import pytest
import torch
from command import files
from diffusers_nets import TINY, diffusers, levels, model
from safetensors.torch import load_file

from stepsearch import convert, load_net
from stepsearch.cli import main
from stepsearch.core.errors import ConfigError
from stepsearch.nets.families import FAMILIES

CIFAR = {  # google/ddpm-cifar10-32, with fewer channels
    "sample_size": 16,
    "block_out_channels": (16, 32, 32, 32),
    "layers_per_block": 2,
    **levels(0, 1, 0, 0),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_num_groups": 4,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
HEADS = {
    "sample_size": [8, 12],
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 48),
    "layers_per_block": 1,
    **levels(1, 0),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "dropout": 0.5,
}
CLASSES = {
    "sample_size": 8,
    "block_out_channels": (8,),
    "layers_per_block": 3,
    **levels(0),
    "norm_num_groups": 2,
    "num_class_embeds": 5,
}
LINEAR = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
}


def ours(path):
    """The converted module, built by what its card says."""
    card = load_net(path).card
    net = FAMILIES[card.family].build(card.arch, card.image_shape, card.widths)
    net.load_state_dict(load_file(path))
    return net.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small network as diffusers saves it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("diffusers")
    model(TINY).save_pretrained(folder / "model")
    return folder


def agree(theirs, net, card, tolerance, dtype):
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(4, *card.image_shape, generator=rng).to(dtype)
    time, labels = torch.tensor([0, 7, 555, 999]), torch.tensor([0, 4, 2, 0])
    given = (labels,) if card.classes else ()
    with torch.no_grad():
        want = theirs.to(dtype)(x, time, *given).sample
        got = net.to(dtype)(x, time, *given)
    assert want.std() > 0.05
    assert (got - want).abs().max() < tolerance


@pytest.mark.parametrize("config", [CIFAR, HEADS, CLASSES], ids=["cifar", "heads", "classes"])
def test_width_1_answers_like_diffusers(config, tmp_path):
    theirs = model(config)
    theirs.save_pretrained(tmp_path / "folder")
    card = convert(tmp_path / "folder", tmp_path / "net.safetensors", widths=[1.0])
    size = config["sample_size"]
    sides = [size, size] if isinstance(size, int) else size
    assert card.image_shape == (config.get("in_channels", 3), *sides)
    net = ours(tmp_path / "net.safetensors")
    agree(theirs, net, card, 1e-5, torch.float32)
    agree(theirs, net, card, 1e-9, torch.float64)
    again = convert(model(config), tmp_path / "object.safetensors", widths=[1.0])
    assert again.sha256 == card.sha256, "an object is not its folder"


def test_the_published_layout_is_carried_in_full(tmp_path):
    """Card of google/ddpm-cifar10-32: its widths, and FLOPs of the plain network."""
    channels = {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32}
    theirs = diffusers.UNet2DModel(**CIFAR | channels | {"sample_size": 32})
    card = convert(theirs, tmp_path / "net.safetensors")
    assert card.widths == (0.25, 0.5, 0.75, 1.0)
    assert card.flops[-1] == 12_443_713_536
    assert sum(v.numel() for v in load_file(tmp_path / "net.safetensors").values()) == (
        sum(p.numel() for p in theirs.parameters()) + 1000 * 128
    )


def test_old_names_and_pickled_weights_are_read(tmp_path):
    """The hub's older files name attention otherwise, and may be .bin alone."""
    theirs = model(CIFAR)
    theirs.save_pretrained(tmp_path / "new")
    convert(tmp_path / "new", tmp_path / "new.safetensors", widths=[1.0])
    state = load_file(tmp_path / "new" / "diffusion_pytorch_model.safetensors")
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
    (tmp_path / "old").mkdir()
    shutil.copy(tmp_path / "new" / "config.json", tmp_path / "old")
    torch.save(state, tmp_path / "old" / "diffusion_pytorch_model.bin")
    convert(tmp_path / "old", tmp_path / "old.safetensors", widths=[1.0])
    assert (tmp_path / "old.safetensors").read_bytes() == (
        tmp_path / "new.safetensors"
    ).read_bytes()


class TestLabels:
    def test_every_row_is_a_label_and_none_is_their_mean(self, tmp_path):
        theirs = model(CLASSES)
        card = convert(theirs, tmp_path / "net.safetensors", widths=[1.0])
        rows = theirs.class_embedding.weight.detach()
        assert card.classes == 5
        label = load_file(tmp_path / "net.safetensors")["label.weight"]
        assert torch.equal(label[:5], rows)
        torch.testing.assert_close(label[5], rows.mean(0))
        assert any("untrained" in line for line in card.training["assumed"])

    def test_the_last_row_can_stand_for_none(self, tmp_path):
        theirs = model(CLASSES)
        card = convert(theirs, tmp_path / "net.safetensors", widths=[1.0], null_label=True)
        assert card.classes == 4
        label = load_file(tmp_path / "net.safetensors")["label.weight"]
        assert torch.equal(label, theirs.class_embedding.weight)
        assert not any("untrained" in line for line in card.training["assumed"])

    def test_a_network_without_classes_has_no_such_row(self, tmp_path):
        with pytest.raises(ConfigError, match="num_class_embeds"):
            convert(model(TINY), tmp_path / "net.safetensors", null_label=True)


class TestPipelines:
    @pytest.fixture
    def pipeline(self, tmp_path):
        def save(**changes):
            folder = tmp_path / "pipeline"
            model(TINY).save_pretrained(folder / "unet")
            (folder / "scheduler").mkdir(exist_ok=True)
            text = json.dumps({**LINEAR, **changes})
            (folder / "scheduler" / "scheduler_config.json").write_text(text)
            return folder

        return save

    @pytest.mark.parametrize(
        ("said", "prediction"),
        [(None, "eps"), ("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v")],
    )
    def test_the_scheduler_says_what_is_predicted(self, said, prediction, pipeline, tmp_path):
        folder = pipeline(**({} if said is None else {"prediction_type": said}))
        card = convert(folder, tmp_path / "net.safetensors", widths=[1.0])
        assert (card.prediction, card.process) == (prediction, "vp-linear-1000")
        assert card.training["assumed"] == []

    def test_a_pipeline_object_is_read_like_its_folder(self, tmp_path):
        pipe = diffusers.DDPMPipeline(model(TINY), diffusers.DDPMScheduler())
        card = convert(pipe, tmp_path / "net.safetensors", widths=[1.0])
        assert card.training["assumed"] == []

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("beta_schedule", "squaredcos_cap_v2"),
            ("beta_end", 0.012),
            ("num_train_timesteps", 2000),
            ("trained_betas", [0.1, 0.2]),
            ("rescale_betas_zero_snr", True),
            ("prediction_type", "flow"),
        ],
    )
    def test_another_process_is_refused(self, key, value, pipeline, tmp_path):
        with pytest.raises(ConfigError) as caught:
            convert(pipeline(**{key: value}), tmp_path / "net.safetensors")
        assert f"scheduler_config.json: {key}: {value!r}" in str(caught.value)


REFUSED = [
    ("_class_name", "UNet2DConditionModel"),
    ("act_fn", "gelu"),
    ("add_attention", False),
    ("attention_head_dim", 3),
    ("attn_norm_num_groups", 1),
    ("block_out_channels", [8, 12]),
    ("block_out_channels", "8"),
    ("block_out_channels", []),
    ("center_input_sample", True),
    ("class_embed_type", "timestep"),
    ("down_block_types", ["DownBlock2D", "SkipDownBlock2D"]),
    ("down_block_types", ["DownBlock2D"]),
    ("downsample_padding", 2),
    ("downsample_type", "resnet"),
    ("layers_per_block", [1, 2]),
    ("mid_block_scale_factor", 1.41),
    ("mid_block_type", None),
    ("norm_eps", "small"),
    ("norm_num_groups", None),
    ("num_class_embeds", "many"),
    ("out_channels", 2),
    ("resnet_time_scale_shift", "scale_shift"),
    ("sample_size", None),
    ("some_new_feature", 3),
    ("time_embedding_dim", 64),
    ("time_embedding_type", "fourier"),
    ("up_block_types", ["AttnUpBlock2D", "UpBlock2D"]),
    ("upsample_type", "resnet"),
]


class TestRefused:
    @pytest.mark.parametrize(("key", "value"), REFUSED, ids=str)
    def test_a_config_that_we_cannot_reproduce(self, key, value, folder, tmp_path, capsys):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        config = tmp_path / "model" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
        before = files(tmp_path)
        argv = [str(tmp_path / "model"), "-o", str(tmp_path / "net.safetensors")]
        assert main(["convert", *argv]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert ("heads of 3" if key == "attention_head_dim" else key) in err
        shown = value[1] if key == "down_block_types" and len(value) > 1 else value
        assert str(shown) in err
        assert files(tmp_path) == before

    @pytest.mark.parametrize("config", ["", "[]", "{", "[" * 100_000])
    def test_a_config_that_is_none(self, config, folder, tmp_path, capsys):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model" / "config.json").write_text(config)
        argv = [str(tmp_path / "model"), "-o", str(tmp_path / "net.safetensors")]
        assert main(["convert", *argv]) == 2
        assert "config.json" in capsys.readouterr().err

    @pytest.mark.parametrize("missing", ["config.json", "diffusion_pytorch_model.safetensors"])
    def test_a_folder_without_its_files(self, missing, folder, tmp_path, capsys):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        (tmp_path / "model" / missing).unlink()
        argv = [str(tmp_path / "model"), "-o", str(tmp_path / "net.safetensors")]
        assert main(["convert", *argv]) == 2
        assert missing in capsys.readouterr().err

    def test_widths_that_split_a_head(self, tmp_path):
        config = {**TINY, "attention_head_dim": 4}
        card = convert(model(config), tmp_path / "fits.safetensors")
        assert card.widths == (0.5, 1.0)
        with pytest.raises(ConfigError, match="heads of 4"):
            convert(model(config), tmp_path / "net.safetensors", widths=[0.25, 1.0])

    def test_groups_that_the_config_says(self, tmp_path):
        with pytest.raises(ConfigError, match="--groups"):
            convert(model(TINY), tmp_path / "net.safetensors", groups=2)
