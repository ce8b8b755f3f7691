"""The ways in which fine-tuning of detectors and segmentation goes wrong elsewhere, with the issue that tells of each.

Each test fails for the wrong implementation it names. 9 to 14, as far as files are concerned, are in
test_vision_pitfalls_data; 4 images without boxes, 5 an empty list of them, 6 boxes without an area, 7 class 0, 8
corners and sides and 20 a last batch of one in test_detection, test_fcos, test_segmentation and test_data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hydratune.core.layer_groups import norm_layers
from hydratune.core.objects import Objects
from hydratune.core.ragged import Ragged
from hydratune.core.types import Batch, ImageSpec
from hydratune.distributed.runtime import Precision, Runtime
from hydratune.engine.backward import Backward
from hydratune.engine.nonfinite import NonFinite
from hydratune.engine.state import Progress, set_modes
from hydratune.freeze.strategies import HeadOnly, NoFreeze, Pattern
from hydratune.models.initialise import initialised, named_tensors
from hydratune.models.network import Network, build_network
from hydratune.models.vision.levels import wanted_levels
from hydratune.models.vision.resnet9 import resnet9
from hydratune.optim.optimizers import SGD
from hydratune.tasks import average_precision as judge
from hydratune.tasks.fcos import Fcos
from hydratune.tasks.retinanet import Retinanet
from hydratune.tasks.segmentation import Segmentation
from tests.boxes import levels, targets
from tests.tiny import CPU, trial, weights

pytest.importorskip("faster_coco_eval")
SIZES = ((9.0, 9.0), (12.0, 20.0), (20.0, 12.0), (30.0, 30.0))
SPEC = ImageSpec((3, 64, 64), ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3, boxes=SIZES, fit="letterbox")
BIAS = "fc.predict.classification_head.cls_logits.bias"
DETECTORS = pytest.mark.parametrize("task", [Retinanet(width=16), Fcos(width=64)], ids=["retinanet", "fcos"])


def network(task: Any, spec: ImageSpec = SPEC) -> Network:
    """A small body and the task's head."""
    example = torch.zeros(1, *spec.input_shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = wanted_levels(resnet9(8, dense=True), example, task.first_level)
        features: Any = example
        for _, module in body.groups:
            features = module.eval()(features)
        return build_network(body, task.build_head(features, spec))


def batch(counts: list[int], masks: bool = False) -> Batch:
    g = torch.Generator().manual_seed(3)
    images = torch.randn(len(counts), 3, 64, 64, generator=g)
    wanted: Any = targets(counts, size=64)
    if masks:
        wanted = torch.randint(0, 3, (len(counts), 64, 64), generator=g).to(torch.uint8)
    return Batch(images, wanted, torch.arange(len(counts)))


def alone_and_together(net: Network) -> None:
    images = batch([1, 1]).inputs
    with torch.no_grad():
        both, first = net.forward(images), net.forward(images[:1])
    for together, alone in zip(both[:2], first[:2], strict=True):
        assert torch.allclose(together[:1], alone, atol=1e-5)


# 1: ultralytics#9391
@DETECTORS
def test_1_statistics_of_a_frozen_body_stand_still_below_a_detector(tmp_path: Path, task: Any) -> None:
    net = network(task)
    before = weights(net)
    t = trial(tmp_path, net, HeadOnly(), steps=3, recipe=SGD(0.001), task=task)
    for step in range(3):
        t.step(step, batch([2, 1]).inputs, batch([2, 1]), 0)
    moved = {name for name, tensor in weights(net).items() if not torch.equal(tensor, before[name])}
    assert moved and moved <= net.own_of_head()


# 2: vision#6543
@DETECTORS
def test_2_an_image_is_seen_alike_whatever_is_beside_it(task: Any) -> None:
    """A head with BatchNorm, or a frozen body that normalises by the batch, sees two images in the light of both."""
    net = network(task)
    set_modes(net, HeadOnly().phases(net.groups, 1)[0])
    alone_and_together(net)


def test_2_a_body_trains_on_two_images_with_its_norms_frozen(tmp_path: Path) -> None:
    """freeze=pattern takes BatchNorm out of what trains: then it normalises by what was learned before."""
    task = Retinanet(width=16)
    net = network(task)
    norms = [name for group in net.groups for _, names in norm_layers(group) for name in names]
    t = trial(tmp_path, net, Pattern(freeze=norms), steps=2, recipe=SGD(0.001), task=task)
    before = weights(net)
    for step in range(2):
        t.step(step, batch([2, 1]).inputs, batch([2, 1]), 0)
    moved = {name for name, tensor in weights(net).items() if not torch.equal(tensor, before[name])}
    assert norms and "stem.0.weight" in moved <= net.parameters().keys() - set(norms)
    alone_and_together(net)


# 3: vision#2164
def test_3_random_weights_that_stay_frozen_are_told(run: Callable[..., Any], tmp_path: Path, capsys: Any) -> None:
    few = ["dataset=shapes10", "model=resnet9_w16", "model.width=8", "steps=1", "test=false"]
    begun = run("stage=pretrain", *few, directory=tmp_path / "begun").directory
    assert "random weights" not in capsys.readouterr().out
    told = []
    for i, more in enumerate((["init_from=null"], ["init_from=null", "freeze=none"], [f"init_from={begun}"])):
        run("stage=finetune", *few, "freeze=head_only", *more, directory=tmp_path / str(i))
        told.append("frozen tensors have random weights" in " ".join(capsys.readouterr().out.split()))
    assert told == [True, False, False]


# 9: torch wants int64 of a class number
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_9_class_numbers_of_any_integers(kind: torch.dtype) -> None:
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    masks, task = batch([0, 0], masks=True), Segmentation()
    own = Batch(None, masks.targets.to(kind), masks.ids)
    expected = F.cross_entropy(logits, masks.targets.long())
    assert float(task.loss(logits, own).mean()) == pytest.approx(float(expected), rel=1e-6)
    metrics = task.metrics(SPEC, CPU)
    metrics.update(logits, own)
    assert metrics.compute()["loss"] == pytest.approx(float(expected), rel=1e-5)


@DETECTORS
def test_9_boxes_of_whole_pixels(task: Any) -> None:
    net, given = network(task).forward, targets([3, 0, 2], size=64)
    whole = given.boxes.values.round()
    outputs = net(torch.zeros(3, 3, 64, 64))
    parts = [Objects(Ragged(v, given.boxes.lengths), given.sizes) for v in (whole, whole.to(torch.int32))]
    first, second = (task.loss(outputs, Batch(None, own, torch.arange(3))).mean().detach() for own in parts)
    assert float(first) == pytest.approx(float(second), rel=1e-6)


# 13: a mean over nothing is NaN
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"dice": 1.0}, {"class_weights": [1, 2, 3]}])
def test_13_a_batch_that_is_all_ignored_is_0(options: Any) -> None:
    task, nothing = Segmentation(**options), torch.full((2, 8, 8), 255, dtype=torch.uint8)
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = task.loss(logits, Batch(None, nothing, torch.arange(2))).mean()
    loss.backward()
    assert float(loss.detach()) == 0 and logits.grad is not None and not logits.grad.any()
    metrics = task.metrics(SPEC, CPU)
    metrics.update(logits.detach(), Batch(None, nothing, torch.arange(2)))
    assert metrics.compute() == {"loss": 0.0, "miou": 0.0, "pixel_accuracy": 0.0}


