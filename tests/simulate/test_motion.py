"""Chains of joints, and the operators that soft tissue is solved with."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from osteomorph.simulate import soft
from osteomorph.simulate.anatomy import Joint
from osteomorph.simulate.build import Build
from osteomorph.simulate.motion import Room, chain, draw_steps, largest_displacement, rigid_about, scale_to
from osteomorph.simulate.trunk import Trunk

LOW, MIDDLE, HIGH = 26, 24, 23
JOINTS = (
    Joint(LOW, None, (0.0, 0.0, 0.0), (2.0, 1.0, 1.0), (0.5, 0.5, 0.5)),
    Joint(MIDDLE, LOW, (0.0, 0.0, 50.0), (10.0, 5.0, 5.0), (1.0, 1.0, 1.0)),
    Joint(HIGH, MIDDLE, (0.0, 0.0, 100.0), (10.0, 5.0, 5.0), (1.0, 1.0, 1.0)),
)
ENDS = {
    label: torch.tensor([[0.0, 0.0], [5.0, -5.0], [50.0 * k - 25, 50.0 * k]], dtype=torch.float64)
    for k, label in enumerate((LOW, MIDDLE, HIGH), start=1)
}

ROOM = Room(Trunk(Build()), -1e9)
"""In which anything fits."""


def test_a_rotation_about_a_point_leaves_it():
    matrix = rigid_about((3.0, -2.0, 7.0), (10.0, 20.0, -30.0), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(matrix @ [3, -2, 7, 1], [3, -2, 7, 1], atol=1e-12)
    assert np.degrees(Rotation.from_matrix(matrix[:3, :3]).magnitude()) == pytest.approx(np.sqrt(1400))


def test_a_bone_takes_along_those_that_hang_on_it():
    still = {k: ((0.0,) * 3, (0.0,) * 3) for k in (LOW, MIDDLE, HIGH)}
    poses = chain(JOINTS, {**still, MIDDLE: ((30.0, 0.0, 0.0), (0.0, 0.0, 0.0))})
    np.testing.assert_allclose(poses[LOW], np.eye(4))
    np.testing.assert_allclose(poses[MIDDLE], poses[HIGH])
    end = poses[HIGH] @ [0, 0, 150, 1]
    np.testing.assert_allclose(end[:3], [0, -50, 50 + 100 * np.cos(np.radians(30))], atol=1e-9)


def test_steps_stay_within_the_joints_range():
    generator = np.random.default_rng(0)
    drawn = [draw_steps(JOINTS, 2.0, generator, ROOM) for _ in range(200)]
    largest = np.max([np.abs(steps[MIDDLE][0]) for steps in drawn], axis=0)
    assert (largest <= [20, 10, 10]).all()
    assert (largest > [14, 7, 7]).all()
    assert np.max([np.abs(draw_steps(JOINTS, 9.0, generator, ROOM)[MIDDLE][0]) for _ in range(50)]) <= 30.0


def test_motion_is_scaled_down_to_the_goal_and_never_up():
    steps = draw_steps(JOINTS, 2.0, np.random.default_rng(3), ROOM)
    whole = largest_displacement(chain(JOINTS, steps), ENDS, LOW)
    smaller = scale_to(JOINTS, steps, ENDS, LOW, whole / 3)
    assert largest_displacement(chain(JOINTS, smaller), ENDS, LOW) == pytest.approx(whole / 3, rel=0.01)
    assert scale_to(JOINTS, steps, ENDS, LOW, 2 * whole) == steps


def test_a_uniform_strain_needs_no_force_inside():
    """A linear field is in equilibrium in any homogeneous medium; a quadratic one is not."""
    nodes = np.stack(np.meshgrid(*[np.arange(6.0)] * 3, indexing="ij"))
    linear = np.einsum("ab,bijk->aijk", np.array([[0.1, 0.2, 0.0], [0.0, -0.1, 0.3], [0.2, 0.0, 0.05]]), nodes)
    for operator in (soft._elastic(np.ones((5, 5, 5)), np.eye(3)).times, soft._laplace):
        assert np.abs(operator(linear)[:, 1:-1, 1:-1, 1:-1]).max() < 1e-12
        assert np.abs(operator(nodes**2)[:, 1:-1, 1:-1, 1:-1]).max() > 0.1


def test_elastic_energy_is_that_of_the_strain():
    """Uniaxial strain e in a cube of side n: energy = (lambda + 2 mu) e^2 / 2 per volume; a rotation costs none."""
    n, strain = 5, 0.01
    nodes = np.stack(np.meshgrid(*[np.arange(n + 1.0)] * 3, indexing="ij"))
    operator = soft._elastic(np.full((n, n, n), 2.0), np.eye(3)).times
    stretched = np.zeros_like(nodes)
    stretched[1] = strain * nodes[1]
    nu = soft.POISSON
    modulus = 2.0 * (1 - nu) / ((1 + nu) * (1 - 2 * nu))
    assert (stretched * operator(stretched)).sum() / 2 == pytest.approx(modulus * strain**2 / 2 * n**3, rel=1e-9)
    spin = np.stack([-nodes[1], nodes[0], 0 * nodes[2]])
    assert np.abs(operator(spin)).max() < 1e-12


def test_elastic_operator_turns_with_its_lattice():
    turn = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    field = np.random.default_rng(0).standard_normal((3, 4, 5, 3))
    moduli = np.random.default_rng(1).uniform(0.5, 2, (3, 4, 2))
    straight, turned = soft._elastic(moduli, np.eye(3)), soft._elastic(moduli, turn)
    rotated = np.einsum("ab,bijk->aijk", turn, field)
    np.testing.assert_allclose(turned.times(rotated), np.einsum("ab,bijk->aijk", turn, straight.times(field)), atol=1e-12)


def test_operators_are_symmetric_and_their_diagonal_is_right():
    generator = np.random.default_rng(2)
    a, b = generator.standard_normal((2, 3, 4, 3, 5))
    operator = soft._elastic(generator.uniform(0.1, 2, (3, 2, 4)), np.eye(3))
    assert (a * operator.times(b)).sum() == pytest.approx((b * operator.times(a)).sum())
    unit = np.zeros_like(a)
    unit[1, 2, 1, 3] = 1
    assert operator.times(unit)[1, 2, 1, 3] == pytest.approx(operator.diagonal[1, 2, 1, 3])


def test_a_joint_that_would_collide_is_drawn_again():
    patient = Trunk(Build())
    room = Room(patient, 1.4)
    l4 = next(joint for joint in patient.joints if joint.bone == 23)
    assert room.fits(l4, ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)))
    assert not room.fits(l4, ((0.0, 0.0, 0.0), (0.0, 0.0, -12.0)))
    for seed in range(3):
        steps = draw_steps(patient.joints, 3.0, np.random.default_rng(seed), room)
        assert all(room.fits(joint, steps[joint.bone]) for joint in patient.joints)
