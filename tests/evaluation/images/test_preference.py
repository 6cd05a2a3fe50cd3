"""Preference models against the same mathematics written out on the weights as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2.functional import normalize, to_dtype, to_image
from transformers import BertTokenizer, CLIPModel

from sparsight.evaluation.images import HPSv2, ImageReward, PickScore, Samples
from sparsight.evaluation.images.images import to_uint8
from sparsight.evaluation.images.preference.open_clip import as_transformers
from tests import tiny, tiny_networks
from tests.tiny_preference import open_clip_weights, reward_weights, save_reward

MEAN, DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CAPTIONS = ["a cat", "no dog", "x"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_networks.save_clip(tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.save_text_encoder(tmp_path_factory.mktemp("models") / "bert"))


def samples(height: int = 24, width: int = 24, captions: list[str] = CAPTIONS) -> Samples:
    rough = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return Samples(F.interpolate(rough, (height, width), mode="bilinear"), torch.arange(3), captions)


def seen_by_pillow(drawn: Samples, size: tuple[int, int]) -> Tensor:
    """Images as Pillow resizes them, in [0, 1]."""
    images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in to_uint8(drawn.images)]
    small = [to_image(image.resize(size[::-1], Image.Resampling.BICUBIC)) for image in images]
    return to_dtype(torch.stack(small), torch.float32, scale=True)


# -- CLIP --------------------------------------------------------------------------------------------------------


def open_clip(weights: dict[str, Tensor], seen: Tensor, tokens: list[int]) -> Tensor:
    """Cosines (B,) of pixels and a text, as open_clip computes them from its weights, with two heads."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def tower(x: Tensor, name: str, *, causal: bool) -> Tensor:
        for layer in range(2):
            p = f"{name}.resblocks.{layer}"
            y = norm(x, f"{p}.ln_1") @ weights[f"{p}.attn.in_proj_weight"].T + weights[f"{p}.attn.in_proj_bias"]
            q, k, v = (each.unflatten(-1, (2, 8)).transpose(1, 2) for each in y.chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
            x = x + F.linear(y, weights[f"{p}.attn.out_proj.weight"], weights[f"{p}.attn.out_proj.bias"])
            y = F.linear(norm(x, f"{p}.ln_2"), weights[f"{p}.mlp.c_fc.weight"], weights[f"{p}.mlp.c_fc.bias"])
            y = y * torch.sigmoid(1.702 * y)
            x = x + F.linear(y, weights[f"{p}.mlp.c_proj.weight"], weights[f"{p}.mlp.c_proj.bias"])
        return x

    x = F.conv2d(seen, weights["visual.conv1.weight"], stride=4).flatten(2).transpose(1, 2)
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + weights["visual.positional_embedding"]
    )
    x = tower(norm(x, "visual.ln_pre"), "visual.transformer", causal=False)
    images = norm(x[:, 0], "visual.ln_post") @ weights["visual.proj"]
    t = weights["token_embedding.weight"][tokens] + weights["positional_embedding"][: len(tokens)]
    t = norm(tower(t[None], "transformer", causal=True), "ln_final")
    return F.cosine_similarity(images, t[:, -1] @ weights["text_projection"])


def letters(caption: str) -> list[int]:
    """Tokens of the tiny tokenizer between its start and end."""
    inside = [ord(c) - 97 + 26 * (i == len(w) - 1) for w in caption.split() for i, c in enumerate(w)]
    return [52, *inside, 53]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (24, 24), (24, 48), (21, 9)])
def test_hpsv2_is_what_open_clip_computes_on_padded_images(height: int, width: int, clip: str, tmp_path: Path) -> None:
    weights = open_clip_weights()
    torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "hps.pt")
    drawn = samples(height, width)
    scale = 16 / max(height, width)
    small = seen_by_pillow(drawn, (round(height * scale), round(width * scale)))
    seen = torch.zeros(3, 3, 16, 16)
    top, left = (16 - small.shape[2]) // 2, (16 - small.shape[3]) // 2
    seen[:, :, top : top + small.shape[2], left : left + small.shape[3]] = small
    seen = normalize(seen, MEAN, DEVIATION)
    expected = [float(open_clip(weights, seen[i : i + 1], letters(caption))) for i, caption in enumerate(CAPTIONS)]
    value = HPSv2(weights=str(tmp_path / "hps.pt"), model=clip).of([drawn])
    assert value == {"hps_v2.1": pytest.approx(100 * sum(expected) / 3, abs=0.3)}  # Pillow rounds to whole numbers
    assert max(expected) - min(expected) > 0.05, "the comparison means nothing if all are alike"


