"""Models as a library or a script may treat them: modes, memory, precision, copies, threads, compilers."""

import copy
import io
import pickle  # noqa: TID251 - what users do with a model
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbpkit.attacks.libraries import AlignedView
from dbpkit.foundation.errors import UserError
from dbpkit.foundation.frozen import Frozen, own_device
from dbpkit.foundation.noise import NoisePlan
from dbpkit.models.denoisers import EDMDenoiser, VPDenoiser
from dbpkit.models.schedule import discrete_sigmas
from dbpkit.models.sources import load_embedded
from dbpkit.purification.classifier import PurifiedClassifier, Undefended
from dbpkit.purification.diffusion import Purifier
from dbpkit.purification.views import StraightThrough, Taped, gradients
from tests.oracles import TinyClassifier, TinyNetwork, tiny_denoiser, uniform

X, NOISE = uniform(2, 1, 4, 4), NoisePlan.of(3, [4, 5])


def tiny(denoiser: Any = None, classifier: Any = None, **settings: Any) -> PurifiedClassifier:
    settings = {"sampler": "ddpm", "steps": 50, **settings}
    return PurifiedClassifier(
        Purifier(denoiser or tiny_denoiser(), **settings), classifier or TinyClassifier()
    )


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "PurifiedClassifier": lambda c: tiny(classifier=c),
    "Undefended": Undefended,
    "BoundClassifier": lambda c: tiny(classifier=c).bind(NOISE),
    "Taped": lambda c: Taped(tiny(classifier=c)),
    "StraightThrough": lambda c: StraightThrough(tiny(classifier=c).purifier),
    "Purifier": lambda c: tiny(classifier=c).purifier,
    "AlignedView": lambda c: AlignedView(Undefended(c), NOISE.rows([0])),
    **{f"view {n}": lambda c, n=n: gradients.get(n)(tiny(classifier=c)) for n in gradients},
}


class Normed(nn.Module):
    """Batch norm and dropout: in train mode it forgets its statistics and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, dtype=torch.float64)
        self.drop = nn.Dropout(0.5)
        self.body = TinyClassifier()

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits (B, 3)."""
        return self.body(self.drop(self.norm(x)))


# ------------------------------------------------------------------ modes


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapper_any_is_in_eval_mode_and_stays_so_under_train(name: str) -> None:
    """torchattacks and Foolbox note ``model.training`` and restore it after the attack."""
    wrapper = WRAPPERS[name](Normed().train())
    for _ in range(2):
        assert not any(module.training for module in wrapper.modules())
        assert wrapper.train() is wrapper
    assert isinstance(wrapper, Frozen)


@pytest.mark.parametrize("wrap", [Undefended, lambda c: tiny(classifier=c)])
def test_call_after_an_inner_module_was_put_in_train_mode_is_the_same(wrap: Any) -> None:
    classifier = Normed()
    model = wrap(classifier)
    expected, before = model(X, noise=NOISE), copy.deepcopy(classifier.state_dict())
    classifier.train()
    assert torch.equal(model(X, noise=NOISE), expected)
    assert not any(m.training for m in model.modules())
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("memory_bytes", [0, 1, 2**30])
def test_gradient_with_the_denoiser_put_in_train_mode_meanwhile_is_the_same(memory_bytes: int) -> None:
    """Dropout in the steps that run again would change them: by 8.5 % where it was measured."""
    denoiser = tiny_denoiser(dropout=0.5)
    purifier = Purifier(denoiser, "ddpm", steps=50, memory_bytes=memory_bytes)
    found = []
    for disturb in (False, True):
        leaf = X.clone().requires_grad_()
        loss = purifier(leaf, noise=NOISE).sin().sum()
        if disturb:
            denoiser.train()
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*found)


# ------------------------------------------------------------------ memory of the caller


