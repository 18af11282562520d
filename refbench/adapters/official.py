"""Workers that run official code: LAVT, MagNet, MLLMSeg, LISA, EVF-SAM, Sa2VA, SAMTok, X-SAM, Moondream.

You check out or install the official code. Each worker runs in its own environment (`refbench env build NAME`), or with
an interpreter that has the required packages.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from refbench.adapters.moondream import to_answer
from refbench.adapters.worker import Worker
from refbench.errors import AdapterError
from refbench.records import Answer, Sample

WORKERS = Path(__file__).parent / "workers"
Mode = Literal["forced", "generate"]
PATHS = ("repo", "weights", "bert", "clip", "inits")


def lavt(
    repo: Path,
    weights: Path,
    bert: Path,
    kind: Literal["lavt", "lavt_one"] = "lavt",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    architecture: str = "",
    deterministic: bool = False,
) -> Worker:
    """LAVT from its official repository (Yang et al., CVPR 2022); use kind=lavt_one for LAVT-One checkpoints.

    Args:
        repo: checkout of yz93/LAVT-RIS.
        weights: a checkpoint from its README.
        bert: folder with config.json and vocab.txt of bert-base-uncased.
        python: an interpreter; by default the one of the environment that `refbench env build lavt` creates.
        architecture: JSON with the hyperparameters of a network that differs from the published one.
    """
    config = {"repo": str(repo), "weights": str(weights), "bert": str(bert), "kind": kind, "architecture": architecture}
    return _worker("lavt", python, device, timeout, deterministic, config)


def magnet(
    repo: Path,
    weights: Path,
    bert: Path,
    side: int = 480,
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    architecture: str = "",
    deterministic: bool = False,
) -> Worker:
    """MagNet from its official repository (Chng et al., CVPR 2024); use side=448 for magnet_all.pth.

    Args: as for `lavt`; `repo` is a checkout of yxchng/mask-grounding, `weights` a file of yxchng/magnet_weights.
    """
    config = {
        "repo": str(repo),
        "weights": str(weights),
        "bert": str(bert),
        "side": str(side),
        "architecture": architecture,
    }
    return _worker("magnet", python, device, timeout, deterministic, config)


def mllmseg(
    repo: Path,
    weights: Path,
    mode: Mode = "forced",
    task: Literal["res", "gres"] = "res",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    deterministic: bool = False,
) -> Worker:
    """MLLMSeg from its official repository (Wang et al., 2025); mode is forced (the published evaluation) or generate.

    Args: as for `lavt`; `repo` is a checkout of jcwang0602/MLLMSeg, `weights` a folder of its weights. Use task=gres
    for the GRES weights, which can predict that there is no target.
    """
    config = {"repo": str(repo), "weights": str(weights), "mode": mode, "task": task}
    return _worker("mllmseg", python, device, timeout, deterministic, config)


def lisa(
    repo: Path,
    weights: Path,
    clip: Path,
    mode: Mode = "forced",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    architecture: str = "",
    deterministic: bool = False,
) -> Worker:
    """LISA from its official repository (Lai et al., CVPR 2024); mode is forced (the published evaluation) or generate.

    Args: as for `lavt`; `repo` is a checkout of dvlab-research/LISA, `weights` a folder such as xinlai/LISA-7B-v1,
    `clip` a folder of openai/clip-vit-large-patch14.
    """
    config = {"repo": str(repo), "weights": str(weights), "clip": str(clip), "mode": mode}
    return _worker("lisa", python, device, timeout, deterministic, {**config, "architecture": architecture})


def evfsam(
    repo: Path,
    weights: Path,
    kind: Literal["ori", "sam2", "effi"],
    release: Literal["", "multitask", "first"] = "",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    deterministic: bool = False,
) -> Worker:
    """EVF-SAM from its official repository (Zhang et al., 2024); kind is the variant of SAM: ori, sam2 or effi.

    Args: as for `lavt`; `repo` is a checkout of hustvl/EVF-SAM, `weights` a folder such as YxZhang/evf-sam2-multitask.
    release=multitask|first states which release of the weights it is (required for sam2 and effi).
    """
    config = {"repo": str(repo), "weights": str(weights), "kind": kind, "release": release}
    return _worker("evfsam", python, device, timeout, deterministic, config)


def sa2va(
    weights: Path,
    trust_remote_code: Literal["no", "yes"] = "no",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    deterministic: bool = False,
) -> Worker:
    """Sa2VA (Yuan et al., 2025), run by the code that its weights include.

    Args: as for `lavt`; `weights` is a folder such as ByteDance/Sa2VA-4B; trust_remote_code=yes allows its code to run.
    """
    if trust_remote_code != "yes":
        # The worker checks this too, but its environment may have to be built first.
        raise AdapterError(
            f"the weights of Sa2VA contain Python code that would be executed; read {weights}/*.py, then pass "
            "-o trust_remote_code=yes"
        )
    config = {"weights": str(weights), "trust_remote_code": trust_remote_code}
    return _worker("sa2va", python, device, timeout, deterministic, config)


def samtok(
    repo: Path,
    weights: Path,
    rule: Literal["refcoco", "gres"] = "refcoco",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    deterministic: bool = False,
) -> Worker:
    """SAMTok: a Qwen-VL model that writes mask tokens, and the decoder for them; use rule=gres for gRefCOCO.

    Args: as for `lavt`; `repo` is a checkout of bytedance/Sa2VA with projects/samtok, `weights` a folder such as
    zhouyik/Qwen3-VL-4B-SAMTok.
    """
    config = {"repo": str(repo), "weights": str(weights), "rule": rule}
    return _worker("samtok", python, device, timeout, deterministic, config)


def xsam(
    repo: Path,
    weights: Path,
    inits: Path,
    mode: Mode = "forced",
    recipe: Literal["aaai26", "main"] = "aaai26",
    python: str = "",
    device: str = "cpu",
    timeout: float = 600.0,
    architecture: str = "",
    deterministic: bool = False,
) -> Worker:
    """X-SAM from its official repository (Wang et al., AAAI 2026); mode is forced (the published evaluation) or
    generate.

    Args: as for `lavt`; `repo` is a checkout of wanghao9610/X-SAM, `weights` is pytorch_model.bin of hao9610/X-SAM, and
    `inits` the folder of configurations and processors that its README describes. Use recipe=main for weights that were
    trained with the main branch.
    """
    config = {"repo": str(repo), "weights": str(weights), "inits": str(inits), "mode": mode, "recipe": recipe}
    return _worker("xsam", python, device, timeout, deterministic, {**config, "architecture": architecture})


class MoondreamLocal(Worker):
    """Moondream Segmentation on your own GPU, with the vendor's Python package in its own environment.

    Args:
        model: for example moondream3.1-9B-A2B; the package downloads it.
        python: an interpreter; by default the one of the environment that `refbench env build moondream` creates.
        refined: "must" stops the run if the package returns only coarse outlines, "any" accepts them.
    """

    def __init__(
        self,
        model: str = "moondream3.1-9B-A2B",
        python: str = "",
        device: str = "cuda:0",
        refined: str = "must",
        timeout: float = 600.0,
    ) -> None:
        config: Any = {"model": model, "refined": refined}
        script = WORKERS / "moondream" / "worker.py"
        env = "" if python else "moondream"
        super().__init__(script, python, env, device, timeout=timeout, offline=False, **config)

    def segment_samples(self, samples: Sequence[Sample], images: Sequence[Image.Image | None]) -> list[Answer]:
        """See the interface of adapters; the worker returns paths, and this class rasterises them."""
        return [self._drawn(s, a) for s, a in zip(samples, super().segment_samples(samples, images), strict=True)]

    def _drawn(self, sample: Sample, answer: Answer) -> Answer:
        drawn = to_answer(json.loads(answer.raw), sample.height, sample.width)
        return dataclasses.replace(drawn, note=drawn.note or answer.note, raw=answer.raw)


def _worker(name: str, python: str, device: str, timeout: float, deterministic: bool, config: dict[str, str]) -> Worker:
    given: Any = {key: value for key, value in config.items() if value}
    for key in PATHS:
        if key in given and not Path(given[key]).expanduser().exists():
            raise AdapterError(
                f"{name}: the path in -o {key}={given[key]} does not exist; it must be a local file or folder"
            )
    # Without an interpreter the environment of that name: its error says how to build it.
    env = "" if python else name
    script = WORKERS / name / "worker.py"
    return Worker(script, python=python, env=env, device=device, timeout=timeout, deterministic=deterministic, **given)