def test_open_clip_weights_are_those_of_transformers(clip: str) -> None:
    weights = open_clip_weights()
    model = CLIPModel.from_pretrained(clip).eval()
    model.load_state_dict(as_transformers(weights))
    seen = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    tokens = letters("no dog")
    with torch.no_grad():
        found = model(input_ids=torch.tensor([tokens]), pixel_values=seen)
    torch.testing.assert_close(
        F.cosine_similarity(found.image_embeds, found.text_embeds), open_clip(weights, seen, tokens)
    )


def test_a_tuned_model_needs_no_second_checkpoint(clip: str, tmp_path: Path) -> None:
    weights = open_clip_weights()
    save_file(weights, tmp_path / "hps.safetensors")
    model = CLIPModel.from_pretrained(clip)
    model.load_state_dict(as_transformers(weights))
    tiny_networks.save_clip(tmp_path / "tuned")
    model.save_pretrained(tmp_path / "tuned")
    from_file = HPSv2(weights=str(tmp_path / "hps.safetensors"), model=clip, name="v2.0").of([samples()])
    assert HPSv2(weights=None, model=str(tmp_path / "tuned"), name="v2.0").of([samples()]) == pytest.approx(from_file)
    assert [*from_file] == ["hps_v2.0"]


def test_pick_score_is_the_scaled_cosine(clip: str) -> None:
    metric = PickScore(clip)
    model = CLIPModel.from_pretrained(clip).eval()
    seen = normalize(seen_by_pillow(samples(), (16, 16)), MEAN, DEVIATION)
    with torch.no_grad():
        logits = [
            float(model(input_ids=torch.tensor([letters(caption)]), pixel_values=seen[i : i + 1]).logits_per_image)
            for i, caption in enumerate(CAPTIONS)
        ]
    assert metric.of([samples()]) == {"pick_score": pytest.approx(sum(logits) / 3, abs=0.02)}
    assert "14.2849 x cosine" in metric.protocol and max(logits) - min(logits) > 1


# -- BLIP --------------------------------------------------------------------------------------------------------


def reward(weights: dict[str, Tensor], seen: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Rewards (B,) as the published code computes them from its weights: heads of 64, norms after BERT's sums."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        heads = [x.unflatten(-1, (-1, 64)).transpose(1, 2) for x in (q, k, v)]
        return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)

    v = "blip.visual_encoder"
    patches = F.conv2d(seen, weights[f"{v}.patch_embed.proj.weight"], weights[f"{v}.patch_embed.proj.bias"], stride=8)
    x = torch.cat([weights[f"{v}.cls_token"].expand(len(seen), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    x = x + weights[f"{v}.pos_embed"]
    for n in range(2):
        p = f"{v}.blocks.{n}"
        x = x + linear(attend(*linear(norm(x, f"{p}.norm1", 1e-6), f"{p}.attn.qkv").chunk(3, -1)), f"{p}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{p}.norm2", 1e-6), f"{p}.mlp.fc1")), f"{p}.mlp.fc2")
    image = norm(x, f"{v}.norm", 1e-6)

    t = "blip.text_encoder"
    places = weights[f"{t}.embeddings.position_embeddings.weight"][: tokens.shape[1]]
    y = norm(weights[f"{t}.embeddings.word_embeddings.weight"][tokens] + places, f"{t}.embeddings.LayerNorm", 1e-12)
    for n in range(2):
        for kind, source, allowed in (("attention", None, mask[:, None, None].bool()), ("crossattention", image, None)):
            p = f"{t}.encoder.layer.{n}.{kind}"
            keys = y if source is None else source
            read = attend(
                linear(y, f"{p}.self.query"), linear(keys, f"{p}.self.key"), linear(keys, f"{p}.self.value"), allowed
            )
            y = norm(linear(read, f"{p}.output.dense") + y, f"{p}.output.LayerNorm", 1e-12)
        p = f"{t}.encoder.layer.{n}"
        wide = F.gelu(linear(y, f"{p}.intermediate.dense"))
        y = norm(linear(wide, f"{p}.output.dense") + y, f"{p}.output.LayerNorm", 1e-12)
    z = y[:, 0]
    for n in (0, 2, 4, 6, 7):
        z = linear(z, f"mlp.layers.{n}")
    return (z[:, 0] - 0.16717362830052426) / 1.0333394966054072