def test_13_a_few_pixels_of_small_weights_are_a_mean_too() -> None:
    """Weights that add up to less than 1 are still what their sum is divided by, in one part and in several."""
    masks, wanted = torch.full((4, 8, 8), 255, dtype=torch.uint8), torch.tensor([1e-4, 2e-4, 4e-4])
    masks[0, 0, :3], masks[3, 1, 2] = torch.tensor([0, 1, 2], dtype=torch.uint8), 1
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for options in ({}, {"dice": 1e-9}):
        task, found = Segmentation(class_weights=wanted.tolist(), **options), []
        for parts in (1, 2):
            torch.manual_seed(0)
            head = nn.Conv2d(3, 3, 1)
            work = Backward(task, Runtime(precision="fp32"), Progress(parts=parts))
            work.enter([head])
            own = Batch(images, masks, torch.arange(4))
            loss, _, _ = work.run(0, images, own, lambda _, x, head=head: head(x), list(head.parameters()))
            expected = F.cross_entropy(head(images), masks.long(), wanted, ignore_index=255)
            gradient = torch.autograd.grad(expected, head.weight)[0]
            assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-4)
            assert head.weight.grad is not None and torch.allclose(head.weight.grad, gradient, rtol=1e-4)
            found.append(loss)


# 15: torchmetrics and pycocotools take minutes where there are many classes
def test_15_the_judge_is_asked_once_for_all_classes_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    import faster_coco_eval

    asked = []
    own = faster_coco_eval.COCOeval_faster.evaluate
    monkeypatch.setattr(faster_coco_eval.COCOeval_faster, "evaluate", lambda self: (asked.append(1), own(self)))
    g, images, each, classes = torch.Generator().manual_seed(0), 400, 15, 40
    numbers = torch.arange(images).repeat_interleave(each).unsqueeze(1)
    corner, labels = (
        torch.rand(len(numbers), 2, generator=g) * 90,
        torch.randint(0, classes, (len(numbers), 1), generator=g),
    )
    truth = torch.cat([numbers, corner, corner + 20, labels, torch.zeros(len(numbers), 1)], 1).double()
    found = torch.cat([truth[:, :6], torch.rand(len(numbers), 1, generator=g)], 1)
    began = time.process_time()
    assert judge.average_precision(truth, found, list(range(images)), classes).mean == pytest.approx(1.0)
    assert len(asked) == 1 and time.process_time() - began < 10  # half a second on one core


