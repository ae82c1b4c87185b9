"""The network: as the thesis counts it, the identity at first, the same in every orientation, and its file."""

import numpy as np
import pytest
import torch
from conftest import axis_grid
from scipy.spatial.transform import Rotation
from torch.nn import functional

from osteomorph.case import Case
from osteomorph.errors import InputError
from osteomorph.geometry import Grid
from osteomorph.image import Image
from osteomorph.network import UNet, convolved, folded, load_network, predict, save_network, warp
from osteomorph.plan import NetworkPlan
from osteomorph.recipes import recipe

BOTH = pytest.mark.parametrize("kind", ["literal", "deepreg"])


def trained(**plan):
    """Weights as after some training: no layer at rest, running statistics that differ from 0 and 1."""
    network = UNet(NetworkPlan(**plan))
    torch.nn.init.normal_(network.last.weight, std=1.0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, 0.1, 0.5)
            torch.nn.init.normal_(module.running_mean, std=0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def case_on(grid):
    return Case(*(Image(torch.rand(1, *grid.shape), grid) for _ in range(2)))


def weights_of(network):
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(("kind", "channels", "count"), [("literal", 4, 79_307), ("deepreg", 4, 138_043)])
def test_as_many_weights_as_counted_by_hand(kind, channels, count):
    assert weights_of(UNet(NetworkPlan(kind=kind, channels=channels))) == count


def test_twice_the_channels_are_four_times_the_weights():
    few, many = (weights_of(UNet(NetworkPlan(channels=n))) for n in (4, 8))
    assert 3.9 < many / few < 4.0


def test_literal_network_is_what_the_thesis_describes():
    """Layer by layer in functional form, from the names of the weights alone."""
    network = trained(channels=2)
    w = network.state_dict()
    images = torch.rand(1, 2, 16, 8, 24)

    def layer(x, name):
        x = functional.conv3d(x, w[f"{name}.convolution.weight"], padding=1)
        mean, variance = w[f"{name}.norm.running_mean"], w[f"{name}.norm.running_var"]
        scale = (w[f"{name}.norm.weight"] / (variance + 1e-5).sqrt())[:, None, None, None]
        return (scale * (x - mean[:, None, None, None]) + w[f"{name}.norm.bias"][:, None, None, None]).clamp(min=0)

    x, skips = images, []
    for n in range(4):
        if n:
            skips.append(x)
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).amax((-1, -2, -3))
        x = layer(layer(x, f"down.{n}.first"), f"down.{n}.second")
    for n in range(3):
        x = functional.conv_transpose3d(x, w[f"widen.{n}.weight"], w[f"widen.{n}.bias"], 2) + skips.pop()
        x = layer(layer(x, f"up.{n}.first"), f"up.{n}.second")
    expected = functional.conv3d(x, w["last.weight"], w["last.bias"], padding=1)
    with torch.no_grad():
        assert torch.allclose(network(images), expected, atol=1e-5)
    assert expected.std() > 0.01


@BOTH
def test_identity_at_first_and_a_gradient_everywhere_from_the_second_step(kind):
    network = UNet(NetworkPlan(kind=kind, channels=2)).train()
    images, target = torch.rand(1, 2, 8, 16, 8), torch.rand(1, 3, 8, 16, 8)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    assert torch.equal(network(images), torch.zeros_like(target))
    for _ in range(2):
        optimiser.zero_grad()
        (network(images) - target).square().mean().backward()
        optimiser.step()
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in network.parameters())


@BOTH
@pytest.mark.parametrize("shape", [(9, 13, 8), (1, 7, 17)])
def test_any_shape(kind, shape):
    with torch.no_grad():
        assert trained(kind=kind, channels=2)(torch.rand(2, 2, *shape)).shape == (2, 3, *shape)


def reoriented(image, order, flips):
    """The same image with its array axes in another order and direction."""
    data = image.data.permute(0, *[1 + axis for axis in order]).flip([1 + d for d in flips])
    columns, corner = image.grid.affine[:3, :3][:, order].copy(), np.zeros(3)
    for d in flips:
        corner[order[d]] = data.shape[1 + d] - 1
        columns[:, d] *= -1
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, image.grid.world(torch.as_tensor(corner)[:, None])[:, 0]
    return Image(data, Grid(tuple(data.shape[1:]), affine))


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (0,)), ((0, 1, 2), (0, 1)), ((2, 1, 0), (0, 1, 2)), ((1, 2, 0), (1,))]
)
def test_the_field_does_not_depend_on_the_order_of_array_axes(order, flips):
    network, case = trained(channels=2), case_on(axis_grid((1, 1, 1), (10, 12, 16)))
    turned = Case(*(reoriented(image, list(order), list(flips)) for image in (case.fixed, case.moving)))
    with torch.no_grad():
        there, here = warp(network, turned), warp(network, case)
    points = case.fixed.grid.points(torch.float64).flatten(1)
    assert torch.allclose(there(points), here(points), atol=1e-5)
    assert (here.vectors.std((1, 2, 3)) > 0.01).all()


