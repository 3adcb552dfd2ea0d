"""Square against its published parts, a known optimum, pyautoattack, and the winner's curse."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit import load_classifier, load_dataset
from dbpkit.attacks import Target, make_attack
from dbpkit.attacks.pgd import pgd
from dbpkit.attacks.square import bump, bump_pair, share, square, square_l2, square_linf, stripes, tiles
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.noise import NoisePlan
from dbpkit.purification.classifier import Undefended
from dbpkit.threats.pixels import L2, Linf, make_threat
from tests.oracles import NoisyClassifier, TinyClassifier, uniform

ROUND_OFF = 1e-12
"""Float64 arithmetic on values of order one."""
PUBLISHED: dict[str, Any] = {"eot": 1, "reevaluate": False}
EPS = {"linf": 0.05, "l2": 0.5}


def linear_model(*shape: int, seed: int = 3) -> tuple[nn.Module, Tensor]:
    """A two-class linear classifier of images and the difference of its weight rows."""
    weight = uniform(2, math.prod(shape), seed=seed, low=-1, high=1)
    layer = nn.Linear(weight.shape[1], 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight)
    return Undefended(nn.Sequential(nn.Flatten(), layer)), (weight[0] - weight[1]).reshape(shape)


# ------------------------------------------------------------------ published parts


def test_share_is_halved_after_the_published_queries() -> None:
    """10, 50, 200, ... in the paper; the 500 is in the authors' code and in AutoAttack."""
    shares = [share(0.8, query) for query in range(10_000)]
    halved = [query for query in range(1, 10_000) if shares[query] != shares[query - 1]]
    assert halved == [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    assert shares[0] == 0.8
    assert shares[-1] == pytest.approx(0.8 / 512)


def test_share_agrees_with_pyautoattack() -> None:
    reference = pytest.importorskip("pyautoattack.square").SquareAttack(None, p_init=0.8, resc_schedule=False)
    for query in range(0, 10_000, 7):
        assert share(0.8, query) == pytest.approx(reference.p_selection(query), rel=1e-15)


def test_start_linf_is_vertical_stripes_of_both_signs() -> None:
    x = uniform(50, 3, 4, 8)
    found = stripes(x, NoisePlan.of(0, range(50))).expand_as(x)
    assert torch.equal(found, found[:, :, :1].expand_as(x))
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(found[:, :, 0].mean())) < 4 / math.sqrt(50 * 3 * 8)  # four standard errors


def square_of(changed: Tensor) -> tuple[int, int, int]:
    """Corner and side of the changed pixels (H, W), which must be a full square."""
    rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
    top, left = int(rows[0]), int(columns[0])
    side = int(rows[-1]) - top + 1
    assert int(columns[-1]) - left + 1 == side
    assert int(changed.sum()) == side * side
    return top, left, side


def test_proposal_linf_moves_one_square_to_the_budget_with_a_sign_for_every_channel() -> None:
    x, count = torch.full((400, 3, 8, 8), 0.5, dtype=torch.float64), 400
    found = square_linf(x, x.clone(), 0.05, 0.25, NoisePlan.of(0, range(count)), 5) - x
    corners, signs = [], []
    for change in found:
        top, left, side = square_of(change[0] != 0)
        assert side == 4  # sqrt(0.25 * 8 * 8)
        patch = change[:, top : top + 4, left : left + 4]
        assert torch.equal(patch, patch[:, :1, :1].expand_as(patch))
        torch.testing.assert_close(patch.abs(), torch.full_like(patch, 0.05), rtol=0, atol=ROUND_OFF)
        corners.append((top, left))
        signs.append(patch[:, 0, 0].sign())
    places = [corners.count((r, c)) for r in range(5) for c in range(5)]  # every corner from 0 to 8 - 4
    assert sum(places) == count
    expected = count / 25
    assert sum((n - expected) ** 2 / expected for n in places) < 51.2  # chi-square, 24 degrees, p = 0.001
    assert abs(float(torch.stack(signs).mean())) < 4 / math.sqrt(3 * count)


def test_proposal_linf_leaves_the_rest_of_the_kept_image() -> None:
    x = uniform(20, 3, 8, 8, low=0.3, high=0.7)
    kept = x + 0.05 * uniform(20, 3, 8, 8, seed=1, low=-1, high=1)
    found = square_linf(x, kept, 0.05, 0.1, NoisePlan.of(0, range(20)), 0)
    for b in range(20):
        assert square_of((found[b] != kept[b]).any(dim=0))[2] == round(math.sqrt(0.1 * 64))


