"""The peer of bench/job.py: Lightning + Hydra with torchvision's PIL pipeline, as lightning-hydra-template has it.

One epoch of a 784-64-128-64-10 perceptron with BatchNorm and Adam, a checkpoint, TensorBoard, and a test at the end.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import lightning as L
import torch
import torch.nn.functional as F
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig
from torch import nn
from torchvision import transforms as T
from torchvision.datasets import FashionMNIST


class Perceptron(L.LightningModule):
    def __init__(self, lr: float) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in ((784, 64), (64, 128), (128, 64)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers, nn.Linear(64, 10))
        self.lr = lr

    def _measure(self, batch: list[torch.Tensor], stage: str) -> torch.Tensor:
        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True)
        self.log(f"{stage}/acc", (logits.argmax(1) == batch[1]).float().mean(), on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self._measure(batch, "train")

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self._measure(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> None:
    home = Path(HydraConfig.get().runtime.output_dir)
    transform = T.Compose([T.ToTensor(), T.Normalize((0.2860,), (0.3530,))])
    data = FashionMNIST(config.root, train=True, transform=transform)
    train, val = torch.utils.data.random_split(data, [55_000, 5_000], torch.Generator().manual_seed(42))
    trainer = L.Trainer(
        default_root_dir=home, max_epochs=1, accelerator="cpu", logger=TensorBoardLogger(home),
        callbacks=[ModelCheckpoint(home / "checkpoints", monitor="val/acc", mode="max", save_last=True)],
        enable_progress_bar=False,
    )  # fmt: skip
    workers = config.workers
    options = {"batch_size": 128, "num_workers": workers, "persistent_workers": workers > 0}
    trainer.fit(
        Perceptron(config.lr),
        torch.utils.data.DataLoader(train, shuffle=True, drop_last=True, **options),
        torch.utils.data.DataLoader(val, **options),
    )


if __name__ == "__main__":
    main()
