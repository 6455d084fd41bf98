"""Networks of other people's making: the gate and the cut have the kernels of their layers, all of them and no more."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gsm_lab as gl
from gsm_lab.optim import GSM, cut, keep_masks, param_groups

CLASSES = 5
# layers that PyTorch has, and what their kernels are called there
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}

# in timm a model, or a module and a class -> arguments that make it small, side of the images
TIMM: dict[str, tuple[dict[str, object], int]] = {
    "beit_base_patch16_224": (_VIT, 16),
    "cait_xxs24_224": (_VIT, 16),
    "convmixer.ConvMixer": ({"dim": 16, "depth": 2, "kernel_size": 3, "patch_size": 4}, 16),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}, 32),
    "deit_tiny_distilled_patch16_224": (_VIT, 16),
    "densenet121": ({"growth_rate": 4, "block_config": (2, 2)}, 32),
    "edgenext_xx_small": ({"dims": (8, 16, 16, 16), "depths": (1, 1, 2, 1)}, 64),
    "efficientnet_lite0": ({}, 32),
    "eva02_tiny_patch14_224": (_VIT | {"embed_dim": 24}, 16),
    "levit_128s": ({"embed_dim": (16, 32, 32), "key_dim": 8, "num_heads": (2, 2, 2), "depth": (1, 1, 1)}, 224),
    "mlp_mixer.MlpMixer": ({"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_blocks": 2}, 16),
    "mobilenetv3_small_050": ({}, 32),
    "mobilevit_xxs": ({}, 64),
    "nf_regnet_b0": ({}, 32),
    "metaformer.MetaFormer": (
        {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "layer_scale_init_values": 1e-5, "use_mlp_head": False},
        32,
    ),
    "regnetx_002": ({}, 32),
    "resnet18": ({"layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16)}, 32),
    "sequencer2d_s": ({"layers": (1, 1, 1, 1), "embed_dims": (16,) * 4, "hidden_sizes": (4,) * 4}, 28),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)},
        32,
    ),
    "vit_tiny_patch16_224": (_VIT, 16),
    "xcit_tiny_12_p16_224": ({"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2}, 32),
}
# what some of them must have, written down by hand from their papers
BLOCK = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
BY_HAND = {
    "vit_tiny_patch16_224": ["patch_embed.proj", *(f"blocks.{i}.{x}" for i in (0, 1) for x in BLOCK), "head"],
    "swin_tiny_patch4_window7_224": [
        "patch_embed.proj",
        *(f"layers.0.blocks.0.{x}" for x in BLOCK),
        "layers.1.downsample.reduction",
        *(f"layers.1.blocks.0.{x}" for x in BLOCK),
        "head.fc",
    ],
    "convnext_atto": [
        "stem.0",
        *(f"stages.0.blocks.0.{x}" for x in ("conv_dw", "mlp.fc1", "mlp.fc2")),
        *(
            f"stages.{i}.{x}"
            for i in (1, 2, 3)
            for x in ("downsample.1", "blocks.0.conv_dw", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2")
        ),
        "head.fc",
    ],
}


def walked(model: nn.Module) -> list[str]:
    """The kernels, by a walk over the layers that PyTorch has."""
    recurrent = [
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
        if (isinstance(module, nn.RNNBase) and "weight" in name)
        or (isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight")
    ]
    plain = [f"{path}.weight".lstrip(".") for path, module in model.named_modules() if isinstance(module, LAYERS)]
    names = {*recurrent, *plain}
    return [name for name, _ in model.named_parameters() if name in names]


def logits(answer: object) -> Tensor:
    if isinstance(answer, tuple):
        return answer[0]
    return getattr(answer, "logits", answer)


def hold(model: nn.Module, *inputs: Tensor, expected: list[str], **named: Tensor) -> None:
    """Train for some steps, the last with the gate closed, and cut: Q gated = Q kept = not zero, all else untouched."""
    groups = param_groups(model)
    assert groups[0]["names"] == expected
    opt = GSM(groups, lr=0.01, momentum=0.9, weight_decay=1e-3)
    labels = torch.arange(len(next(iter((*inputs, *named.values()))))) % CLASSES
    model.train()
    for step in range(6):  # some of them begin with zeros in their last layers, where every T is zero
        opt.compression = 1 if step < 3 else 10
        opt.zero_grad()
        F.cross_entropy(logits(model(*inputs, **named)), labels).backward()
        opt.step()
        if step < 3:
            continue
        active = int(opt.active_mask().sum())
        assert active == opt.nonzeros == opt.weights // 10
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = keep_masks(model, optimizer=opt)
    assert all(torch.equal(masks[name], mask) for name, mask in keep_masks(model, compression=10).items())
    assert cut(model, optimizer=opt) == opt.nonzeros
    now = dict(model.named_parameters())
    assert sum(int(now[name].count_nonzero()) for name in expected) == opt.nonzeros
    assert all(torch.equal(p, before[name] * masks[name] if name in masks else before[name]) for name, p in now.items())
    model.eval()
    with torch.no_grad():
        assert logits(model(*inputs, **named)).isfinite().all()


pytestmark = pytest.mark.filterwarnings("ignore:the cut left no weight in layer")


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    settings, side = TIMM[name]
    torch.manual_seed(0)
    if "." in name:
        module, kind = name.split(".")
        model = getattr(importlib.import_module(f"timm.models.{module}"), kind)(num_classes=CLASSES, **settings)
    else:
        model = timm.create_model(name, num_classes=CLASSES, **settings)
    expected = walked(model)
    if name in BY_HAND:
        assert expected == [f"{layer}.weight" for layer in BY_HAND[name]]
    hold(model, torch.randn(10, 3, side, side), expected=expected)


def test_a_network_that_begins_with_zeros_is_told_to_take_dense_steps() -> None:
    timm = pytest.importorskip("timm")
    model = timm.models.mlp_mixer.MlpMixer(num_classes=CLASSES, **TIMM["mlp_mixer.MlpMixer"][0])
    opt = GSM(param_groups(model), lr=0.01, momentum=0.9, compression=10)
    with pytest.warns(UserWarning, match=r"no weight has had T .* \(all zeros: 'head.weight'; no .* dense steps first"):
        for _ in range(20):
            opt.zero_grad()
            F.cross_entropy(model(torch.randn(10, 3, 16, 16)), torch.arange(10) % CLASSES).backward()
            opt.step()
    assert not model.head.weight.any()


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=CLASSES,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    each = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    each = (*each, "intermediate.dense", "output.dense")
    layers = [f"bert.encoder.layer.{i}.{x}" for i in (0, 1) for x in each]
    expected = [f"{layer}.weight" for layer in (*layers, "bert.pooler.dense", "classifier")]
    hold(model, input_ids=torch.randint(0, 50, (10, 7)), expected=expected)


def test_a_bert_whose_output_layer_is_tied_to_its_embedding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = transformers.BertForMaskedLM(config)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    names = param_groups(model)[0]["names"]
    assert "cls.predictions.transform.dense.weight" in names and not any("embedding" in name for name in names)
    assert not any("decoder" in name for name in names)


def test_vit_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=2,
        num_channels=1, num_labels=CLASSES,
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config)
    expected = walked(model)
    assert len(expected) == 1 + 2 * 6 + 1  # the patches, and six a layer, and the classifier
    hold(model, pixel_values=torch.randn(10, 1, 8, 8), expected=expected)


def test_gpt2_whose_layers_are_its_own() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=8, n_embd=16, n_layer=2, n_head=2, num_labels=CLASSES, pad_token_id=0
    )
    model = transformers.GPT2ForSequenceClassification(config)
    each = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    expected = [*(f"transformer.h.{i}.{x}.weight" for i in (0, 1) for x in each), "score.weight"]
    hold(model, input_ids=torch.randint(1, 50, (10, 7)), expected=expected)


# ------------------------------------------------------------------------------------ without anybody's library


class Recurrent(nn.Module):
    """The last output of a recurrent layer, classified."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Unrolled(nn.Module):
    """A cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(4, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 8)
        for part in x.unbind(1):
            h = self.cell(part, h)
        return self.head(h)


class Attentive(nn.Module):
    """A class token before a sequence, attention, and what comes out for the token."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 7, 8))
        self.layer, self.head = layer, nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(0, -3) if x.ndim > 3 else x  # a `Dataset` has images of one channel
        x = torch.cat((self.token.expand(len(x), 1, 8), x), 1) + self.positions
        x = self.layer(x, x, x)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        return self.head(x[:, 0])