@pytest.mark.parametrize(("height", "width"), [(7, 3), (7, 4), (5, 2), (4, 2), (3, 1), (1, 1)])
def test_bump_is_the_sum_of_the_paper(height: int, width: int) -> None:
    """eta_{r,s} = sum_{k=0}^{M(r,s)} 1 / (n + 1 - k)^2, with one-based r and s, written out."""
    n = height // 2
    found = bump(height, width)
    for r in range(1, height + 1):
        for s in range(1, width + 1):
            m = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
            assert float(found[r - 1, s - 1]) == pytest.approx(
                sum(1 / (n + 1 - k) ** 2 for k in range(m + 1))
            )


def test_bump_pair_has_two_signs_and_unit_norm() -> None:
    found = bump_pair(7)
    assert float(found.norm()) == pytest.approx(1)
    assert bool((found[:, :3] > 0).all())
    assert bool((found[:, 3:] < 0).all())
    assert float(found[:, :3].norm()) == pytest.approx(float(found[:, 3:].norm()))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 16), (4, 4), (2, 3)])
def test_start_l2_has_the_norm_of_the_budget(height: int, width: int) -> None:
    found = tiles(uniform(3, 3, height, width), NoisePlan.of(0, range(3)))
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(3).double(), rtol=0, atol=ROUND_OFF)


def test_start_l2_is_five_by_five_tiles_of_equal_norm() -> None:
    """32 = 1 + 5 * 6 + 1: a bump pair of side 6 in every tile and channel, up to sign and direction."""
    found = tiles(uniform(2, 3, 32, 32), NoisePlan.of(0, range(2)))
    assert float(found[:, :, 0].abs().sum() + found[:, :, :, 31].abs().sum()) == 0
    norm, directions = 1 / math.sqrt(3 * 25), set()
    for tile in found[:, :, 1:31, 1:31].unfold(2, 6, 6).unfold(3, 6, 6).reshape(-1, 6, 6):
        pairs = {"upright": bump_pair(6), "level": bump_pair(6).T}
        fits = [
            name for name, pair in pairs.items() for s in (1, -1) if torch.allclose(tile, s * norm * pair)
        ]
        assert len(fits) == 1
        directions.add((fits[0], bool(tile[0, 0] > 0)))
    assert len(directions) == 4


def test_proposal_l2_spends_the_budget_and_moves_mass_between_two_windows() -> None:
    x = torch.full((40, 3, 12, 12), 0.5, dtype=torch.float64)
    noise = NoisePlan.of(0, range(40))
    kept = x + 0.4 * tiles(x, noise)
    found = square_l2(x, kept, 0.5, 0.1, noise, 3)
    norms = (found - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5), rtol=0, atol=ROUND_OFF)
    changed = (found != kept).any(dim=1)
    assert int(changed.sum(dim=(1, 2)).max()) <= 2 * 5 * 5  # sqrt(0.1 * 144) = 3.8 -> 4 -> the next odd, 5
    emptied = (found == x).all(dim=1) & (kept != x).any(dim=1)
    assert int(emptied.sum()) > 0
    for b in range(40):  # every channel keeps the mass of its windows and gets its share of what was unused
        inside = changed[b]
        before = ((kept - x)[b] * inside).square().sum(dim=(1, 2))
        after = ((found - x)[b] * inside).square().sum(dim=(1, 2))
        torch.testing.assert_close(
            after - before, torch.full_like(after, (0.25 - 0.16) / 3), rtol=0, atol=ROUND_OFF
        )


# ------------------------------------------------------------------ known optimum


def test_square_linf_linear_classifier_reaches_the_optimum() -> None:
    """On 2 x 2 pixels the squares shrink to one pixel after query 10; then each sign is found alone."""
    model, w = linear_model(3, 2, 2)
    x, y = uniform(4, 3, 2, 2, low=0.2, high=0.8), torch.tensor([0, 1, 0, 1])
    found = square(model, x, y, threat=Linf(0.01), noise=NoisePlan.of(0, range(4)), iterations=400, eot=1)
    toward = torch.where(y[:, None, None, None] == 0, -w.sign(), w.sign())
    torch.testing.assert_close(found.x_adv, x + 0.01 * toward, rtol=0, atol=ROUND_OFF)