class InPlace(nn.Module):
    """Normalises its input in place, as torchvision's transforms and much research code do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """Works on what it was given."""
        return self.inner(x.sub_(0.5).div_(0.25), *more)


class Apart(InPlace):
    """The same function on a copy."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """Works on a tensor of its own."""
        return self.inner(x.sub(0.5).div(0.25), *more)


class Moved(nn.Module):
    """A purifier of the user's own that works in place."""

    def __init__(self, purifier: Purifier) -> None:
        super().__init__()
        self.inner, self.sampler = purifier, purifier.sampler

    def forward(self, x: Tensor, *, noise: NoisePlan) -> Tensor:
        """Brightens the image it was given, then purifies."""
        return self.inner(x.mul_(0.9), noise=noise)


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "classifier": lambda kind: tiny(classifier=kind(TinyClassifier())),
    "undefended": lambda kind: Undefended(kind(TinyClassifier())),
    "denoiser": lambda kind: tiny(kind(tiny_denoiser())),
    "network": lambda kind: tiny(EDMDenoiser(kind(TinyNetwork()))),
    **{
        f"network that predicts {p}": lambda kind, p=p: tiny(
            VPDenoiser(kind(TinyNetwork()), p, "continuous", time_scale=1.0)
        )
        for p in ("noise", "v", "x0", "score")
    },
}


@pytest.mark.parametrize("where", IN_PLACE)
@pytest.mark.parametrize("memory_bytes", [0, 2**30], ids=["replayed", "kept"])
def test_module_that_works_in_place_gives_what_it_gives_on_a_copy(where: str, memory_bytes: int) -> None:
    """Logits and gradients, twice in a row; the caller's images stay as they were."""
    before, found = X.clone(), {}
    for kind in (InPlace, Apart):
        model = IN_PLACE[where](kind)
        if isinstance(model, PurifiedClassifier):
            model.purifier.memory_bytes = memory_bytes
        for _ in range(2):
            leaf = X.clone().requires_grad_()
            logits = model(leaf, noise=NOISE)
            found[kind] = [model(X, noise=NOISE), logits, torch.autograd.grad(logits.sin().sum(), leaf)[0]]
    assert torch.equal(X, before)
    for a, b in zip(found[InPlace], found[Apart], strict=True):
        assert torch.equal(a, b)


def test_purifier_of_the_users_own_that_works_in_place_leaves_the_image_alone() -> None:
    model = PurifiedClassifier(Moved(Purifier(tiny_denoiser(), "ddpm", steps=50)), TinyClassifier())
    before, leaf = X.clone(), X.clone().requires_grad_()
    first = model(X, noise=NOISE)
    assert torch.equal(model(X, noise=NOISE), first)
    assert torch.equal(X, before)
    assert float(torch.autograd.grad(model(leaf, noise=NOISE).sum(), leaf)[0].abs().max()) > 0


# ------------------------------------------------------------------ kinds of models


def test_plain_functions_scripted_modules_and_classes_as_classifiers() -> None:
    classifier = TinyClassifier()
    expected = Undefended(classifier)(X)
    assert torch.equal(Undefended(classifier.forward)(X), expected)
    assert torch.equal(tiny(classifier=classifier.forward)(X, noise=NOISE), tiny()(X, noise=NOISE))
    scripted = torch.jit.script(
        nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3).double()).train()
    )
    view = Undefended(scripted)
    assert torch.equal(view(X), view(X))
    assert not scripted.training
    assert not any(p.requires_grad for p in scripted.parameters())
    leaf = X.clone().requires_grad_()
    assert float(torch.autograd.grad(view(leaf).sum(), leaf)[0].abs().max()) > 0
    for wrong in (TinyClassifier, "resnet", None):
        with pytest.raises(UserError, match=r"the classifier must be a torch\.nn\.Module or a function, not"):
            Undefended(wrong)  # type: ignore[arg-type]