def _encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)


_ENCODER = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
PLAIN: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "GRU": (
        lambda: Recurrent(nn.GRU(4, 8, batch_first=True), 8),
        (6, 4),
        ["layer.weight_ih_l0", "layer.weight_hh_l0", "head.weight"],
    ),
    "LSTM": (
        lambda: Recurrent(nn.LSTM(4, 8, 2, batch_first=True, proj_size=3), 3),
        (6, 4),
        [*(f"layer.weight_{x}_l{i}" for i in (0, 1) for x in ("ih", "hh", "hr")), "head.weight"],
    ),
    "a cell": (Unrolled, (6, 4), ["cell.weight_ih", "cell.weight_hh", "head.weight"]),
    "Conv1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.PReLU(8), nn.Flatten(), nn.Linear(64, CLASSES)),
        (2, 10),
        ["0.weight", "4.weight"],
    ),
    "ConvTranspose": (
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, CLASSES, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ),
        (2, 5, 5),
        ["0.weight", "3.weight"],
    ),
    "MultiheadAttention": (
        lambda: Attentive(nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)),
        (6, 8),
        ["layer.in_proj_weight", "layer.out_proj.weight", "head.weight"],
    ),
    "TransformerEncoder": (
        lambda: Attentive(_encoder()),
        (6, 8),
        [*(f"layer.layers.{i}.{x}" for i in (0, 1) for x in _ENCODER), "head.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_pytorchs_own(name: str) -> None:
    make, shape, expected = PLAIN[name]
    torch.manual_seed(0)
    hold(make(), torch.randn(10, *shape), expected=expected)


def test_a_run_of_a_network_with_a_class_token() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 6, 8), torch.arange(50) % CLASSES
    run = gl.Run(Attentive(_encoder()), gl.Dataset(x, y, x, y), compression=10, batch_size=10, epochs=2, pretrain=1)
    run.train(progress=False)
    token, positions = run.model.token.clone(), run.model.positions.clone()
    accuracy = run.evaluate(cut=True)
    assert run.cut() == run.nonzeros == run.opt.weights // 10
    assert run.evaluate() == accuracy
    assert torch.equal(run.model.token, token) and torch.equal(run.model.positions, positions)