def test_square_l2_linear_classifier_goes_most_of_the_way_to_the_optimum() -> None:
    """The best rise is eps |w|, which bumps cannot make up; a random direction gets a ninth, 1 / sqrt(81)."""
    weight = torch.zeros(2, 1, 9, 9, dtype=torch.float64)
    weight[0] = uniform(1, 3, 3, low=-1, high=1).repeat_interleave(3, 1).repeat_interleave(3, 2)
    layer = nn.Linear(81, 2, bias=False, dtype=torch.float64)
    layer.weight.data.copy_(weight.flatten(1))
    model = Undefended(nn.Sequential(nn.Flatten(), layer))
    x, y = uniform(6, 1, 9, 9, low=0.4, high=0.6), torch.tensor([0, 1] * 3)
    found = square(model, x, y, threat=L2(0.1), noise=NoisePlan.of(0, range(6)), iterations=600, eot=1)
    sign = torch.where(y == 0, -1.0, 1.0)
    rise = sign * ((found.x_adv - x) * weight[0]).flatten(1).sum(dim=1)
    best = 0.1 * float(weight[0].norm())
    assert float(rise.max()) <= best + ROUND_OFF
    assert float(rise.min()) > best / 2


# ------------------------------------------------------------------ pyautoattack


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_reaches_the_margin_of_pyautoattack(norm: str) -> None:
    """32 images, 100 queries, the same budget: no lower a margin, by three standard errors.

    A constant in favour of the label keeps every search of both going to the end. The library leaves out the
    last place of a square in either direction, so that ours may be higher, but not above that of a gradient.
    """
    reference = pytest.importorskip("pyautoattack.square")
    classifier = TinyClassifier(channels=3).float().requires_grad_(False)
    x = uniform(32, 3, 15, 15, low=0.2, high=0.8).float()
    eps, y = {"linf": 0.03, "l2": 0.3}[norm], classifier(x).argmax(dim=1)
    offset = 2 * nn.functional.one_hot(y, 3)

    def safe(z: Tensor) -> Tensor:  # the label always wins, by a margin that the search lowers
        return classifier(z) + offset[: len(z)]

    class Safe(nn.Module):
        def forward(self, z: Tensor, *, noise: NoisePlan) -> Tensor:
            return classifier(z) + offset[noise.example_ids]

    ours = square(
        Safe(),
        x,
        y,
        threat=make_threat(norm, eps),
        noise=NoisePlan.of(0, range(32)),
        iterations=100,
        **PUBLISHED,
    )
    name = {"linf": "Linf", "l2": "L2"}[norm]
    attack = reference.SquareAttack(
        safe, norm=name, n_queries=100, eps=eps, resc_schedule=False, device="cpu"
    )
    with torch.random.fork_rng():
        attack.init_hyperparam(x)
        torch.random.manual_seed(0)
        _, theirs = attack.attack_single_run(x, y)

    def rise(z: Tensor) -> Tensor:
        def margin(logits: Tensor) -> Tensor:
            label = nn.functional.one_hot(y, 3).bool()
            return logits.masked_fill(label, -torch.inf).amax(dim=1) - logits[label]

        return margin(classifier(z)) - margin(classifier(x))

    gap = rise(ours.x_adv) - rise(theirs)
    assert float(gap.mean()) > -3 * float(gap.std()) / math.sqrt(32)
    assert bool((rise(ours.x_adv) > 0).all())
    best = pgd(
        Safe(), x, y, threat=make_threat(norm, eps), noise=NoisePlan.of(0, range(32)), eot=1, loss="margin"
    )
    assert bool((rise(ours.x_adv) < rise(best.x_adv)).all())


