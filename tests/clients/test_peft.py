"""PEFT's LoRA around a network whose own weights are frozen: GSM gates the adapters."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gsm_lab as gl
from tests.clients import plain

peft = pytest.importorskip("peft")
COUNT = 4 * (20 + 30) + 4 * (30 + 4)  # weights in the adapters of rank 4


class Layer(nn.Module):
    """A layer of the plain network with the same adapters, written out."""

    def __init__(self, layer):
        super().__init__()
        self.base = nn.Linear(layer.in_features, layer.out_features).requires_grad_(False)
        self.base.load_state_dict(layer.base_layer.state_dict())
        self.a, self.b = nn.Linear(layer.in_features, 4, bias=False), nn.Linear(4, layer.out_features, bias=False)
        self.a.load_state_dict(layer.lora_A["default"].state_dict())
        self.b.load_state_dict(layer.lora_B["default"].state_dict())

    def forward(self, x):
        return self.base(x) + self.b(self.a(x)) * 2.0


def adapted():
    """The plain network with adapters, B at zero as LoRA has it."""
    torch.manual_seed(2)
    return peft.get_peft_model(plain.network(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"]))


def train(model, optimizer):
    """Six dense steps, since with B at zero no T is positive, then twelve gated ones; who was active in each."""
    optimizer.compression, active = 1, []
    for _ in range(3):
        for x, y in plain.batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            active.append(optimizer.active_mask().clone())
        optimizer.compression = plain.COMPRESSION
    return active


def test_only_the_adapters_compete_and_move():
    model = adapted()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = plain.gsm(model)
    assert optimizer.weights == COUNT
    assert all("lora_" in name for name in optimizer.param_groups[0]["names"])
    for active in train(model, optimizer)[6:]:
        assert int(active.sum()) == COUNT // plain.COMPRESSION
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name)


def test_as_the_same_adapters_written_out():
    model = adapted()
    first, relu, second = model.base_model.model
    own = nn.Sequential(Layer(first), relu, Layer(second))
    seen = []
    for net in (model, own):
        optimizer = plain.gsm(net)
        watch = plain.Watched(optimizer)
        train(net, optimizer)
        seen.append(watch)
    assert all(map(torch.equal, seen[0].weights, seen[1].weights))
    assert all(map(torch.equal, seen[0].active, seen[1].active))


def test_saved_adapters_and_optimizer_go_on_to_the_bit(tmp_path):
    model = adapted()
    optimizer = plain.gsm(model)
    train(model, optimizer)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    state = {"optimizer": optimizer.state_dict()}
    torch.save(state, tmp_path / "state")
    other = peft.PeftModel.from_pretrained(plain.network(), tmp_path, is_trainable=True)
    other_optimizer = plain.gsm(other)
    other_optimizer.load_state_dict(torch.load(tmp_path / "state", weights_only=True)["optimizer"])
    seen = []
    for net, opt in ((model, optimizer), (other, other_optimizer)):
        watch = plain.Watched(opt)
        for x, y in plain.batches():
            opt.zero_grad()
            F.cross_entropy(net(x), y).backward()
            opt.step()
        seen.append(watch)
    seen[1].same_as(seen[0])


def test_the_cut_leaves_q_weights_in_the_adapters():
    model = adapted()
    train(model, plain.gsm(model))
    kept = gl.cut(model, compression=plain.COMPRESSION)
    adapters = [p for name, p in model.named_parameters() if "lora_" in name]
    assert kept == sum(int((p != 0).sum()) for p in adapters) == COUNT // plain.COMPRESSION
    before = model(plain.samples()[0])
    merged = model.merge_and_unload()
    assert torch.allclose(merged(plain.samples()[0]), before, atol=1e-5)
