"""Token merging inside the network: ToMe on the full grid, and on few free tokens."""

import pytest
import torch
from tiny import random_coordinates, random_images, tiny_model

from spot_hf import SpotViTForImageClassification, SpotViTModel, convert_checkpoint
from spot_hf.merging import bipartite_soft_matching, merge_at_rate, merge_schedule, merge_tokens, schedule_of


def test_matching_is_that_of_a_plain_loop():
    keys = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    kept, source, target = bipartite_soft_matching(keys, 3)
    for b in range(2):
        unit = keys[b] / keys[b].norm(dim=-1, keepdim=True)
        edges = []
        for i in range(0, 9, 2):
            partner = max(range(1, 9, 2), key=lambda j, i=i: float(unit[i] @ unit[j]))
            edges.append((float(unit[i] @ unit[partner]), i, partner))
        edges.sort(reverse=True)
        assert {(i, j) for _, i, j in edges[:3]} == set(zip(source[b].tolist(), target[b].tolist(), strict=True))
        assert kept[b].tolist() == sorted(i for _, i, _ in edges[3:])


def test_merged_tokens_are_weighted_means():
    generator = torch.Generator().manual_seed(0)
    states, keys = torch.randn(2, 11, 4, generator=generator), torch.randn(2, 11, 6, generator=generator)
    sizes = torch.randint(1, 4, (2, 11), generator=generator).float()
    sizes[:, 0] = 1
    merged, new_sizes = merge_tokens(states, sizes, keys, 4, num_prefix_tokens=1)
    assert merged.shape == (2, 7, 4)
    torch.testing.assert_close(merged[:, 0], states[:, 0])  # the class token
    # Nothing is lost: sizes and weighted sums are what they were. float32 sums.
    torch.testing.assert_close(new_sizes[:, 1:].sum(1), sizes[:, 1:].sum(1))
    torch.testing.assert_close(
        (merged[:, 1:] * new_sizes[:, 1:, None]).sum(1), (states[:, 1:] * sizes[:, 1:, None]).sum(1), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kept", [1, 9, 25, 49, 100, 195, 196])
def test_schedules_end_where_they_should(kept):
    schedule, left = merge_schedule(196, kept, 12), 196
    for merged in schedule:
        assert 0 <= merged <= left // 2
        left -= merged
    assert left == kept and len(schedule) == 12


def test_schedules_that_cannot_be():
    with pytest.raises(ValueError, match="`num_kept` must be 49 to 196"):
        merge_schedule(196, 10, 2)


def test_a_share_is_merged_evenly():
    assert schedule_of(0.5, 8, 4) == [1, 1, 1, 1]
    for num_tokens in (1, 4, 25, 196):
        assert num_tokens - sum(schedule_of(0.5, num_tokens, 12)) == max(1, round(num_tokens / 2))
    assert schedule_of(0.99, 100, 2) == merge_at_rate(100, 100, 2)  # a layer merges at most half
    assert schedule_of([60, 60], 100, 2) == [50, 25]


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls_mean"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_that_merges(pooling, attention):
    model = tiny_model(pooling=pooling, norm_after_pooling=pooling == "mean", num_register_tokens=1)
    model.set_attn_implementation(attention)
    images, coordinates = random_images(3), random_coordinates(3, 12)
    with torch.no_grad():
        plain = model(images, coordinates=coordinates).logits
        assert torch.equal(model(images, coordinates=coordinates, merge_tokens=[0, 0]).logits, plain)
        merged = model(images, coordinates=coordinates, merge_tokens=0.5)
        assert not torch.allclose(merged.logits, plain)
        hidden = model.spot_vit(images, coordinates=coordinates, merge_tokens=0.5).last_hidden_state
        assert hidden.shape[1] == 2 + 6
        # An image's result is its own. Sums in another order: 1e-5.
        alone = torch.cat(
            [model(images[i : i + 1], coordinates=coordinates[i : i + 1], merge_tokens=0.5).logits for i in range(3)]
        )
        torch.testing.assert_close(merged.logits, alone, rtol=0, atol=1e-5)


def test_equal_tokens_merge_without_a_trace():
    """One token that counts twice, for two that are the same: neither attention nor a mean sees a difference. To 1e-5."""
    model = tiny_model(pooling="mean")
    images, coordinates = random_images(2), random_coordinates(2, 5)
    twice = coordinates.repeat_interleave(2, dim=1)
    with torch.no_grad():
        expected = model(images, coordinates=twice).logits
        merged = model(images, coordinates=twice, merge_tokens=[5, 0]).logits
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-5)


def test_merging_is_saved_trained_and_compiled(tmp_path):
    model = tiny_model(merge_tokens=0.5)
    model.save_pretrained(tmp_path)
    reloaded = SpotViTForImageClassification.from_pretrained(tmp_path)
    images, coordinates = random_images(2), random_coordinates(2, 8)
    expected = model(images, coordinates=coordinates).logits
    assert torch.equal(reloaded(images, coordinates=coordinates).logits, expected)
    assert not torch.allclose(reloaded(images, coordinates=coordinates, merge_tokens=0.0).logits, expected)
    torch.compiler.reset()  # graphs of other tests count towards a limit
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images, coordinates=coordinates).logits
    torch.testing.assert_close(compiled, expected, rtol=0, atol=1e-5)
    model.gradient_checkpointing_enable()
    model.train()(images, coordinates=coordinates, labels=torch.tensor([0, 1])).loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_hidden_states_and_attentions_of_a_model_that_merges():
    model = tiny_model(model_class=SpotViTModel, merge_tokens=[3, 0])
    model.set_attn_implementation("eager")
    outputs = model(random_images(1), coordinates=random_coordinates(1, 8), output_hidden_states=True, output_attentions=True)
    assert [one.shape[1] for one in outputs.hidden_states] == [9, 6, 6]
    assert [one.shape[-1] for one in outputs.attentions] == [9, 6]


def test_what_merging_refuses():
    model, images, coordinates = tiny_model(), random_images(2), random_coordinates(2, 5)
    for wrong in (1.0, -0.1, [1], [1, -1], True, "half"):
        with pytest.raises(ValueError, match="`merge_tokens` must be a share"):
            model(images, coordinates=coordinates, merge_tokens=wrong)
        with pytest.raises(Exception, match="merge_tokens"):
            tiny_model(merge_tokens=wrong)
    with pytest.raises(ValueError, match="`merge_tokens` needs as many tokens in every image"):
        model(images, coordinates=coordinates, coordinates_mask=torch.ones(2, 5, dtype=torch.bool), merge_tokens=0.5)


def test_merging_on_real_weights(vit_tiny, tmp_path):
    """Half of 100 free tokens merged away: most predictions stay."""
    model = convert_checkpoint(vit_tiny, tmp_path / "model").model.eval()
    from conftest import shared
    from datasets import load_dataset

    from spot_hf import SpotViTImageProcessorPil

    photographs = load_dataset(str(shared("data/nips2017")), split="validation[:24]")
    processor = SpotViTImageProcessorPil.from_pretrained(tmp_path / "model")
    inputs = processor(photographs["image"][:], num_tokens=100, return_tensors="pt")
    with torch.no_grad():
        plain, merged = (model(**inputs, merge_tokens=share).logits.argmax(-1) for share in (0.0, 0.3))
    assert (plain == merged).float().mean() > 0.6