def test_a_turned_patient_has_a_turned_field():
    network, case = trained(channels=2), case_on(axis_grid((-1, -1, 1), (10, 12, 8)))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (20, -15, 25), degrees=True).as_matrix()
    turned = Case(*(Image(image.data, image.grid.moved(turn)) for image in (case.fixed, case.moving)))
    with torch.no_grad():
        before, after = warp(network, case).vectors, warp(network, turned).vectors
    rotation = torch.as_tensor(turn[:3, :3], dtype=torch.float32)
    assert torch.allclose(torch.einsum("wd,dijk->wijk", rotation, before), after, atol=1e-5)


def test_images_on_two_grids_are_a_fault():
    one, other = case_on(axis_grid((1, 1, 1))), case_on(axis_grid((1, 1, 1), origin=(0.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="one grid"):
        warp(trained(channels=2), Case(one.fixed, other.moving))


@BOTH
def test_in_use_it_is_the_network_in_evaluation_and_leaves_it_alone(kind):
    network, case = trained(kind=kind, channels=4).train(), case_on(axis_grid((1, 1, 1)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick, rough = predict(network, case, bf16=False), predict(network, case, bf16=True)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in folded(network).modules())
    with torch.no_grad():
        plain = warp(network.eval(), case, channels_last=False).vectors
    assert torch.allclose(quick.vectors, plain, atol=1e-5)
    assert 0 < (rough.vectors - plain).abs().max() < 0.05 * plain.abs().max()
    assert rough.vectors.dtype == torch.float32


def test_group_normalisation_is_the_same_in_training_and_in_use():
    images = torch.rand(1, 2, 16, 8, 8)
    for norm, same in (("group", True), ("batch", False)):
        network = trained(channels=4, norm=norm)
        with torch.no_grad():
            assert torch.allclose(network.eval()(images), network.train()(images)) == same


@BOTH
def test_recomputed_blocks_give_the_same_gradient_and_statistics(kind):
    images, results = torch.rand(1, 2, 8, 16, 8), []
    network = trained(kind=kind, channels=2)
    start = {name: value.clone() for name, value in network.state_dict().items()}
    for checkpointing in (False, True):
        network.load_state_dict(start)
        network.train().checkpointing = checkpointing
        network.zero_grad()
        network(images).square().sum().backward()
        gradients = {name: weight.grad.clone() for name, weight in network.named_parameters()}
        results.append(gradients | {name: value.clone() for name, value in network.named_buffers()})
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["down.0.first.norm.running_mean"], start["down.0.first.norm.running_mean"])


# -- on disk --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", [(9, 8, 7), (8, 5, 6), (1, 6, 5), (2, 3, 3)])
def test_a_small_image_in_two_halves_is_convolved_as_in_one(shape, layout):
    layer = torch.nn.Conv3d(3, 5, 3, padding=1).to(memory_format=layout)
    image = torch.randn(1, 3, *shape).contiguous(memory_format=layout).requires_grad_()
    slope = torch.randn(1, 5, *shape)
    found, wanted = convolved(layer, image), functional.conv3d(image, layer.weight, layer.bias, padding=1)
    assert torch.allclose(found, wanted, atol=1e-5)
    of = (image, layer.weight, layer.bias)
    for one, other in zip(torch.autograd.grad(found, of, slope), torch.autograd.grad(wanted, of, slope), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_halves_are_taken_of_one_small_image_in_float32_alone(monkeypatch):
    layer, seen = torch.nn.Conv3d(2, 2, 3, padding=1), []
    whole = functional.conv3d
    monkeypatch.setattr(functional, "conv3d", lambda image, *rest, **how: seen.append(len(image)) or whole(image, *rest, **how))
    convolved(layer, torch.zeros(1, 2, 6, 6, 6))
    assert seen == [2]
    convolved(layer, torch.zeros(2, 2, 6, 6, 6))
    convolved(layer, torch.zeros(1, 2, 120, 120, 2))
    with torch.autocast("cpu", torch.bfloat16):
        convolved(layer, torch.zeros(1, 2, 6, 6, 6))
    assert seen == [2, 2, 1, 1]  # whole: two images, a large one, one in bfloat16


def test_the_file_gives_back_the_network_its_plan_and_what_was_said(tmp_path):
    plan = recipe("thesis-us").model_copy(update={"network": NetworkPlan(kind="deepreg", channels=2, norm="group")})
    network = UNet(plan.network)
    torch.nn.init.normal_(network.last.weight)
    save_network(tmp_path / "w.safetensors", network, plan, {"seed": 3, "names": {"20": "L1"}})
    again, same, about = load_network(tmp_path / "w.safetensors")
    assert same == plan
    assert about == {"seed": 3, "names": {"20": "L1"}}
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_what_is_no_network_is_refused_in_one_line(tmp_path):
    from safetensors.torch import save

    good = tmp_path / "good.safetensors"
    save_network(good, UNet(), recipe("thesis-us"), {})
    contents = {
        "text": b"not a network",
        "empty": b"",
        "cut": good.read_bytes()[:-1000],
        "foreign": save({"weight": torch.zeros(3)}),
        "other-plan": good.read_bytes().replace(b'\\"channels\\":4', b'\\"channels\\":8'),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert contents["other-plan"] != good.read_bytes()
    for name in (*contents, "absent"):
        with pytest.raises(InputError, match=name) as caught:
            load_network(tmp_path / name)
        assert "\n" not in str(caught.value)