@pytest.mark.slow
def test_square_on_real_images_breaks_as_many_as_pyautoattack() -> None:
    """Embedded classifier and test images, eps 4/255, 60 queries: within one of 16."""
    reference = pytest.importorskip("pyautoattack.square")
    data = load_dataset("embedded").select(slice(0, 16))
    x, y, model = data.x(), data.labels, Undefended(load_classifier("embedded", {"mirror": False}))
    ours = square(
        model,
        x,
        y,
        threat=Linf(4 / 255),
        noise=NoisePlan.of(0, data.ids),
        iterations=60,
        **PUBLISHED,
    ).x_adv
    attack = reference.SquareAttack(
        model, norm="Linf", n_queries=60, eps=4 / 255, resc_schedule=False, device="cpu"
    )
    with torch.random.fork_rng():
        theirs = attack.perturb(x, y)
    right, reference_right = (int((model(z).argmax(dim=1) == y).sum()) for z in (ours, theirs))
    assert abs(right - reference_right) <= 1
    assert right < int((model(x).argmax(dim=1) == y).sum())


# ------------------------------------------------------------------ randomness


class Coin(nn.Module):
    """Two-class logits that do not depend on the image: the margin of a draw is one standard normal."""

    sites = frozenset({"forward"})

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        z = noise.normal("forward", 0, x[:, 0, :1, 0])[:, 0]
        return torch.stack([-z, 0 * z], dim=1)


def test_square_reevaluated_no_lucky_draw_survives() -> None:
    """Where images do not matter, re-judged losses have mean 0; a stored one is a maximum."""
    x, y, noise = uniform(64, 1, 4, 4), torch.zeros(64, dtype=torch.long), NoisePlan.of(0, range(64))
    settings: dict[str, Any] = {"threat": Linf(0.1), "noise": noise, "iterations": 60, "eot": 1}
    honest = square(Coin(), x, y, **settings).loss
    assert honest.shape == (64, 60)
    assert abs(float(honest.mean())) < 4 / math.sqrt(64 * 60)

    class Shifted(Coin):
        def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
            return super().forward(x, noise=noise) + torch.tensor([100.0, 0.0])

    stored = square(Shifted(), x, y, reevaluate=False, **settings).loss[:, -1] + 100
    grid = torch.linspace(-9, 9, 20_001, dtype=torch.float64)  # the largest of 60 normals has the cdf Phi^60
    largest = float((grid[1:] * torch.special.ndtr(grid).pow(60).diff()).sum())
    assert abs(float(stored.mean()) - largest) < 4 * float(stored.std()) / 8
    assert largest > 2


class Witness(NoisyClassifier):
    """Notes images and draws of every row."""

    def __init__(self) -> None:
        super().__init__(TinyClassifier())
        self.rows: list[tuple[int, int, Tensor]] = []

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        self.rows += zip(noise.example_ids.tolist(), noise.draw.tolist(), x, strict=True)
        return super().forward(x, noise=noise)


def test_square_reevaluated_judges_both_images_on_the_same_new_draws() -> None:
    model = Witness()
    x, y = uniform(2, 1, 4, 4), torch.tensor([0, 1])
    square(model, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [7, 9]), iterations=5, eot=3)
    assert len(model.rows) == 2 * 5 * 2 * 3
    for example in (7, 9):
        draws = [(draw, image) for i, draw, image in model.rows if i == example]
        assert sorted(draw for draw, _ in draws) == sorted(2 * list(range(3, 18)))  # query i: 3 i to 3 i + 2
        images = [[image for d, image in draws if d == draw] for draw in range(3, 18)]
        assert (
            sum(torch.equal(*pair) for pair in images) < 15
        )  # a square may repeat what is there, not every one


def test_square_published_makes_one_query_a_step() -> None:
    """The clean image, the stripes, and one candidate a query, as the label cannot lose."""
    target = Target(Undefended(TinyClassifier()))
    x = uniform(3, 1, 4, 4)
    y = target(x, noise=NoisePlan.of(0, range(3))).argmax(dim=1)
    square(target, x, y, threat=Linf(1e-6), noise=NoisePlan.of(0, range(3)), iterations=20, **PUBLISHED)
    assert target.forward_passes == {0: 23, 1: 23, 2: 23}  # one of them this test's own
    assert target.gradient_rows == 0


# ------------------------------------------------------------------ early stopping, batches, protocol


