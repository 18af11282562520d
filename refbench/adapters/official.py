"""LAVT, MagNet, MLLMSeg, LISA, EVF-SAM, Sa2VA, SAMTok, X-SAM, Moondream: workers around official code, which you check
out or install.

Each runs in an environment of its own (`refbench env build NAME`), or with an interpreter that has what it needs.
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
    """LAVT from its official repository (Yang et al., CVPR 2022); kind=lavt_one for the single-file checkpoints.

    Args:
        repo: checkout of yz93/LAVT-RIS.
        weights: a checkpoint of its README.
        bert: folder with config.json and vocab.txt of bert-base-uncased.
        python: an interpreter; by default that of `refbench env build lavt`.
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
    """MagNet from its official repository (Chng et al., CVPR 2024); side=448 for magnet_all.pth.

    Args: as `lavt`; `repo` is a checkout of yxchng/mask-grounding, `weights` one of yxchng/magnet_weights.
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
    """MLLMSeg from its official repository (Wang et al., 2025); mode=forced as published, or generate.

    Args: as `lavt`; `repo` is a checkout of jcwang0602/MLLMSeg, `weights` a folder of its weights; task=gres for those
        that may say that there is no target.
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
    """LISA from its official repository (Lai et al., CVPR 2024); mode=forced as published, or generate.

    Args: as `lavt`; `repo` is a checkout of dvlab-research/LISA, `weights` a folder of e.g. xinlai/LISA-7B-v1, `clip`
        one of openai/clip-vit-large-patch14.
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
    """EVF-SAM from its official repository (Zhang et al., 2024); kind=ori|sam2|effi is the SAM inside.

    Args: as `lavt`; `repo` is a checkout of hustvl/EVF-SAM, `weights` a folder of e.g. YxZhang/evf-sam2-multitask;
        release=multitask|first says which weights these are (needed for sam2 and effi).
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

    Args: as `lavt`; `weights` is a folder of e.g. ByteDance/Sa2VA-4B; trust_remote_code=yes lets its code run.
    """
    if trust_remote_code != "yes":
        # The worker checks this too, but its environment may have to be built first.
        raise AdapterError(
            f"the weights of Sa2VA bring code along, which would run: read {weights}/*.py, then say "
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
    """SAMTok: a Qwen-VL model that writes mask tokens, and their decoder; rule=gres for gRefCOCO.

    Args: as `lavt`; `repo` is a checkout of bytedance/Sa2VA that has projects/samtok, `weights` a folder of e.g.
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
    """X-SAM from its official repository (Wang et al., AAAI 2026); mode=forced as published, or generate.

    Args: as `lavt`; `repo` is a checkout of wanghao9610/X-SAM, `weights` pytorch_model.bin of hao9610/X-SAM, `inits`
        the folder of configurations and processors that its README describes; recipe=main for weights trained with the
        repository's main branch.
    """
    config = {"repo": str(repo), "weights": str(weights), "inits": str(inits), "mode": mode, "recipe": recipe}
    return _worker("xsam", python, device, timeout, deterministic, {**config, "architecture": architecture})


class MoondreamLocal(Worker):
    """Moondream Segmentation on your own GPU, by the vendor's engine, in an environment of its own.

    Args:
        model: e.g. moondream3.1-9B-A2B; the engine downloads it.
        python: an interpreter; by default that of `refbench env build moondream`.
        refined: "must" stops if the engine hands out coarse outlines only, "any" takes them.
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
        """See the adapter contract: the worker answers with paths, which are drawn here."""
        return [self._drawn(s, a) for s, a in zip(samples, super().segment_samples(samples, images), strict=True)]

    def _drawn(self, sample: Sample, answer: Answer) -> Answer:
        drawn = to_answer(json.loads(answer.raw), sample.height, sample.width)
        return dataclasses.replace(drawn, note=drawn.note or answer.note, raw=answer.raw)


def _worker(name: str, python: str, device: str, timeout: float, deterministic: bool, config: dict[str, str]) -> Worker:
    given: Any = {key: value for key, value in config.items() if value}
    for key in PATHS:
        if key in given and not Path(given[key]).expanduser().exists():
            raise AdapterError(f"{name}: -o {key}={given[key]} does not exist; it has to be a file or folder here")
    # Without an interpreter the environment of that name: its error says how to build it.
    env = "" if python else name
    script = WORKERS / name / "worker.py"
    return Worker(script, python=python, env=env, device=device, timeout=timeout, deterministic=deterministic, **given)
