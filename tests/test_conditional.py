"""Labels in the nets and in the step: the maths, and where the labels of fakes come from."""

from dataclasses import replace

import pytest
import torch

from dcgan.nets.conditional import VECTOR
from dcgan.nets.models import Discriminator, Generator, init_weights
from dcgan.step.adversarial import AdversarialStep
from tests.reference.conditional import LiteralDiscriminator, LiteralGenerator, embedding_of
from tests.reference.tutorial import tutorial_optimizers, tutorial_step
from tests.steps import ATTRIBUTES, BATCH, CLASSES, TABLES, batch, nets, pixel_batch, whole_step
from tests.test_models import seeded

SPACES = pytest.mark.parametrize("space", [CLASSES, ATTRIBUTES], ids=lambda space: space.kind)


def drawn(space, count, seed):
    """Labels of `count` images."""
    table = TABLES[space]
    return table[torch.randint(len(table), (count,), generator=seeded(seed))]


@SPACES
@pytest.mark.parametrize("joint", [False, True])
def test_steps_are_those_of_a_projection_discriminator_written_out(space, joint):
    ours = nets(torch.float64, 32, space)
    theirs = LiteralGenerator(ours[0]), LiteralDiscriminator(ours[1])
    step, optimizers = AdversarialStep(*ours), tutorial_optimizers(*theirs)
    step.joint = joint
    first = tuple(embedding_of(net).weight.clone() for net in ours)
    for k in range(2):
        labels_x, labels_gz = drawn(space, BATCH, k), drawn(space, BATCH, 10 + k)
        theirs[0].labels, theirs[1].labels_in_turn = labels_gz, [labels_x, labels_gz, labels_gz]
        statistics = step(*batch(k, torch.float64, 32), None, labels_x, labels_gz)
        expected = tutorial_step(*theirs, *optimizers, *batch(k, torch.float64, 32))
        assert statistics.tolist() == pytest.approx(list(expected), rel=1e-9, abs=0), k
    for place, before in enumerate(first):
        net, literal = ours[place], theirs[place]
        weight = embedding_of(net).weight
        torch.testing.assert_close(weight, literal.weight, rtol=1e-8, atol=1e-10)
        assert (weight - before).abs().max() > 1e-4
        found = net.state_dict()
        for name, tensor in literal.net.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-10, msg=name)


def test_a_row_of_shares_is_a_class_and_classes_can_be_mixed():
    embedding = embedding_of(nets(labels=CLASSES)[0])
    rows = torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    whole, mixed = embedding(rows)
    assert torch.equal(whole, embedding(torch.tensor([1]))[0])
    torch.testing.assert_close(mixed, 0.25 * embedding.weight[0] + 0.75 * embedding.weight[2])


@SPACES
def test_a_conditional_net_has_the_others_names_and_one_more(space):
    for plain, net in zip(nets(size=32), nets(size=32, labels=space), strict=True):
        more = {name: tensor.shape for name, tensor in net.state_dict().items()}
        assert more.pop(f"embedding.{space.kind}")[0] == len(space.names)
        assert more.keys() == plain.state_dict().keys()
        differing = [name for name, like in plain.state_dict().items() if more[name] != like.shape]
        assert differing == (["main.0.weight"] if isinstance(net, Generator) else [])


def test_first_vectors_are_short_in_g_and_small_in_d():
    for count in (5, 2000):
        labels = replace(CLASSES, names=tuple(map(str, range(count))))
        generator = Generator(32, 50, 2, labels=labels)
        init_weights(generator, seeded())
        vectors = embedding_of(generator).weight
        assert vectors.shape == (count, min(count, VECTOR))
        assert vectors.std().item() == pytest.approx(1, rel=0.05 if count > 5 else 0.4)
        net = Discriminator(32, 8, labels=labels)
        init_weights(net, seeded())
        assert embedding_of(net).weight.std().item() == pytest.approx(0.02, rel=0.15)
    plain = Discriminator(32, 8)
    init_weights(plain, seeded())
    for name, tensor in plain.state_dict().items():  # the vectors are drawn last
        assert torch.equal(net.state_dict()[name], tensor), name


# The whole step


@SPACES
def test_generated_images_have_the_labels_of_rows_of_the_set(space):
    step, table = whole_step(labels=space), TABLES[space]
    assert {*map(id, step.labels)} <= {*map(id, step._tensors())}, "what a compiler must know of"
    counts = torch.zeros(len(table))
    seen = []
    step.update.generator.register_forward_pre_hook(lambda net, args: seen.append(args[1].clone()))
    step.draw()
    before = step.labels[1].clone()
    for _ in range(100):
        step.draw()
        for label in step.labels[1]:
            counts[[torch.equal(label, row) for row in table]] += 1
    same = torch.tensor([[torch.equal(a, b) for b in table] for a in table]).sum(1)  # rows alike
    expected = 100 * BATCH * same / len(table)
    assert (counts - expected).abs().max() < 5 * expected.max() ** 0.5
    again = whole_step(labels=space)
    again.draw()
    assert torch.equal(again.labels[1], before), "a function of the step's generator alone"
    step(pixel_batch(0), drawn(space, BATCH, 1))
    assert torch.equal(seen[0], step.labels[1])


@SPACES
def test_real_labels_reach_d_and_nothing_else_draws_otherwise(space):
    one, other, plain = whole_step(labels=space), whole_step(labels=space), whole_step()
    labels = drawn(space, BATCH, 3)
    seen = []
    one.update.discriminator.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
    first = one(pixel_batch(0), labels).clone()
    assert torch.equal(seen[0], labels)
    assert torch.equal(seen[1], one.labels[1])
    assert seen[2] is seen[1]
    assert not torch.equal(first, other(pixel_batch(0), labels.flip(0)))
    plain(pixel_batch(0))
    assert torch.equal(one.noise, plain.noise)
    assert torch.equal(one.flips, plain.flips)


def test_a_batch_without_its_labels_is_refused():
    for step, given in (
        (whole_step(labels=CLASSES), (pixel_batch(0),)),
        (whole_step(), (pixel_batch(0), torch.zeros(BATCH, dtype=torch.int64))),
        (whole_step(labels=CLASSES), (pixel_batch(0), torch.zeros(BATCH))),
    ):
        with pytest.raises(AssertionError, match="a batch of"):
            step(*given)