@pytest.mark.parametrize(("height", "width"), [(24, 24), (24, 48)])
def test_image_reward_is_what_its_code_computes(height: int, width: int, bert: str, tmp_path: Path) -> None:
    file = save_reward(tmp_path / "reward.safetensors")
    drawn = samples(height, width)
    small = seen_by_pillow(drawn, (16, 16 * width // height))
    left = (small.shape[3] - 16) // 2
    seen = normalize(small[..., left : left + 16], MEAN, DEVIATION)
    tokens = BertTokenizer.from_pretrained(bert)(CAPTIONS, padding="max_length", max_length=35, return_tensors="pt")
    expected = reward(reward_weights(), seen, tokens["input_ids"], tokens["attention_mask"])
    metric = ImageReward(str(file), tokenizer=bert)
    assert metric.of([drawn]) == {"image_reward": pytest.approx(float(expected.mean()), abs=0.02)}
    assert expected.max() - expected.min() > 0.1, "the comparison means nothing if all are alike"
    assert not any(p.requires_grad for p in metric.parameters())


def test_captions_are_needed_and_long_ones_cut(clip: str, bert: str, tmp_path: Path) -> None:
    file = save_reward(tmp_path / "reward.safetensors")
    long = ["abcdefgh" * 5, "cat", "x"]
    for metric, tokens in ((ImageReward(str(file), tokenizer=bert), 35), (PickScore(clip), 8)):
        with pytest.raises(ValueError, match="needs captions"):
            metric.of([Samples(torch.rand(1, 3, 24, 24), torch.arange(1))])
        with pytest.warns(UserWarning, match=f"1 of 3 captions have more than the {tokens} tokens"):
            metric.of([samples(captions=long)])


def test_other_checkpoints_are_refused_by_name(clip: str, bert: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weights file nowhere\.pt; give a file, or one on the hub"):
        HPSv2(weights="nowhere.pt", model=clip)
    with pytest.raises(FileNotFoundError, match=r"nobody/nothing/w\.pt, neither here nor on the hub"):
        ImageReward("nobody/nothing/w.pt", tokenizer=bert)
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        ImageReward(str(save_reward(tmp_path / "reward.safetensors")), tokenizer=str(tmp_path / "nowhere"))
    weights = open_clip_weights()
    cases = {
        "visual.trunk.blocks.0.weight is no weight of an open_clip model": weights
        | {"visual.trunk.blocks.0.weight": torch.zeros(1)},
        "only one of them has text_projection.weight": {n: w for n, w in weights.items() if n != "text_projection"},
        r"text_projection.weight is \(8, 9\) there, \(8, 16\) in the network": weights
        | {"text_projection": torch.zeros(9, 8)},
    }
    for message, state in cases.items():
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "other.safetensors")
        with pytest.raises(ValueError, match=message):
            HPSv2(weights=str(tmp_path / "other.safetensors"), model=clip)
        with pytest.raises(ValueError, match=r"other\.safetensors is no checkpoint of ImageReward: it has no"):
            ImageReward(str(tmp_path / "other.safetensors"), tokenizer=bert)
    torch.save({"state_dict": weights, "code": Path("a pickle that could hold anything")}, tmp_path / "pickle.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        HPSv2(weights=str(tmp_path / "pickle.pt"), model=clip)