# 16: anchors of 32 pixels find no blood platelet
def test_16_a_head_looks_for_boxes_as_train_has_them() -> None:
    for chosen, smallest in (("data", 12), ("coco", 32)):  # of data, one and a half strides at least
        found = network(Retinanet(width=16, anchors=chosen)).head.module.anchors
        assert float((found[:, 2:] - found[:, :2]).prod(1).sqrt().min()) == pytest.approx(smallest, abs=1)


def test_16_the_share_that_is_told_is_that_of_the_head_s_own_levels() -> None:
    """This body has three levels of a pyramid, not five: none of its anchors is as large as these boxes."""
    spec = ImageSpec((3, 256, 256), ("a",), (0.5,) * 3, (0.5,) * 3, boxes=((12.0, 12.0),) * 32 + ((200.0, 200.0),) * 32)
    task = Retinanet(width=16)
    head = network(task, spec).head.module
    sides = (head.anchors[:, 2:] - head.anchors[:, :2]).unique(dim=0)
    assert float(sides.max()) < 100
    told, warnings = task.fits(spec)
    assert "can match 50.0% of train's boxes" in told and "| 32 px |" in told and "| 64 px |" not in told
    assert warnings == ["the anchors can match 50% of train's boxes; another dataset.size may match more"]
    fcos = Fcos(width=64)
    network(fcos, spec)
    assert "| 32 px | 256 to inf px |" in fcos.fits(spec)[0]


# 17: focal loss of 0.5 at a hundred thousand places, and a rate without warm-up
@DETECTORS
def test_17_a_detector_begins_by_finding_nothing(task: Any) -> None:
    head = initialised(3, lambda: task.build_head(levels(1, 64), SPEC), named_tensors("head."))
    with torch.no_grad():
        scores = head(levels(2, 64)).scores.sigmoid()
    assert float(scores.mean()) == pytest.approx(0.01, rel=0.2)


def test_17_a_rate_that_is_too_large_stops_before_weights_are_lost(tmp_path: Path) -> None:
    task = Retinanet(width=16)
    net = network(task)
    t = trial(tmp_path, net, NoFreeze(), steps=40, recipe=SGD(1e12), task=task)
    with pytest.raises(NonFinite, match=r"schedule\.warmup_steps"):
        for step in range(40):
            t.step(step, batch([2, 1]).inputs, batch([2, 1]), 0)
    assert all(bool(p.isfinite().all()) for p in net.parameters().values())


# 18: a pixel in a thousand is less than bf16 can say
@DETECTORS
def test_18_boxes_and_losses_are_computed_in_float32(task: Any) -> None:
    with torch.no_grad():
        outputs = network(task).forward(batch([2, 1]).inputs)
    learned = [name for name in ("scores", "boxes", "sides", "centred") if name in outputs._fields]
    low = outputs._replace(**{name: getattr(outputs, name).bfloat16() for name in learned})
    exact = low._replace(**{name: getattr(low, name).float() for name in learned})
    located, expected = task.located(low), task.located(exact)
    assert located.boxes.dtype == located.scores.dtype == torch.float32
    assert torch.equal(located.boxes, expected.boxes) and torch.equal(located.scores, expected.scores)
    wanted = task.loss(exact, batch([2, 1])).terms
    for name, term in task.loss(low, batch([2, 1])).terms.items():
        assert term.sum.dtype == torch.float32 and torch.equal(term.sum, wanted[name].sum)


def test_18_so_is_the_loss_of_pixels() -> None:
    logits = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    masks = batch([0], masks=True)
    assert torch.equal(Segmentation().loss(logits, masks).mean(), Segmentation().loss(logits.float(), masks).mean())


@DETECTORS
def test_18_a_detector_trains_in_bf16(tmp_path: Path, task: Any) -> None:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        net = network(task)
        t = trial(tmp_path, net, steps=1, recipe=SGD(0.01), task=task, name=str(dtype))
        t.runtime = t.runtime.choose(Precision(dtype, channels_last=False))
        t.step(0, batch([2, 1]).inputs, batch([2, 1]), 0)
        assert all(tensor.dtype != torch.bfloat16 for tensor in weights(net).values())
        found[dtype] = weights(net)[BIAS] - weights(network(task))[BIAS]
    assert F.cosine_similarity(*found.values(), dim=0) > 0.98


# 19: what is drawn or added up in another order each time
@pytest.mark.parametrize("task", [Retinanet(width=16), Fcos(width=64), Segmentation(head="unet", dice=1.0)])
def test_19_the_same_seed_gives_the_same_bits(tmp_path: Path, task: Any) -> None:
    """Whatever the default generator has given away: no anchors are sampled."""
    found = []
    for seed in (0, 1):
        net = network(task)
        t = trial(tmp_path, net, NoFreeze(), steps=3, recipe=SGD(0.01), task=task, name=str(seed))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for step in range(3):
                torch.rand(seed + 1)
                own = batch([2, 1], masks=isinstance(task, Segmentation))
                t.step(step, own.inputs, own, 0)
        found.append(weights(net))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_19_a_gpu_is_asked_for_convolutions_that_add_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(Runtime, "torch_device", torch.device("cuda"))
    Runtime(keep_memory=False).start()
    assert torch.backends.cudnn.deterministic