def test_precision_of_model_and_image_may_differ() -> None:
    """float16 keeps 11 bits, bfloat16 8; ten calls of a smooth network lose a few of them."""
    expected = tiny()(X, noise=NOISE)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 0.05), (torch.bfloat16, 0.3)):
        low = tiny(tiny_denoiser().to(dtype), TinyClassifier().to(dtype))
        logits = low(X, noise=NOISE)
        assert logits.dtype == X.dtype
        assert 0 < float((logits - expected).abs().max()) < tolerance
        leaf = X.float().requires_grad_()
        assert torch.autograd.grad(low(leaf, noise=NOISE).sum(), leaf)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_time_index_of_every_level_is_its_own_in_any_precision(
    dtype: torch.dtype, weights: torch.dtype
) -> None:
    """Before, sigma was cast to the image's type: in bfloat16 41 of 1,000 indices were a neighbour's."""
    seen: list[Tensor] = []

    class Listening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            seen.append(time)
            return self.weight * x

    denoiser = VPDenoiser(Listening()).to(weights)
    one = torch.zeros(1000, 1, 1, 1, dtype=dtype)
    denoiser(one, discrete_sigmas().float())
    assert seen[-1].tolist() == list(range(1000))


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "vpsde", "one_step", "reverse_only"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sampler_in_half_precision_visits_the_times_of_single(sampler: str, dtype: torch.dtype) -> None:
    times: dict[torch.dtype, list[int]] = {dtype: [], torch.float32: []}

    class Listening(nn.Module):
        def forward(self, x: Tensor, time: Tensor) -> Tensor:
            times[x.dtype] += time.tolist()
            return 0.1 * x

    for kind in times:
        Purifier(VPDenoiser(Listening()), sampler, steps=100)(X.to(kind), noise=NOISE)
    assert times[dtype] == times[torch.float32]
    assert len(times[dtype]) >= 2


# ------------------------------------------------------------------ copies, threads, compilers


def pickled(model: Any) -> Any:
    """A model after its way to another process and back."""
    return pickle.loads(pickle.dumps(model))  # noqa: S301


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun", "vpsde", "one_step", "reverse_only"])
def test_model_pickled_saved_and_copied_gives_the_same_logits(sampler: str) -> None:
    model = tiny(sampler=sampler, steps=10)
    model(X)
    expected, fresh = model(X, noise=NOISE), None
    stream = io.BytesIO()
    torch.save(model, stream)  # noqa: TID251
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)  # noqa: TID251
    for other in (pickled(model), saved, copy.deepcopy(model)):
        assert torch.equal(other(X, noise=NOISE), expected)
        assert other.calls_without_plan == 1
        drawn = other(X)
        assert fresh is None or torch.equal(drawn, fresh)
        fresh = drawn
    assert torch.equal(pickled(model.bind(NOISE))(X), expected)


def test_embedded_model_can_be_pickled() -> None:
    denoiser, classifier = load_embedded()
    model = PurifiedClassifier(Purifier(denoiser, "one_step"), classifier)
    x, noise = torch.full((1, 3, 32, 32), 0.5), NoisePlan.of(0, [1])
    assert torch.equal(pickled(model)(x, noise=noise), model(x, noise=noise))


def test_fresh_noise_of_several_threads_is_never_the_same() -> None:
    model = tiny(sampler="one_step")
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: model(X), range(200)))
    assert model.calls_without_plan == 200
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 200


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_gives_the_same_logits_and_gradients(backend: str) -> None:
    torch._dynamo.reset()
    model = tiny()
    compiled = torch.compile(model, backend=backend)
    found = []
    for one in (model, compiled):
        leaf = X.clone().requires_grad_()
        logits = one(leaf, noise=NOISE)
        found.append((logits.detach(), torch.autograd.grad(logits.sum(), leaf)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.equal(compiled(X), compiled(X))


def test_own_device_is_that_of_the_weights_and_the_cpu_without_any() -> None:
    assert own_device(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert own_device(nn.Identity()) == torch.device("cpu")
    assert own_device(lambda x: x) == torch.device("cpu")
