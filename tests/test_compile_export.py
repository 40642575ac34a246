"""The graph of the model: whole for `torch.compile`, exportable with dynamic batch and token count."""

import pytest
import torch
from tiny import POSITION_KINDS, random_coordinates, random_images, tiny_model

from spot_hf import SpotViTBackbone


# Other kernels, the same float32 arithmetic: logits here are of the order of 1.
TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(autouse=True)
def no_graphs_yet():
    """Those of other tests count towards the limit of graphs per function."""
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["table", "rotary", "relative"])
def test_compile_fullgraph(kind):
    model = tiny_model(**POSITION_KINDS[kind])
    compiled = torch.compile(model, fullgraph=True)
    mask = torch.arange(9)[None] < torch.tensor([[9], [5]])
    cases = (
        {"pixel_values": random_images()},
        {
            "pixel_values": random_images(),
            "coordinates": random_coordinates(2, 9),
            "coordinates_mask": mask,
            "window_scales": torch.full((2, 9), 1.7),
        },
    )
    for inputs in cases:
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, **TOLERANCE)


@torch.no_grad()
def test_a_backbone_compiles_and_is_exported():
    model = tiny_model(model_class=SpotViTBackbone, out_indices=[1, 2], num_register_tokens=2)
    compiled = torch.compile(model, fullgraph=True)
    for inputs in (
        {"pixel_values": random_images()},
        {"pixel_values": random_images(), "coordinates": random_coordinates(2, 9)},
    ):
        for found, expected in zip(compiled(**inputs).feature_maps, model(**inputs).feature_maps, strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=1, max=512)
    shapes = {"pixel_values": {0: batch}, "coordinates": {0: batch, 1: tokens}}
    example = {"pixel_values": random_images(3), "coordinates": random_coordinates(3, 9)}
    exported = torch.export.export(model, (), example, dynamic_shapes=shapes, strict=False).module()
    for count, num_tokens in ((3, 9), (1, 4), (5, 25)):
        inputs = {"pixel_values": random_images(count), "coordinates": random_coordinates(count, num_tokens)}
        for found, expected in zip(exported(**inputs).feature_maps, model(**inputs).feature_maps, strict=True):
            torch.testing.assert_close(found, expected, **TOLERANCE)


@torch.no_grad()
def test_compile_for_several_sizes():
    """From the second size on, images' sizes are symbols; those of a mask that comes later are not yet."""
    model = tiny_model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for count, masked in ((2, False), (3, False), (4, False), (3, True), (2, True)):
        inputs = {"pixel_values": random_images(count), "coordinates": random_coordinates(count, 9)}
        if masked:
            inputs["coordinates_mask"] = torch.arange(9).expand(count, -1) < 4
            inputs["window_scales"] = torch.full((count, 9), 1.7)
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, **TOLERANCE)


@pytest.mark.slow
def test_compiled_gradients_reach_positions():
    model = tiny_model()
    gradients = []
    for function in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        coordinates = random_coordinates(2, 9).requires_grad_()
        function(pixel_values=random_images(), coordinates=coordinates).logits.square().sum().backward()
        gradients.append(coordinates.grad)
    # Gradients by position are large (a step of 1 crosses the image): relative to them.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4 * gradients[0].abs().max().item())


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, coordinates, coordinates_mask):
        return self.model(pixel_values, coordinates=coordinates, coordinates_mask=coordinates_mask).logits


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strict"), [*((kind, False) for kind in POSITION_KINDS), ("table", True), ("rotary", True)])
@torch.no_grad()
def test_export_with_dynamic_batch_and_tokens(kind, strict):
    model = Logits(tiny_model(**POSITION_KINDS[kind]))
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("tokens", min=1, max=512)
    example = (random_images(3), random_coordinates(3, 9), torch.arange(9)[None] < torch.tensor([[9], [5], [1]]))
    shapes = ({0: batch}, {0: batch, 1: tokens}, {0: batch, 1: tokens})
    exported = torch.export.export(model, example, dynamic_shapes=shapes, strict=strict).module()
    for count, num_tokens in ((3, 9), (1, 4), (5, 25)):
        inputs = (random_images(count, seed=count), random_coordinates(count, num_tokens, seed=count))
        mask = torch.rand(count, num_tokens, generator=torch.Generator().manual_seed(count)) > 0.3
        mask[:, 0] = True
        torch.testing.assert_close(exported(*inputs, mask), model(*inputs, mask), **TOLERANCE)
