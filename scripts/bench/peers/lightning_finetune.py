"""The peer of bench/sweep.py: Lightning + Hydra's BasicLauncher, as lightning-hydra-template has it.

A ResNet-20 from a file of weights, fine-tuned under one of four freezing strategies on folders of images read by PIL;
TensorBoard, checkpoints of the best and the last. `shipped`: fp32, no workers, the progress bar that comes with it.
`tuned`: bf16, channels-last, two workers, no bar.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import hydra
import lightning as L
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from safetensors.torch import load_file
from torch import nn
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from hydratune.models.vision.small_resnet import small_resnet

warnings.simplefilter("ignore")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Classifier(L.LightningModule):
    def __init__(self, weights: str, freeze: str, lr: float, epochs: int, channels_last: bool) -> None:
        super().__init__()
        body = small_resnet(20)
        own = body.source.state_dict()
        body.source.load_state_dict({k: v for k, v in load_file(weights).items() if k in own})
        self.blocks = nn.ModuleList([module for _, module in body.groups])
        self.head = nn.Linear(64, 10)
        self.freeze_as, self.lr, self.epochs, self.channels_last = freeze, lr, epochs, channels_last
        self._still(len(self.blocks) if freeze in ("head_only", "lp_ft") else len(self.blocks) - (freeze != "none"))
        if freeze == "none":
            self._still(0)

    def _still(self, count: int) -> None:
        self.count = count
        for i, block in enumerate(self.blocks):
            block.requires_grad_(i >= count)

    def on_train_epoch_start(self) -> None:
        if self.freeze_as == "lp_ft" and self.current_epoch == self.epochs // 2:
            self._still(0)
        for block in self.blocks[: self.count]:
            block.eval()

    def _measure(self, batch: list[torch.Tensor], stage: str) -> torch.Tensor:
        x = batch[0].contiguous(memory_format=torch.channels_last) if self.channels_last else batch[0]
        with torch.set_grad_enabled(stage == "train"):
            for i, block in enumerate(self.blocks):
                with torch.set_grad_enabled(stage == "train" and i >= self.count):
                    x = block(x)
            loss = F.cross_entropy(logits := self.head(x), batch[1])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{stage}/acc", (logits.argmax(1) == batch[1]).float().mean(), on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self._measure(batch, "train")

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self._measure(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> None:
    home = Path(HydraConfig.get().runtime.output_dir)
    moved = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()] if config.augment else []
    plain = [T.ToTensor(), T.Normalize(MEAN, STD)]
    train = ImageFolder(f"{config.root}/train", T.Compose([*moved, *plain]))
    val = ImageFolder(f"{config.root}/val", T.Compose(plain))
    tuned = bool(config.tuned)
    workers = config.workers if tuned else 0
    options = {"batch_size": 64, "num_workers": workers, "persistent_workers": workers > 0}
    if tuned:
        torch.set_num_threads(2)
    trainer = L.Trainer(
        default_root_dir=home, max_epochs=config.epochs, accelerator="cpu", logger=TensorBoardLogger(home),
        precision="bf16-mixed" if tuned else "32-true", enable_progress_bar=not tuned, num_sanity_val_steps=2,
        callbacks=[
            ModelCheckpoint(home / "checkpoints", monitor="val/acc", mode="max", save_last=True),
            *([] if tuned else [RichProgressBar()]),
        ],
    )  # fmt: skip
    model = Classifier(config.weights, config.freeze, config.lr, config.epochs, tuned)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    trainer.fit(
        model,
        torch.utils.data.DataLoader(train, shuffle=True, drop_last=True, **options),
        torch.utils.data.DataLoader(val, **options),
    )


if __name__ == "__main__":
    main()
