"""VideoMAE against PyTorch's own transformer layers, with random weights in the published layout."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluations.extractor import VideoMAE
from evaluations.videomae import VideoMAENetwork, positions

DIM, DEPTH, HIDDEN = 128, 2, 200  # two heads


def random_network():
    torch.manual_seed(0)
    network = VideoMAENetwork(DIM, DEPTH, HIDDEN, (2, 56, 56))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def reference_features(network, pixels_B3THW):
    """The same by torch.nn.TransformerEncoderLayer."""
    weight, bias = network.patch_embed["proj"].weight, network.patch_embed["proj"].bias
    x_BLD = nn.functional.conv3d(pixels_B3THW, weight, bias, (2, 56, 56)).flatten(2).transpose(1, 2)
    x_BLD = x_BLD + positions(x_BLD.shape[1], DIM).float()
    for block in network.blocks:
        layer = nn.TransformerEncoderLayer(DIM, 2, HIDDEN, 0.0, "gelu", 1e-6, True, norm_first=True)
        attention = block.attn
        state = {"self_attn.in_proj_weight": attention.qkv.weight,
                 "self_attn.in_proj_bias": torch.cat([attention.q_bias, torch.zeros(DIM), attention.v_bias]),
                 "self_attn.out_proj.weight": attention.proj.weight,
                 "self_attn.out_proj.bias": attention.proj.bias}
        for kind in ("weight", "bias"):
            for i in (1, 2):
                state[f"linear{i}.{kind}"] = getattr(block.mlp[f"fc{i}"], kind)
                state[f"norm{i}.{kind}"] = getattr(getattr(block, f"norm{i}"), kind)
        layer.load_state_dict(state)
        x_BLD = layer.eval()(x_BLD)
    return network.fc_norm(x_BLD.mean(1))


def test_features_are_those_of_a_plain_transformer():
    network, pixels = random_network(), torch.rand(2, 3, 16, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(pixels), reference_features(network, pixels), rtol=1e-4, atol=1e-4)


def test_positions_are_sines_and_cosines():
    table = positions(7, 4).numpy()
    np.testing.assert_allclose(table[3], [np.sin(3), np.cos(3), np.sin(0.03), np.cos(0.03)])


def test_published_layout_loads_strictly_and_its_classifier_is_left_out(tmp_path):
    network = random_network()
    state = {**network.state_dict(), "head.weight": torch.zeros(174, DIM), "head.bias": torch.zeros(174)}
    assert "blocks.1.attn.q_bias" in state and "blocks.0.mlp.fc1.weight" in state and "fc_norm.bias" in state
    torch.save({"module": state}, tmp_path / "mae.pth")
    extractor = VideoMAE(tmp_path / "mae.pth", False, torch.device("cpu"))
    frames = torch.randint(0, 256, (1, 16, 3, 112, 112), dtype=torch.uint8)
    with torch.no_grad():
        features = extractor.features(frames)
    assert features.shape == (1, 1, DIM) and extractor.weights["verified"] is False
    with pytest.raises(ValueError, match="needs clips of 16 frames, these have 8"):
        extractor.features(frames[:, :8])
    del state["blocks.1.attn.v_bias"]
    torch.save({"module": state}, tmp_path / "short.pth")
    with pytest.raises(ValueError, match=r"--videomae-weights .*short.pth: 1 tensors do not fit"):
        VideoMAE(tmp_path / "short.pth", False, torch.device("cpu"))
    torch.save({"module": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="not weights of a VideoMAE encoder"):
        VideoMAE(tmp_path / "other.pth", False, torch.device("cpu"))