def test_square_published_stops_where_the_image_is_misclassified() -> None:
    """A clean image that is wrong takes two rows and comes back; one that is broken keeps image and loss."""
    classifier = TinyClassifier()
    target, x = Target(Undefended(classifier)), uniform(12, 1, 6, 6)
    predicted = classifier(x).argmax(dim=1)
    y = torch.where(torch.arange(12) < 3, (predicted + 1) % 3, predicted)
    noise = NoisePlan.of(0, range(12))
    found = square(target, x, y, threat=Linf(0.08), noise=noise, iterations=40, **PUBLISHED)
    assert torch.equal(found.x_adv[:3], x[:3])
    assert all(target.forward_passes[i] == 2 for i in range(3))
    right = classifier(found.x_adv).argmax(dim=1) == y
    spent = torch.tensor([target.forward_passes[i] for i in range(12)])
    assert bool((spent[right] == 42).all())
    assert bool((spent[~right] < 42).all())
    assert 0 < int(right.sum()) < 9  # so that both are seen
    label = nn.functional.one_hot(y, 3).bool()
    logits = classifier(found.x_adv)
    margins = logits.masked_fill(label, -torch.inf).amax(dim=1) - logits[label]
    torch.testing.assert_close(found.loss[~right, -1], margins[~right], rtol=0, atol=ROUND_OFF)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("options", [{"eot": 2}, PUBLISHED, {**PUBLISHED, "loss": "ce"}])
def test_square_any_batch_gives_the_same_images_and_losses(norm: str, options: dict[str, Any]) -> None:
    classifier = TinyClassifier()
    model = NoisyClassifier(classifier) if options.get("reevaluate", True) else Undefended(classifier)
    x = uniform(9, 1, 6, 6)
    y = classifier(x).argmax(dim=1)
    noise, threat = NoisePlan.of(0, range(40, 49), "attack"), make_threat(norm, EPS[norm])
    run = make_attack("square", {"iterations": 30, **options})
    whole = run(model, x, y, threat=threat, noise=noise)
    for order in (torch.arange(9).flip(0).split(9), torch.arange(9).split(1), torch.arange(9).split(4)):
        parts = [run(model, x[c], y[c], threat=threat, noise=noise.rows(c)) for c in order]
        index = torch.cat(order)
        torch.testing.assert_close(
            torch.cat([p.x_adv for p in parts]), whole.x_adv[index], rtol=0, atol=ROUND_OFF
        )
        torch.testing.assert_close(
            torch.cat([p.loss for p in parts]), whole.loss[index], rtol=0, atol=ROUND_OFF
        )


def test_square_shows_every_kept_image_and_returns_the_last() -> None:
    seen: list[Tensor] = []
    target, x, y = Target(NoisyClassifier(TinyClassifier())), uniform(2, 1, 4, 4), torch.tensor([0, 1])
    target.visit = lambda image, _: seen.append(image.clone())
    found = square(target, x, y, threat=Linf(0.05), noise=NoisePlan.of(0, [7, 9]), iterations=6, eot=1)
    assert len(seen) == 7
    assert torch.equal(seen[-1], found.x_adv)


@pytest.mark.parametrize(("iterations", "recorded"), [(7, 7), (100, 100), (101, 51), (250, 84)])
def test_square_records_at_most_a_hundred_losses(iterations: int, recorded: int) -> None:
    x, y = uniform(1, 1, 4, 4), torch.tensor([0])
    found = square(
        NoisyClassifier(TinyClassifier()),
        x,
        y,
        threat=Linf(0.05),
        noise=NoisePlan.of(0, [7]),
        iterations=iterations,
        eot=1,
    )
    assert found.loss.shape == (1, recorded)
    assert bool(found.loss.isfinite().all())
    assert found.grad_norm.shape == (1, 0)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("options", [{"iterations": 0}, {"eot": 0}, {"p_init": 0.0}, {"p_init": 1.5}])
def test_square_option_out_of_range_raises(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"attack 'square': {next(iter(options))} must be a"):
        _run(Linf(0.1), **options)


def test_square_unknown_loss_raises() -> None:
    with pytest.raises(UserError, match="attack 'square': loss must be 'margin' or 'ce', not"):
        _run(Linf(0.1), loss="dlr")


def test_square_other_threat_raises() -> None:
    class L1(Linf):
        """Another threat."""

    with pytest.raises(UserError, match="square needs the threat linf or l2, not L1"):
        _run(L1(0.1))


def _run(threat: Any, **options: Any) -> None:
    model, _ = linear_model(1, 2, 2)
    noise = NoisePlan.of(0, [0])
    square(model, uniform(1, 1, 2, 2), torch.tensor([0]), threat=threat, noise=noise, **options)
